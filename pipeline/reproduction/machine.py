"""What computes: kept beside every piece of work, because a later one may be done on another machine."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import torchvision


def machine() -> dict[str, Any]:
    """The `hardware` of this machine, and the `versions` of what runs on it."""
    versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
    return {"hardware": hardware(), "versions": versions | {"torchvision": str(torchvision.__version__), "pyarrow": pa.__version__}}


def hardware() -> str:
    """Processor, cores, memory and GPU of this machine: asked where the work is done."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{os.cpu_count()} cores, {model}, {memory:.0f} GiB, {platform.system()}, {gpu}"
