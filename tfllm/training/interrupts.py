"""Ctrl-C and SIGTERM end a run after the step at hand."""

import contextlib
import signal

from tfllm.core.console import warn


@contextlib.contextmanager
def interrupts(target):
    """Sets `target.stop` at a signal; a second one ends the run at once."""

    def stop(number, frame):
        if target.stop:
            raise KeyboardInterrupt
        target.stop = True
        warn("stopping after this step; once more stops at once")

    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        # Only a program's main thread may set handlers.
        with contextlib.suppress(ValueError):
            before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
