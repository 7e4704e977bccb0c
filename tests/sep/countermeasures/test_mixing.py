"""Cutout, CutMix and mixup: their effects on pixels and classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from sep.countermeasures.mixing import GREY, cutmix, cutout, mixup
from sep.countermeasures.registry import plan
from sep.fitting import optimiser, train_epoch
from sep.train_config import TrainConfig

CLASSES = 6


def batch(count: int = CLASSES) -> tuple[Tensor, Tensor]:
    """Return a batch whose image i is filled with level i and has class i."""
    levels = torch.arange(count).float().view(-1, 1, 1, 1).expand(-1, 3, 16, 16).contiguous()
    return levels, functional.one_hot(torch.arange(count), count).float()


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_cutout_greys_one_square_of_each_image_and_nothing_else() -> None:
    levels, targets = batch(200)
    after, same = cutout(levels, targets, draws(0))
    assert torch.equal(same, targets)
    holes = after == GREY
    assert torch.equal(after[~holes], levels[~holes])
    assert torch.equal(holes.any(1), holes.all(1)), "all channels alike"
    sizes = set()
    for hole in holes[:, 0]:
        rows, columns = hole.any(1).nonzero().flatten(), hole.any(0).nonzero().flatten()
        assert torch.equal(hole.nonzero().sum(0), torch.cartesian_prod(rows, columns).sum(0)), "a full rectangle"
        assert len(rows) == int(rows[-1] - rows[0]) + 1
        assert len(columns) == int(columns[-1] - columns[0]) + 1
        sizes.add((len(rows), len(columns)))
        for edge in (rows, columns):  # smaller only if the square hangs over an edge
            assert len(edge) == 8 or int(edge[0]) == 0 or int(edge[-1]) == 15
    assert max(sizes) == (8, 8)
    assert len(sizes) > 10


def test_cutmix_pastes_a_box_of_the_neighbour_and_shares_the_class_by_area() -> None:
    shares = []
    for seed in range(40):
        levels, targets = batch()
        after, shared = cutmix(levels, targets, draws(seed))
        for i in range(CLASSES):
            neighbour = (i - 1) % CLASSES
            assert set(after[i].flatten().tolist()) <= {i, neighbour}
            area = float((after[i, 0] == neighbour).float().mean())
            assert torch.allclose(shared[i], (1 - area) * targets[i] + area * targets[neighbour], atol=1e-6)
        pasted = after[1, 0] == 0
        if pasted.any():
            box = pasted.any(1).sum() * pasted.any(0).sum()
            assert int(pasted.sum()) == int(box)
        shares.append(float(pasted.float().mean()))
    assert max(shares) > 0.6
    assert min(shares) < 0.1


def test_mixup_averages_images_and_classes_with_the_same_weight() -> None:
    weights = []
    for seed in range(40):
        levels, targets = batch()
        after, shared = mixup(levels, targets, draws(seed))
        weight = float(shared[1, 1])
        assert torch.allclose(after[1], torch.full_like(after[1], weight), atol=1e-5)  # a mixture of levels 1 and 0
        assert torch.allclose(shared, weight * targets + (1 - weight) * targets.roll(1, 0), atol=1e-6)
        weights.append(weight)
    assert min(weights) < 0.2
    assert max(weights) > 0.8


class Remember(nn.Module):
    """A network that predicts class 0 and remembers its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.eye(CLASSES)[0])
        self.seen: list[Tensor] = []

    def forward(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        self.seen.append(levels)
        return levels, self.bias.expand(len(levels), -1)


def test_the_loss_is_that_of_shared_classes_and_the_accuracy_against_the_heavier() -> None:
    network, change = Remember(), plan("mixup").change(CLASSES)
    assert change is not None
    levels, targets = batch()
    mixed, shared = mixup(levels, targets, draws(4))
    optimizer, scheduler = optimiser(network, TrainConfig(epochs=1, warmup_epochs=0), 1)
    logits = network.bias.detach().clone()
    result = train_epoch(network, optimizer, scheduler, [(levels, torch.arange(CLASSES))], "none", draws(4), change=change)
    assert torch.equal(network.seen[0], mixed)
    expected = -(shared * logits.log_softmax(0)).sum(1).mean()
    assert abs(result.loss - float(expected)) < 1e-5
    assert abs(result.accuracy - 100 / CLASSES) < 1e-3  # class 0 is the heavier class of one image, whether its own or its neighbour's
