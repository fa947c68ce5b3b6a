"""A trivial Starlette route, bare or behind the middleware, by the first argument."""

import os
import sys

import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route


async def home(request):
    return PlainTextResponse("hi")


app = Starlette(routes=[Route("/", home)])

if sys.argv[1] == "middleware":
    from throttled.contrib.asgi import RateLimitMiddleware

    app.add_middleware(RateLimitMiddleware, limit="1000000/s", headers="ietf")
elif sys.argv[1] == "no-headers":
    from throttled.contrib.asgi import RateLimitMiddleware

    app.add_middleware(RateLimitMiddleware, limit="1000000/s", headers=None)

uvicorn.run(
    app,
    port=int(sys.argv[2]),
    log_level="warning",
    access_log=False,
    http=os.environ["BENCH_HTTP"],
    loop=os.environ["BENCH_LOOP"],
)
