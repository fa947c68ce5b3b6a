"""The quick start, awaited: `python -m docs.examples.async_quick_start`."""

import asyncio

from throttled.asyncio import Throttled, store, utils

throttle = Throttled(
    using="token_bucket",
    quota="1000/s burst 1000",
    store=store.MemoryStore(),
)


async def call_api() -> bool:
    result = await throttle.limit("user:42", cost=1)
    return result.limited


async def main() -> None:
    refused = sum(await utils.Benchmark().async_serial(call_api, 100_000))
    print(f"refused: {refused} of 100000")


if __name__ == "__main__":
    asyncio.run(main())
