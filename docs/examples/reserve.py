"""Costs that are known only afterwards: `python -m docs.examples.reserve`.

Reports are rendered for several tenants. How much processor time one takes is seen when it is done,
so each reserves an estimate and settles what it came to. A tenant may use 2,000 ms in any second
and have four reports a second.
"""

from __future__ import annotations

import asyncio
import random
import time

from throttled.asyncio import MemoryStore, Rule, Throttled
from throttled.exceptions import LimitedError

#: Milliseconds of work that a report is taken to need.
ESTIMATE = 900

throttle = Throttled(
    using="sliding_window_log",
    quota=[Rule("4/s", cost=1, name="reports"), Rule("2_000/s", name="work")],
    store=MemoryStore(),
    timeout=2,
)


async def render(milliseconds: int) -> int:
    """In place of the real work: a tenth of it. Some reports cannot be rendered."""
    await asyncio.sleep(milliseconds / 10_000)
    if milliseconds > 1_100:
        raise RuntimeError("too large")
    return milliseconds


async def report(tenant: str, milliseconds: int) -> str:
    try:
        # A report that fails, or is cancelled, gives everything back.
        async with throttle.reserve(tenant, cost=ESTIMATE) as reservation:
            used = await render(milliseconds)
            await reservation.settle(used)
    except LimitedError as error:
        state = error.rate_limit_result.state if error.rate_limit_result else None
        return f"refused: its turn is in {state.retry_after:.1f} s" if state else "refused"
    except RuntimeError as error:
        return f"failed: {error}"
    return f"done, {used} ms"


async def main() -> None:
    sizes = random.Random(7)
    start = time.monotonic()

    async def run(tenant: str, number: int) -> str:
        outcome = await report(tenant, sizes.randint(200, 1_300))
        print(f"{time.monotonic() - start:5.2f} s  {tenant} {number:2}: {outcome}")
        return outcome

    # Acme asks for more than it can have within the timeout; Initech does not notice.
    outcomes = await asyncio.gather(
        *[run("acme", number) for number in range(1, 11)],
        *[run("initech", number) for number in range(1, 3)],
    )
    forecast = await throttle.forecast("acme")
    done = sum(outcome.startswith("done") for outcome in outcomes)
    print(f"{done} of {len(outcomes)} done; acme can spend {forecast.spendable_now} ms now")


if __name__ == "__main__":
    asyncio.run(main())
