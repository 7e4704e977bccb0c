"""The display while work goes on: one live line on a terminal, or a plain line every ten seconds elsewhere.

Work that is followed says in one line how far it is. Whatever waits without such a line is shown with the time it has taken.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Protocol, TextIO

from tqdm import tqdm

REFRESH_SECONDS = 0.5
PLAIN_SECONDS = 10.0  # at most this long without a line


class Followed(Protocol):
    """Work that says how far it is."""

    def line(self) -> str:
        """Return the state of the work in one line; nothing once it has ended."""

    def share(self) -> float | None:
        """Return how much of it is done, from 0 to 1; None where that is not known."""


_stage = ""  # the beginning of a live line
_followed: list[weakref.ReferenceType[Followed]] = []


def follow(work: Followed) -> None:
    """Show the state of some work until it has ended, or is forgotten. The latest is shown."""
    _followed[:] = [other for other in _followed if (found := other()) is not None and found.line()] + [weakref.ref(work)]


class Doing:
    """Something that takes a while, and does not say how long."""

    def __init__(self, text: str) -> None:
        """Begin now."""
        self.text, self.begun = text, time.monotonic()

    def line(self) -> str:
        """Return the text, with the time so far."""
        return self.text and f"{self.text} ({duration(time.monotonic() - self.begun)} so far)"

    def share(self) -> None:
        """Return None: nobody knows."""


@contextlib.contextmanager
def doing(text: str) -> Iterator[None]:
    """Show, where nothing in the block says more, what takes its time: `starting 2 workers`, say."""
    work = Doing(text)
    follow(work)
    try:
        yield
    finally:
        work.text = ""


@contextlib.contextmanager
def stage(name: str, number: int, total: int) -> Iterator[None]:
    """Show that the block is one of so many stages."""
    global _stage
    _stage = f"[{number}/{total}] "
    try:
        with doing(name):
            yield
    finally:
        _stage = ""


class Display(logging.StreamHandler[TextIO]):
    """Log lines, and the state of the followed work: on a terminal one live line below them, elsewhere a line now and then."""

    def __init__(self, stream: TextIO, live: bool) -> None:
        """Show one live line, or plain ones."""
        super().__init__(stream)
        self.live, self.told = live, time.monotonic()
        tqdm.set_lock(threading.RLock())  # the usual one is of several processes
        self.bar = tqdm(total=1, bar_format="{desc}", file=stream, disable=not live, leave=False, dynamic_ncols=True, position=0)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a log line above the live one."""
        with tqdm.external_write_mode(self.stream):
            super().emit(record)
        self.told = time.monotonic()

    def tick(self) -> None:
        """Bring the live line up to date, or write a plain one if it is time."""
        work, text = _current()
        if not self.live:
            if text and time.monotonic() - self.told >= PLAIN_SECONDS:
                self.handle(logging.makeLogRecord({"msg": "%s", "args": (text,), "levelno": logging.INFO, "levelname": "INFO"}))
            return
        share = work.share() if work else None
        self.bar.n = share or 0
        self.bar.bar_format = (_stage if text else "") + ("" if share is None else "|{bar:20}| ") + "{desc}"
        self.bar.set_description_str(text)


def _current() -> tuple[Followed | None, str]:
    """Return the latest work that has not ended, and its line."""
    for reference in reversed(_followed):
        work = reference()
        if work is not None and (text := work.line()):
            return work, text
    return None, ""


@contextlib.contextmanager
def showing(stream: TextIO | None = None) -> Iterator[None]:
    """Write log lines to standard error, nothing of the libraries but their warnings, and in the block progress.

    With the environment variable SEP_DEBUG set, they have what is said for debugging as well, such as every epoch.
    """
    stream = stream or sys.stderr
    display, ended = Display(stream, stream.isatty()), threading.Event()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", handlers=[display], force=True)
    for ours in ("cluster", "pipeline", "sep"):
        logging.getLogger(ours).setLevel(logging.DEBUG if os.environ.get("SEP_DEBUG") else logging.NOTSET)
    thread = threading.Thread(target=_refresh, args=(display, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        display.bar.close()


def _refresh(display: Display, ended: threading.Event) -> None:
    while not ended.wait(REFRESH_SECONDS):
        display.tick()


def duration(seconds: float) -> str:
    """Return a duration such as `45 s`, `12 min`, `3.4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
