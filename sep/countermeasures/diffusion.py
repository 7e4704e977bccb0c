"""Purifying a release by a diffusion model of other images: noise drowns each image up to a moment, and the model draws it out again.

After Dolatabadi et al. 2023, "The Devil's Advocate: Shattering the Illusion of Unexploitable Data using Diffusion Models" (AVATAR), and
Wang et al. 2024, "ECLIPSE: Expunging Clean-Label Indiscriminate Poisons via Sparse Diffusion Purification", whose model is trained on few
clean images.

Legend: B images, C channels, H W pixels, T moments of the whole diffusion.
"""

from __future__ import annotations

from functools import cache, partial

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from sep.countermeasures.countermeasure import Epoch, OfClass
from sep.countermeasures.restoration import UNet, restored, scaled, trained

MOMENTS = 1000  # T
BETAS = 1e-4, 0.02  # variances of the noise of the first moment and of the last (Ho et al. 2020, section 4)
START, STRIDE = 100, 10  # the moment up to which images are drowned, as in AVATAR; moments that one step back takes
STEPS = 1500  # of training


def diffusion(epoch: Epoch, num_classes: int, *, steps: int = STEPS) -> OfClass:
    """Drown images in noise, and draw them out again by a model of clean images.

    The model is that of Ho et al. 2020, "Denoising Diffusion Probabilistic Models". It learns to tell the noise (equation 14), at no later
    moments than those that purification needs. Steps back are those of Song et al. 2021, "Denoising Diffusion Implicit Models", equation
    12, with as much fresh noise as in Ho et al. The papers on purification take networks that learn for days. This is a small one, which
    learns for minutes on a CPU.

    Args:
        epoch: batches of an epoch, clean images `(B, C, H, W)` in levels, other ones than those that are purified, and anything else.
        num_classes: not used; the model is told no class.
        steps: of training.

    Returns:
        A function of images `(B, C, H, W)` in levels, whatever their labels. Its result is float32, not whole. Its noise is the same at
        every call.
    """
    with torch.random.fork_rng(devices=[]):
        network, seed = UNet(), int(torch.randint(2**62, (1,)))
        trained(network, partial(_loss, network), epoch, steps)
    device = next(network.parameters()).device
    return lambda images, _: restored(partial(_drawn_out, network, Generator().manual_seed(seed)), images, device)


@cache
def _shares() -> Tensor:
    """Return what is left of an image's variance at each moment from 0, `(T + 1,)`: alpha-bar of Ho et al., equation 4."""
    betas = torch.linspace(*BETAS, MOMENTS, dtype=torch.float64)
    return torch.cat([betas.new_ones(1), (1 - betas).cumprod(0)]).float()


def drowned(images: Tensor, moments: Tensor, noise: Tensor) -> Tensor:
    """Return images at their moments by equation 4 of Ho et al.: `(B, C, H, W)`, `(B,)` and standard normal noise to `(B, C, H, W)`."""
    share = _shares().to(images.device)[moments][:, None, None, None]
    return share.sqrt() * images + (1 - share).sqrt() * noise


def _loss(network: nn.Module, images: Tensor, _: Tensor) -> Tensor:
    clean = scaled(images)
    moments, noise = (draw.to(clean.device) for draw in (torch.randint(1, START + 1, (len(clean),)), torch.randn(clean.shape)))
    return functional.mse_loss(network(drowned(clean, moments, noise), moments / MOMENTS), noise)


def _drawn_out(network: nn.Module, draws: Generator, images: Tensor) -> Tensor:
    def noise() -> Tensor:
        return torch.randn(images.shape, generator=draws).to(images.device)

    now = drowned(images, torch.full((len(images),), START, device=images.device), noise())
    for moment in range(START, 0, -STRIDE):
        share, then = _shares()[[moment, moment - STRIDE]].tolist()
        told = network(now, now.new_full((len(now),), moment / MOMENTS)).float()
        clean = ((now - (1 - share) ** 0.5 * told) / share**0.5).clamp(-1, 1)
        variance = (1 - then) / (1 - share) * (1 - share / then)
        now = then**0.5 * clean + (1 - then - variance) ** 0.5 * told + variance**0.5 * noise()
    return now
