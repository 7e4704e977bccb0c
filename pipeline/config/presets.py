"""Ready-made configurations: plain functions, derived from one another in a few lines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pipeline.config.faults import one_line
from pipeline.config.schema import UNTRACKED, PackConfig, ProtectConfig, RunConfig, SurrogateConfig, VictimConfig, to_tree


def quickstart() -> RunConfig:
    """The default: generated textures, about three minutes on two CPU cores."""
    train: dict[str, Any] = {"epochs": 15, "batch_size": 64, "schedule": "one-cycle", "augmentation": "none"}
    return RunConfig(
        surrogate=SurrogateConfig(networks=("resnet8",), **train),
        protect=ProtectConfig(method="sep-fa-drawn", checkpoints=5, steps=15),
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
        protect=ProtectConfig(checkpoints=2, steps=2, batch_size=10),
        victim=replace(base.victim, epochs=2, batch_size=20),
    )


def cifar10() -> RunConfig:
    """The paper's protocol: all 50,000 images, ResNet18, 120 epochs, SEP-FA-VR with 15 checkpoints (SEP, SEP-FA: 30) and 30 steps."""
    return RunConfig(
        preset="cifar10",
        data="",
        run="runs/cifar10",
        pack=PackConfig(shard_images=500),
        protect=ProtectConfig(method="sep-fa-vr"),
    )


def paper() -> RunConfig:
    """The default of reproduce.py: `cifar10` at both of the paper's budgets, in one process, with nothing drawn or logged.

    Shards are large, for a GPU is not full with 500 images.
    """
    base = cifar10()
    return replace(
        base,
        preset="paper",
        run="runs/reproduce",
        pack=replace(base.pack, shard_images=2000),
        protect=replace(base.protect, kernels="auto"),
        sweep=("protect.eps-levels=2,8",),
        stages=("pack", "surrogate", "protect", "victim"),
        executor="local",
        tracking_uri=UNTRACKED,
    )


def cifar10_small() -> RunConfig:
    """5,000 training images and a small network, in minutes on a CPU: SEP-FA with drawn members, 15 gradients an image."""
    base = cifar10()
    return replace(
        base,
        preset="cifar10-small",
        run="runs/cifar10-small",
        pack=replace(base.pack, max_train_images=5000, max_test_images=5000, shard_images=250),
        surrogate=replace(base.surrogate, networks=("resnet8",), epochs=30),
        protect=replace(base.protect, method="sep-fa-drawn", checkpoints=10, steps=15),
        victim=replace(base.victim, networks=("resnet8",), epochs=30, lr=0.2, schedule="one-cycle"),
    )


def cifar100() -> RunConfig:
    """The paper's protocol on CIFAR-100: as CIFAR-10, targets 50 classes on."""
    return replace(cifar10(), preset="cifar100", run="runs/cifar100")


def imagenet_subset() -> RunConfig:
    """The paper's protocol on ImageNet: a surrogate on 100 classes (`--pack.classes`), ten of them protected (`--protect.classes`)."""
    base = cifar10()
    train: dict[str, Any] = {"weight_decay": 1e-4, "warmup_epochs": 0, "augmentation": "resized-crop-flip"}
    return replace(
        base,
        preset="imagenet-subset",
        run="runs/imagenet-subset",
        pack=replace(base.pack, size=224, shard_images=250),
        surrogate=replace(base.surrogate, **train),
        protect=replace(base.protect, classes=tuple(map(str, range(10)))),
        victim=replace(base.victim, **train),
    )


def imagenet_subset_small() -> RunConfig:
    """The same with 64-pixel images and a small network: minutes on a CPU."""
    base, small = imagenet_subset(), cifar10_small()
    train: dict[str, Any] = {"weight_decay": 5e-4, "augmentation": "crop-flip", "lr": 0.2, "schedule": "one-cycle", "epochs": 20}
    return replace(
        base,
        preset="imagenet-subset-small",
        run="runs/imagenet-subset-small",
        pack=replace(base.pack, size=64),
        surrogate=replace(base.surrogate, networks=("resnet8",), **train),
        protect=replace(small.protect, classes=base.protect.classes),
        victim=replace(base.victim, networks=("resnet8",), **train),
    )


def photos() -> RunConfig:
    """Photographs at their own size, for networks that see 224 pixels, on a GPU: ResNet18, SEP-FA with drawn members, through JPEG-75."""
    base = imagenet_subset()
    return replace(
        base,
        preset="photos",
        run="runs/photos",
        input_size=224,
        views=("none", "jpeg-75"),
        pack=replace(base.pack, size=None),
        protect=ProtectConfig(method="sep-fa-drawn"),
        victim=replace(base.victim, countermeasures=("none", "jpeg-50", "resize-50", "screenshot")),
    )


def photos_small() -> RunConfig:
    """The default for images of one's own: photographs at their own size, a small network that sees 64 pixels, noise of each class.

    It takes minutes on a CPU. The noise is what protected photographs best. Without views: shrunk to 64 pixels, a
    photograph keeps little of what JPEG did to it, and the view would take most of the time.
    """
    base = photos()
    train: dict[str, Any] = {"epochs": 40, "batch_size": 32, "lr": 0.1, "schedule": "one-cycle", "weight_decay": 5e-4}
    return replace(
        base,
        preset="photos-small",
        run="runs/photos-small",
        input_size=64,
        views=("none",),
        pack=replace(base.pack, shard_images=100),
        surrogate=replace(base.surrogate, networks=("resnet8",), augmentation="resized-crop-flip", **train),
        protect=ProtectConfig(method="error-min-class-momentum", checkpoints=10),
        victim=replace(base.victim, networks=("resnet8",), augmentation="resized-crop-flip", **train),
    )


PRESETS: dict[str, Callable[[], RunConfig]] = {
    "quickstart": quickstart,
    "smoke": smoke,
    "cifar10-small": cifar10_small,
    "cifar10": cifar10,
    "paper": paper,
    "cifar100": cifar100,
    "imagenet-subset-small": imagenet_subset_small,
    "imagenet-subset": imagenet_subset,
    "photos-small": photos_small,
    "photos": photos,
}


def preset(name: str) -> RunConfig:
    """Return the full configuration of a preset.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in list(PRESETS):  # which a file may give as a list or a mapping
        raise ValueError(f"unknown preset {name!r}; known are {', '.join(PRESETS)}")
    return PRESETS[name]()


def from_tree(tree: dict[str, Any]) -> RunConfig:
    """Return the configuration of nested mappings, as read from JSON or YAML; missing values come from its preset.

    Raises:
        ValueError: a key is unknown or a value does not fit; the message names it.
    """
    name = tree.get("preset", RunConfig.preset)
    if not name:
        raise ValueError(f"preset: expected one of {', '.join(PRESETS)}; got nothing")
    known = to_tree(preset(name))
    base = dict(known)
    for key, value in tree.items():
        base[key] = {**base[key], **value} if isinstance(base.get(key), dict) and isinstance(value, dict) else value
    try:
        return TypeAdapter(RunConfig).validate_python(base)
    except ValidationError as error:
        raise ValueError(one_line(error, known)) from error
