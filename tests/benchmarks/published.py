"""Published figures, which the README puts beside ours: percent of clean CIFAR-10 test images, at 8/255, ResNet18, all 50,000 images.

ISS is the table in the README of "Image Shortcut Squeezing"; PIL another paper's re-run of SEP, so second-hand; APBench is that
benchmark's leaderboard; MI-UE a note to that paper.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """What is known of one countermeasure; None where nothing was published.

    Attributes:
        clean: trained on clean images.
        sep: on images protected by SEP.
        tap: on images protected by TAP, its nearest cousin.
        source: of these.
    """

    clean: float | None
    sep: float | None
    tap: float | None
    source: str


PUBLISHED = {
    "none": Published(94.68, 3.85, 8.17, "ISS"),
    "grayscale": Published(92.41, 3.57, 9.11, "ISS"),
    "jpeg-10": Published(85.38, 84.37, 84.08, "ISS; TAP: APBench"),
    "no-augmentation": Published(None, 28.43, None, "PIL"),
    "cutout": Published(None, 9.74, 9.88, "PIL; TAP: APBench"),
    "cutmix": Published(None, 10.48, 14.21, "PIL; TAP: APBench"),
    "mixup": Published(None, None, 15.46, "APBench"),
    "gaussian-blur": Published(None, None, 7.88, "APBench"),
    "bit-depth-2": Published(None, None, 70.75, "APBench"),
    "ueraser": Published(None, None, 79.05, "APBench"),
    "adversarial-8": Published(84.9, None, 79.92, "MI-UE; TAP: APBench"),
}
