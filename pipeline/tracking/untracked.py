"""What is told of a run while it goes on, and who does nothing with it: `--tracking-uri none`."""

from __future__ import annotations

from typing import Protocol

from pipeline.config.schema import RunConfig
from pipeline.storage.folder import Folder
from pipeline.storage.run import Run


class StageRecorder(Protocol):
    """Records the stages of a run, or of a point of a sweep."""

    def log_stage(self, name: str) -> None:
        """Record a stage that has finished, or that failed in part."""

    def close(self, status: str) -> None:
        """Record how it ended: `FINISHED` or `FAILED`."""


class Recorder(StageRecorder, Protocol):
    """Records a run that may have points."""

    def begin(self) -> None:
        """Get ready for points."""

    def point(self, config: RunConfig, folder: Run) -> StageRecorder:
        """Return the recorder of one point."""

    def log_outcome(self, folder: Folder, text: str) -> None:
        """Record what all points together show: the folder of the comparison, and its table."""


class Untracked:
    """A recorder that records nothing."""

    def log_stage(self, name: str) -> None:
        """Do nothing."""

    def close(self, status: str) -> None:
        """Do nothing."""

    def begin(self) -> None:
        """Do nothing."""

    def point(self, config: RunConfig, folder: Run) -> Untracked:
        """Return itself, which serves points as well."""
        return self

    def log_outcome(self, folder: Folder, text: str) -> None:
        """Do nothing."""
