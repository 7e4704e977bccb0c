"""Class means, where memory runs out."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.protection import class_means
from pipeline.protection.checkpoints import Ensemble, choose, read_index
from pipeline.protection.class_means import SUM_SHARD, Sums
from pipeline.storage.stage import Manifest
from sep.ensemble import class_sums
from sep.models import Network
from tests.fixtures import finished_run


class Scarce:
    """Sums of features, on a device with memory for `most` images at once."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.sizes: list[int] = []

    def __call__(self, network: Network, batches: Iterable[tuple[Tensor, Tensor]], num_classes: int) -> tuple[Tensor, Tensor]:
        batches = list(batches)
        size = sum(len(images) for images, _ in batches)
        self.sizes.append(size)
        if size > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return class_sums(network, batches, num_classes)


def test_a_shards_sums_are_the_same_where_memory_runs_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every checkpoint; the size that the first could not do is not tried again by the next."""
    _, folder = finished_run.write(tmp_path / "run", ("pack", "surrogate"))
    ensemble, pack = Ensemble(folder, choose(read_index(folder), 2)), Manifest.load(folder, "pack")
    shard, number = pack.shards["train"][1], len(pack.counts["classes"])
    monkeypatch.setattr(class_means, "use_cpu", lambda threads: None)  # the body of a task, which has a process of its own

    def summed(batch_size: int | None) -> Sums:
        return SUM_SHARD(ensemble, number, batch_size, shard, 0)

    wanted, counts = summed(4)
    scarce = Scarce(6)
    monkeypatch.setattr(class_means, "class_sums", scarce)
    sums, again = summed(None)
    assert scarce.sizes == [18, 9, 4, 4, 4, 4, 2, 4, 4, 4, 4, 2]
    assert len(sums) == 2
    assert all(torch.equal(found, total) for found, total in zip(sums, wanted, strict=True))
    assert torch.equal(again, counts)
    assert int(counts.sum()) == 18
    assert float(sums[0].abs().sum()) > 0
