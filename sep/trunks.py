"""The architectures without their last layer: torchvision's, changed where small images need it.

Every builder takes the side of the images in pixels. It returns a trunk, `(B, 3, H, W)` normalised -> `(B, D)` penultimate features, and D.
Weights are fresh, from torch's global random state, initialised as torchvision initialises that architecture.

Legend: B images, H W pixels, D feature width.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import VisionTransformer, densenet121, googlenet, mobilenet_v2, resnet18, vgg16_bn
from torchvision.models.googlenet import BasicConv2d
from torchvision.models.resnet import BasicBlock
from torchvision.models.vgg import cfgs, make_layers
from torchvision.ops import SqueezeExcitation

SMALL_IMAGE = 64  # pixels a side; for smaller images the first layers must not discard resolution
SQUEEZE = 16  # channels per squeezed channel (Hu et al. 2018, section 6.4)
MAX_PATCHES = 14  # a side: 224 pixels in patches of 16, as in the ViT paper


class Average(nn.Module):
    """Means of features `(B, D, H, W)` over all places, `(B, D)`.

    A pooling with one large window: the gradient of torch's adaptive pooling is not laid out channels last, which makes the ReLU before it
    ten times as slow.
    """

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        return functional.avg_pool2d(features, features.shape[-2:]).flatten(1)


def _initialise(module: nn.Module) -> None:
    """Initialise convolutions as torchvision's ResNet, VGG and MobileNetV2 do: Kaiming, by fan-out; biases stay as they are."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")


def _resnet8(image_size: int) -> tuple[nn.Module, int]:
    """Build one basic block at each of the widths 16, 32, 64: small enough to train on a CPU in a minute.

    From 64 pixels on, the stem has stride 2, so that 64 pixels cost as much as 32.
    """
    widths = (16, 32, 64)
    halving = 1 if image_size < SMALL_IMAGE else 2
    stem = [nn.Conv2d(3, widths[0], 3, halving, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True)]
    blocks: list[nn.Module] = []
    for before, width in zip((widths[0], *widths), widths, strict=False):
        stride = 1 if width == before else 2
        shortcut = None
        if stride != 1:
            shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        blocks.append(BasicBlock(before, width, stride, shortcut))
    trunk = nn.Sequential(*stem, *blocks, Average())
    _initialise(trunk)
    return trunk, widths[-1]


def _resnet18(image_size: int) -> tuple[nn.Module, int]:
    """Build torchvision's ResNet18; for small images with a 3x3 stride-1 stem and no max-pool (method, section 2)."""
    trunk = resnet18()
    if image_size < SMALL_IMAGE:
        trunk.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        _initialise(trunk.conv1)
        trunk.maxpool = nn.Identity()
    width: int = trunk.fc.in_features
    trunk.fc = nn.Identity()
    return trunk, width


def _senet18(image_size: int) -> tuple[nn.Module, int]:
    """Build a ResNet18 with squeeze-and-excitation in every block (Hu et al. 2018)."""
    trunk, width = _resnet18(image_size)
    for block in [module for module in trunk.modules() if isinstance(module, BasicBlock)]:
        channels = block.bn2.num_features
        excitation = SqueezeExcitation(channels, channels // SQUEEZE)
        _initialise(excitation)
        block.bn2 = nn.Sequential(block.bn2, excitation)  # a block adds its shortcut to the output of bn2
    return trunk, width


def _vgg16_bn(image_size: int) -> tuple[nn.Module, int]:
    """Build torchvision's VGG16 with batch-norm, without its last layer; for small images the convolutions alone (D = 512).

    Raises:
        ValueError: the images are too small for five poolings.
    """
    if image_size < 32:
        raise ValueError(f"vgg16-bn halves its images five times and needs 32 pixels a side or more, got {image_size}")
    if image_size < SMALL_IMAGE:  # torchvision's classifier is eight times as large as all convolutions
        features = make_layers(cfgs["D"], batch_norm=True)
        _initialise(features)
        for module in features:
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)
        return nn.Sequential(features, Average()), 512
    trunk = vgg16_bn()
    width: int = trunk.classifier[-1].in_features
    trunk.classifier = trunk.classifier[:-1]
    return trunk, width


def _densenet121(image_size: int) -> tuple[nn.Module, int]:
    """Build torchvision's DenseNet121, growth 32; for small images with a 3x3 stride-1 stem and no max-pool."""
    trunk = densenet121()
    if image_size < SMALL_IMAGE:
        trunk.features.conv0 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(trunk.features.conv0.weight)  # by fan-in, as in torchvision's DenseNet
        trunk.features.pool0 = nn.Identity()
    width: int = trunk.classifier.in_features
    trunk.classifier = nn.Identity()
    return trunk, width


def _googlenet(image_size: int) -> tuple[nn.Module, int]:
    """Build torchvision's GoogLeNet without auxiliary heads; for small images with a 3x3 stride-1 stem and without the first two poolings.

    The trunk ends with torchvision's dropout before the last layer.
    """
    trunk = googlenet(aux_logits=False, transform_input=False, init_weights=True)
    if image_size < SMALL_IMAGE:
        trunk.conv1 = BasicConv2d(3, 64, kernel_size=3, padding=1)
        nn.init.trunc_normal_(trunk.conv1.conv.weight, std=0.01)
        trunk.maxpool1 = nn.Identity()
        trunk.maxpool2 = nn.Identity()
    width: int = trunk.fc.in_features
    trunk.fc = nn.Identity()
    return trunk, width


def _mobilenet_v2(image_size: int) -> tuple[nn.Module, int]:
    """Build torchvision's MobileNetV2; for small images with stride 1 in the stem and in the first stage that would halve.

    The trunk ends with torchvision's dropout before the last layer.
    """
    trunk = mobilenet_v2()
    if image_size < SMALL_IMAGE:
        for stage in (0, 2):  # of `features`: the stem, and the first block with 24 channels
            halving = [part for part in trunk.features[stage].modules() if isinstance(part, nn.Conv2d) and part.stride == (2, 2)]
            assert len(halving) == 1
            halving[0].stride = (1, 1)
    width: int = trunk.classifier[-1].in_features
    trunk.classifier = trunk.classifier[:-1]
    return trunk, width


def _vit_small(image_size: int) -> tuple[nn.Module, int]:
    """Build torchvision's vision transformer, 6 layers of width 192 with 3 heads.

    The side of a patch is the smallest power of two that makes at most 14 patches a side, hence 64 to 196 in all (from 8 pixels on):
    2 pixels for images of 16, 4 for 32, 8 for 64, 16 for 224.

    Raises:
        ValueError: the side is not a multiple of the patch.
    """
    patch = 1
    while image_size > MAX_PATCHES * patch:
        patch *= 2
    if rest := image_size % patch:
        below = image_size - rest
        raise ValueError(
            f"vit-small cuts images of {image_size} pixels a side into patches of {patch}, and {image_size} is not a multiple of "
            f"{patch}: use images of {below} or {below + patch} pixels"
        )
    width = 192
    trunk = VisionTransformer(image_size, patch, num_layers=6, num_heads=3, hidden_dim=width, mlp_dim=2 * width)
    trunk.heads = nn.Identity()
    return trunk, width


TRUNKS: dict[str, Callable[[int], tuple[nn.Module, int]]] = {
    "resnet8": _resnet8,
    "resnet18": _resnet18,
    "senet18": _senet18,
    "vgg16-bn": _vgg16_bn,
    "densenet121": _densenet121,
    "googlenet": _googlenet,
    "mobilenet-v2": _mobilenet_v2,
    "vit-small": _vit_small,
}
