"""Contrastive learning: its loss, its pairs and its distortions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from sep.at_rest import AtRest
from sep.countermeasures.contrastive import TEMPERATURE, Contrast, distorted, simclr, two_copies
from sep.models import Network, build
from sep.train_config import TrainConfig


def network() -> Network:
    torch.manual_seed(0)
    return build("resnet8", 3, 16, (128.0,) * 3, (64.0,) * 3)


def pictures(count: int = 4) -> Tensor:
    return 255 * torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_the_loss_is_that_of_the_paper() -> None:
    """Equation 1 of Chen et al. 2020, written out pair by pair."""
    contrast = Contrast(network()).eval()
    copies, partners = two_copies(AtRest(contrast), pictures(), torch.zeros(4, dtype=torch.long), torch.Generator().manual_seed(1))
    assert partners.tolist() == [4, 5, 6, 7, 0, 1, 2, 3]
    features, logits = contrast(copies)
    projected = contrast.projection(features)
    expected = 0.0
    for i, j in enumerate(partners.tolist()):
        alike = [torch.exp(functional.cosine_similarity(projected[i], projected[k], dim=0) / TEMPERATURE) for k in range(8)]
        expected -= float(torch.log(alike[j] / sum(alike[k] for k in range(8) if k != i)).detach()) / 8
    assert abs(float(functional.cross_entropy(logits, partners).detach()) - expected) < 1e-4


def test_labels_are_not_read_and_the_network_itself_is_trained() -> None:
    own = network()
    first = simclr(own, TrainConfig(epochs=4, batch_size=64))
    assert first.network.network is own
    assert (first.config.epochs, first.config.batch_size, first.config.augmentation) == (20, 64, "none")
    copies = [
        first.change(AtRest(own), pictures(), labels, torch.Generator().manual_seed(1))[0] for labels in (torch.arange(4), torch.zeros(4))
    ]
    assert torch.equal(*copies)
    assert not torch.equal(copies[0][:4], copies[0][4:])


def test_distortions_keep_to_levels_and_some_images_become_grey() -> None:
    images = pictures(200)
    after = distorted(images, torch.Generator().manual_seed(2))
    assert after.shape == images.shape
    assert 0 <= float(after.min()) <= float(after.max()) <= 255
    grey = (after[:, 0] - after[:, 1]).abs().amax((1, 2)) < 1e-3
    assert 20 <= int(grey.sum()) <= 60
    assert torch.equal(after, distorted(images, torch.Generator().manual_seed(2)))
    alone = torch.full((64, 3, 16, 16), 100.0)  # neither windows nor hues change a grey that is the same everywhere
    assert 55 < float(distorted(alone, torch.Generator().manual_seed(3)).min()) < 100
