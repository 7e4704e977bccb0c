"""The similarity of checkpoints' gradients, as the protect stage measured it."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass

from pipeline.storage.folder import Folder
from pipeline.storage.layout import SIMILARITY


@dataclass(frozen=True)
class Similarity:
    """Cosines between gradients with respect to the same images: of the checkpoints of one network, or of several networks."""

    network: str | None  # None: between the last checkpoints of several networks
    labels: list[str]  # epochs, counted from 1, or networks
    cosines: list[list[float]]

    @property
    def mean(self) -> float:
        """Mean of the cosines between different checkpoints, which leaves out the diagonal."""
        return statistics.fmean(value for i, row in enumerate(self.cosines) for j, value in enumerate(row) if i != j)


def read_similarities(protect: Folder) -> tuple[Similarity, ...]:
    """Return a matrix for each network, then one between networks; a single checkpoint or network has none."""
    if not protect.exists(SIMILARITY):
        return ()
    said = json.loads(protect.read(SIMILARITY))
    found = [Similarity(own["network"], [str(epoch + 1) for epoch in own["epochs"]], own["cosines"]) for own in said["checkpoints"]]
    if between := said["networks"]:
        found.append(Similarity(None, between["names"], between["cosines"]))
    return tuple(matrix for matrix in found if len(matrix.labels) > 1)
