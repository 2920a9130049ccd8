"""The signals by which a person or a cluster asks a process to stop."""

import signal
import threading
from collections.abc import Callable
from types import FrameType

SLURMS = signal.SIGUSR1  # what Slurm sends before it ends a job, to each process of it


def take_back() -> None:
    """Install Python's handlers again, which a library of C++ has replaced; nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, SLURMS):
        handler = signal.getsignal(number)
        if handler is not None:
            signal.signal(number, handler)


def listen(act: Callable[[int], None]) -> Callable[[], None]:
    """Call `act` with the number of each signal that asks to stop; return what restores the handlers before.

    These are SIGINT, SIGTERM, `SLURMS`, and SIGHUP except under nohup, which ignores it.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        act(number)

    numbers = [signal.SIGINT, signal.SIGTERM, SLURMS]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in numbers}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)  # what started this process may have blocked them, as Ray does

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    return restore
