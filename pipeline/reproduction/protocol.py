"""The paper's protocol on one device: its settings, and one start of it on a folder.

Legend: B images, H W pixels, K classes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from pipeline.reproduction.pieces import Clock, load, load_json, save_json
from pipeline.reproduction.resident import Split
from pipeline.reproduction.training import Training
from sep.craft import CraftConfig, Method
from sep.ensemble import equally_spaced
from sep.execution import Kernels, Precision
from sep.models import NetworkName
from sep.train_config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides the figures; the same for everything in one folder."""

    data: str  # SHA-256 of the Parquet files
    device: str  # cuda or cpu
    limit_train: int | None
    limit_test: int | None
    network: NetworkName
    epochs: int
    victim_epochs: int
    method: Method
    checkpoints: int
    inner_steps: int | None
    steps: int
    precision: Precision  # what it comes to on the device, never auto
    seed: int

    def __post_init__(self) -> None:
        """Refuse what cannot be done, before hours are spent on it.

        Raises:
            ValueError: a number is out of range.
        """
        assert self.precision != "auto"
        for name in ("limit_train", "limit_test", "victim_epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        TrainConfig(epochs=self.epochs)
        self.ensemble_epochs()

    def craft(self, eps_levels: int) -> CraftConfig:
        """How one budget is crafted, whatever the kernels."""
        return CraftConfig(
            method=self.method,
            eps_levels=eps_levels,
            steps=self.steps,
            checkpoints=self.checkpoints,
            inner_steps=self.inner_steps,
            precision=self.precision,
        )

    def ensemble_epochs(self) -> list[int]:
        """The epochs whose weights are the ensemble; none for the control.

        Raises:
            ValueError: there are too few.
        """
        count = self.craft(1).per_network
        return equally_spaced(self.epochs, count) if count else []


@dataclass(frozen=True, kw_only=True)
class Run:
    """One start of the protocol; what is not in its settings may differ from start to start."""

    settings: Settings
    out: Path
    source: Path  # folder of the Parquet files
    eps_levels: tuple[int, ...]
    victim_seeds: tuple[int, ...]
    batch_size: int | None  # images per gradient; what fits if not given
    chunk_images: int  # protected images in each file that is not there yet
    kernels: Kernels  # of the gradients
    clock: Clock

    def __post_init__(self) -> None:
        """Refuse what cannot be done.

        Raises:
            ValueError: a number is out of range.
        """
        if self.chunk_images < 1:
            raise ValueError(f"chunk_images must be at least 1, got {self.chunk_images}")

    def settle(self) -> None:
        """Hold the folder to its settings: those it was begun with.

        Raises:
            ValueError: they differ.
        """
        asked, kept = dataclasses.asdict(self.settings), load_json(self.out / "settings.json")
        if kept is None:
            save_json(self.out / "settings.json", asked)
        elif kept != asked:
            name = next(name for name in (*asked, *kept) if kept.get(name) != asked.get(name))
            raise ValueError(
                f"{self.out} was made with {name} = {kept.get(name)}, and now it is {asked.get(name)}: "
                "give another --out, or delete that folder"
            )

    @property
    def device(self) -> torch.device:
        """Where everything is computed."""
        return torch.device(self.settings.device)

    @cached_property
    def data(self) -> dict[str, Any]:
        """What the data stage left: images `(B, 3, H, W)` uint8 and labels of both splits on the CPU, `mean`, `std`, K.

        Raises:
            ValueError: it has not finished.
        """
        data = load(self.out / "data.pt")
        if data is None:
            raise ValueError(f"{self.out}/data.pt is not there or damaged: run the stage `data`")
        return data

    def split(self, name: str) -> Split:
        """`train` or `test`, on the device."""
        return Split(self.data[f"{name}_images"], self.data[f"{name}_labels"]).to(self.device)

    def training(self, epochs: int, seed: int) -> Training:
        """The paper's training: the surrogate's, and the victims' too."""
        return Training(
            network=self.settings.network,
            num_classes=self.data["num_classes"],
            image_size=min(self.data["train_images"].shape[2:]),
            mean=self.data["mean"],
            std=self.data["std"],
            config=TrainConfig(epochs=epochs),
            seed=seed,
            device=self.device,
            precision=self.settings.precision,
        )
