"""Recipes that are measured side by side: settings of the protection, by the table that they belong to."""

from __future__ import annotations

from dataclasses import dataclass

DRAWN = "method=sep-fa-drawn checkpoints=10 steps=15 members_per_step=1 momentum=0.9 normalised=True"
NOISE = "method=error-min-class momentum=0 normalised=False channels=colour patterns=1"
WITH_MOMENTUM = f"{NOISE} momentum=0.9 normalised=True"
VIEWS = {  # what may happen to a picture, by the channels of the noise: grey noise survives the loss of colour anyhow
    "grey": ("none", "jpeg-10", "jpeg-50", "blur"),
    "colour": ("none", "jpeg-10", "jpeg-10", "jpeg-50", "blur", "gray", "gray", "bits-2"),
}
STORED = ("none", "jpeg-10", "gaussian-blur", "grayscale")
AVERAGED = ("orthogonal-projection", "class-residual")  # what takes away the noise of a class
UNSEEN = ("jpeg-30", "jpeg-75", "webp-75", "resize-50", "bit-depth-2")  # by noise in grey through views
SQUEEZED = ("none", "jpeg-10", "grayscale")  # what Image Shortcut Squeezing does


@dataclass(frozen=True)
class Recipe:
    """One row of a table: settings of `protect`, views, and what its victims do to their images."""

    settings: str
    views: tuple[str, ...] = ("none",)
    countermeasures: tuple[str, ...] = ("none",)

    @property
    def sweep(self) -> list[str]:
        """The settings as `--sweep` takes them; of a name that comes twice, the last value."""
        chosen = dict(each.split("=") for each in self.settings.split())
        return [f"protect.{name}={value}" for name, value in chosen.items()]


GRIDS: dict[str, dict[str, Recipe]] = {
    "gradients": {
        "drawn-15": Recipe(DRAWN, countermeasures=SQUEEZED),
        "sep-fa-vr-600": Recipe("method=sep-fa-vr checkpoints=10 steps=30", countermeasures=SQUEEZED),
        "sep-fa-150": Recipe("method=sep-fa checkpoints=10 steps=15", countermeasures=SQUEEZED),
        "drawn-30": Recipe(f"{DRAWN} steps=30"),
        "drawn-15-plain": Recipe(f"{DRAWN} momentum=0 normalised=False"),
        "drawn-15-two": Recipe(f"{DRAWN} members_per_step=2"),
        "tap-15": Recipe("method=tap steps=15", countermeasures=SQUEEZED),
        "sep-drawn-15": Recipe(f"{DRAWN} method=sep-drawn"),
        "drawn-15-of-30": Recipe(f"{DRAWN} checkpoints=30"),
        "drawn-15-of-5": Recipe(f"{DRAWN} checkpoints=5"),
        "drawn-8": Recipe(f"{DRAWN} steps=8"),
        "drawn-10": Recipe(f"{DRAWN} steps=10"),
        "drawn-15-three": Recipe(f"{DRAWN} members_per_step=3"),
        "drawn-15-momentum": Recipe(f"{DRAWN} normalised=False"),
        "sep-150": Recipe("method=sep checkpoints=10 steps=15", countermeasures=SQUEEZED),
    },
    "noise": {
        "grey-momentum-views": Recipe(f"{WITH_MOMENTUM} channels=grey", VIEWS["grey"], (*STORED, *UNSEEN, *AVERAGED)),
        "grey-momentum": Recipe(f"{WITH_MOMENTUM} channels=grey", countermeasures=STORED),
        "grey-views": Recipe(f"{NOISE} channels=grey", VIEWS["grey"], STORED),
        "grey": Recipe(f"{NOISE} channels=grey", countermeasures=STORED),
        "colour-momentum-views": Recipe(WITH_MOMENTUM, VIEWS["colour"], STORED),
        "colour-momentum": Recipe(WITH_MOMENTUM, countermeasures=STORED),
        "colour-views": Recipe(NOISE, VIEWS["colour"], STORED),
        "colour": Recipe(NOISE, countermeasures=STORED),
        **{
            f"grey-patterns-{count}": Recipe(
                f"{WITH_MOMENTUM} channels=grey patterns={count}", VIEWS["grey"], ("none", "jpeg-10", *AVERAGED)
            )
            for count in (8, 32, 128)
        },
    },
}
