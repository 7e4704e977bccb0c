"""The settings of `plan.py`: those of a run, rates and prices."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from pipeline.config.schema import STRICT, RunConfig


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PlanConfig(RunConfig):
    """Estimate time, machines, storage and money of a run, without starting it."""

    gradients_per_second: float | None = None
    """gradients per second of one GPU with the (first) surrogate network, instead of measuring this cluster"""
    price_per_gpu_hour: float | None = None
    """price in any currency; per worker, if this cluster has no GPU and none is described"""

    def __post_init__(self) -> None:
        """Refuse impossible rates and prices, and sweeps.

        Raises:
            ValueError: a number is out of range, or a sweep is asked for.
        """
        super().__post_init__()
        if self.sweep:
            raise ValueError("a plan is of one run: give the values of a point instead of --sweep")
        for name in ("gradients_per_second", "price_per_gpu_hour"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name.replace('_', '-')} must be above 0, got {value}")
