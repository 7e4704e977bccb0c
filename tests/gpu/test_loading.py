"""Batches from memory and from shards: no step waits for the device to get them there."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("webdataset", reason="the pipeline needs what docs/reproduce.md lists")
from pipeline.shards.pixels import encode_png
from pipeline.shards.shard import Sample, write_shard
from pipeline.shards.tensors import Loading
from pipeline.storage.folder import Folder
from pipeline.storage.stage import Shard
from pipeline.training.batches import Split, open_batches
from sep.fitting import fit
from sep.models import build
from sep.pictures import Images
from sep.train_config import TrainConfig
from sep.views.mix import each_its_own
from sep.views.own_size import training_view
from tests.gpu.waiting import waits

MIX = ("none", "jpeg-10", "blur", "gray", "bits-2", "warp", "noise-4", "resize-crop", "simclr-50")


@pytest.fixture
def shards(tmp_path: Path, images: Tensor) -> tuple[Folder, list[Shard]]:
    folder = Folder.open(str(tmp_path))
    samples = [Sample(f"{i:04d}", encode_png(image.permute(1, 2, 0).numpy()), i % 2, b"{}") for i, image in enumerate(images)]
    return folder, [write_shard(folder, f"train-{number:06d}.tar", samples[16 * number :][:16])[0] for number in range(4)]


@pytest.mark.counted
@pytest.mark.parametrize(("views", "side"), [(("none",), None), (MIX, None), (("none",), 16)])
@pytest.mark.parametrize("memory_mb", [1, 0])
def test_no_step_waits_for_its_batch(
    shards: tuple[Folder, list[Shard]], device: torch.device, memory_mb: int, views: tuple[str, ...], side: int | None
) -> None:
    """Three values are read at the end of an epoch, however many steps it has."""
    if device.type == "cpu":
        pytest.skip("nothing waits for a CPU")

    def sight(epoch: int) -> partial[Tensor]:
        return partial(seen, views=views, side=side, generator=torch.Generator().manual_seed(epoch))

    counts = []
    for size in (32, 8):
        network = build("resnet8", 2, 16, (60.0,) * 3, (60.0,) * 3).to(device)
        batches = open_batches(*shards, 768, memory_mb, Split(size, 0), device, loading=Loading(input_size=side), sight=sight)
        epochs = fit(network, TrainConfig(epochs=6, lr=1e-3), batches.epoch, batches.steps, lambda _: torch.Generator())
        for _ in range(5):  # by then a step is recorded, and what a view computes once is there
            next(epochs)
        counts.append(waits(device, partial(next, epochs)))
    assert counts == [3, 3]


def seen(images: Images, views: tuple[str, ...], side: int | None, generator: torch.Generator) -> Tensor:
    return training_view(each_its_own(images, views, generator), side, "crop-flip", generator)
