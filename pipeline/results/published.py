"""The figures that papers published for this protocol, and which releases they are to be compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pipeline.config.marks import without
from pipeline.config.presets import preset
from pipeline.config.schema import RunConfig, deciding
from sep.views.registry import PLAIN

# Accuracy of a ResNet18 after the last epoch, in percent. SEP, abstract, for 2/255, with its clean victim; Image Shortcut Squeezing
# (Liu et al. 2023), README, for 8/255.
PUBLISHED = {"clean": 94.56, "2/255": 14.68, "8/255": 3.85}
PUBLISHED_FOR = (
    "CIFAR-10 as first released, without loss, and SEP at its best, whichever of its methods is used here; "
    "images that went through JPEG, or other data, are another problem"
)
# Settings in which a run may differ from the paper's protocol, beside those that decide only how fast: each budget has a figure of its own,
# kernels and precision round differently, and other seeds and countermeasures are further victims.
FREE = ("eps_levels", "precision", "kernels", "seeds", "countermeasures")


def follows_the_paper(config: RunConfig, images: Mapping[str, Any]) -> bool:
    """Return whether the published figures are the ones to compare with: the paper's protocol, on as many images.

    Args:
        config: of one release.
        images: counts of the pack stage.
    """

    def compared(of: RunConfig) -> list[dict[str, Any]]:
        protect = replace(of.protect.resolved(), inner_steps=of.protect.inner_steps or of.protect.kind.usual)
        return [without(deciding(section), FREE) for section in (of.surrogate, protect, of.victim)]

    paper, size = preset("paper"), (images["train"], images["test"], len(images["classes"]), images["height"], images["width"])
    return (
        size == (50_000, 10_000, 10, 32, 32)
        and config.protect.kind.checkpoints is None
        and config.protect.kind.members_per_step is None
        and config.views == PLAIN
        and config.input_size is None
        and compared(config) == compared(replace(paper, protect=replace(paper.protect, method=config.protect.method)))
    )
