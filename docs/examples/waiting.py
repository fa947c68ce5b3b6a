"""Waiting in line, and giving up a place in it: `python -m docs.examples.waiting`."""

import asyncio
import time

from throttled.asyncio import Throttled


async def main() -> None:
    # burst=1: one slot every 50 ms, evenly.
    throttle = Throttled(using="gcra", quota="20/s burst 1", timeout=2)
    start = time.monotonic()

    async def work(name: str) -> str:
        result = await throttle.limit("api")
        print(
            f"{name}: {'served' if result.allowed else 'refused'} "
            f"after {(time.monotonic() - start) * 1000:4.0f} ms"
        )
        return name

    tasks = [asyncio.create_task(work(name)) for name in "ABCDEF"]
    await asyncio.sleep(0.01)
    # F, the last in line, gives up: its slot is free again at once.
    tasks.pop().cancel()
    await asyncio.sleep(0.01)
    tasks.append(asyncio.create_task(work("G")))
    served = await asyncio.gather(*tasks)
    print("served in the order of asking:", ", ".join(served))

    # A slot that is farther away than the timeout is not waited for.
    refused = await throttle.limit("api", timeout=0.001)
    print(f"no time to wait: limited={refused.limited}, fits in {refused.state.retry_after:.3f} s")


if __name__ == "__main__":
    asyncio.run(main())
