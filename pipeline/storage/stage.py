"""The frame of every stage: it finds out whether the stage is done, refuses a changed configuration, and writes the manifest last.

A stage's folder gets `started.json` first (what the stage was asked to do) and `manifest.json` last (what came out).
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
from pipeline.storage.run import Run

log = logging.getLogger(__name__)

VERSION = 2  # of what stages write; raised where an earlier program would misread it, or this one misreads what an earlier one wrote
CLEARING = {"clearing": True}  # in the place of what a stage was asked to do, until its folder is gone
PACKAGES = ("torch", "torchvision", "ray", "webdataset", "pyarrow", "pillow", "numpy")


@dataclass(frozen=True, slots=True)
class Shard:
    """The entry of one shard in a manifest."""

    name: str
    sha256: str
    count: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The record of a finished stage."""

    stage: str
    asked: dict[str, Any]  # configuration section, seed, digests of the manifests it read
    hash: str  # of `asked`
    counts: dict[str, Any]  # what came out, in numbers
    shards: dict[str, list[Shard]] = field(default_factory=dict)  # per split
    versions: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)  # shards that failed, where the stage was asked to keep going without them
    timing: dict[str, float] = field(default_factory=dict)  # seconds, images per second: different the next time
    version: int = VERSION

    @property
    def digest(self) -> str:
        """Digest of everything but the timing. Later stages record it as that of their input."""
        return digest({**self.as_dict(), "timing": None})

    @property
    def seconds(self) -> float:
        """Seconds that the last start of the stage took."""
        return self.timing["seconds"]

    def as_dict(self) -> dict[str, Any]:
        """Return the manifest as JSON types."""
        shards = {
            split: [{"name": s.name, "sha256": s.sha256, "count": s.count} for s in entries] for split, entries in self.shards.items()
        }
        return {**self.__dict__, "shards": shards}

    @classmethod
    def load(cls, run: Run, stage: str) -> Manifest:
        """Read the manifest of a finished stage.

        Raises:
            ValueError: the stage has not finished in this run, or its manifest is damaged or of another version.
        """
        folder = run.child(stage)
        if not folder.exists(MANIFEST):
            raise ValueError(f"stage {stage!r} has not finished in {run.uri}: run it first (--stages {stage} ...)")
        content = _read(folder, MANIFEST, stage)
        try:
            shards = {split: [Shard(**entry) for entry in entries] for split, entries in content["shards"].items()}
            return cls(**{**content, "shards": shards})
        except (AttributeError, TypeError, KeyError) as error:
            raise _damaged(folder, MANIFEST, stage, error) from error


def read_started(run: Run, stage: str) -> dict[str, Any]:
    """Read what a stage was asked to do: its section of the configuration, the seed, and the digests of its inputs.

    Raises:
        FileNotFoundError: the stage was not started in this run.
        ValueError: the record is damaged or of another version.
    """
    asked = _read(run.child(stage), STARTED, stage)
    del asked["version"]
    return asked


def _read(folder: Folder, name: str, stage: str) -> dict[str, Any]:
    try:
        content = json.loads(folder.read(name))
        came = content.get("version")
    except (ValueError, AttributeError) as error:
        raise _damaged(folder, name, stage, error) from error
    if came != VERSION:
        raise ValueError(
            f"{folder.uri}/{name}: expected version {VERSION}, found {'none' if came is None else came}: "
            f"redo stage {stage!r} with --overwrite, or give another --run"
        )
    found: dict[str, Any] = content
    return found


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):  # Ray, where everything runs in one process
            found[package] = version(package)
    return found


def _damaged(folder: Folder, name: str, stage: str, error: Exception) -> ValueError:
    return ValueError(f"{folder.uri}/{name} is damaged ({error}): redo stage {stage!r} with --overwrite")


class Stage:
    """One stage of one run, from the decision whether there is anything to do to the manifest written last.

    Attributes:
        folder: where the stage writes.
        manifest: what came out, once the stage is done; None while there is work to do.
        hash: digest of what the stage was asked to do.
    """

    def __init__(
        self,
        run: Run,
        name: str,
        section: dict[str, Any],
        *,
        seed: int,
        inputs: Sequence[str | Manifest] = (),
        overwrite: bool = False,
        pieces_know: bool = False,
    ) -> None:
        """Look at what an earlier start left. With `overwrite`, clear what was made with another configuration.

        Args:
            run: the run.
            name: the stage, which is also its folder's name.
            section: the configuration that decides the outcome, as JSON types.
            seed: the run's seed.
            inputs: the stages this one reads; their manifests, where they were read before.
            overwrite: whether a different configuration clears the folder instead of stopping.
            pieces_know: whether each piece records what it was made from. Then no piece is cleared, the stage finds out which still
                fit, and it does not stop where only its inputs were made anew.

        Raises:
            ValueError: an input has not finished, the folder was made with another configuration, or it is not ours.
        """
        self.name, self.run, self.folder = name, run, run.child(name)
        read = [each if isinstance(each, Manifest) else Manifest.load(run, each) for each in inputs]
        self.asked = {name: section, "seed": seed, "inputs": {manifest.stage: manifest.digest for manifest in read}}
        self.hash = digest(self.asked)
        self.manifest: Manifest | None = None
        self._pieces_know = pieces_know
        self._begun = time.monotonic()
        if self.folder.exists(STARTED):
            self._reconcile(overwrite)
        elif self.folder.names(recursive=True):  # that file is written first and deleted last: these are not ours
            raise ValueError(f"{self.folder.uri} holds files that no stage has written, and is left alone: give another --run")
        if self.manifest is None:
            self.folder.remove_partials()
            self.folder.write(STARTED, to_json({**self.asked, "version": VERSION}))
            log.info("%s: started", name)

    def _reconcile(self, overwrite: bool) -> None:
        """Take over what an earlier start left, clear it, or stop."""
        try:
            before = read_started(self.run, self.name)
            if before == CLEARING:
                self.clear("that was begun and cut short")
                return
            manifest = Manifest.load(self.run, self.name) if self.folder.exists(MANIFEST) else None
        except ValueError as error:
            if not overwrite:
                raise
            self._discard(str(error))
            return
        if reason := self._changes(before, overwrite):
            self._discard(reason)
        elif manifest and manifest.hash != self.hash:
            reason = f"{self.folder.uri}/{MANIFEST} is of another configuration than {STARTED}"
            if not overwrite:
                raise ValueError(f"{reason}: redo it with --overwrite")
            self._discard(reason)
        elif manifest and manifest.missing:
            log.info("%s: done before, but for %d shards, which are tried again", self.name, len(manifest.missing))
        elif manifest:
            self.manifest = manifest
            log.info("%s: done before", self.name)

    def _changes(self, before: dict[str, Any], overwrite: bool) -> str:
        """Return the fields that differ from an earlier start, each with both values.

        Raises:
            ValueError: some differ, and the stage is not to be redone.
        """
        old, new = flatten(before), flatten(json.loads(to_json(self.asked)))
        changed = [name for name in sorted(old | new) if old.get(name) != new.get(name)]
        reason = "; ".join(f"{name}: {old.get(name)!r} -> {new.get(name)!r}" for name in changed)
        only_inputs = all(name.startswith("inputs.") for name in changed)
        if changed and not (overwrite or (self._pieces_know and only_inputs)):
            keeps = ", which makes what is missing; what is finished and still fits stays" if self._pieces_know else " to redo it"
            raise ValueError(
                f"stage {self.name!r} in {self.run.uri} was made with another configuration ({reason}): "
                f"use the earlier values, another --run, or --overwrite{keeps}"
            )
        return reason

    def _discard(self, reason: str) -> None:
        """Let nothing count as done that does not fit what the stage is asked to do now."""
        if self._pieces_know:
            log.info("%s: redone where this matters: %s", self.name, reason)
            self.folder.remove(MANIFEST)
        else:
            self.clear(reason)

    def clear(self, reason: str) -> None:
        """Remove the folder. The record that it is ours, and is being cleared, goes last: a start may be cut short here."""
        log.info("%s: cleared, because %s", self.name, reason)
        self.folder.write(STARTED, to_json({**CLEARING, "version": VERSION}))
        for name in self.folder.names(recursive=True):
            if name != STARTED:
                self.folder.remove(name)
        self.folder.delete()

    def finish(
        self, counts: dict[str, Any], shards: dict[str, list[Shard]] | None = None, missing: Sequence[str] = (), **timing: float
    ) -> Manifest:
        """Write the manifest, with which the stage is done but for the shards that are `missing`.

        Args:
            counts: what came out, in numbers.
            shards: what was written, per split.
            missing: names of the shards that failed.
            timing: seconds and rates, which will differ the next time.
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
