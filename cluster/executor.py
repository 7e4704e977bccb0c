"""The five calls that run all work, on Ray or on this machine alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar

from cluster.deadline import Deadline
from cluster.epochs import Metrics, Storage, Worker
from cluster.resources import Resources
from cluster.work import EVERYTHING, Capacity, Report, Result, Work, WorkFailed

Name = Literal["ray", "local"]
Task = TypeVar("Task")


class Executor(Protocol):
    """The place where work runs. Functions are module-level, and their arguments survive pickling.

    A piece of work that runs into a storage error (OSError), or whose process dies, is done again a few times; other errors are final.
    """

    @property
    def deadline(self) -> Deadline:
        """The moment after which no shard, epoch or trial is begun: then the calls below raise TimeIsUp. Finished pieces stay."""

    def connect(self, workers: int | None = None) -> Resources:
        """Prepare for work, and return the machines' resources.

        Args:
            workers: how many workers to use at a time; by default one per GPU, or one per CPU core without GPUs.

        Raises:
            ValueError: more workers are asked for than the machines have.
        """

    def run_all(
        self, function: Callable[..., Result], pieces: Sequence[Work], *, what: str, unit: str = "images", capacity: Capacity = EVERYTHING
    ) -> Iterator[tuple[str, Result]]:
        """Run `function(*arguments)` for every piece and yield (name, result) as they finish, each piece once.

        Args:
            function: a function, or a `Chain` of three; must give the same outcome when it runs again.
            pieces: the work.
            what: for the progress line and errors, e.g. "protect".
            unit: what `units` counts.
            capacity: how many at a time, and on what.

        Raises:
            WorkFailed: after all other pieces are through.
            TimeIsUp: pieces are left that were not begun in time.
        """

    def combine_all(
        self,
        function: Callable[..., Result],
        combine: Callable[..., Result],
        pieces: Sequence[Work],
        *,
        what: str,
        unit: str = "images",
        capacity: Capacity = EVERYTHING,
    ) -> tuple[Result | None, WorkFailed | None]:
        """Run `function(*arguments)` for every piece, and `combine(*results)` over all results, in any order.

        Args:
            function: see `run_all`.
            combine: takes two results or more, and is associative and commutative to the bit.
            pieces: see `run_all`.
            what: see `run_all`.
            unit: see `run_all`.
            capacity: see `run_all`.

        Returns:
            The combined results of all pieces that did not fail, None without any, and the failure of the others.

        Raises:
            WorkFailed: results could not be combined.
            TimeIsUp: pieces are left that were not begun in time; the results of the others are lost.
        """

    def train(
        self,
        loop: Callable[[Task, Worker], None],
        task: Task,
        *,
        what: str,
        folder: Storage,
        workers: int,
        cpus: int,
        gpu: int,
        on_epoch: Callable[[Metrics], None],
    ) -> list[Metrics]:
        """Run `loop(task, worker)` on every rank until it returns, resuming after the epochs in the folder.

        Args:
            loop: calls `worker.report` once per epoch.
            task: its argument.
            what: for log lines and errors: the network, say.
            folder: gets a folder for each epoch: `epoch_0000`, ...
            workers: ranks.
            cpus: CPUs per rank.
            gpu: GPUs per rank, 0 or 1.
            on_epoch: called in this process with each new epoch's metrics, while the training runs.

        Returns:
            One row of metrics per recorded epoch, in order, earlier starts included.

        Raises:
            TrainingFailed: the loop raised, or the group died too often.
            TimeIsUp: epochs are left that were not begun in time.
        """

    def sweep(
        self,
        function: Callable[[Task, Report], None],
        tasks: Mapping[str, Task],
        *,
        what: str,
        at_once: int,
        cpus: float,
        gpu: float,
        on_result: Callable[[str, dict[str, Any]], None],
    ) -> None:
        """Run `function(task, report)` for every named task, as a separate trial.

        Args:
            function: stores its outcome itself, and calls `report({metric: value})` as it goes. Where it raises TimeIsUp, its trial is
                left for another start.
            tasks: name -> argument.
            what: for log lines and errors.
            at_once: trials running at a time.
            cpus: CPUs per trial.
            gpu: GPUs per trial; may be a fraction.
            on_result: called in this process with (name, metrics) for each report; a trial that starts again reports from the beginning.

        Raises:
            WorkFailed: some trials failed, after all others were finished.
            TimeIsUp: trials are left that were not begun, or not finished, in time.
        """

    def close(self) -> None:
        """Release the machines."""


def open_executor(name: Name, deadline: Deadline) -> Executor:
    """Return the executor of that name; Ray is loaded for `ray` alone.

    Raises:
        ValueError: Ray is not installed.
    """
    if name == "local":
        from cluster.local import LocalExecutor
        from cluster.processes import cpus

        return LocalExecutor(deadline, cpus())
    try:
        from cluster.ray_executor import RayExecutor
    except ModuleNotFoundError as error:
        raise ValueError(f"--executor ray needs Ray, which is not installed ({error}): install it, or use --executor local") from error
    return RayExecutor(deadline)
