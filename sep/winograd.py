"""3x3 convolutions with a quarter of the multiplications, for CPUs: F(4x4, 3x3) of Winograd's minimal filtering algorithms.

Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks", section 4.3: `Y = A^T [(G g G^T) * (B^T d B)] A` for each tile of
4x4 outputs, from the 6x6 inputs d around it and the filter g. The products of all tiles and channels are 36 matrix products. Sums are
rounded a few times as coarsely as by the direct algorithm, still in the last places of float32.

On a GPU cuDNN has algorithms of this kind; torch's convolutions on a CPU do not.

Legend: B images, C channels in, K channels out, H W places, b images at a time, h w tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

TILE = 4  # outputs a side
PLACES = TILE + 2  # inputs a side, and products a side
# Smallest sizes at which the algorithm is faster, as measured with one thread and with two.
CHANNELS = 64  # in and out; with fewer, sums over the places of tiles cost more than the saved products
TILES = 32  # of a batch; with fewer, transforming the filters costs more
PRODUCTS = 2**22  # at each place: tiles by channels in by channels out; with fewer, the calls of torch cost more
AT_ONCE = 1_200_000  # values of a batch's tiles, so that they stay in the cache from one pass to the next

_G = torch.tensor(
    [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6], [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]],
    dtype=torch.float64,
)
_FILTERS = torch.kron(_G, _G)  # `(36, 9)`, both directions in one


def _filters(weight: Tensor, *, turned: bool) -> Tensor:
    """Return `G g G^T` of weights `(K, C, 3, 3)`, laid out channels last, or of the weights turned by 180 degrees: `(K, 36, C)`.

    They are computed at every use. At four times the size of the weights, they are too large to store for a whole ensemble.
    """
    transform = _FILTERS.flip(1) if turned else _FILTERS
    return transform.to(weight.dtype) @ weight.permute(0, 2, 3, 1).flatten(1, 2)


def _apart(d: Sequence[Tensor], into: Tensor) -> None:
    """Write `B^T d` along one direction: from six places to the six of the transform, the first dimension of `into`."""
    odd = torch.sub(d[3], d[1], alpha=4)
    torch.sub(d[4], d[2], alpha=4, out=into[1])
    torch.sub(into[1], odd, out=into[2])
    into[1].add_(odd)
    torch.sub(d[3], d[1], out=odd)
    torch.sub(d[4], d[2], out=into[3])
    torch.sub(into[3], odd, alpha=2, out=into[4])
    into[3].add_(odd, alpha=2)
    torch.add(d[4], d[0], alpha=4, out=into[0]).sub_(d[2], alpha=5)
    torch.add(d[5], d[1], alpha=4, out=into[5]).sub_(d[3], alpha=5)


def _together(m: Tensor, into: Tensor) -> None:
    """Write `A^T m` along one direction: from six products, the first dimension of m, to four places, the first of `into`."""
    ones, twos = m[1] + m[2], m[3] + m[4]
    torch.add(ones, twos, out=into[0]).add_(m[0])
    torch.add(ones, twos, alpha=4, out=into[2])
    torch.sub(m[1], m[2], out=ones)
    torch.sub(m[3], m[4], out=twos)
    torch.add(ones, twos, alpha=2, out=into[1])
    torch.add(ones, twos, alpha=8, out=into[3]).add_(m[5])


def _convolve(x: Tensor, filters: Tensor) -> Tensor:
    """Convolve images `(B, C, H, W)`, padded by one place, with transformed filters `(36, C, K)`: `(B, K, H, W)` channels last."""
    (count, _, height, width), channels = x.shape, filters.shape[2]
    h, w = -(-height // TILE), -(-width // TILE)
    # `y` is not a view of another tensor: torch would refuse the in-place ReLU after it.
    y = torch.empty(count, channels, TILE * h, TILE * w, dtype=x.dtype, memory_format=torch.channels_last)
    places = y.permute(0, 2, 3, 1).view(count, h, TILE, w, TILE, channels)
    step = max(1, AT_ONCE // (PLACES * PLACES * h * w * max(filters.shape[1:])))
    for some, out in zip(torch.split(x.permute(0, 2, 3, 1), step), torch.split(places, step), strict=True):
        padded = functional.pad(some, (0, 0, 1, 1 + TILE * w - width, 1, 1 + TILE * h - height))
        columns = x.new_empty(PLACES, *padded.shape[:2], w, padded.shape[3])
        _apart([padded[:, :, i : i + TILE * w - 3 : TILE] for i in range(PLACES)], columns)
        tiles = x.new_empty(PLACES, PLACES, len(some), h, w, padded.shape[3])
        _apart([columns[:, :, i : i + TILE * h - 3 : TILE] for i in range(PLACES)], tiles)
        products = torch.bmm(tiles.view(PLACES * PLACES, -1, padded.shape[3]), filters).view(*tiles.shape[:-1], channels)
        rows = x.new_empty(TILE, PLACES, len(some), h, w, channels)
        _together(products, rows)
        _together(rows.transpose(0, 1), out.permute(4, 2, 0, 1, 3, 5))
    if (height, width) == y.shape[2:]:
        return y
    return y[:, :, :height, :width].contiguous(memory_format=torch.channels_last)


class _Convolution(torch.autograd.Function):
    """The convolution, differentiable with respect to its input alone; that gradient is a convolution of the same kind."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        y = _convolve(x, _filters(weight, turned=False).permute(1, 2, 0))
        return y if bias is None else y.add_(bias.view(-1, 1, 1))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return _convolve(gradients[0], _filters(weight, turned=True).permute(1, 0, 2)), None, None


class Winograd(nn.Module):
    """A frozen 3x3 convolution: by this algorithm where it is faster, and by torch's own elsewhere."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        """Wrap a convolution that `suits`."""
        super().__init__()
        assert not convolution.weight.requires_grad  # the algorithm does not compute their gradient
        self.convolution = convolution
        self.train(convolution.training)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `(B, C, H, W)` to `(B, K, H, W)`, without gradients of the weights."""
        if not self.pays(x):
            y: Tensor = self.convolution(x)
        else:
            y = _Convolution.apply(x, self.convolution.weight, self.convolution.bias)
        return y

    def pays(self, x: Tensor) -> bool:
        """True if a batch is large enough, on a CPU, in the precision of the weights, and its tiles lie mostly within the images."""
        count, channels, height, width = x.shape
        tiles = -(-height // TILE) * -(-width // TILE)
        return (
            x.device.type == "cpu"
            and not torch.is_autocast_enabled("cpu")
            and height * width >= tiles * TILE**2 / 2
            and count * tiles >= TILES
            and count * tiles * channels * self.convolution.out_channels >= PRODUCTS
        )


def suits(convolution: nn.Conv2d) -> bool:
    """Return whether the algorithm applies to this kind of convolution, and this one has enough channels."""
    places = (convolution.kernel_size, convolution.stride, convolution.padding, convolution.dilation)
    return (
        places == ((3, 3), (1, 1), (1, 1), (1, 1))
        and convolution.groups == 1
        and convolution.padding_mode == "zeros"
        and min(convolution.in_channels, convolution.out_channels) >= CHANNELS
    )


def replace_convolutions(trunk: nn.Module) -> None:
    """Replace every convolution of a frozen network that `suits`."""
    for parent in list(trunk.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and suits(child):
                setattr(parent, name, Winograd(child))
