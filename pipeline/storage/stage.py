"""What every stage does alike: know whether it is done, refuse a changed configuration, say last that it is whole.

A stage's folder gets `started.json` first (what it was asked to do) and `manifest.json` last (what came out).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pipeline.storage.folder import Folder
from pipeline.storage.layout import MANIFEST, STARTED
from pipeline.storage.records import digest, flatten, to_json

log = logging.getLogger(__name__)

CLEARING = {"clearing": True}  # in the place of what a stage was asked to do, until its folder is gone
PACKAGES = ("torch", "torchvision", "ray", "webdataset", "pyarrow", "pillow", "numpy")


@dataclass(frozen=True, slots=True)
class Shard:
    """What a manifest records of one shard."""

    name: str
    sha256: str
    count: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a finished stage says of itself."""

    stage: str
    asked: dict[str, Any]  # configuration section, seed, digests of the manifests it read
    hash: str  # of `asked`
    counts: dict[str, Any]  # what came out, in numbers
    shards: dict[str, list[Shard]] = field(default_factory=dict)  # per split
    versions: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)  # shards that failed, where the stage was told to keep going without them
    timing: dict[str, float] = field(default_factory=dict)  # seconds, images per second: other the next time

    @property
    def digest(self) -> str:
        """Digest of everything but the time it took: what later stages record as their input."""
        said = {**self.as_dict(), "timing": None}
        if not self.missing:  # manifests of earlier versions have no such field, and must keep the digest that was recorded of them
            del said["missing"]
        return digest(said)

    @property
    def seconds(self) -> float:
        """How long the last start of the stage took."""
        return self.timing["seconds"]

    def as_dict(self) -> dict[str, Any]:
        """The manifest as JSON types."""
        shards = {
            split: [{"name": s.name, "sha256": s.sha256, "count": s.count} for s in entries] for split, entries in self.shards.items()
        }
        return {**self.__dict__, "shards": shards}

    @classmethod
    def load(cls, run: Folder, stage: str) -> Manifest:
        """The manifest of a finished stage.

        Raises:
            ValueError: the stage has not finished in this run, or its manifest is damaged.
        """
        folder = run.child(stage)
        if not folder.exists(MANIFEST):
            raise ValueError(f"stage {stage!r} has not finished in {run.uri}: run it first (--stages {stage} ...)")
        try:
            content = json.loads(folder.read(MANIFEST))
            shards = {split: [Shard(**entry) for entry in entries] for split, entries in content["shards"].items()}
            return cls(**{**content, "shards": shards})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{folder.uri}/{MANIFEST} is damaged ({error}): redo stage {stage!r} with --overwrite") from error


def _versions() -> dict[str, str]:
    """The versions of those packages that are installed; a run in one process needs no Ray, for instance."""
    found: dict[str, str] = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


class Stage:
    """One stage of one run, from the decision whether there is anything to do to the manifest written last.

    Attributes:
        folder: where the stage writes.
        manifest: what came out, once the stage is done; None while there is work to do.
        hash: digest of what the stage was asked to do.
    """

    def __init__(
        self,
        run: Folder,
        name: str,
        section: dict[str, Any],
        *,
        seed: int,
        inputs: tuple[str, ...] = (),
        overwrite: bool = False,
        pieces_know: bool = False,
    ) -> None:
        """Look at what is there; with `overwrite`, clear what was made with another configuration.

        Args:
            run: the run's folder.
            name: the stage, which is also its folder's name.
            section: the configuration that decides the outcome, as JSON types.
            seed: the run's seed.
            inputs: the stages this one reads.
            overwrite: whether a different configuration clears the folder instead of stopping.
            pieces_know: whether each piece records what it was made from: then none is cleared, the stage finds out which still fit, and it
                does not stop where only its inputs were made anew.

        Raises:
            ValueError: an input has not finished, the folder was made with another configuration, or it is not ours.
        """
        self.name, self.run, self.folder = name, run, run.child(name)
        self.asked = {name: section, "seed": seed, "inputs": {i: Manifest.load(run, i).digest for i in inputs}}
        self.hash = digest(self.asked)
        self.manifest: Manifest | None = None
        self._pieces_know = pieces_know
        self._begun = time.monotonic()
        if self.folder.exists(STARTED):
            self._reconcile(overwrite)
        elif self.folder.names(recursive=True):  # that file is written first and deleted last: this is not of our making
            raise ValueError(f"{self.folder.uri} holds files that no stage has written, and is left alone: give another --run")
        if self.manifest is None:
            self.folder.remove_partials()
            self.folder.write(STARTED, to_json(self.asked))
            log.info("%s: started", name)

    def _reconcile(self, overwrite: bool) -> None:
        """Take what an earlier start left, clear it, or stop."""
        try:
            before = flatten(json.loads(self.folder.read(STARTED)))
        except ValueError:
            before = {STARTED: "damaged"}
        now = flatten(json.loads(to_json(self.asked)))
        if before == CLEARING:
            self.clear("that was begun and cut short")
            return
        changed = [name for name in sorted(before | now) if before.get(name) != now.get(name)]
        reason = "; ".join(f"{name}: {before.get(name)!r} -> {now.get(name)!r}" for name in changed)
        of_inputs = all(name.startswith("inputs.") for name in changed)
        if changed and not (overwrite or (self._pieces_know and of_inputs)):
            keeps = ", which makes what is missing; what is finished and still fits stays" if self._pieces_know else " to redo it"
            raise ValueError(
                f"stage {self.name!r} in {self.run.uri} was made with another configuration ({reason}): "
                f"use the earlier values, another --run, or --overwrite{keeps}"
            )
        if changed:
            self._discard(reason)
        elif self.folder.exists(MANIFEST):
            try:
                manifest = Manifest.load(self.run, self.name)
                if manifest.hash != self.hash:
                    raise ValueError(f"{self.folder.uri}/{MANIFEST} is of another configuration than {STARTED}: redo it with --overwrite")
            except ValueError as error:
                if not overwrite:
                    raise
                self._discard(str(error))
            else:
                if manifest.missing:
                    log.info("%s: done before, but for %d shards, which are tried again", self.name, len(manifest.missing))
                    return
                self.manifest = manifest
                log.info("%s: done before", self.name)

    def _discard(self, reason: str) -> None:
        """Have nothing count as done that does not fit what the stage is asked to do now."""
        if self._pieces_know:
            log.info("%s: done again where this matters: %s", self.name, reason)
            self.folder.remove(MANIFEST)
        else:
            self.clear(reason)

    def clear(self, reason: str) -> None:
        """Remove the folder. What says that it is ours, and that it is being cleared, goes last: a start may be cut short here."""
        log.info("%s: cleared, because %s", self.name, reason)
        self.folder.write(STARTED, to_json(CLEARING))
        for name in self.folder.names(recursive=True):
            if name != STARTED:
                self.folder.remove(name)
        self.folder.delete()

    def finish(
        self, counts: dict[str, Any], shards: dict[str, list[Shard]] | None = None, missing: Sequence[str] = (), **timing: float
    ) -> Manifest:
        """Write the manifest, which is what makes the stage done, but for the shards that are `missing`.

        `timing` is what will differ the next time.
        """
        self.manifest = Manifest(
            stage=self.name,
            asked=self.asked,
            hash=self.hash,
            counts=counts,
            shards=shards or {},
            missing=list(missing),
            versions=_versions(),
            timing={"seconds": round(time.monotonic() - self._begun, 1), **timing},
        )
        self.folder.write(MANIFEST, to_json(self.manifest.as_dict()))
        log.info("%s: finished in %.0f s", self.name, self.manifest.seconds)
        return self.manifest
