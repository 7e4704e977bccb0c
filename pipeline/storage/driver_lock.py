"""The lock of a run folder, which admits one driver at a time. Two drivers would write the same files and take over half-done work.

A local folder is locked by the operating system, which frees it when the driver ends, however it ends. An object store, and some
network filesystems, have no such lock. There a small file names the driver and when it was last alive, and a driver that was silent for
long enough counts as dead.
"""

from __future__ import annotations

import _thread
import fcntl
import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.storage.folder import Folder
from pipeline.storage.layout import DRIVER, DRIVER_LOCK
from pipeline.storage.records import to_json

log = logging.getLogger(__name__)

BEAT_SECONDS = 10.0
DEAD_SECONDS = 60.0  # without a beat
SETTLE_SECONDS = 2.0  # for another driver that started in the same moment to be seen
AGAIN_SECONDS = 30.0  # after which a main thread that has not stopped is interrupted again


class Driven(ValueError):
    """Another driver works on this run."""


class _NoLocks(Exception):
    """This filesystem has no locks."""


@contextmanager
def driver_lock(folder: Folder) -> Iterator[threading.Event]:
    """Hold a run folder during the block. The block sets the event before it cleans up, and is not interrupted after that.

    Raises:
        Driven: another process drives this run. If another driver takes the run over later, the block ends by SIGTERM.
    """
    leaving = threading.Event()
    with ExitStack() as held:
        try:
            held.enter_context(_locked(folder) if folder.is_local else _beating(folder, leaving))
        except _NoLocks:
            held.enter_context(_beating(folder, leaving))
        yield leaving


def _driven(folder: Folder, by: str, advice: str = "") -> Driven:
    return Driven(f"{folder.uri} is being worked on by {by}: wait for it, or give another --run{advice}")


def _who() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


@contextmanager
def _locked(folder: Folder) -> Iterator[None]:
    folder.make()
    with Path(folder.file(DRIVER_LOCK)).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise _driven(folder, file.read() or "another process") from None
        except OSError as error:
            raise _NoLocks from error
        file.truncate(0)
        file.write(_who())
        file.flush()
        yield  # the file stays: whoever deletes it could delete a lock that was taken in the meantime


@contextmanager
def _beating(folder: Folder, leaving: threading.Event) -> Iterator[None]:
    mine = {"id": uuid.uuid4().hex, "who": _who()}
    if before := _read(folder):
        silent = time.time() - before.get("alive", 0)
        if silent < DEAD_SECONDS:
            advice = f"; if it is dead, run this again in {DEAD_SECONDS - silent:.0f} s"
            raise _driven(folder, f"{before['who']}, alive {silent:.0f} s ago", advice)
    stop = threading.Event()

    def beat() -> None:
        folder.write(DRIVER, to_json({**mine, "alive": time.time()}))

    def keep_beating() -> None:
        while not stop.wait(BEAT_SECONDS):
            with suppress(OSError):  # storage may be gone for a while; the stages will say so
                other = _read(folder)
                if other and other.get("id") != mine["id"]:
                    log.error("%s was taken over by %s while storage was out of reach", folder.uri, other.get("who"))
                    break
                beat()
        while not (stop.is_set() or leaving.is_set()):
            _interrupt()
            leaving.wait(AGAIN_SECONDS)  # where Python runs a destructor, say, an interruption is swallowed

    beat()
    if before:
        log.info(
            "%s: waiting %.0f s for %s, which has been silent, to show itself", folder.uri, SETTLE_SECONDS + BEAT_SECONDS, before["who"]
        )
    time.sleep(SETTLE_SECONDS + (BEAT_SECONDS if before else 0))  # the one that was silent, if it lives after all, sees that it lost
    if (other := _read(folder)).get("id") != mine["id"]:  # of two that start together, the later one to write stays
        raise _driven(folder, f"{other.get('who')}, who started at the same time")
    thread = threading.Thread(target=keep_beating, daemon=True)
    thread.start()
    try:
        yield
    finally:
        leaving.set()
        stop.set()
        thread.join()
        with suppress(OSError):
            if _read(folder).get("id") == mine["id"]:
                folder.remove(DRIVER)


def _interrupt() -> None:
    """Stop the main thread as SIGTERM does. A process that a shell runs in the background ignores the signal of Ctrl-C."""
    _thread.interrupt_main(signal.SIGTERM)


def _read(folder: Folder) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(folder.read(DRIVER))
    except (FileNotFoundError, ValueError):
        return {}
    return content
