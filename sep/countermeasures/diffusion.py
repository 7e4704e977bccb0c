"""Purifying a release by a diffusion model of other images: noise is added to each image, and the model removes it.

After Dolatabadi et al. 2023, "The Devil's Advocate: Shattering the Illusion of Unexploitable Data using Diffusion Models" (AVATAR), and
Wang et al. 2024, "ECLIPSE: Expunging Clean-Label Indiscriminate Poisons via Sparse Diffusion Purification", whose model is trained on few
clean images.

Legend: B images, C channels, H W pixels, T timesteps of the whole diffusion.
"""

from __future__ import annotations

from functools import cache, partial

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from sep.countermeasures.countermeasure import Epoch, OfClass
from sep.countermeasures.restoration import UNet, restored, scaled, trained

TIMESTEPS = 1000  # T
BETAS = 1e-4, 0.02  # variances of the noise of the first timestep and of the last (Ho et al. 2020, section 4)
START, STRIDE = 100, 10  # the timestep up to which noise is added, as in AVATAR; timesteps that one denoising step covers
STEPS = 1500  # of training


def diffusion(epoch: Epoch, num_classes: int, *, steps: int = STEPS) -> OfClass:
    """Add noise to images, and remove it by a model of clean images.

    The model is that of Ho et al. 2020, "Denoising Diffusion Probabilistic Models". It learns to predict the noise (equation 14), at no
    later timesteps than purification needs. Denoising steps are those of Song et al. 2021, "Denoising Diffusion Implicit Models", equation
    12, with as much fresh noise as in Ho et al. The papers on purification take networks that are trained for days. This small one is
    trained for minutes on a CPU.

    Args:
        epoch: batches of an epoch, clean images `(B, C, H, W)` in levels, other ones than those that are purified, and anything else.
        num_classes: not used; the model does not see the class.
        steps: of training.

    Returns:
        A function of images `(B, C, H, W)` in levels, whatever their labels. Its result is float32, not whole. Its noise is the same at
        every call.
    """
    with torch.random.fork_rng(devices=[]):
        network, seed = UNet(), int(torch.randint(2**62, (1,)))
        trained(network, partial(_loss, network), epoch, steps)
    device = next(network.parameters()).device
    return lambda images, _: restored(partial(_denoised, network, Generator().manual_seed(seed)), images, device)


@cache
def _shares() -> Tensor:
    """Return the share of an image's variance that is left at each timestep from 0, `(T + 1,)`: alpha-bar of Ho et al., equation 4."""
    betas = torch.linspace(*BETAS, TIMESTEPS, dtype=torch.float64)
    return torch.cat([betas.new_ones(1), (1 - betas).cumprod(0)]).float()


def noised(images: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
    """Return images with noise by equation 4 of Ho et al.: images and standard normal noise `(B, C, H, W)`, timesteps `(B,)`."""
    share = _shares().to(images.device)[timesteps][:, None, None, None]
    return share.sqrt() * images + (1 - share).sqrt() * noise


def _loss(network: nn.Module, images: Tensor, _: Tensor) -> Tensor:
    clean = scaled(images)
    timesteps, noise = (draw.to(clean.device) for draw in (torch.randint(1, START + 1, (len(clean),)), torch.randn(clean.shape)))
    return functional.mse_loss(network(noised(clean, timesteps, noise), timesteps / TIMESTEPS), noise)


def _denoised(network: nn.Module, draws: Generator, images: Tensor) -> Tensor:
    def noise() -> Tensor:
        return torch.randn(images.shape, generator=draws).to(images.device)

    now = noised(images, torch.full((len(images),), START, device=images.device), noise())
    for timestep in range(START, 0, -STRIDE):
        share, then = _shares()[[timestep, timestep - STRIDE]].tolist()
        predicted = network(now, now.new_full((len(now),), timestep / TIMESTEPS)).float()
        clean = ((now - (1 - share) ** 0.5 * predicted) / share**0.5).clamp(-1, 1)
        variance = (1 - then) / (1 - share) * (1 - share / then)
        now = then**0.5 * clean + (1 - then - variance) ** 0.5 * predicted + variance**0.5 * noise()
    return now
