"""The similarity of gradients within the ensemble: between the checkpoints of a network, and between different networks.

The paper claims that the gradients of one training's checkpoints are close to orthogonal, and that this makes them an ensemble.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from cluster.executor import Executor
from cluster.work import Capacity, Work, WorkFailed
from pipeline.protection.checkpoints import Checkpoint, Ensemble, choose
from pipeline.shards.shard import read_shard
from pipeline.shards.tensors import to_images
from pipeline.storage.folder import Folder
from pipeline.storage.layout import SIMILARITY
from pipeline.storage.records import to_json
from pipeline.storage.stage import Shard
from sep.ensemble import equally_spaced
from sep.execution import use_cpu
from sep.objective import shifted
from sep.similarity import gradient_cosines
from sep.views.own_size import fixed_view
from sep.views.registry import PLAIN

IMAGES, PIXELS = 32, 2**19  # at most so many images of the first clean shard, fewer if they are large
SPACED = 10  # checkpoints looked at where the ensemble has fewer than two of a network


def measure(ensemble: Ensemble, num_classes: int, shard: Shard) -> list[list[float]]:
    """Cosines between the checkpoints' gradients of SEP's loss on a fixed batch; the body of a task."""
    use_cpu(1)
    samples = read_shard(ensemble.run.child("pack"), shard)
    height, width = samples[0].pixels.shape[:2]
    if ensemble.input_size is not None:
        height = width = ensemble.input_size
    images, labels = to_images(samples[: min(IMAGES, max(4, PIXELS // (height * width)))], ensemble.input_size)
    seen = fixed_view(images, ensemble.input_size)
    cosines: list[list[float]] = gradient_cosines(ensemble.members(), seen, shifted(labels, num_classes)).tolist()
    return cosines


def write_similarity(
    folder: Folder,
    ensemble: Ensemble,
    index: Mapping[str, Sequence[Checkpoint]],
    num_classes: int,
    shard: Shard,
    executor: Executor,
    capacity: Capacity,
) -> None:
    """Write `similarity.json`: a matrix for the checkpoints of each network and, for several networks, one of their last checkpoints.

    A matrix that cannot be computed is an error in the log and left out. The protection does not depend on it.
    """
    groups: dict[str, tuple[Checkpoint, ...]] = {}
    for name, checkpoints in index.items():
        own = tuple(checkpoint for checkpoint in ensemble.checkpoints if checkpoint.network == name)
        few = [checkpoints[epoch] for epoch in equally_spaced(len(checkpoints), min(SPACED, len(checkpoints)))]
        groups[name] = own if len(own) > 1 else tuple(few)
    between = choose(index, 1)
    # One checkpoint is like itself.
    groups = {name: group for name, group in (*groups.items(), ("", between)) if len(group) > 1}
    ensemble = replace(ensemble, kernels="fused", views=PLAIN)
    pieces = [Work(name, (replace(ensemble, checkpoints=group), num_classes, shard)) for name, group in groups.items()]
    found: dict[str, list[list[float]]] = {}
    with suppress(WorkFailed):  # which the executor has logged
        for name, cosines in executor.run_all(measure, pieces, what="similarity", unit="matrices", capacity=capacity):
            found[name] = cosines
    if groups and not found:
        return  # another start may have more luck
    said: dict[str, Any] = {
        "checkpoints": [
            {"network": name, "epochs": [checkpoint.epoch for checkpoint in group], "cosines": found[name]}
            for name, group in groups.items()
            if name in found and name
        ],
        "networks": {"names": [checkpoint.network for checkpoint in between], "cosines": found[""]} if "" in found else None,
    }
    folder.write(SIMILARITY, to_json(said))
