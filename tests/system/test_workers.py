"""How many workers Ray has decides nothing but how fast: the same bytes from one and from two, and a training of two ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config.presets import preset
from pipeline.config.schema import RunConfig
from pipeline.stages import pack, protect, surrogate
from pipeline.storage.folder import Folder
from sep.methods.registry import Method
from tests.fixtures.on_ray import RAY
from tests.fixtures.packed_run import copy, digests

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_2_cpus")]
METHODS: tuple[Method, ...] = ("sep-fa-vr", "linear-separable", "one-pixel")
OTHERS: tuple[Method, ...] = ("error-min", "error-min-class", "autoregressive")


def test_shards_of_packed_images_are_the_same(tmp_path: Path) -> None:
    base = preset("smoke")
    configs = [replace(base, run=str(tmp_path / str(workers)), workers=workers) for workers in (1, 2)]
    one, two = (pack.execute(config, Folder.open(config.run), RAY) for config in configs)
    assert one.shards == two.shards
    assert one.counts == two.counts


@pytest.mark.parametrize("method", [*METHODS, *(pytest.param(other, marks=pytest.mark.slow) for other in OTHERS)])
def test_released_bytes_are_the_same(packed: tuple[RunConfig, Folder], tmp_path: Path, method: Method) -> None:
    found = []
    for workers in (1, 2):
        config, folder = copy(packed, tmp_path / str(workers), method=method, inner_steps=3)
        config = replace(config, workers=workers, surrogate=replace(config.surrogate, epochs=2, lr=0.05))
        found.append(digests(protect.execute(config, folder, RAY)))
    assert found[0] == found[1]
    assert len(set(found[0])) == 4


@pytest.mark.slow
def test_two_ranks_train_one_surrogate_on_images_that_do_not_fit_in_memory(packed: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    config, folder = copy(packed, tmp_path)
    config = replace(config, workers=2, memory_limit_mb=0, overwrite=True)
    config = replace(config, surrogate=replace(config.surrogate, epochs=2, augmentation="resized-crop-flip"))
    counts = surrogate.execute(config, folder, RAY).counts
    assert (counts["workers"], counts["epochs"]) == (2, 2)
    assert 0 < counts["final_loss"][0] < 5
