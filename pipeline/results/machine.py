"""The machine that a start of a run computes on."""

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from pipeline.storage.records import counted as number_of

PACKAGES = ("torchvision", "pyarrow")
Machine = dict[str, Any]


def machine() -> Machine:
    """Return the `hardware` of this machine, and the `versions` of what runs on it."""
    versions = {"python": platform.python_version(), "torch": str(torch.__version__)}  # which names its CUDA, other than the package's
    return {"hardware": hardware(), "versions": versions | {package: version(package) for package in PACKAGES}}


def hardware() -> str:
    """Return processor, memory and GPU of this machine, and the cores that this process may run on, which may be some of its cores."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{number_of(_cores(), 'core')}, {model}, {memory:.0f} GiB, {platform.system()}, {gpu}"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # which macOS lacks


def code_version() -> str:
    """Return the version of this package, and the commit where it runs from a clone."""
    try:
        own = version("sep-pipeline")
    except PackageNotFoundError:  # a bare tree
        own = "not installed"
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    with suppress(ImportError):
        import git

        with suppress(git.GitError, ValueError, OSError):
            repository = git.Repo(Path(__file__).parent, search_parent_directories=True)
            return f"{own}, commit {repository.head.commit.hexsha[:10]}{', with changes' if repository.is_dirty() else ''}"
    return own


def counted(before: Sequence[Machine], seconds: float) -> list[Machine]:
    """Return the machines of earlier starts and of this one, each with its `starts`, their `seconds` and the most `memory_gib` in use."""
    here = machine()
    earlier = next((other for other in before if here.items() <= other.items()), {"starts": 0, "seconds": 0.0, "memory_gib": 0.0})
    memory = max(earlier["memory_gib"], round(_peak_memory_gib(), 2))
    now = {**here, "starts": earlier["starts"] + 1, "seconds": round(earlier["seconds"] + seconds, 1), "memory_gib": memory}
    return [*(other for other in before if other is not earlier), now]


def _peak_memory_gib() -> float:
    """Return the most memory in use so far: of torch's tensors on the GPU if there is one, or else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
