"""One of the processes that share the limits: the client of the documents, in several threads.

    python -m tests.llm.worker STORE PORT PERIOD HEADROOM THREADS SEED

says so when it has its first answer, asks until its standard input ends, then prints what it saw.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections import Counter
from threading import Event, Lock, Thread

from docs.examples.llm_client import Client, RefusedError, limiter, prompts
from throttled.store import RedisStore

#: That the machine is busy is not what is measured.
OPTIONS = {"DECISION_TIMEOUT": 5.0}


class Worker:
    """Threads that ask one thing after the other, and what they have seen so far."""

    def __init__(self, store: str, port: str, period: str, headroom: str) -> None:
        self.seen: Counter[str] = Counter()
        self.errors: list[str] = []
        self.answered = Event()
        self.lock = Lock()
        self._throttle = limiter(RedisStore(store, OPTIONS), float(period), float(headroom))
        self._port = int(port)

    def ask(self, seed: int) -> None:
        """Ask until an error that nobody expects."""
        client = Client(self._port, self._throttle)
        try:
            for prompt, max_tokens in prompts(seed):
                try:
                    tokens = client.complete(prompt, max_tokens)["usage"]["total_tokens"]
                except RefusedError:
                    continue
                with self.lock:
                    self.seen.update(answers=1, tokens=tokens)
                self.answered.set()
        except Exception:
            self.errors.append(traceback.format_exc())
            self.answered.set()


def main(*arguments: str) -> None:
    *where, threads, seed = arguments
    worker = Worker(*where)
    for number in range(int(threads)):
        Thread(target=worker.ask, args=(int(seed) * 1000 + number,), daemon=True).start()
    worker.answered.wait()
    print("answered", flush=True)
    sys.stdin.read()
    with worker.lock:
        print(json.dumps({"errors": worker.errors, **worker.seen}))


if __name__ == "__main__":
    main(*sys.argv[1:])
