"""Purifying a release by variational auto-encoders of a limited rate, which lose a perturbation that the class predicts.

After Yu et al. 2024, "Purify Unlearnable Examples via Rate-Constrained Variational Autoencoders" (D-VAE).

Legend: B images, C channels, H W pixels, K classes, D numbers in the code of a patch, h w patches.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from sep.countermeasures.countermeasure import Epoch, OfClass
from sep.countermeasures.restoration import even, restored, scaled, trained

STEPS = 1000  # of training, in each stage
RATE = 3e-3  # peak of its learning rate
RATES = 0.2, 0.6  # of the first stage and the second, in nats for each value of an image
EXCESS = 10.0  # what a nat beyond the rate costs, beside squared differences of numbers from -1 to 1
PATCH, WIDTH = 4, 64  # side of a patch in pixels; channels
D = 3 * PATCH**2  # as many numbers as the patch has values: only the rate limits a code
GAIN, NOISE = 2.0, -2.0  # to begin with: what means of patches are multiplied by in a code, and the logarithm of its variance


class DVAE(nn.Module):
    """An encoder, a decoder, and an auxiliary decoder of the embeddings of classes.

    They begin as a linear code of patches in cosines, of which fine ones count little, and convolutions beside it learn the rest.
    """

    basis: Tensor

    def __init__(self, num_classes: int, height: int, width: int) -> None:
        """Build it for K classes and images of H x W pixels, multiples of the side of a patch."""
        super().__init__()
        self.encoder, self.decoder, self.auxiliary = _convolutions(2 * D), _convolutions(D), _convolutions(D)
        self.embeddings = nn.Parameter(torch.zeros(num_classes, D, height // PATCH, width // PATCH))
        basis, gains = _cosines()
        self.register_buffer("basis", basis)
        self.gains, self.inverse = nn.Parameter(gains), nn.Parameter(gains / (gains.square() + 0.25))

    def code(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the logarithm of the variance of the code of images, `(B, D, h, w)` each."""
        values = self.gains * functional.conv2d(images, self.basis, stride=PATCH)
        mean, log_variance = self.encoder(values).chunk(2, 1)
        return values + mean, NOISE + log_variance

    def decoded(self, code: Tensor) -> Tensor:
        """Return the images of a code, `(B, D, h, w)` to `(B, 3, H, W)`."""
        return functional.conv_transpose2d(self.inverse * code + self.decoder(code), self.basis, stride=PATCH)

    def perturbations(self) -> Tensor:
        """Return what the images of each class have in common beyond what the decoder gives, `(K, 3, H, W)`."""
        return functional.pixel_shuffle(self.embeddings + self.auxiliary(self.embeddings), PATCH)


def d_vae(epoch: Epoch, num_classes: int, *, steps: int = STEPS) -> OfClass:
    """Subtract the perturbation that an auto-encoder of a low rate loses and the class predicts, then decode images at a higher rate.

    With a low rate, an auto-encoder loses the perturbation, and the auxiliary decoder finds its predictable part in what was lost; the
    first stage subtracts it. With a higher rate, the second stage encodes what is left, and decodes the mean of the code (section 4 of the
    paper, algorithm 1). The rate is the divergence from a standard normal distribution. Here it is counted in nats for each value, the
    networks are small, and the auxiliary decoder sees the class alone.

    Args:
        epoch: batches of an epoch, images `(B, C, H, W)` in levels and labels `(B,)`.
        num_classes: K.
        steps: of training, in each stage.

    Returns:
        A function of images `(B, C, H, W)` in levels and labels `(B,)`. Its result is float32, not whole.
    """
    with torch.random.fork_rng(devices=[]):
        patterns = _fitted(epoch, num_classes, RATES[0], steps).perturbations()
        first = partial(_without_own, 127.5 * patterns)
        second = _fitted(lambda number: ((first(images, labels), labels) for images, labels in epoch(number)), num_classes, RATES[1], steps)
    return lambda images, labels: restored(lambda levels: second.decoded(second.code(levels)[0]), first(images, labels), patterns.device)


def rate(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the mean divergence of normal distributions from the standard one, in nats: of equal shapes to a number.

    Codes have as many numbers as images have values.
    """
    return (mean.square() + log_variance.exp() - 1 - log_variance).mean() / 2


def _fitted(epoch: Epoch, num_classes: int, limit: float, steps: int) -> DVAE:
    network = DVAE(num_classes, *(even(side) for side in next(iter(epoch(0)))[0].shape[2:]))
    trained(network, partial(_loss, network, limit), epoch, steps, RATE)
    return network


def _loss(network: DVAE, limit: float, images: Tensor, labels: Tensor) -> Tensor:
    """Return the distortion, what the rate is beyond its limit, and what the perturbations of the classes do not explain of the rest."""
    levels = scaled(images)
    mean, log_variance = network.code(levels)
    lost = levels - network.decoded(mean + (log_variance / 2).exp() * torch.randn(mean.shape).to(mean.device))
    unexplained = lost - network.perturbations()[labels]
    return lost.square().mean() + EXCESS * (rate(mean, log_variance) - limit).clamp_min(0) + unexplained.square().mean()


def _without_own(patterns: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    height, width = images.shape[2:]
    return images.float() - patterns.to(images.device)[labels, :, :height, :width]


def _cosines() -> tuple[Tensor, Tensor]:
    """Return the discrete cosines of a patch in three colours, orthonormal, `(D, 3, PATCH, PATCH)`, and their gains to begin with."""
    places = torch.arange(PATCH)
    waves = (2 / PATCH) ** 0.5 * torch.cos(torch.pi / PATCH * places[:, None] * (places + 0.5))
    waves[0] /= 2**0.5
    squares = places[:, None].square() + places.square()
    patch = torch.einsum("uy,vx->uvyx", waves, waves).view(PATCH**2, PATCH, PATCH)
    basis = torch.einsum("cd,fyx->cfdyx", torch.eye(3), patch).reshape(D, 3, PATCH, PATCH)
    return basis, (GAIN / (1 + squares)).flatten().repeat(3)[:, None, None]


def _convolutions(after: int) -> nn.Sequential:
    """Build three convolutions, from D channels to `after`, whose result is zero to begin with."""
    last = nn.Conv2d(WIDTH, after, 3, padding=1)
    nn.init.zeros_(last.weight)
    assert last.bias is not None
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Conv2d(D, WIDTH, 3, padding=1), nn.SiLU(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.SiLU(), last)
