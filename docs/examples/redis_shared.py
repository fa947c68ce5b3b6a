"""Four processes share one limit on a server: `python -m docs.examples.redis_shared [URL]`."""

import multiprocessing
import sys

from throttled import Throttled, exceptions, store

URL = sys.argv[1] if len(sys.argv) > 1 else "redis://localhost:6379/0"


def work(url: str) -> int:
    """One process: 50 calls as fast as they go. Returns how many were admitted."""
    throttle = Throttled(
        using="sliding_window_log", quota="100/m", store=store.RedisStore(server=url)
    )
    return sum(throttle.limit("shared").allowed for _ in range(50))


if __name__ == "__main__":
    try:
        with multiprocessing.get_context("spawn").Pool(4) as pool:
            admitted = pool.map(work, [URL] * 4)
    except exceptions.StoreUnavailableError as error:
        sys.exit(
            f"{error}\nName a server: python -m docs.examples.redis_shared redis://host:port/0"
        )
    print("admitted by each process:", *admitted)
    print(f"together: {sum(admitted)} of 200; the quota allows 100 a minute")
