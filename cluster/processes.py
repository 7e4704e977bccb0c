"""Other processes of this machine, for work that needs no GPU: images of 32 pixels take more time of the interpreter than of a codec."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import forkserver
from typing import Any, Generic

from loky import ProcessPoolExecutor, cpu_count

from cluster.work import Result, describe

log = logging.getLogger(__name__)


def cpus() -> int:
    """Return the number of CPUs that this process may use: those of the machine, or what affinity or a container leaves of them."""
    count: int = cpu_count()
    return count


@dataclass(frozen=True)
class Begun(Generic[Result]):
    """A call that another process has begun, or will soon."""

    call: Callable[[], Result]
    future: Future[bytes]

    def result(self) -> Result:
        """Wait for what the call returns, or raise what it raised. If its process died, make the call in this process."""
        try:
            answer = self.future.result()
        except BrokenProcessPool:
            return self.call()
        found, error = pickle.loads(answer)  # noqa: S301  # from a process of our own
        if error is not None:
            raise error
        returned: Result = found
        return returned


class Processes:
    """Processes that are started as there is work for them, and end with the block. They have one thread each for their arithmetic.

    The standard library's pool, up to Python 3.11, waits forever if a process dies while another one is being started; loky's does not.
    Calls and results travel as bytes that are pickled here: torch would send tensors through shared memory, which containers lack.
    """

    def __init__(self, count: int, program: str) -> None:
        """Prepare `count` processes with the modules of a package, such as `pipeline`, that this process has loaded."""
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        if method == "forkserver":
            _load_once(program)
        self._pool = ProcessPoolExecutor(count, context=multiprocessing.get_context(method), initializer=_begin)
        self.dead = False

    def __enter__(self) -> Processes:
        """Start none yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let the calls that were begun end."""
        self._pool.shutdown()

    def begin(self, call: Callable[[], Result]) -> Begun[Result]:
        """Begin a call: a function of a module with its arguments, as `functools.partial`."""
        try:
            return Begun(call, self._pool.submit(_called, pickle.dumps(call)))
        except BrokenProcessPool as error:
            broken: Future[bytes] = Future()
            broken.set_exception(error)
            self.lost(broken)
            return Begun(call, broken)

    def lost(self, future: Future[bytes]) -> bool:
        """Return whether a process died over a call that has ended, or over another one. Then none is left."""
        died = isinstance(future.exception(), BrokenProcessPool)
        if died and not self.dead:
            log.warning("a helping process died: what is left is done in this process, a piece at a time")
        self.dead = self.dead or died
        return died


def _load_once(program: str) -> None:
    """Start the process that all others are copies of, with the modules of a package. It looks for modules where this one did."""
    multiprocessing.set_forkserver_preload([name for name in sys.modules if name.partition(".")[0] == program])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    try:
        forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH")
        os.environ.update({} if before is None else {"PYTHONPATH": before})


def _begin() -> None:
    """Prepare a process: one thread, and an end that comes with that of its parent, however that ends."""
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _called(call: bytes) -> bytes:
    made: Callable[[], Any] = pickle.loads(call)  # noqa: S301  # from the process that started this one
    try:
        return pickle.dumps((made(), None))
    except Exception as error:
        return pickle.dumps((None, _portable(error)))


def _portable(error: Exception) -> Exception:
    """Return an error that can be sent: itself, if it can be made again from what it says."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  # our own
    except Exception:
        return RuntimeError(describe(error))
    return error
