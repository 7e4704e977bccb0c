"""Where the time of a call goes: by kernel on a GPU, by operator on a CPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from tests.benchmarks.turns import synchronise

MOST = 25  # kernels listed


def profiled(call: Callable[[], object], times: int) -> dict[str, Any]:
    """Return the kernels of a call, after one call to warm up; the call does the same `times` over, and figures are of one.

    Returns:
        Milliseconds by the clock, without the profiler and with it idle at both ends; milliseconds in kernels; launches; and for the
        kernels that take the longest their name, launches and microseconds.
    """
    gpu = torch.cuda.is_available()
    call()
    synchronise()
    begun = time.perf_counter()
    call()
    synchronise()
    seconds = time.perf_counter() - begun
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])], acc_events=True) as found:
        call()
        synchronise()
    kind = DeviceType.CUDA if gpu else DeviceType.CPU
    each = [
        (event.self_device_time_total if gpu else event.self_cpu_time_total, event)
        for event in found.key_averages()
        if event.device_type == kind and not event.is_user_annotation  # such as the optimiser's step, which is its kernels
    ]
    ordered = sorted(each, key=lambda pair: -pair[0])
    return {
        "by": "kernel" if gpu else "operator",
        "milliseconds": round(1000 * seconds / times, 3),
        "milliseconds_in_kernels": round(sum(spent for spent, _ in each) / 1000 / times, 3),
        "launches": round(sum(event.count for _, event in each) / times, 1),
        "kernels": [
            {"name": event.key[:120], "launches": round(event.count / times, 1), "microseconds": round(spent / times, 1)}
            for spent, event in ordered[:MOST]
        ],
    }
