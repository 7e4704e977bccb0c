"""The children of a run in MLflow, each with its name, tags, parameters and description, whether it is logged live or afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.tracking.parent_run import Child

COLOURS = {"clean": "#4f7cac", "protected": "#d1632f"}  # of what a network was trained on, the same in every chart
COLOUR = "mlflow.runColor"


def readable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that say something, as text: without those that are not set, or empty."""
    joined = {name: ", ".join(map(str, value)) if isinstance(value, list | tuple) else value for name, value in settings.items()}
    return {name: value for name, value in joined.items() if value not in (None, "")}


def surrogate(network: str, several: bool, settings: Mapping[str, Any]) -> Child:
    """Return the child of a network whose checkpoints protect; where there are several, each has its own name."""
    note = f"{network}, trained on the clean training images. Each epoch is a checkpoint, and a model under *Models*."
    tags = {"network": network, "data": "clean", COLOUR: COLOURS["clean"]}
    params = readable({name: value for name, value in settings.items() if name != "networks"} | {"network": network})
    return Child("surrogate", f"surrogate · {network}" if several else "surrogate", tags, params, note)


def protect(settings: Mapping[str, Any]) -> Child:
    """Return the child of the crafting."""
    note = f"The protection itself, by `{settings['method']}`: rates while it runs, and how little is to be seen of it."
    return Child("protect", "protect", {"data": "protected", COLOUR: COLOURS["protected"]}, readable(settings), note)


def victim(network: str, data: str, countermeasure: str, seed: int, settings: Mapping[str, Any]) -> Child:
    """Return the child of one victim; what differs most comes first in its name, because the UI cuts names short."""
    trial = {"network": network, "data": data, "countermeasure": countermeasure, "seed": seed}
    against = "" if countermeasure == "none" else f", with the countermeasure `{countermeasure}`"
    on = "the clean images" if data == "clean" else "the protected release"
    note = f"What an unauthorised trainer gets: {network}, trained on {on}{against}, seed {seed}, tested on clean images."
    single = {name: value for name, value in settings.items() if not isinstance(value, list)}
    name = f"{countermeasure} · {data} · {network} · seed {seed}"
    return Child("victim", name, trial | {COLOUR: COLOURS[data]}, readable(single | trial), note)
