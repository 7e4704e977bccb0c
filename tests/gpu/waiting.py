"""How often an action waits for a device."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the reads of a tensor's value, each of which would make the host wait for a GPU."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waits = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.masked_select.default)
        self.count += func in waits
        return func(*args, **(kwargs or {}))


def waits(device: torch.device, action: Callable[[], object]) -> int:
    """Return how often an action waits for the device: on a GPU by torch's own check, which includes copies."""
    if device.type == "cpu":
        with Reads() as reads:  # type: ignore[no-untyped-call]
            action()
        return int(reads.count)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")  # several waits may be on one line, which by default warns once
        torch.cuda.set_sync_debug_mode("warn")
        try:
            action()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)
