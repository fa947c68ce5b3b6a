"""Looking at a policy file now and then, in a thread.

The thread looks at the file from outside, which is cheap, and reads it when it looks different and
goes on looking the same for a moment: a file that is still being written is left alone. It does not
keep alive what it watches for, and ends with it.
"""

from __future__ import annotations

import logging
import os
import signal as signals
from collections.abc import Callable
from math import isfinite
from queue import Empty, SimpleQueue
from threading import Thread, current_thread, main_thread
from types import FrameType
from typing import Any, Final
from weakref import ref

from throttled._text import shown
from throttled.exceptions import DataError, SetUpError

logger = logging.getLogger("throttled")

#: Seconds for which a file has to look the same before it is read.
SETTLED: Final = 0.05


def checked_every(every: object) -> float:
    """Seconds between two looks; `DataError` for what is none."""
    if (
        not isinstance(every, int | float)
        or isinstance(every, bool)
        or not isfinite(every)
        or every <= 0
    ):
        raise DataError(f"Invalid every: {shown(every)}, must be seconds above 0.")
    return min(float(every), 1e6)  # longer than a thread can sleep at once


class Watch:
    """A thread that calls `look(asked)` every so many seconds, and when asked to.

    `look` says whether to look again soon. It is the method of an object that is referred to
    weakly.
    """

    def __init__(self, owner: Any, look: Callable[[Any, bool], bool], every: float) -> None:
        #: Its `put` may be called from a signal handler, whatever was interrupted.
        self._words: SimpleQueue[bool] = SimpleQueue()
        self._process = os.getpid()
        self._restore: Callable[[], None] | None = None
        self._thread = Thread(
            target=_run,
            args=(ref(owner), look, every, self._words),
            name="throttled-policies",
            daemon=True,
        )

    def start(self) -> None:
        """Start looking."""
        self._thread.start()

    def ask(self) -> None:
        """Let it look now."""
        self._words.put(True)

    def hear(self, signal: int) -> None:
        """Let it look whenever this process gets a signal.

        Raises `SetUpError` outside the main thread, and `DataError` for what is no signal that can
        be heard.
        """
        if isinstance(signal, bool) or not isinstance(signal, int):
            raise DataError(
                f"Invalid signal: {shown(signal)}, must be a signal such as signal.SIGHUP."
            )
        if current_thread() is not main_thread():
            raise SetUpError(
                "Signals can be heard in the main thread only: call watch(signal=...) there, or "
                "touch() from a signal handler of yours."
            )

        words = self._words

        def heard(number: int, frame: FrameType | None) -> None:
            words.put(True)

        try:
            before: Any = signals.signal(signal, heard)
        except (OSError, ValueError):
            raise DataError(
                f"Invalid signal: {shown(signal)}, must be one that a program can catch, such as "
                f"signal.SIGHUP."
            ) from None

        def restore() -> None:
            try:
                # Somebody who came later keeps it.
                if signals.getsignal(signal) is heard:
                    signals.signal(signal, signals.SIG_DFL if before is None else before)
            except ValueError:
                pass  # not in the main thread: nobody listens to what it says any more

        self._restore = restore

    def stop(self) -> None:
        """Stop looking, after the look that is under way."""
        if self._restore is not None:
            self._restore()
            self._restore = None
        self._words.put(False)
        started = self._thread.ident is not None
        # In a forked child there is no thread to wait for.
        if started and self._process == os.getpid() and self._thread is not current_thread():
            self._thread.join()


def _run(
    owner: ref[Any], look: Callable[[Any, bool], bool], every: float, words: SimpleQueue[bool]
) -> None:
    wait = every
    while True:
        try:
            asked = words.get(timeout=wait)
            if not asked:
                return
        except Empty:
            asked = False
        of = owner()
        if of is None:
            return
        try:
            wait = min(every, SETTLED) if look(of, asked) else every
        except Exception:
            logger.exception("The policy file could not be looked at")
            wait = every
        del of
