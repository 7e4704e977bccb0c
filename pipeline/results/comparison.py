"""Several runs side by side: what each was made with, what it cost, and how its victims did, read from the runs' files."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.results.run_results import Manifests, Measured, Spread, Trained, VictimPair, budget
from pipeline.storage.records import digest, shown
from pipeline.storage.stage import Manifest
from sep.budget import largest_change
from sep.methods.registry import METHODS

NONE = "–"  # where a table has no figure
SHOWN_MISSING = 10  # names of victims
SPREADS = ("clean", "protected", "peak", "relabelled", "other_clean", "other_protected")
SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("run", "uri", "data", "data_digest", "method", "targets")]
    + [("eps_levels", pa.int64()), ("budget", pa.string()), ("surrogates", pa.string()), ("checkpoints", pa.int64()), ("steps", pa.int64())]
    + [("gradients", pa.int64()), ("protected_images", pa.int64()), ("psnr_db", pa.float64())]
    + [(f"{name}_seconds", pa.float64()) for name in ("surrogate", "crafting", "victim")]
    + [("network", pa.string()), ("countermeasure", pa.string()), ("seeds", pa.int64()), ("chance_accuracy", pa.float64())]
    + [(f"{name}_accuracy{std}", pa.float64()) for name in SPREADS for std in ("", "_std")]
)
EXPLAINED = (
    "Gradients are those of all images together. Surrogate is the training of the networks whose checkpoints a method reads, one for "
    "all points of a sweep, and – where it reads none. Crafting includes a network that a method trains for itself, as that of "
    "error-minimising noise, and is told at the rate of its last start, if that crafted anything. Surrogate and victims are told as "
    "long as their last start took, victims all together."
)


@dataclass(frozen=True)
class Comparison:
    """Runs side by side, each with a name that tells it from the others."""

    runs: dict[str, Measured]
    warnings: tuple[str, ...]  # why figures may not compare, and what is not there

    @property
    def victims(self) -> list[str]:
        """Networks and countermeasures that any of the runs has measured."""
        return list(dict.fromkeys(pair.name for run in self.runs.values() for pair in run.pairs))


def compare(runs: Sequence[Measured]) -> Comparison:
    """Runs whose packing has finished, in the order given, with all that has to be said about comparing them."""
    named = dict(zip(_names([run.uri for run in runs]), runs, strict=True))
    said = [
        *_apart(named, lambda run: run.data_digest, "the data differ, so accuracies do not compare", _described),
        *_apart(
            {name: run for name, run in named.items() if "protect" in run.found},
            lambda run: run.of("protect", "classes"),
            "other classes are protected, and accuracies are of the protected classes",
            lambda run: f"{len(run.of('protect', 'classes'))} of {len(run.of('pack', 'classes'))} classes",
        ),
        *_victims_apart(named),
        *(f"{name}: nothing is protected yet" for name, run in named.items() if "protect" not in run.found),
        *(f"{name}: {said}" for name, run in named.items() if "protect" in run.found and (said := _untrained(run.trained))),
        *(f"{name}: {len(lost)} shards are missing" for name, run in named.items() if (lost := _missing(run))),
    ]
    return Comparison(named, tuple(said))


def _names(uris: Sequence[str]) -> list[str]:
    """The shortest ends of the URIs that tell them apart."""
    parts = [uri.rstrip("/").split("/") for uri in uris]
    longest = max(map(len, parts), default=0)
    choices = (["/".join(part[-length:]) for part in parts] for length in range(1, longest + 1))
    return next((names for names in choices if len(set(names)) == len(names)), list(uris))


def _apart(runs: dict[str, Measured], of: Callable[[Measured], Any], warning: str, described: Callable[[Measured], str]) -> Iterable[str]:
    """The warning, with which runs have the same in common, if not all of them do."""
    groups: dict[Any, list[str]] = {}
    for name, run in runs.items():
        groups.setdefault(digest(of(run)), []).append(name)
    if len(groups) > 1:
        yield f"{warning}: " + "; ".join(f"{', '.join(names)}: {described(runs[names[0]])}" for names in groups.values())


def _described(run: Measured) -> str:
    """The data of a run."""
    train, test = run.of("pack", "train"), run.of("pack", "test")
    return f"{_data(run)}, {train:,} + {test:,} images of {len(run.of('pack', 'classes'))} classes"


def _data(run: Measured) -> str:
    source: str = run.found["pack"].asked.get("pack", {}).get("data", "")
    return source.rstrip("/").rsplit("/", 1)[-1]


def _victims_apart(runs: dict[str, Measured]) -> Iterable[str]:
    """Settings of the victims' training that differ; networks, countermeasures and seeds are told with the figures."""
    asked = {name: run.trained.asked["victim"] for name, run in runs.items() if run.trained.asked}
    names = {name for section in asked.values() for name, value in section.items() if not isinstance(value, list)}
    for name in sorted(names):
        values: dict[str, list[str]] = {}
        for run, section in asked.items():
            values.setdefault(str(section.get(name)), []).append(run)
        if len(values) > 1:
            yield f"victims were trained differently, victim.{name}: " + "; ".join(f"{v} ({', '.join(of)})" for v, of in values.items())


def _untrained(there: Trained) -> str:
    """Which victims the figures are without; nothing where all are there."""
    count = len(there.missing)
    if count:
        return f"{count} of {len(there.rows) + count} results missing: {shown(there.missing, SHOWN_MISSING)}"
    return "" if there.rows else "there are no results of victims yet"


def _missing(run: Measured) -> list[str]:
    return run.found["protect"].missing if "protect" in run.found else []


def _of_method(protect: Manifest) -> dict[str, Any]:
    """What was asked for that the method makes use of; None where it does not, whatever the configuration says."""
    counts, kind = protect.counts, METHODS[protect.counts["method"]]
    used = {
        "targets": kind.targets,
        "eps_levels": kind.budget is largest_change,  # the others have one of their own
        "steps": kind.checkpoints != 0 or kind.preparation == "own-noise",
    }
    return {name: counts.get(name) if applies else None for name, applies in used.items()}


def rows(comparison: Comparison) -> list[dict[str, Any]]:
    """A row for each run and victim, or for a run without victims, as in `SCHEMA`: accuracies in percent, mean and spread over seeds."""
    flat = []
    for name, run in comparison.runs.items():
        protect = run.found.get("protect")
        of_run = {
            "run": name,
            "uri": run.uri,
            "data": run.found["pack"].asked.get("pack", {}).get("data"),
            "data_digest": run.data_digest,
            **{counted: run.of("protect", counted) for counted in ("method", "gradients", "psnr_db")},
            **(_of_method(protect) if protect else {}),
            "budget": str(budget(run.found)) if protect else None,
            "surrogates": ", ".join(run.of("protect", "networks") or []) or None,
            "checkpoints": run.of("protect", "members"),
            "protected_images": run.of("protect", "protected"),
            "surrogate_seconds": surrogate_seconds(run.found),
            "crafting_seconds": crafting_seconds(protect) if protect else None,
            "victim_seconds": run.found["victim"].seconds if "victim" in run.found else None,
            "chance_accuracy": run.chance,
        }
        flat += [of_run | _of_victim(pair) for pair in run.pairs] or [of_run]
    return [{column: row.get(column) for column in SCHEMA.names} for row in flat]


def _of_victim(pair: VictimPair) -> dict[str, Any]:
    clean, protected = pair.clean, pair.protected
    spreads = (clean.last, protected.last, protected.peak, protected.relabelled, clean.other, protected.other)
    figures: dict[str, Any] = {"network": clean.network, "countermeasure": clean.countermeasure, "seeds": len(protected.seeds)}
    for name, spread in zip(SPREADS, spreads, strict=True):
        figures |= {f"{name}_accuracy": spread and spread.mean, f"{name}_accuracy_std": spread and spread.deviation}
    return figures


@dataclass(frozen=True)
class Table:
    """Text in columns; from the column `numbers` on they are aligned to the right."""

    head: tuple[str, ...]
    lines: list[tuple[str, ...]]
    numbers: int

    def __str__(self) -> str:
        """In columns as wide as they need be."""
        widths = [max(map(len, column)) for column in zip(self.head, *self.lines, strict=True)]
        aligned = (
            [cell.ljust(w) if i < self.numbers else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))]
            for line in (self.head, *self.lines)
        )
        return "\n".join("  " + "  ".join(line).rstrip() for line in aligned)


def made(comparison: Comparison) -> Table:
    """What each run was made with, and what that cost."""
    settings = ("method", "targets", "networks", "budget", "checkpoints", "steps")
    costs = ("gradients", "surrogate", "crafting", "victims", "PSNR")
    lines = [(name, _data(run), *_made(run)) for name, run in comparison.runs.items()]
    return Table(("run", "data", *settings, *costs), lines, numbers=5)


def _made(run: Measured) -> tuple[str, ...]:
    protect = run.found.get("protect")
    if protect is None:
        return (NONE,) * 11
    counts = protect.counts | _of_method(protect)
    victim = run.found["victim"].seconds if "victim" in run.found else None
    seconds = (surrogate_seconds(run.found), crafting_seconds(protect), victim)

    def shown(name: str, form: str = "{}") -> str:
        return form.format(counts[name]) if counts.get(name) is not None else NONE

    return (
        *(shown(name) for name in ("method", "targets")),
        ", ".join(counts.get("networks", [])) or NONE,
        str(budget(run.found)),
        *(shown(name, form) for name, form in (("members", "{}"), ("steps", "{}"), ("gradients", "{:,}"))),
        *(NONE if budget_used is None else f"{budget_used:,.0f} s" for budget_used in seconds),
        shown("psnr_db", "{:.1f} dB"),
    )


def measured(comparison: Comparison) -> Table:
    """How the victims did: those of one kind in all runs beside one another. Percent of clean test images after the last epoch."""
    head = ("victim", "run", "n", "clean", "protected", "best epoch", "relabelled")
    lines = []
    for victim in comparison.victims:
        for name, run in comparison.runs.items():
            pair = next((pair for pair in run.pairs if pair.name == victim), None)
            lines.append((victim, name, *(_measured(pair) if pair else (NONE,) * 5)))
    return Table(head, lines, numbers=2)


def _measured(pair: VictimPair) -> tuple[str, ...]:
    figures: tuple[Spread, ...] = (pair.clean.last, pair.protected.last, pair.protected.peak, pair.protected.relabelled)
    return (str(len(pair.protected.seeds)), *map(str, figures))


def without_release(comparison: Comparison) -> str:
    """What to know of victims that had no image of a release; nothing where there are none."""
    names = dict.fromkeys(pair.clean.countermeasure for run in comparison.runs.values() for pair in run.pairs if len(pair.trained) == 1)
    return f"Victims under {', '.join(names)} had no image of a release: one training stands in every column." if names else ""


def text(comparison: Comparison) -> str:
    """Warnings, and both tables with what the figures in them are, for a terminal."""
    costs, alone = map(_paragraph, (EXPLAINED, without_release(comparison)))
    parts = [str(made(comparison)), costs, str(measured(comparison)) if comparison.victims else "", alone]
    warned = "".join(f"warning: {warning}\n" for warning in comparison.warnings)
    return warned + "\n" + "\n\n".join(filter(None, parts))


def _paragraph(words: str) -> str:
    return textwrap.fill(words, 120, initial_indent="  ", subsequent_indent="  ")


def crafting_seconds(protect: Manifest) -> float | None:
    """Seconds that crafting takes at the rate of the last start, which may have crafted only a part; None where it crafted nothing.

    With those that were spent before the first shard on training against the noise, or on looking for pixels, where a method does.
    """
    rate = protect.timing.get("images_per_second", 0)
    return float(protect.timing.get("preparation_seconds", 0) + protect.counts["protected"] / rate) if rate else None


def surrogate_seconds(found: Manifests) -> float | None:
    """Seconds that training took of the networks whose checkpoints the method reads; None where it reads none."""
    reads = "protect" not in found or METHODS[found["protect"].counts["method"]].checkpoints != 0
    return found["surrogate"].seconds if "surrogate" in found and reads else None
