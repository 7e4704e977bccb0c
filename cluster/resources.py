"""The machines' CPUs and GPUs, and the number of ranks and tasks that fit them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MOST_CPU_WORKERS = 8  # by default; more DDP ranks on one machine's CPUs cost more in synchronisation than they bring


@dataclass(frozen=True)
class Resources:
    """The division of work over machines.

    Attributes:
        nodes: CPUs and GPUs of each machine.
        workers: ranks of one distributed training.
        tasks: independent tasks at a time: one per GPU, or, without GPUs, one single-threaded task per CPU.
    """

    nodes: tuple[tuple[int, int], ...]
    workers: int
    tasks: int

    @property
    def cpus(self) -> int:
        """The CPUs of all machines together."""
        return sum(cpus for cpus, _ in self.nodes)

    @property
    def gpu(self) -> int:
        """The GPUs of one rank or task, 0 or 1."""
        return int(any(gpus for _, gpus in self.nodes))

    def cpus_for(self, at_once: int, per_gpu: int = 1) -> int:
        """Return the CPUs of each of `at_once` equal tasks. No task stretches over two machines; `per_gpu` tasks share a GPU."""

        def room(each: int) -> int:
            return sum(min(cpus // each, gpus * per_gpu) if self.gpu else cpus // each for cpus, gpus in self.nodes)

        return max((each for each in range(1, self.cpus + 1) if room(each) >= at_once), default=1)


def divide(nodes: Sequence[tuple[int, int]], workers: int | None) -> Resources:
    """Divide work over machines with so many (CPUs, GPUs) each: one rank or task per GPU, or per CPU where no machine has a GPU.

    Raises:
        ValueError: more workers are asked for than fit.
    """
    gpu = any(gpus for _, gpus in nodes)
    most = max(1, sum(min(cpus, gpus) if gpu else cpus for cpus, gpus in nodes))  # a GPU is of no use without a CPU
    if workers is not None and workers > most:
        kind = "GPU" if gpu else "CPU"
        raise ValueError(f"{workers} workers need one {kind} each, but the cluster has {most}: lower --workers or add machines")
    return Resources(tuple(nodes), workers or (most if gpu else min(most, MOST_CPU_WORKERS)), workers or most)
