"""SIGTERM, as clusters send it before they take a machine back: noted, so that the running step ends and is kept."""

import contextlib
import signal
import threading

EXIT_CODE = 128 + signal.SIGTERM  # 143: what a shell says of a process that SIGTERM has ended


@contextlib.contextmanager
def noted():
    """Gives a list, into which a SIGTERM is put in place of ending this process.

    Not in another thread than the main one, which alone can: the list stays empty then.
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
