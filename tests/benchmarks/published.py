"""Published figures for comparison with ours: percent of clean CIFAR-10 test images, at 8/255, ResNet18, all 50,000 images.

ISS is the table in the README of "Image Shortcut Squeezing". PIL is another paper's re-run of SEP, so second-hand. APBench is that
benchmark's leaderboard, MI-UE a note to that paper.

Figures stand beside ours only if the operation is the same. Details differ: cutout leaves black there and grey here, CutMix and mixup draw
for each image there (of PIL's a quarter stay unmixed) and for a batch here, and APBench's adversarial training takes 10 steps, ours 7.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """The published figures of one countermeasure; None for unpublished ones.

    Attributes:
        clean: trained on clean images.
        sep: on images protected by SEP.
        tap: on images protected by TAP, its nearest cousin.
        source: of these figures.
    """

    clean: float | None
    sep: float | None
    tap: float | None
    source: str


# Left out, because the published operation of this name is another: `gaussian-blur` (7.88 for TAP in APBench, as in ISS with a
# deviation of 0.1 pixels, which changes no level), `bit-depth-2` (70.75: posterised, so cut off and darker, where ours rounds), `ueraser`
# (79.05: against TAP the authors compress images by JPEG besides).
PUBLISHED = {
    "none": Published(94.68, 3.85, 8.17, "ISS"),
    "grayscale": Published(92.41, 3.57, 9.11, "ISS"),
    "jpeg-10": Published(85.38, 84.37, 84.08, "ISS; TAP: APBench"),
    "no-augmentation": Published(None, 28.43, None, "PIL"),
    "cutout": Published(None, 9.74, 9.88, "PIL; TAP: APBench"),
    "cutmix": Published(None, 10.48, 14.21, "PIL; TAP: APBench"),
    "mixup": Published(None, None, 15.46, "APBench"),
    "adversarial-8": Published(84.9, None, 79.92, "MI-UE; TAP: APBench"),
}

# Figures of ISS for each method and for `clean` images, by countermeasure.
BY_METHOD: dict[str, dict[str, float]] = {
    "clean": {"none": 94.68, "grayscale": 92.41, "jpeg-10": 85.38},
    "sep": {"none": 3.85, "grayscale": 3.57, "jpeg-10": 84.37},
    "tap": {"none": 8.17, "grayscale": 9.11, "jpeg-10": 83.87},
    "error-min": {"none": 21.05, "grayscale": 93.01, "jpeg-10": 81.50},
    "linear-separable": {"none": 19.07, "grayscale": 82.47, "jpeg-10": 83.01},
    "autoregressive": {"none": 13.28, "grayscale": 34.04, "jpeg-10": 85.15},
    "one-pixel": {"none": 36.55, "grayscale": 42.44, "jpeg-10": 82.53},
}
