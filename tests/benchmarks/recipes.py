"""Recipes that are measured side by side: settings of the protection, by the table that they belong to."""

from __future__ import annotations

from dataclasses import dataclass

DRAWN = "method=sep-fa-drawn checkpoints=10 steps=15 members_per_step=1 momentum=0.9 normalised=True"
NOISE = "method=error-min-class momentum=0 channels=colour patterns=1"
VIEWS = {  # what may happen to a picture, by the channels of the noise: grey noise survives the loss of colour anyhow
    "grey": ("none", "jpeg-10", "jpeg-50", "blur"),
    "colour": ("none", "jpeg-10", "jpeg-10", "jpeg-50", "blur", "gray", "gray", "bits-2"),
}
STORED = ("none", "jpeg-10", "gaussian-blur", "grayscale")
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
        "sep-fa-vr-600": Recipe("method=sep-fa-vr checkpoints=10 steps=30"),
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
        **{
            f"{channels}{'-momentum' if momentum else ''}{'-views' if len(views) > 1 else ''}": Recipe(
                f"{NOISE} channels={channels} momentum={momentum} normalised={momentum > 0}", views, STORED
            )
            for momentum in (0.9, 0)
            for channels in VIEWS
            for views in (VIEWS[channels], ("none",))
        },
        **{
            f"grey-patterns-{count}": Recipe(
                f"{NOISE} channels=grey momentum=0.9 normalised=True patterns={count}",
                VIEWS["grey"],
                ("none", "jpeg-10", "orthogonal-projection", "class-residual"),
            )
            for count in (8, 32, 128)
        },
    },
}
