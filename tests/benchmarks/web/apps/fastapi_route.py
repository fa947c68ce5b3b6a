"""A trivial FastAPI route, bare or behind a limiter, by the first argument."""

import os
import sys
from contextlib import asynccontextmanager

import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.responses import PlainTextResponse

kind = sys.argv[1]
server = os.environ.get("BENCH_SERVER")

app = FastAPI()

if kind == "bare":

    @app.get("/", response_class=PlainTextResponse)
    async def home():
        return "hi"

elif kind in ("dependency", "middleware"):
    from throttled.contrib.fastapi import RateLimit, install

    options = {}
    if server:
        from throttled.asyncio import RedisStore

        options["store"] = RedisStore(server)
    if kind == "middleware":
        install(app, "1000000/second", **options)
        limits = []
    else:
        install(app)
        limits = [Depends(RateLimit("1000000/second", **options))]

    @app.get("/", response_class=PlainTextResponse, dependencies=limits)
    async def home():
        return "hi"

elif kind == "slowapi":
    from slowapi import Limiter, _rate_limit_exceeded_handler
    from slowapi.errors import RateLimitExceeded
    from slowapi.util import get_remote_address

    limiter = Limiter(key_func=get_remote_address, storage_uri=server or "memory://")
    app.state.limiter = limiter
    app.add_exception_handler(RateLimitExceeded, _rate_limit_exceeded_handler)

    @app.get("/", response_class=PlainTextResponse)
    @limiter.limit("1000000/second")
    async def home(request: Request):
        return "hi"

elif kind == "fastapi-limiter":
    if server:  # its releases up to 0.1.6 keep counts in Redis, those since in a process
        import redis.asyncio
        from fastapi_limiter import FastAPILimiter
        from fastapi_limiter.depends import RateLimiter

        async def connect(app):
            await FastAPILimiter.init(redis.asyncio.from_url(server))
            yield

        app.router.lifespan_context = asynccontextmanager(connect)

        limit = RateLimiter(times=1_000_000, seconds=1)
    else:
        from fastapi_limiter.depends import RateLimiter
        from pyrate_limiter import Duration, Limiter, Rate

        limit = RateLimiter(limiter=Limiter(Rate(1_000_000, Duration.SECOND)))

    @app.get("/", response_class=PlainTextResponse, dependencies=[Depends(limit)])
    async def home():
        return "hi"


uvicorn.run(
    app,
    port=int(sys.argv[2]),
    log_level="warning",
    access_log=False,
    http=os.environ["BENCH_HTTP"],
    loop=os.environ["BENCH_LOOP"],
)
