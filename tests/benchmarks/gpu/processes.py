"""Run a program for a limited time, show what it says, and let nothing of it outlive its end."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from subprocess import STDOUT, Popen, TimeoutExpired
from typing import NamedTuple

from tests import ROOT

GRACE = 20.0  # seconds: what begun before the time was up may still end by itself, such as an epoch
LAST_WORDS = 10.0  # seconds between an interruption and the end
LOOK = 0.2  # seconds between two looks at the program
DELIVER = 10.0  # seconds between two deliveries of what there is so far
PR_SET_PDEATHSIG = 1


class Ended(NamedTuple):
    """The end of a program: its exit code, how long it ran, whether it had to be interrupted, and what it said."""

    code: int
    seconds: float
    interrupted: bool
    said: bytes


def run(command: Sequence[str], seconds: float, log: Path, environment: Mapping[str, str], deliver: Callable[[], None]) -> Ended:
    """Run a program in the project's folder; when its time and `GRACE` have passed, interrupt it, and then kill it.

    Args:
        command: the program and its arguments.
        seconds: that it may take.
        log: file to which everything it says is added. It is shown as well.
        environment: its variables.
        deliver: called every `DELIVER` seconds, for this process may be killed at any time.

    Raises:
        KeyboardInterrupt: this process was interrupted. The program is, too.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as written, log.open("rb") as read:
        before = read.seek(0, os.SEEK_END)
        begun = time.monotonic()
        # A file, not a pipe: what the program itself starts may hold a pipe open after its end.
        process = Popen(command, cwd=ROOT, env=environment, stdout=written, stderr=STDOUT, process_group=0, preexec_fn=_end_with_parent)
        try:
            interrupted = _wait(process, begun + seconds + GRACE, read, deliver)
        except KeyboardInterrupt:
            _wait(process, time.monotonic(), read, deliver)
            raise
        _show(read)
        read.seek(before)
        return Ended(process.returncode, time.monotonic() - begun, interrupted, read.read())


def _wait(process: Popen[bytes], until: float, read: BufferedReader, deliver: Callable[[], None]) -> bool:
    """Wait for the end of a process, and bring it about after a moment. Return whether that was needed."""
    signals = [(until, signal.SIGINT), (until + LAST_WORDS, signal.SIGKILL)]
    sent, delivered = 0, time.monotonic()
    while process.poll() is None:
        with suppress(TimeoutExpired):
            process.wait(LOOK)
        _show(read)
        if sent < len(signals) and time.monotonic() >= signals[sent][0]:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signals[sent][1])
            sent += 1
        if time.monotonic() >= delivered + DELIVER:
            deliver()
            delivered = time.monotonic()
    return sent > 0


def _show(read: BufferedReader) -> None:
    sys.stdout.write(read.read().decode(errors="replace"))
    sys.stdout.flush()


def _end_with_parent() -> None:
    """Let the kernel end this process with its parent, however that ends: the next start would find the run in use."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
