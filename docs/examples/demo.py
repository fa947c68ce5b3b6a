"""What the library does, in a few seconds and without a server: `make demo`.

Five parts: the quick start, six algorithms on the same minute of traffic, waiting in line, two
rules with costs that are settled afterwards, and a real HTTP server. Each compares what was
admitted with what the quota allows, worked out here without the library; the exit code is 1 if they
differ.
"""

from __future__ import annotations

import os
import sys
import time
from http.client import HTTPConnection
from itertools import pairwise
from math import floor
from threading import Thread
from typing import TYPE_CHECKING, Any

from docs.examples import quick_start
from docs.examples.http_server import LimitedServer, get
from throttled import (
    MemoryStore,
    Quota,
    RateLimiterType,
    RateLimitResult,
    Rule,
    Throttled,
    exceptions,
    utils,
)
from throttled.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from throttled.reservation import Reservation

COLOUR = sys.stdout.isatty() and "NO_COLOR" not in os.environ
BARS = " ▁▂▃▄▅▆▇█"
#: The store counts whole µs, our own stamps do not.
MICROSECOND = 1e-6

failures: list[str] = []


# --- on the terminal -----------------------------------------------------------------------------


def paint(text: str, code: str) -> str:
    return f"\033[{code}m{text}\033[0m" if COLOUR else text


def green(text: str) -> str:
    return paint(text, "32")


def red(text: str) -> str:
    return paint(text, "31")


def dim(text: str) -> str:
    return paint(text, "2")


def heading(number: int, text: str) -> None:
    print(paint(f"\n{number}. {text}", "1"))
    print(dim("─" * 79))


def check(holds: bool, text: str) -> None:
    """Print a comparison with its verdict, and remember a bad one."""
    print(f"{green('✓') if holds else red('✗')} {text}")
    if not holds:
        failures.append(text)


def chart(counts: Iterable[int], top: int) -> str:
    """One line of bars; anything above 0 is seen."""
    return "".join(BARS[min(8, -(-count * 8 // top))] for count in counts)


# --- what a quota allows, without the library ----------------------------------------------------


#: Before a decision, after it, and whether it was admitted.
Stamp = tuple[float, float, bool]


class Watched(Throttled):
    """A throttle with a stamp before and after each decision, which lies in between."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.seen: dict[str, list[Stamp]] = {}

    def limit(self, key: str | None = None, cost: int = 1, *waiting: Any) -> RateLimitResult:
        before = time.monotonic()
        result = super().limit(key, cost, *waiting)
        self.seen.setdefault(key or "", []).append((before, time.monotonic(), result.allowed))
        return result


def allowed(quota: Quota, seen: Sequence[Stamp], spilt: float = 0.0) -> range:
    """What a bucket allows between the first decision and the last, which was a refusal.

    Burst + rate x time - what was spilt, in whole tokens: a refusal says that less than one is
    left. More than one number only if a token was due within the microseconds of a decision.
    """
    first = min(before for before, _, _ in seen), min(after for _, after, _ in seen)
    last = seen[-1]
    rate = quota.limit * 1e6 / quota.period_us
    least = quota.burst + rate * (last[0] - first[1] - MICROSECOND) - spilt
    most = quota.burst + rate * (last[1] - first[0] + MICROSECOND) - spilt
    return range(floor(least), floor(most) + 1)


def spilt(quota: Quota, seen: Sequence[Stamp]) -> float:
    """The tokens that came while the bucket was full: those of a slow start, if any."""
    rate = quota.limit * 1e6 / quota.period_us
    tokens, lost, at = float(quota.burst), 0.0, None
    for instant in sorted(after for _, after, passed in seen if passed):
        tokens += rate * (instant - (instant if at is None else at))
        lost += max(0.0, tokens - quota.burst)
        tokens, at = min(tokens, quota.burst) - 1, instant
    return lost


def shown(numbers: range) -> str:
    low, high = numbers[0], numbers[-1]
    return f"{low:,}" if low == high else f"{low:,} or {high:,}"


# --- 1 -------------------------------------------------------------------------------------------


def show_quick_start() -> None:
    heading(1, "The quick start: 100,000 calls on 1,000 per second, burst 1,000, in memory")
    throttle = quick_start.throttle
    watched = Watched(quota=throttle.quota, store=throttle.store)
    # The clock starts with a call of cost 100, so that the bucket cannot run over before the rest.
    watched.limit("user:42", cost=100)
    refused = sum(utils.Benchmark().serial(quick_start.call_api, 100_000))
    admitted = 100 + 100_000 - refused
    while watched.limit("user:42").allowed:
        admitted += 1
    numbers = allowed(throttle.quota, watched.seen["user:42"])
    seconds = watched.seen["user:42"][-1][0] - watched.seen["user:42"][0][1]
    check(
        admitted in numbers,
        f"admitted {admitted:,}; 1,000 + 1,000/s x {seconds:.4f} s allows {shown(numbers)}",
    )


# --- 2 -------------------------------------------------------------------------------------------

SECONDS = 60
PERIOD = 10
LIMIT = 50
#: Requests offered in each second of the minute.
OFFERED = [2] * 9 + [60, 60] + [4] * 14 + [12] * 10 + [0] * 10 + [60] + [5] * 14


def traffic() -> Iterator[float]:
    """The instants of the requests, in seconds: evenly within each second."""
    for second, count in enumerate(OFFERED):
        for number in range(count):
            yield second + (number + 0.5) / count


def simulate(algorithm: str) -> tuple[list[float], list[int]]:
    """The instants admitted, and how many were refused in each second."""
    clock = FakeClock()
    start = clock.now  # on a boundary of the windows, which are aligned to the epoch
    throttle = Throttled(
        using=algorithm, quota=f"{LIMIT}/{PERIOD}s", store=MemoryStore(clock=clock)
    )
    admitted: list[float] = []
    refused = [0] * SECONDS
    for instant in traffic():
        clock.set(start + instant)
        if throttle.limit("client").allowed:
            admitted.append(instant)
        else:
            refused[int(instant)] += 1
    return admitted, refused


def most_in_any_period(instants: Sequence[float]) -> int:
    """The largest number of them within any stretch as long as the period."""
    most = start = 0
    for end, instant in enumerate(instants):
        while instants[start] <= instant - PERIOD + MICROSECOND:
            start += 1
        most = max(most, end - start + 1)
    return most


def show_algorithms() -> None:
    heading(2, f"Six algorithms, one minute of traffic, {LIMIT} per {PERIOD} s (burst {LIMIT})")
    names = RateLimiterType.choice()
    outcomes = {name: simulate(name) for name in names}
    # Two full windows may meet, a full bucket refills while it empties; only the log is strict.
    bounds = dict.fromkeys(names, 2 * LIMIT) | {"sliding_window_log": LIMIT}

    most = f"most in any {PERIOD} s"
    print(f"{'':19}{'offered':>9}{'admitted':>10}{'refused':>9}{most:>19}{'bound':>7}")
    for name, (admitted, refused) in outcomes.items():
        print(
            f"{name:19}{sum(OFFERED):>9}{green(f'{len(admitted):>10}')}"
            f"{red(f'{sum(refused):>9}')}{most_in_any_period(admitted):>19}{bounds[name]:>7}"
        )

    top = max(OFFERED)
    ticks = "".join(f"{f'{second} s':<10}" for second in range(0, SECONDS, 10))
    print(f"\n{dim('per second')}         {dim(ticks.rstrip())}")
    print(f"{'offered':19}{chart(OFFERED, top).rstrip()}")
    for name, (admitted, refused) in outcomes.items():
        passed = [0] * SECONDS
        for instant in admitted:
            passed[int(instant)] += 1
        print(f"{name:19}{green(chart(passed, top).rstrip())}")
        print(f"{dim('  refused'.ljust(19))}{red(chart(refused, top).rstrip())}")
    print(dim(f"█ is {top} a second\n"))

    for name, (admitted, refused) in outcomes.items():
        if len(admitted) + sum(refused) != sum(OFFERED):
            failures.append(f"{name}: admitted and refused do not add up")
    windows = [sum(OFFERED[start : start + PERIOD]) for start in range(0, SECONDS, PERIOD)]
    check(
        len(outcomes["fixed_window"][0]) == sum(min(LIMIT, offered) for offered in windows),
        f"the fixed window admits what is offered in each window, up to {LIMIT}",
    )
    check(
        all(most_in_any_period(outcomes[name][0]) <= bounds[name] for name in names),
        "none admits more than its bound in any 10 s; the log never passes the limit",
    )
    check(
        outcomes["token_bucket"] == outcomes["leaking_bucket"] == outcomes["gcra"],
        "the three buckets agree on every request: one rule under three names",
    )


# --- 3 -------------------------------------------------------------------------------------------


def show_waiting() -> None:
    rate, callers, turns = 50, "ABCD", 12
    heading(3, f"Waiting: {len(callers)} threads, {turns} calls each, {rate} per second, burst 1")
    throttle = Throttled(using="gcra", quota=f"{rate}/s burst 1", store=MemoryStore(), timeout=30)
    served: list[tuple[float, str]] = []
    refused: list[str] = []

    def work(caller: str) -> None:
        for _ in range(turns):
            if throttle.limit("line").limited:
                refused.append(caller)
            else:
                served.append((time.monotonic(), caller))

    threads = [Thread(target=work, args=(caller,)) for caller in callers]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    served.sort()
    instants = [instant - start for instant, _ in served]
    if refused:
        check(False, f"refused although there was time to wait: {len(refused)}")
        return

    columns = 60
    ideal = (len(instants) - 1) / rate
    scale = (columns - 1) / max(ideal, instants[-1])
    for caller in callers:
        line = [" "] * columns
        for instant, (_, who) in zip(instants, served, strict=True):
            if who == caller:
                line[int(instant * scale)] = "●"
        print(f"{f'thread {caller}':19}{green(''.join(line).rstrip())}")
    print(f"{'':19}{dim('└' + '─' * (columns - 2) + '┘')}")
    print(f"{'':19}{dim('0 s' + f'{instants[-1]:.3f} s'.rjust(columns - 3))}")
    print(f"order of service   {''.join(caller for _, caller in served)}\n")
    gaps = sorted(after - before for before, after in pairwise(instants))
    print(
        f"  between two calls: median {gaps[len(gaps) // 2] * 1e3:.1f} ms, "
        f"from {gaps[0] * 1e3:.1f} to {gaps[-1] * 1e3:.1f} (the quota says {1e3 / rate:.1f})"
    )
    check(
        all(instant >= n / rate - MICROSECOND for n, instant in enumerate(instants)),
        f"{len(served)} calls in {instants[-1]:.3f} s, none before its slot; "
        f"the quota allows them in {ideal:.3f} s",
    )


# --- 4 -------------------------------------------------------------------------------------------

#: Jobs offered in each of thirty seconds, evenly within each.
JOBS = [2] * 5 + [10] * 12 + [5] * 13
ESTIMATE = 1_000
COSTS = (200, 900, 400, 1_000, 300, 1_400)
MOST_JOBS, MOST_TOKENS = 5, 20_000
#: In tenths of a second: a second, the period of the tokens, and until a job's cost is known.
SECOND, TENTHS, LASTING = 10, 10 * PERIOD, 20


def jobs() -> list[tuple[int, int]]:
    """When each job comes, in tenths of a second, and what it will really cost."""
    instants = [
        second * SECOND + n * SECOND // count
        for second, count in enumerate(JOBS)
        for n in range(count)
    ]
    return [(instant, COSTS[n % len(COSTS)]) for n, instant in enumerate(instants)]


def reserve_and_settle() -> list[int]:
    """The instants of the jobs that the library admits."""
    clock = FakeClock()
    start = clock.now
    throttle = Throttled(
        using="sliding_window_log",
        quota=[
            Rule(f"{MOST_JOBS}/s", cost=1, name="jobs"),
            Rule(f"{MOST_TOKENS}/{PERIOD}s", name="tokens"),
        ],
        store=MemoryStore(clock=clock),
    )
    admitted: list[int] = []
    at_work: list[tuple[int, int, Reservation]] = []
    for instant, cost in jobs():
        while at_work and at_work[0][0] <= instant:
            done, used, reservation = at_work.pop(0)
            clock.set(start + done / SECOND)
            reservation.settle(used)
        clock.set(start + instant / SECOND)
        try:
            reservation = throttle.reserve("client", cost=ESTIMATE)
        except exceptions.LimitedError:
            continue
        at_work.append((instant + LASTING, cost, reservation))
        admitted.append(instant)
    return admitted


def added_up() -> tuple[list[int], int, int]:
    """The same by adding up both rules for each job; and how many each rule has refused."""
    admitted: list[tuple[int, int]] = []
    by_jobs = by_tokens = 0
    for now, cost in jobs():
        taken = 0
        for instant, used in admitted:
            known = instant + LASTING <= now
            if instant > now - TENTHS:
                taken += min(used, ESTIMATE) if known else ESTIMATE
            if known and instant + LASTING > now - TENTHS:
                taken += max(used - ESTIMATE, 0)  # the excess counts from when it is charged
        if sum(instant > now - SECOND for instant, _ in admitted) == MOST_JOBS:
            by_jobs += 1
        elif taken + ESTIMATE > MOST_TOKENS:
            by_tokens += 1
        else:
            admitted.append((now, cost))
    return [instant for instant, _ in admitted], by_jobs, by_tokens


def show_rules() -> None:
    heading(4, f"Two rules: {MOST_JOBS} jobs per s and {MOST_TOKENS:,} tokens per {PERIOD} s")
    admitted = reserve_and_settle()
    expected, by_jobs, by_tokens = added_up()
    costs = dict(jobs())
    used = sum(costs[instant] for instant in admitted)
    passed = [0] * len(JOBS)
    for instant in admitted:
        passed[instant // SECOND] += 1
    print(f"{'offered':19}{chart(JOBS, max(JOBS))}  {sum(JOBS)} jobs")
    print(f"{'admitted':19}{green(chart(passed, max(JOBS)))}  {len(admitted)} jobs")
    print(f"\n  refused: {by_jobs} by the rule for jobs, {by_tokens} by the rule for tokens")
    print(f"  reserved {len(admitted) * ESTIMATE:,} tokens, settled as {used:,} two seconds later")
    check(
        admitted == expected and by_jobs > 0 < by_tokens,
        "each job got the answer that adding up both rules by hand gives",
    )


# --- 5 -------------------------------------------------------------------------------------------


def show_http() -> None:
    quota = Quota.parse("5/s burst 20")
    heading(5, "HTTP: a real server on localhost, 5 per second and client, burst 20")
    watched = Watched(quota=quota, store=MemoryStore())
    answers: dict[str, list[int]] = {"ann": [], "bob": [], "polite": []}
    pauses: list[int] = []
    early: list[int] = []
    with LimitedServer(watched) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        deadline = time.monotonic() + 2.5

        def hammer(client: str) -> None:
            connection = HTTPConnection("127.0.0.1", server.server_port)
            while time.monotonic() < deadline:
                answers[client].append(get(connection, client)[0])
                time.sleep(0.005)
            connection.close()

        def ask_politely(client: str) -> None:
            connection = HTTPConnection("127.0.0.1", server.server_port)
            waited = False
            while time.monotonic() < deadline:
                status, retry_after = get(connection, client)
                answers[client].append(status)
                if status == 429:
                    if waited:
                        early.append(retry_after)
                    pauses.append(retry_after)
                    time.sleep(retry_after)
                waited = status == 429
            connection.close()

        threads = [
            *(Thread(target=hammer, args=("ann",)) for _ in range(4)),
            *(Thread(target=hammer, args=("bob",)) for _ in range(2)),
            Thread(target=ask_politely, args=("polite",)),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # Until each has been refused once more: from there the arithmetic is exact.
        connection = HTTPConnection("127.0.0.1", server.server_port)
        for client, statuses in answers.items():
            statuses.append(get(connection, client)[0])
            while statuses[-1] != 429:
                statuses.append(get(connection, client)[0])
        connection.close()
        server.shutdown()

    threads_of = {"ann": 4, "bob": 2, "polite": 1}
    print(
        f"{'client':10}{'threads':>8}{'requests':>10}{'200':>8}{'429':>8}   what the quota allows"
    )
    for client, statuses in answers.items():
        seen = watched.seen[client]
        numbers = allowed(quota, seen, spilt(quota, seen))
        passed = statuses.count(200)
        agree = passed in numbers and passed + statuses.count(429) == len(statuses) == len(seen)
        seconds = seen[-1][0] - seen[0][1]
        print(
            f"{client:10}{threads_of[client]:>8}{len(statuses):>10}{green(f'{passed:>8}')}"
            f"{red(f'{statuses.count(429):>8}')}   20 + 5/s x {seconds:.2f} s = {shown(numbers)}"
            f" {green('✓') if agree else red('✗')}"
        )
        if not agree:
            failures.append(f"{client}: {passed} admitted, allowed {shown(numbers)}")
    print()
    check(
        bool(pauses) and not early,
        f"'polite' slept its Retry-After {len(pauses)} times and was served on each return",
    )


def main() -> int:
    for stream in (sys.stdout, sys.stderr):
        # A terminal without these characters shows question marks rather than a traceback.
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    begin = time.monotonic()
    show_quick_start()
    show_algorithms()
    show_waiting()
    show_rules()
    show_http()
    print(dim(f"\n{'─' * 79}"))
    if failures:
        print(red(f"{len(failures)} numbers do not agree:"))
        for failure in failures:
            print(f"  {failure}")
        return 1
    print(
        f"Everything agrees, in {time.monotonic() - begin:.1f} s. Next: README.md, docs/examples/"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
