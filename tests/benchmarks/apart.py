"""The plain loop in a process of its own, as whoever writes it has it: what the library asks of its process's allocator helps it not."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context

import torch

from sep.craft import Method
from sep.models import Network
from tests.benchmarks import plain
from tests.benchmarks.trained import Trained


@dataclass(frozen=True)
class Apart:
    """That process."""

    pool: ProcessPoolExecutor

    def craft(self, method: Method, images: int, batch_size: int, of: plain.Gradient = plain.gradient) -> None:
        """One outer step for so many images; returns when it is done."""
        self.pool.submit(_craft, method, images, batch_size, of).result()


_trained: Trained
_networks: list[Network]


@contextmanager
def apart(trained: Trained, threads: int) -> Iterator[Apart]:
    """A process that has the ensemble and computes with so many threads; it ends with the context."""
    assert trained.means  # computed here, and sent
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
