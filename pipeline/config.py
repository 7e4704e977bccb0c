"""The configuration: one tree of frozen dataclasses, presets that derive from one another, and how both meet the command line."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import tyro
import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from pipeline.storage import absolute
from sep.countermeasures import COUNTERMEASURES
from sep.craft import CraftConfig
from sep.fitting import TrainConfig
from sep.models import NetworkName

StageName = Literal["pack", "surrogate", "protect", "victim", "report"]
STAGES: tuple[StageName, ...] = get_args(StageName)
STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PackConfig:
    """Stage 1: any image source becomes clean shards."""

    size: int | None = None
    """side in pixels: the short side is resized to it and the centre cut out; without it all images must have one size"""
    test_fraction: float = 0.0
    """share of each class set aside for testing, where the source has no test images"""
    shard_images: int = 250
    """images per shard, which is also what one task protects"""
    max_pixels: int = 64_000_000
    """larger images are quarantined instead of decoded"""
    max_train_images: int | None = None
    """keep at most this many training images, evenly over the classes"""
    max_test_images: int | None = None
    """keep at most this many test images, evenly over the classes"""

    def __post_init__(self) -> None:
        """Refuse what cannot be packed.

        Raises:
            ValueError: a number is out of range.
        """
        if not 0 <= self.test_fraction < 1:
            raise ValueError(f"pack.test-fraction must be from 0 up to, not including, 1; got {self.test_fraction}")
        for name in ("size", "shard_images", "max_pixels", "max_train_images", "max_test_images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"pack.{name.replace('_', '-')} must be at least 1, got {value}")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SurrogateConfig(TrainConfig):
    """Stage 2: the network whose checkpoints protect."""

    network: NetworkName = "resnet18"
    """the surrogate's architecture"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ProtectConfig(CraftConfig):
    """Stage 3: checkpoints and clean shards become protected shards."""

    batch_size: int = 125
    """images whose gradients are taken at once"""

    def __post_init__(self) -> None:
        """Refuse what cannot be crafted.

        Raises:
            ValueError: a number is out of range.
        """
        super().__post_init__()
        if self.batch_size < 1:
            raise ValueError(f"protect.batch-size must be at least 1, got {self.batch_size}")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class VictimConfig(TrainConfig):
    """Stage 4: what a stranger would train on the release, one trial per network, countermeasure, seed and data."""

    networks: tuple[NetworkName, ...] = ("resnet18",)
    """architectures trained on the clean and on the protected images"""
    countermeasures: tuple[str, ...] = ("none",)
    """what is done to the training images first: none, grayscale, jpeg-10, jpeg-50, jpeg-90"""
    seeds: tuple[int, ...] = (0,)
    """one training per seed"""

    def __post_init__(self) -> None:
        """Refuse unknown or missing names.

        Raises:
            ValueError: a countermeasure is unknown, or a list is empty.
        """
        super().__post_init__()
        for name in self.countermeasures:
            if name not in COUNTERMEASURES:
                raise ValueError(f"victim.countermeasures: unknown {name!r}; known are {', '.join(COUNTERMEASURES)}")
        for values in (self.networks, self.countermeasures, self.seeds):
            if not values or len(set(values)) < len(values):
                raise ValueError("victim.networks, victim.countermeasures and victim.seeds each need one value or more, none of them twice")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RunConfig:
    """Protect an image data set, and measure the protection."""

    preset: str = "quickstart"
    """where the values not given come from: smoke, quickstart, cifar10-small, cifar10"""
    config: str | None = None
    """YAML file with the same tree; flags win over it"""
    data: str = "generated"
    """images: a folder of class folders (with train/ and test/ or val/ inside, or not), of Parquet files, of WebDataset
    tars, a published CIFAR folder, or `generated`"""
    run: str = "runs/quickstart"
    """folder or URI (s3://...) that holds everything about this run"""
    stages: tuple[StageName, ...] = STAGES
    """any subset; always run in this order"""
    workers: int | None = None
    """tasks and training ranks at a time; one per GPU if not given, or else one task per CPU core and up to 8 ranks"""
    seed: int = 0
    """everything random derives from it"""
    overwrite: bool = False
    """redo stages whose configuration changed, instead of stopping"""
    tracking_uri: str | None = None
    """MLflow server or database; a SQLite file in the run folder if not given"""
    memory_limit_mb: int = 2000
    """data sets up to this size, decoded, are held in memory by each training worker; larger ones stream"""
    pack: PackConfig = PackConfig()
    surrogate: SurrogateConfig = SurrogateConfig()
    protect: ProtectConfig = ProtectConfig()
    victim: VictimConfig = VictimConfig()

    def __post_init__(self) -> None:
        """Check what only the whole tree shows.

        Raises:
            ValueError: values do not fit together.
        """
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}")
        if self.protect.members > self.surrogate.epochs:
            raise ValueError(
                f"protect.checkpoints = {self.protect.checkpoints} needs as many surrogate epochs, "
                f"but surrogate.epochs = {self.surrogate.epochs}"
            )


def quickstart() -> RunConfig:
    """The default: generated textures, about three minutes on two CPU cores."""
    train: dict[str, Any] = {"epochs": 15, "batch_size": 64, "schedule": "one-cycle", "augmentation": "none"}
    return RunConfig(
        surrogate=SurrogateConfig(network="resnet8", **train),
        protect=ProtectConfig(checkpoints=5, steps=10),
        victim=VictimConfig(networks=("resnet8",), **train),
    )


def smoke() -> RunConfig:
    """Every stage in seconds, for tests; protects nothing."""
    base = quickstart()
    return replace(
        base,
        preset="smoke",
        run="runs/smoke",
        pack=replace(base.pack, max_train_images=80, max_test_images=40, shard_images=20),
        surrogate=replace(base.surrogate, epochs=2, batch_size=20),
        protect=replace(base.protect, checkpoints=2, steps=2, batch_size=10),
        victim=replace(base.victim, epochs=2, batch_size=20),
    )


def cifar10() -> RunConfig:
    """The paper's protocol: all 50,000 images, ResNet18, 120 epochs, SEP-FA-VR with 15 checkpoints and 30 steps."""
    return RunConfig(
        preset="cifar10",
        data="",
        run="runs/cifar10",
        pack=PackConfig(shard_images=500),
        protect=ProtectConfig(method="sep-fa-vr", checkpoints=15, batch_size=500),
    )


def cifar10_small() -> RunConfig:
    """5,000 training images and a small network: the same protocol in minutes on a CPU."""
    base = cifar10()
    return replace(
        base,
        preset="cifar10-small",
        run="runs/cifar10-small",
        pack=replace(base.pack, max_train_images=5000, max_test_images=5000, shard_images=250),
        surrogate=replace(base.surrogate, network="resnet8", epochs=30),
        protect=replace(base.protect, method="sep-fa", checkpoints=10, steps=15, batch_size=125),
        victim=replace(base.victim, networks=("resnet8",), epochs=30, lr=0.2, schedule="one-cycle"),
    )


PRESETS: dict[str, Callable[[], RunConfig]] = {
    "quickstart": quickstart,
    "smoke": smoke,
    "cifar10-small": cifar10_small,
    "cifar10": cifar10,
}


def preset(name: str) -> RunConfig:
    """The full configuration of a preset.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; known are {', '.join(PRESETS)}")
    return PRESETS[name]()


def from_tree(tree: dict[str, Any]) -> RunConfig:
    """A configuration from nested mappings, as read from JSON or YAML; what is missing comes from its preset.

    Raises:
        ValueError: a key is unknown or a value does not fit; the message names it.
    """
    base = to_tree(preset(tree.get("preset", RunConfig.preset)))
    for key, value in tree.items():
        base[key] = {**base[key], **value} if isinstance(base.get(key), dict) and isinstance(value, dict) else value
    try:
        return TypeAdapter(RunConfig).validate_python(base)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'configuration'}: {e['msg']}" for e in error.errors())
        raise ValueError(f"configuration: {faults}") from error


def to_tree(config: Any) -> dict[str, Any]:
    """A configuration, or a section of it, as JSON types."""
    return cast(dict[str, Any], TypeAdapter(type(config)).dump_python(config, mode="json"))


def _read_yaml(path: str) -> Any:
    with Path(path).open() as stream:  # an open file, so that a syntax error names it
        return yaml.safe_load(stream)


def parse(arguments: Sequence[str] | None = None) -> RunConfig:
    """The configuration of a command line: preset, then the YAML file, then the flags.

    Exits with status 2 and a message where the command line is wrong.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)  # only to find the defaults of the real parser
    first.add_argument("--preset")
    first.add_argument("--config")
    known, _ = first.parse_known_args(arguments)
    try:
        tree = _read_yaml(known.config) if known.config else {}
        if not isinstance(tree, dict):
            raise ValueError(f"{known.config}: expected a mapping of settings, found {type(tree).__name__}")
        base = from_tree({**tree, **({"preset": known.preset} if known.preset else {})})
        config = tyro.cli(RunConfig, prog="run.py", default=base, args=arguments)
        if not config.data:
            raise ValueError(f"preset {config.preset!r} needs --data: a folder with the images (--help lists the kinds)")
        return dataclasses.replace(
            config, run=absolute(config.run), data=config.data if config.data == "generated" else absolute(config.data)
        )
    except (ValueError, OSError, yaml.YAMLError) as error:
        print(f"run.py: {error}", file=sys.stderr)
        raise SystemExit(2) from error
