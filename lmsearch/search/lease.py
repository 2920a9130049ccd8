"""The lease on a ticket in hand: its renewal, and the clock that notices a trial that makes no step."""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from lmsearch.errors import STALLED
from lmsearch.lm.events import Epoch, Event
from lmsearch.search.trial import ReleasedError
from lmsearch.store import tickets, workers
from lmsearch.store.storage import FencedStorage, LeaseLostError
from lmsearch.store.tables import HeldTicket, Progress, StudyRef

_FROZEN_SECONDS = 5.0  # of a thread that did not run: then nothing did


class Lease:
    """Keeps the lease on one ticket: a thread renews it, the trial asks whether it may continue.

    A worker has one for each trial in hand. `note_request` receives how often the study's workers were asked to stop.
    """

    def __init__(
        self,
        storage: FencedStorage,
        study: StudyRef,
        ticket: HeldTicket,
        stall: float,
        stop_requested: Callable[[], bool],
        note_request: Callable[[int], None],
        stacks: Path | None = None,
    ) -> None:
        self.ticket = ticket
        self._storage = storage
        self._study = study
        self._stall = stall  # seconds without a step
        self._stop_requested = stop_requested
        self._note_request = note_request
        self._stacks = stacks  # the file for the stacks of a process that the C runtime ends; None: standard error
        self._lost = threading.Event()
        self._progress = Progress(epoch=ticket.epoch, step=ticket.step, tokens_per_second=None)
        self._moved = time.monotonic()  # when the trial last made a step
        self._epoch_started = (0, 0, 0.0)  # epoch, tokens, time

    def progress(self, event: Event) -> Progress:
        """Take note of how far the trial is; tokens per second are those since its epoch started here."""
        done = event.number if isinstance(event, Epoch) else event.epoch - 1
        number = event.number if isinstance(event, Epoch) else event.epoch
        now = self._moved = time.monotonic()
        if self._epoch_started[0] != number:
            self._epoch_started = (number, event.tokens, now)
        seconds, tokens = now - self._epoch_started[2], event.tokens - self._epoch_started[1]
        speed = tokens / seconds if seconds > 0 and tokens > 0 else self._progress.tokens_per_second
        self._progress = Progress(epoch=done, step=event.step, tokens_per_second=speed)
        return self._progress

    def check(self) -> None:
        """Raise `LeaseLostError` if another worker holds the ticket, `ReleasedError` if the worker is to stop."""
        if self._lost.is_set():
            raise LeaseLostError("the ticket was ended, or is with another worker now")
        if self._stop_requested():
            raise ReleasedError

    @contextlib.contextmanager
    def renewing(self) -> Iterator[None]:
        """Renew the lease three times in its length, in a thread, until the block ends."""
        ended = threading.Event()
        output = self._open_stacks()
        thread = threading.Thread(target=self._renew, args=(ended, output), name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            faulthandler.cancel_dump_traceback_later()
            if output is not sys.stderr:
                output.close()
                with contextlib.suppress(OSError):
                    Path(output.name).unlink()

    def _renew(self, ended: threading.Event, output: IO[str]) -> None:
        tick = min(self._storage.lease_seconds / 3, self._stall / 4)
        looked = time.monotonic()
        # Where even this thread comes to nothing, since a library holds the interpreter, the C runtime ends it all.
        faulthandler.dump_traceback_later(2 * self._stall, exit=True, file=output)
        while not ended.wait(tick):
            now = time.monotonic()
            if now - looked > tick + _FROZEN_SECONDS or self._storage.waiting:
                self._moved = now  # the process was frozen, or waits for the store
            looked = now
            faulthandler.dump_traceback_later(2 * self._stall, exit=True, file=output)
            if now - self._moved > self._stall:
                self._end_stalled()
            try:
                seen = workers.seen_now(self._storage, self._study, self.ticket.worker)
                held, stop_requests = tickets.send_heartbeat(
                    self._storage, self._study, self.ticket, self._progress, seen
                )
            except Exception:
                continue  # the store is away; the next fenced write finds out how that ended
            self._note_request(stop_requests)
            if not held and not ended.is_set():
                self._lost.set()

    def _open_stacks(self) -> IO[str]:
        if self._stacks is not None:
            with contextlib.suppress(OSError):
                return self._stacks.open("w", encoding="utf-8")
        return sys.stderr

    def _end_stalled(self) -> None:
        """Leave the process, whose trial hangs, with the stack of each thread in the log."""
        print(f"no step for {self._stall:.0f} s; the stack of each thread:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        with contextlib.suppress(Exception):
            self._storage.release(self.ticket, None, None, "stall")
        os._exit(STALLED)
