"""An API whose customers have tiers, by API key: `python -m docs.examples.fastapi_tiers`.

That asks the application in this process, with time moved by hand. To serve it:
`uvicorn docs.examples.fastapi_tiers:app`
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import httpx
from fastapi import Depends, FastAPI, Header, HTTPException

from throttled import MemoryStore
from throttled.contrib.fastapi import RateLimit, install
from throttled.contrib.identity import hashed
from throttled.contrib.keys import by_header
from throttled.testing import FakeClock

#: What a plan allows.
PLANS = {"free": "3/minute", "pro": "10/minute; 100/hour"}
#: The plans of customers by the digests of their API keys, in place of a database: as the limit
#: counts by digests, the keys themselves are nowhere.
CUSTOMERS = {hashed("key-of-ann"): "free", hashed("key-of-bob"): "pro"}


def quota_of(digest: str) -> str:
    """The quota of a customer."""
    return PLANS[CUSTOMERS[digest]]


def customer(x_api_key: Annotated[str, Header()]) -> str:
    """The digest of a customer's key; nobody else gets any further."""
    digest = hashed(x_api_key)
    if digest not in CUSTOMERS:
        raise HTTPException(401, "No such key.")
    return digest


def failed(response: Any) -> bool:
    return bool(response.status_code == 401)


def make_app(store: MemoryStore | None = None) -> FastAPI:
    tier = RateLimit(quota_of, key=by_header("X-API-Key"), scope="api", store=store)
    # The customer is known before his limit is asked.
    app = FastAPI(title="Tiers", dependencies=[Depends(customer), Depends(tier)])
    # Who guesses keys is stopped by his address; what succeeds does not count.
    install(app, RateLimit("5/minute", count_when=failed, scope="guesses", store=store))

    @app.get("/items/{item}")
    async def read(item: int) -> dict[str, int]:
        return {"item": item}

    return app


app = make_app()


async def ask(client: httpx.AsyncClient, key: str, calls: int) -> None:
    """So many calls with an API key, and what became of them."""
    answers = [
        await client.get(f"/items/{item}", headers={"X-API-Key": key}) for item in range(calls)
    ]
    statuses = [answer.status_code for answer in answers]
    told = ", ".join([f"{statuses.count(each)} x {each}" for each in sorted(set(statuses))])
    wait = answers[-1].headers.get("Retry-After")
    print(f"{key}: {told}" + (f", again in {wait} s" if wait else ""))


async def main() -> None:
    clock = FakeClock(1_700_000_000)
    transport = httpx.ASGITransport(make_app(MemoryStore(clock=clock)), client=("203.0.113.5", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
        await ask(client, "key-of-ann", 5)
        await ask(client, "key-of-bob", 15)
        answer = await client.get("/items/1", headers={"X-API-Key": "key-of-ann"})
        print(answer.status_code, answer.json()["detail"])

        clock.advance(20)
        print("20 seconds later")
        await ask(client, "key-of-ann", 2)

        print("somebody guesses")
        await ask(client, "key-of-eve", 8)


if __name__ == "__main__":
    asyncio.run(main())
