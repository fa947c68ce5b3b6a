"""One limit, asked 100,000 times as fast as Python can: `python -m docs.examples.quick_start`."""

from throttled import Throttled, store, utils

throttle = Throttled(
    using="token_bucket",
    quota="1000/s burst 1000",
    store=store.MemoryStore(),
)


def call_api() -> bool:
    return throttle.limit("user:42", cost=1).limited


if __name__ == "__main__":
    refused = sum(utils.Benchmark().serial(call_api, 100_000))
    print(f"refused: {refused} of 100000")
