"""Several runs side by side: what each was made with, what it cost, and how its victims did."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.results.audit import Tried, audit
from pipeline.results.run_results import RunResults
from pipeline.results.verdict import verdict
from pipeline.results.victims import Spread, VictimPair
from pipeline.storage.records import digest, shown
from pipeline.storage.stage import Manifest
from sep.budget import largest_change
from sep.methods.registry import METHODS
from sep.views.registry import PLAIN

NONE = "–"  # where a table has no figure
SHOWN_MISSING = 10  # names of victims
MOST_DRAWN = 6  # victims in a picture
SPREADS = ("clean", "protected", "peak", "relabelled", "other_clean", "other_protected")
SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("run", "uri", "data", "data_digest", "method", "targets")]
    + [("eps_levels", pa.int64()), ("budget", pa.string()), ("surrogates", pa.string()), ("checkpoints", pa.int64()), ("steps", pa.int64())]
    + [("gradients", pa.int64()), ("protected_images", pa.int64()), ("psnr_db", pa.float64())]
    + [(f"{name}_seconds", pa.float64()) for name in ("surrogate", "crafting", "victim")]
    + [
        ("network", pa.string()),
        ("countermeasure", pa.string()),
        ("stored", pa.string()),
        ("seeds", pa.int64()),
        ("chance_accuracy", pa.float64()),
        ("strongest_adversary", pa.string()),
        ("strongest_adversary_accuracy", pa.float64()),
    ]
    + [(f"{name}_accuracy{std}", pa.float64()) for name in SPREADS for std in ("", "_std")]
)
EXPLAINED = (
    "Gradients are counted over all images. Surrogate is the training time of the networks whose checkpoints a method reads, shared by all "
    "points of a sweep; – means that the method reads none. Crafting is extrapolated from the rate of the last start; – means that this "
    "start crafted nothing. It includes a network that a method trains for itself, as error-minimising noise does. Surrogate and victims "
    "show the duration of their last start, the victims all together. The strongest adversary is the victim that gets the most from the "
    "release without clean images, with its accuracy, relabelled where renaming its predictions helps it."
)


@dataclass(frozen=True)
class Comparison:
    """Runs side by side, each with a name that distinguishes it from the others."""

    runs: dict[str, RunResults]
    warnings: tuple[str, ...]  # reasons why figures may not compare, and what is missing

    @property
    def victims(self) -> list[str]:
        """Networks and countermeasures that any of the runs has measured."""
        return list(dict.fromkeys(pair.name for run in self.runs.values() for pair in run.pairs))

    @property
    def drawn(self) -> list[str]:
        """Those that pictures show: all, or where these would be too many, the first ones, without countermeasure before others."""
        countered = {pair.name: pair.clean.countermeasure != "none" for run in self.runs.values() for pair in run.pairs}
        return sorted(self.victims, key=lambda name: countered[name])[:MOST_DRAWN]


def compare(runs: Sequence[RunResults]) -> Comparison:
    """Put runs side by side, in the order given, with warnings about comparing them. Packing must have finished in all of them."""
    named = dict(zip(_names([run.folder.uri for run in runs]), runs, strict=True))
    said = [
        *_apart(named, lambda run: run.data_digest, "the data differ, so accuracies do not compare", _described),
        *_apart(
            {name: run for name, run in named.items() if "protect" in run.manifests},
            lambda run: run.count("protect", "classes"),
            "other classes are protected, and accuracies are of the protected classes",
            lambda run: f"{len(run.count('protect', 'classes'))} of {len(run.count('pack', 'classes'))} classes",
        ),
        *_victims_apart(named),
        *(f"{name}: nothing is protected yet" for name, run in named.items() if "protect" not in run.manifests),
        *(f"{name}: {said}" for name, run in named.items() if "protect" in run.manifests and (said := _untrained(run))),
        *(f"{name}: {len(lost)} shards are missing" for name, run in named.items() if (lost := _missing(run))),
    ]
    return Comparison(named, tuple(said))


def _names(uris: Sequence[str]) -> list[str]:
    """Return the shortest ends of the URIs that differ from one another."""
    parts = [uri.rstrip("/").split("/") for uri in uris]
    longest = max(map(len, parts), default=0)
    choices = (["/".join(part[-length:]) for part in parts] for length in range(1, longest + 1))
    return next((names for names in choices if len(set(names)) == len(names)), list(uris))


def _apart(
    runs: dict[str, RunResults], of: Callable[[RunResults], Any], warning: str, described: Callable[[RunResults], str]
) -> Iterable[str]:
    """Yield the warning, with the groups of runs that agree, unless all runs do."""
    groups: dict[Any, list[str]] = {}
    for name, run in runs.items():
        groups.setdefault(digest(of(run)), []).append(name)
    if len(groups) > 1:
        yield f"{warning}: " + "; ".join(f"{', '.join(names)}: {described(runs[names[0]])}" for names in groups.values())


def _described(run: RunResults) -> str:
    """Describe the data of a run."""
    train, test = run.count("pack", "train"), run.count("pack", "test")
    return f"{_data(run)}, {train:,} + {test:,} images of {len(run.count('pack', 'classes'))} classes"


def _data(run: RunResults) -> str:
    source: str = run.manifests["pack"].asked.get("pack", {}).get("data", "")
    return source.rstrip("/").rsplit("/", 1)[-1]


def _victims_apart(runs: dict[str, RunResults]) -> Iterable[str]:
    """Yield the settings of the victims' training that differ; networks, countermeasures and seeds stand beside the figures."""
    asked = {name: run.victim_asked["victim"] for name, run in runs.items() if run.victim_asked}
    names = {name for section in asked.values() for name, value in section.items() if not isinstance(value, list)}
    for name in sorted(names):
        values: dict[str, list[str]] = {}
        for run, section in asked.items():
            values.setdefault(str(section.get(name)), []).append(run)
        if len(values) > 1:
            yield f"victims were trained differently, victim.{name}: " + "; ".join(f"{v} ({', '.join(of)})" for v, of in values.items())


def _untrained(run: RunResults) -> str:
    """Name the victims that the figures are without; return nothing where all are there."""
    if count := len(run.missing_trials):
        return f"{count} of {len(run.trials) + count} results missing: {shown(run.missing_trials, SHOWN_MISSING)}"
    return "" if run.trials else "no victim has results yet"


def _missing(run: RunResults) -> list[str]:
    return run.manifests["protect"].missing if "protect" in run.manifests else []


def _of_method(protect: Manifest) -> dict[str, Any]:
    """Return the settings that the method uses; None for one that it does not use, whatever the configuration says."""
    counts, kind = protect.counts, METHODS[protect.counts["method"]]
    used = {
        "targets": kind.targets,
        "eps_levels": kind.budget is largest_change,  # the others have one of their own
        "steps": kind.checkpoints != 0 or kind.preparation == "own-noise",
    }
    return {name: counts.get(name) if applies else None for name, applies in used.items()}


def rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return a row as in `SCHEMA` for each run and victim, or one for a run without victims. Accuracies are percent, over seeds."""
    flat = []
    for name, run in comparison.runs.items():
        protect = run.manifests.get("protect")
        of_run = {
            "run": name,
            "uri": run.folder.uri,
            "data": run.manifests["pack"].asked.get("pack", {}).get("data"),
            "data_digest": run.data_digest,
            **{counted: run.count("protect", counted) for counted in ("method", "gradients", "psnr_db")},
            **(_of_method(protect) if protect else {}),
            "budget": str(run.budget) if protect else None,
            "surrogates": ", ".join(run.count("protect", "networks") or []) or None,
            "checkpoints": run.count("protect", "members"),
            "protected_images": run.count("protect", "protected"),
            "surrogate_seconds": surrogate_seconds(run),
            "crafting_seconds": run.crafting_seconds,
            "victim_seconds": run.manifests["victim"].seconds if "victim" in run.manifests else None,
            "chance_accuracy": run.chance,
        }
        if strongest := _strongest(run):
            of_run |= {"strongest_adversary": strongest.name, "strongest_adversary_accuracy": strongest.speaks.mean}
        flat += [of_run | _of_victim(pair) for pair in run.pairs] or [of_run]
    return [{column: row.get(column) for column in SCHEMA.names} for row in flat]


def _strongest(run: RunResults) -> Tried | None:
    """Return the adversary that an audit of the run would name, by the victims that it has."""
    return audit(run, (), {}).worst if "protect" in run.manifests else None


def _of_victim(pair: VictimPair) -> dict[str, Any]:
    clean, protected = pair.clean, pair.protected
    spreads = (clean.last, protected.last, protected.peak, protected.relabelled, clean.other, protected.other)
    figures: dict[str, Any] = {"network": clean.network, "countermeasure": clean.countermeasure}
    figures |= {"stored": clean.stored, "seeds": len(protected.seeds)}
    for name, spread in zip(SPREADS, spreads, strict=True):
        figures |= {f"{name}_accuracy": spread and spread.mean, f"{name}_accuracy_std": spread and spread.deviation}
    return figures


@dataclass(frozen=True)
class Table:
    """Text in columns; columns from `numbers` on are aligned to the right."""

    head: tuple[str, ...]
    lines: list[tuple[str, ...]]
    numbers: int

    def __str__(self) -> str:
        """Return the table with columns as wide as their longest text."""
        widths = [max(map(len, column)) for column in zip(self.head, *self.lines, strict=True)]
        aligned = (
            [cell.ljust(w) if i < self.numbers else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))]
            for line in (self.head, *self.lines)
        )
        return "\n".join("  " + "  ".join(line).rstrip() for line in aligned)


def made(comparison: Comparison) -> Table:
    """Return the table of what each run was made with, and what that cost."""
    settings = ("method", "targets", "networks", "budget", "checkpoints", "steps")
    costs = ("gradients", "surrogate", "crafting", "victims", "PSNR")
    lines = [(name, verdict(run).label, _gets(_strongest(run)), _data(run), *_made(run)) for name, run in comparison.runs.items()]
    return Table(("run", "verdict", "strongest adversary", "data", *settings, *costs), lines, numbers=7)


def _gets(strongest: Tried | None) -> str:
    return f"{strongest.title}: {strongest.speaks} %" if strongest else NONE


def _made(run: RunResults) -> tuple[str, ...]:
    protect = run.manifests.get("protect")
    if protect is None:
        return (NONE,) * 11
    counts = protect.counts | _of_method(protect)
    victim = run.manifests["victim"].seconds if "victim" in run.manifests else None
    seconds = (surrogate_seconds(run), run.crafting_seconds, victim)

    def shown(name: str, form: str = "{}") -> str:
        return form.format(counts[name]) if counts.get(name) is not None else NONE

    views = counts.get("views", [*PLAIN])
    through = f" through {', '.join(views)}" if views != [*PLAIN] else ""
    return (
        shown("method") + through,
        shown("targets"),
        ", ".join(counts.get("networks", [])) or NONE,
        str(run.budget),
        *(shown(name, form) for name, form in (("members", "{}"), ("steps", "{}"), ("gradients", "{:,}"))),
        *(NONE if spent is None else f"{spent:,.0f} s" for spent in seconds),
        shown("psnr_db", "{:.1f} dB"),
    )


def measured(comparison: Comparison) -> Table:
    """Return the table of how the victims did, grouped by victim: percent of clean test images after the last epoch."""
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
    """Explain the victims that had no image of a release; return nothing where every victim had."""
    names = dict.fromkeys(pair.clean.countermeasure for run in comparison.runs.values() for pair in run.pairs if len(pair.trained) == 1)
    return f"Victims under {', '.join(names)} had no image of a release: one training stands in every column." if names else ""


def text(comparison: Comparison) -> str:
    """Return warnings, both tables and what their figures mean, for a terminal."""
    costs, alone = map(_paragraph, (EXPLAINED, without_release(comparison)))
    parts = [str(made(comparison)), costs, str(measured(comparison)) if comparison.victims else "", alone]
    warned = "".join(f"warning: {warning}\n" for warning in comparison.warnings)
    return warned + "\n" + "\n\n".join(filter(None, parts))


def _paragraph(words: str) -> str:
    return textwrap.fill(words, 120, initial_indent="  ", subsequent_indent="  ")


def surrogate_seconds(run: RunResults) -> float | None:
    """Return the seconds that training took of the networks whose checkpoints the method reads; None where it reads none."""
    manifests = run.manifests
    reads = "protect" not in manifests or METHODS[manifests["protect"].counts["method"]].checkpoints != 0
    return manifests["surrogate"].seconds if "surrogate" in manifests and reads else None
