"""Protect images that are tensors: train a small network, take a checkpoint after every epoch, follow them all together."""

import torch

from sep import CraftConfig, Member, TrainConfig, build, class_sums, craft_images, freeze, optimiser, shifted, train_epoch

generator, labels = torch.manual_seed(0), torch.arange(120) % 4
stripes = 128 + 10 * torch.sin(torch.arange(32) * (labels + 1)[:, None] / 4)[:, None, None]  # a width for each class
images = (stripes + 20 * torch.randn(120, 3, 32, 32)).clamp(0, 255).to(torch.uint8)  # (B, C, H, W) in grey levels

network = build("resnet8", num_classes=4, image_size=32, mean=[128] * 3, std=[64] * 3)
training = TrainConfig(epochs=5, schedule="one-cycle", augmentation="none")
batches, members = list(zip(images.split(20), labels.split(20), strict=True)), []
sgd, schedule = optimiser(network, training, steps_per_epoch=len(batches))
for _ in range(training.epochs):
    train_epoch(network, sgd, schedule, batches, training.augmentation, generator)
    frozen = freeze(network)  # a copy: the training continues
    sums, counts = class_sums(frozen, batches, num_classes=4)
    members.append(Member(frozen, (sums / counts[:, None]).float()))  # with the mean features of each class

protected = craft_images(members, images, shifted(labels, 4), CraftConfig(method="sep-fa", eps_levels=8, steps=8), generator)

print(f"largest change: {(protected.int() - images.int()).abs().max()} of 8 levels")
for name, shown in (("clean", images), ("protected", protected)):
    drawn = members[-1].network(shown.float())[1].argmax(1) == shifted(labels, 4)
    print(f"of the {name} images the last checkpoint takes {drawn.float().mean():.0%} for the target class")
