"""Protect images that are tensors: train a small network, take a checkpoint after every epoch, follow them all together."""

import torch

from sep.craft import craft
from sep.craft_config import CraftConfig
from sep.ensemble import Member, class_sums, freeze
from sep.fitting import optimiser, train_epoch
from sep.models import build
from sep.objective import shifted
from sep.train_config import TrainConfig

# 120 images of four classes, (B, 3, 32, 32) in grey levels: stripes of four widths under noise.
torch.manual_seed(0)
labels = torch.arange(120) % 4
waves = torch.sin(torch.arange(32) * (labels + 1)[:, None] / 4)[:, None, None, :]
images = (128 + 10 * waves + 20 * torch.randn(120, 3, 32, 32)).clamp(0, 255).to(torch.uint8)

generator = torch.Generator().manual_seed(0)
batches = list(zip(images.split(20), labels.split(20), strict=True))
network = build("resnet8", num_classes=4, image_size=32, mean=[128] * 3, std=[64] * 3)
training = TrainConfig(epochs=5, lr=0.1, schedule="one-cycle", augmentation="none")
sgd, schedule = optimiser(network, training, steps_per_epoch=len(batches))

members = []
for epoch in range(training.epochs):
    result = train_epoch(network, sgd, schedule, batches, training.augmentation, generator)
    frozen = freeze(network)  # a copy: the training goes on
    sums, counts = class_sums(frozen, batches, num_classes=4)
    members.append(Member(frozen, (sums / counts[:, None]).float()))
    print(f"epoch {epoch + 1}: {result.accuracy:.0f} % of the training images right")

config = CraftConfig(method="sep-fa", eps_levels=8, steps=8)
protected = craft(members, images, shifted(labels, 4), config, generator)

change = (protected.int() - images.int()).abs()
print(f"largest change: {change.max()} of {config.eps_levels} levels")
for name, shown in (("clean", images), ("protected", protected)):
    predicted = members[-1].network(shown.float())[1].argmax(1)
    right, drawn = (predicted == labels).float().mean(), (predicted == shifted(labels, 4)).float().mean()
    print(f"of the {name} images the last checkpoint takes {right:.0%} for their own class, {drawn:.0%} for the target class")
