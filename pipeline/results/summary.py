"""The figures by which a run is known: in its summary, on its page, in its tracker."""

from __future__ import annotations

import shlex
import statistics

from pipeline.config.schema import RunConfig
from pipeline.results.run_results import Trained, VictimPair, budget, chance, finished, imperceptibility, pairs, similarities, trained
from pipeline.storage.layout import PAGE
from pipeline.storage.run import Run
from sep.countermeasures.registry import clean_share
from sep.methods.registry import METHODS

# Of the one experiment of a run's own database; without the last part MLflow's pages are those for language models.
RUNS_ADDRESS = "http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning"


def headline(run: Run) -> dict[str, float | str]:
    """What was measured, under the same names wherever they appear; what was not measured is missing.

    Accuracies are percent of the clean test images of protected classes after the last epoch, mean over the seeds of the `victim` that is
    first among those asked for, one without countermeasure before others; they are missing where that one is, or has clean images
    besides. `*_other_accuracy` are those on the other classes, if there are any; `*_std` is their sample standard deviation where there
    are several seeds. `*_similarity` are mean cosines between the gradients of different checkpoints of a network, and of different
    networks.
    """
    found = finished(run)
    figures: dict[str, float | str] = {}
    if "pack" in found:
        counts = found["pack"].counts
        figures |= {"train_images": counts["train"], "test_images": counts["test"], "classes": len(counts["classes"])}
        figures |= {"chance_accuracy": chance(found), "quarantined": counts["quarantined"]}
    if "protect" in found:
        counts, visible = found["protect"].counts, imperceptibility(run)
        figures |= {name: counts[name] for name in ("method", "eps_levels", "linf_levels")} | {"budget": str(budget(found))}
        figures |= {"targets": counts["targets"]} if METHODS[counts["method"]].targets else {}
        figures |= {"protected_images": counts["protected"], "protected_classes": len(counts["classes"])}
        figures |= {"missing_shards": len(missing)} if (missing := found["protect"].missing) else {}
        figures |= {name: statistics.fmean(visible[name]) for name in ("psnr_db", "ssim", "changed_percent") if visible[name]}
        alike = similarities(run)
        within, between = ([matrix.mean for matrix in alike if (matrix.network is None) is several] for several in (False, True))
        figures |= {"gradient_similarity": statistics.fmean(within)} if within else {}
        figures |= {"network_similarity": between[0]} if between else {}
    there = trained(run, found)
    figures |= {"missing_trials": len(there.missing), "trials": len(there.rows) + len(there.missing)} if there.missing else {}
    if first := _first(there):
        clean, protected = first.clean, first.protected
        figures |= {"victim": first.name, "seeds": len(protected.seeds)}
        named = {"clean": clean.last, "protected": protected.last, "protected_relabelled": protected.relabelled}
        if clean.other and protected.other:
            named |= {"clean_other": clean.other, "protected_other": protected.other}
        for name, spread in named.items():
            figures[f"{name}_accuracy"] = spread.mean
            if spread.deviation is not None:
                figures[f"{name}_accuracy_std"] = spread.deviation
    return figures


def _first(there: Trained) -> VictimPair | None:
    """The victim by which a run is known; no other stands in for one that failed, nor one that has clean images besides."""
    if not there.rows:
        return None
    asked = there.asked["victim"]
    alone = [name for name in asked["countermeasures"] if clean_share(name) is None]
    wanted = (asked["networks"][0], "none" if "none" in alone else alone[0]) if alone else None
    return next((pair for pair in pairs(there.rows) if (pair.clean.network, pair.clean.countermeasure) == wanted), None)


def summary(config: RunConfig, folder: Run) -> str:
    """The short table for the end of a run: the figures there are, and where to look next."""
    known = headline(folder)

    def line(label: str, name: str, unit: str, note: str = "", form: str = ".1f") -> list[str]:
        return [f"  {label:<24}{known[name]:>8{form}} {unit:<4}{note}".rstrip()] if name in known else []

    seeds = f"{known.get('victim')}, {known.get('seeds')} seed{'s' if known.get('seeds') != 1 else ''}"
    lines = [
        *line("clean victim", "clean_accuracy", "%", seeds),
        *line("protected victim", "protected_accuracy", "%", f"chance is {known.get('chance_accuracy', 0):.3g} %"),
        *line("protected, relabelled", "protected_relabelled_accuracy", "%", "after the best relabelling of its predictions"),
        *line("others, clean", "clean_other_accuracy", "%", "classes that are not protected"),
        *line("others, protected", "protected_other_accuracy", "%", "the same, trained on the release"),
        *line("missing victims", "missing_trials", "", f"of {known.get('trials')} results; the same command tries them again", "d"),
        *line("largest change", "linf_levels", "", f"of 255 grey levels; the budget is {known.get('budget')}", "d"),
        *line("PSNR", "psnr_db", "dB", f"mean of {known.get('protected_images')} images by {known.get('method')}"),
        *line("SSIM", "ssim", "", "the same; 1 is no change", ".3f"),
        *line("missing shards", "missing_shards", "", "crafting them failed, and the run kept going without them", "d"),
        *line("quarantined", "quarantined", "", f"of {known.get('train_images')} + {known.get('test_images')} images packed", "d"),
    ]
    where = shlex.quote(folder.uri)
    looks = [f"audit     python pipeline/verify.py --run {where}"]
    if folder.is_local and not config.tracking_uri:
        looks.insert(0, f"runs      make ui RUN={where}, then {RUNS_ADDRESS}")
    if folder.exists(f"report/{PAGE}"):
        looks.insert(0, f"report    {folder.uri}/report/{PAGE}")
    return "\n".join(["", *lines, "", *(f"  {look}" for look in looks)])
