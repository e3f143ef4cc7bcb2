"""Signals that end a run: SIGINT, SIGTERM, and SIGHUP of a terminal that is closed."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from raycap.cluster.processes import kill_children
from raycap.pipeline import EXIT_INTERRUPTED


@contextmanager
def interruptible(at_kill: Callable[[], None]) -> Iterator[None]:
    """Handle signals within the context, which must be entered in the main thread.

    The first signal raises KeyboardInterrupt. While trials train, the session catches it and waits until they have saved
    checkpoints. The second signal kills all processes that this one has started, calls `at_kill` and exits immediately,
    without cleaning up.
    """
    was_interrupted = False

    def handle(number: int, frame: Any) -> None:
        nonlocal was_interrupted
        if was_interrupted:
            for each in previous:
                signal.signal(each, signal.SIG_IGN)
            kill_children()
            at_kill()
            os._exit(EXIT_INTERRUPTED)
        was_interrupted = True
        raise KeyboardInterrupt

    previous = {
        number: signal.signal(number, handle)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN  # nohup ignores SIGHUP
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
