"""Records SIGTERM, which clusters send before preempting a job, so that training can finish the current step and save it."""

import contextlib
import signal
import threading

EXIT_CODE = 128 + signal.SIGTERM  # 143, a shell's exit status for a process ended by SIGTERM


@contextlib.contextmanager
def noted():
    """Yield a list to which each SIGTERM is appended instead of ending this process.

    Signal handlers can be set only in the main thread; in any other thread the list stays empty.
    """
    signals = []
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))
    try:
        yield signals
    finally:
        signal.signal(signal.SIGTERM, before)
