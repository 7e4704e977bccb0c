"""The thread that talks to the tracker, so that nothing the tracker does can stop or slow a run.

Everything is handed over in order. What fails is said once, and nothing is handed over live after that: the end of a stage tries again,
with everything that is missing. A tracker that does not answer at all is left alone for the rest of the run.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

log = logging.getLogger(__name__)

Job = Callable[[], None]

SILENT_SECONDS = 60.0  # without any answer: opening a database on a busy machine takes ten
WAIT_SECONDS = 300.0  # at most, at the end of a stage, however often the tracker answers
PATIENCE_SECONDS = 10.0  # after which a line says who is waited for
LOOK_SECONDS = 0.5


class Outbox:
    """One thread, begun with the first job."""

    def __init__(self, uri: str) -> None:
        """Take the tracker's URI, for messages."""
        self.uri, self.lost, self._failing = uri, False, False
        self._jobs: SimpleQueue[tuple[str, Job, bool] | threading.Event] = SimpleQueue()
        self._answered = time.monotonic()
        self._thread: threading.Thread | None = None

    def answered(self) -> None:
        """Note that the tracker has answered."""
        self._answered = time.monotonic()

    def post(self, what: str, job: Job, *, again: bool = False) -> None:
        """Hand over a job, which `what` names in errors.

        Args:
            what: such as "protect".
            job: called in the thread, and may raise anything.
            again: whether to try it although an earlier job has failed.
        """
        if self.lost or (self._failing and not again):
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)
            self._thread.start()
        self._jobs.put((what, job, again))

    def _work(self) -> None:
        while True:
            entry = self._jobs.get()
            if isinstance(entry, threading.Event):
                entry.set()
                continue
            what, job, again = entry
            if self._failing and not again:
                continue
            self._failing = False
            try:
                job()
            except Exception as error:
                self.failed(what, error)
            self.answered()

    def failed(self, what: str, error: Exception) -> None:
        """Say that something was not logged, in one line."""
        self._failing = True
        lines = [line for line in str(error).splitlines() if line and not line.startswith("(raised as a result of")]  # SQLAlchemy's advice
        log.error("tracking: %s was not logged, the next start will try again (%s)", what, lines[0] if lines else repr(error))
        log.debug("tracking: %s", what, exc_info=error)

    def wait(self) -> None:
        """Wait until everything is handed over, but no longer than for a tracker that answers."""
        if self.lost or self._thread is None:
            return
        done = threading.Event()
        self._jobs.put(done)
        self.answered()
        begun, said = time.monotonic(), False
        while not done.wait(min(LOOK_SECONDS, PATIENCE_SECONDS)):
            now = time.monotonic()
            if not said and now - self._answered > PATIENCE_SECONDS:
                said = True
                log.warning("tracking: waiting for %s, up to %g s without an answer", self.uri, SILENT_SECONDS)
            if now - self._answered > SILENT_SECONDS or now - begun > WAIT_SECONDS:
                self.lost = True
                log.error(
                    "tracking: %s was waited for %.0f s, and the run goes on without it: the next start logs what is missing",
                    self.uri,
                    now - begun,
                )
                return
