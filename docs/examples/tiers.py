"""A quota for each customer, and one who upgrades: `python -m docs.examples.tiers`.

Time is moved by hand, so it takes no time. With a real clock leave `clock` and `store` out.
"""

from __future__ import annotations

from dataclasses import dataclass

from throttled import MemoryStore, Throttled
from throttled.testing import FakeClock

#: What a plan allows. All begin with a rule per minute, so that an upgrade keeps its count.
PLANS = {"free": "5/m", "pro": "20/m; 50/h"}


@dataclass
class Customer:
    name: str
    plan: str


CUSTOMERS = {
    "ann": Customer("ann", "free"),
    "bob": Customer("bob", "pro"),
    "eve": Customer("eve", "staff"),
}


def quota_of(key: str) -> str:
    """The quota of a customer: in place of a look into a database. Staff are not asked for."""
    return PLANS[CUSTOMERS[key].plan]


def is_staff(key: str) -> bool:
    return CUSTOMERS[key].plan == "staff"


clock = FakeClock(1_700_000_040)
throttle = Throttled(
    using="sliding_window_log",
    quota=quota_of,
    quota_ttl=30,
    exempt=is_staff,
    store=MemoryStore(clock=clock),
)


def ask(name: str, calls: int) -> None:
    """So many calls of a customer, and what became of them."""
    results = [throttle.limit(name) for _ in range(calls)]
    last = results[-1]
    admitted = sum(result.allowed for result in results)
    rule = "uncounted" if last.source == "exempt" else f"by {last.rule and last.rule.quota}"
    print(f"{name}: {admitted} of {calls} admitted, {rule}", end="")
    print(f", again in {last.state.retry_after:g} s" if last.limited else "")


def main() -> None:
    for name in CUSTOMERS:
        ask(name, 30)

    print("ann upgrades; what she has used stays used, and the answer is kept for 30 s")
    CUSTOMERS["ann"].plan = "pro"
    ask("ann", 1)
    clock.advance(30)
    ask("ann", 30)

    print("an hour later bob works on, until his rule per hour binds")
    clock.advance(3_600)
    for _ in range(4):
        ask("bob", 15)
        clock.advance(60)


if __name__ == "__main__":
    main()
