"""The place where a release is prepared: what decides it, where its images are, and what can be used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.resources import Resources
from cluster.work import Capacity
from pipeline.config.schema import RunConfig
from pipeline.protection.checkpoints import Ensemble
from pipeline.storage.folder import Folder
from pipeline.storage.stage import Manifest, Shard


@dataclass(frozen=True)
class Site:
    """The arguments of what comes before the first shard.

    Attributes:
        config: of the run, with the method's usual settings where nobody gave one, and the precision that was decided.
        made_from: digest of everything that decides the preparation.
        out: the stage's folder, where the preparation is written.
        clean: where the clean shards are.
        pack: their manifest.
        released: the clean shards whose images are protected.
        classes: labels that are protected, ascending.
        ensemble: the checkpoints, if the method reads any.
        resources: of the cluster.
        capacity: for one task a shard.
        chosen: digest of the keys that are protected, see `choose_images`; empty for all of the classes.
    """

    config: RunConfig
    made_from: str
    out: Folder
    clean: Folder
    pack: Manifest
    released: tuple[Shard, ...]
    classes: tuple[int, ...]
    ensemble: Ensemble
    resources: Resources
    capacity: Capacity
    chosen: str = ""

    @property
    def shards(self) -> Sequence[Shard]:
        """The clean shards to learn from: of training, or all that are released where each image gets noise of its own."""
        return self.released if self.config.protect.kind.preparation == "own-noise" else self.pack.shards["train"]
