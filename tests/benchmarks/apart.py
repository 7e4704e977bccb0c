"""A separate process for the plain loop, with the default allocator, which the library changes."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context

import torch

from sep.craft import Method
from sep.ensemble import Member
from sep.models import Network
from tests.benchmarks import plain
from tests.benchmarks.trained import Trained


@dataclass(frozen=True)
class Apart:
    """The separate process."""

    pool: ProcessPoolExecutor

    def craft(self, method: Method, images: int, batch_size: int, of: plain.Gradient = plain.gradient) -> None:
        """Run one outer step of the plain loop on that many images, and return when it is done."""
        self.pool.submit(_craft, method, images, batch_size, of).result()

    def ours(self, method: Method, images: int) -> None:
        """Run one outer step of the library on that many images, and return when it is done."""
        self.pool.submit(_ours, method, images).result()


_trained: Trained
_networks: list[Network]


@contextmanager
def apart(trained: Trained, threads: int) -> Iterator[Apart]:
    """Yield a process with the ensemble and that many threads; it ends with the context."""
    assert trained.means  # computed here, then sent
    given = (pickle.dumps(trained), threads)
    with ProcessPoolExecutor(1, get_context("spawn"), _begin, given) as pool:
        yield Apart(pool)


def _begin(packed: bytes, threads: int) -> None:
    global _trained, _networks
    torch.set_num_threads(threads)
    _trained = pickle.loads(packed)
    _networks = _trained.plain_networks()


def _craft(method: Method, images: int, batch_size: int, of: plain.Gradient) -> None:
    _trained.plain_craft(_networks, method, images, 1, batch_size, of)


def _ours(method: Method, images: int) -> None:
    _trained.craft(_members(method), method, images, 1)


@cache
def _members(method: Method) -> list[Member]:
    return _trained.members(method)
