"""A look at the ensemble: how alike the gradients of a network's checkpoints are, and those of different networks.

The paper's claim is that checkpoints of one training are close to orthogonal, which is what makes them an ensemble.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from cluster.pool import Work, run_all
from cluster.session import Resources
from pipeline.batches import to_tensors
from pipeline.ensemble import Checkpoint, Ensemble, choose
from pipeline.shards import Shard, read_shard
from pipeline.stage import to_json
from pipeline.storage import Folder
from sep.ensemble import equally_spaced
from sep.objective import shifted
from sep.similarity import gradient_cosines

SIMILARITY = "similarity.json"
IMAGES = 32  # of the first clean shard
SPACED = 10  # checkpoints looked at where the ensemble has fewer than two of a network


def measure(ensemble: Ensemble, num_classes: int, shard: Shard) -> list[list[float]]:
    """Cosines between the checkpoints' gradients of SEP's loss on a fixed batch; the body of a Ray task."""
    torch.set_num_threads(1)
    images, labels = to_tensors(read_shard(ensemble.run.child("pack"), shard)[:IMAGES])
    cosines: list[list[float]] = gradient_cosines(ensemble.members(), images, shifted(labels, num_classes)).tolist()
    return cosines


def write_similarity(
    folder: Folder,
    run: Folder,
    index: Mapping[str, Sequence[Checkpoint]],
    chosen: Sequence[Checkpoint],
    num_classes: int,
    shard: Shard,
    resources: Resources,
) -> None:
    """Write `similarity.json`: a matrix for the checkpoints of each network, and, of several networks, one for their last checkpoints.

    Raises:
        WorkFailed: a matrix could not be computed.
    """
    groups: dict[str, tuple[Checkpoint, ...]] = {}
    for name, checkpoints in index.items():
        own = tuple(checkpoint for checkpoint in chosen if checkpoint.network == name)
        few = [checkpoints[epoch] for epoch in equally_spaced(len(checkpoints), min(SPACED, len(checkpoints)))]
        groups[name] = own if len(own) > 1 else tuple(few)
    between = choose(index, 1)
    groups |= {"": between} if len(between) > 1 else {}
    groups = {name: group for name, group in groups.items() if len(group) > 1}  # one checkpoint is like itself
    pieces = [Work(name, (Ensemble(run, group, gpu=bool(resources.gpu)), num_classes, shard)) for name, group in groups.items()]
    found = dict(run_all(measure, pieces, what="similarity", unit="matrices", at_once=resources.tasks, gpus=resources.gpu))
    said: dict[str, Any] = {
        "images": min(IMAGES, shard.count),
        "checkpoints": [
            {"network": name, "epochs": [checkpoint.epoch for checkpoint in group], "cosines": found[name]}
            for name, group in groups.items()
            if name
        ],
        "networks": {"names": [checkpoint.network for checkpoint in between], "cosines": found[""]} if "" in groups else None,
    }
    folder.write(SIMILARITY, to_json(said))


def read_similarity(folder: Folder) -> dict[str, Any]:
    """What `write_similarity` left.

    Raises:
        FileNotFoundError: nothing.
    """
    content: dict[str, Any] = json.loads(folder.read(SIMILARITY))
    return content
