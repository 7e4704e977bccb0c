"""The figures by which a run is known: in its summary, on its page, in its tracker."""

from __future__ import annotations

import shlex
import statistics
from dataclasses import replace

from pipeline.config.released_splits import sets_aside
from pipeline.config.schema import RunConfig
from pipeline.results.commands import here
from pipeline.results.mlflow_address import runs_address
from pipeline.results.next_steps import Step, next_steps
from pipeline.results.run_results import RunResults
from pipeline.results.verdict import verdict
from pipeline.results.victims import VictimPair, share_of
from pipeline.storage.layout import PAGE
from sep.methods.registry import METHODS
from sep.views.registry import PLAIN

VISIBLE = ("psnr_db", "ssim", "changed_percent")  # means over the changed images


def headline(results: RunResults) -> dict[str, float | str]:
    """Return the figures of a run under the names that they have everywhere; a figure that was not measured is missing.

    Accuracies are percent of the clean test images of protected classes after the last epoch, mean over seeds. They are those of the
    `victim` that was asked for first, preferably one without countermeasure. They are missing where its training failed, or where it has
    clean images besides the release. `*_other_accuracy` are accuracies on the unprotected classes, if there are any. `*_std` are sample
    standard deviations over several seeds. `*_similarity` are mean cosines between the gradients of different checkpoints of a network,
    and of different networks.
    """
    return {**_of_data(results), **_of_protection(results), **_of_victims(results)}


def _of_data(results: RunResults) -> dict[str, float | str]:
    if "pack" not in results.manifests:
        return {}
    counts = results.manifests["pack"].counts
    figures = {"train_images": counts["train"], "test_images": counts["test"], "classes": len(counts["classes"])}
    return figures | {"chance_accuracy": results.chance, "quarantined": counts["quarantined"]}


def _of_protection(results: RunResults) -> dict[str, float | str]:
    if "protect" not in results.manifests:
        return {}
    protect, measures = results.manifests["protect"], results.samples.measures
    counts = protect.counts
    figures = {name: counts[name] for name in ("method", "eps_levels", "linf_levels")} | {"budget": str(results.budget)}
    figures |= {"targets": counts["targets"]} if METHODS[counts["method"]].targets else {}
    views = counts.get("views", [*PLAIN])
    figures |= {"views": ", ".join(views)} if views != [*PLAIN] else {}
    figures |= {"input_size": counts["input_size"]} if "input_size" in counts else {}
    figures |= {"protected_images": counts["protected"], "protected_classes": len(counts["classes"]), "released_images": counts["images"]}
    figures |= {"protected_share": counts["share"], "chosen": counts["chosen"]} if "share" in counts else {}
    figures |= {"gradients": counts["gradients"], "gradients_per_image": results.gradients_per_image} if counts["gradients"] else {}
    figures |= {} if results.crafting_seconds is None else {"crafting_seconds": results.crafting_seconds}
    figures |= {"missing_shards": len(protect.missing)} if protect.missing else {}
    figures |= {name: float(measures[name].mean(dtype=float)) for name in VISIBLE if measures[name].size}
    within, between = ([m.mean for m in results.similarities if (m.network is None) is several] for several in (False, True))
    figures |= {"gradient_similarity": statistics.fmean(within)} if within else {}
    return figures | ({"network_similarity": between[0]} if between else {})


def _released(results: RunResults) -> str:
    """Return which of the packed images are in the release, if there is one."""
    if "protect" not in results.manifests:
        return ""
    packed, protect = results.manifests["pack"], results.manifests["protect"]
    if share := protect.counts.get("share"):
        return f"images, {protect.counts['protected']} of them protected: {100 * share:.3g} % of each class ({protect.counts['chosen']})"
    tests = sum(shard.count for shard in protect.shards.get("test", []))
    if tests:
        how = "set aside for testing" if sets_aside(packed.asked) else "of the test split"
        return f"images, {tests} of them {how}, protected like the others"
    left = packed.counts["test"]
    return f"images; the {left} for testing are not among them" if left else "images"


def _of_victims(results: RunResults) -> dict[str, float | str]:
    figures: dict[str, float | str] = {}
    if missing := len(results.missing_trials):
        figures |= {"missing_trials": missing, "trials": len(results.trials) + missing}
    if first := _first(results):
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


def _first(results: RunResults) -> VictimPair | None:
    """Return the victim by which a run is known; no other stands in for one that failed, nor one that has clean images besides."""
    if not results.trials:
        return None
    asked = results.victim_asked["victim"]
    alone = [name for name in asked["countermeasures"] if share_of(name) is None]
    wanted = (asked["networks"][0], "none" if "none" in alone else alone[0]) if alone else None
    return next((pair for pair in results.of_release if (pair.clean.network, pair.clean.countermeasure) == wanted), None)


def _pace(results: RunResults) -> str:
    """Return how long crafting took in all, with what it prepared; nothing where the last start crafted nothing."""
    return "" if results.crafting_seconds is None else f"crafting took {results.crafting_seconds:,.0f} s"


def summary(config: RunConfig, results: RunResults) -> str:
    """Return the text for the end of a run: the verdict, its figures, and what to do next."""
    folder = results.folder
    looks = [Step("report", "", f"{folder.uri}/report/{PAGE}")] if folder.exists(f"report/{PAGE}") else []
    if folder.is_local and not config.tracking_uri:
        looks.append(Step("runs", f"then open {runs_address()}", here(f"make ui RUN={shlex.quote(folder.uri)}")))
    steps = [replace(step, command=here(step.command) if step.command else "") for step in next_steps(config, results)]
    return "\n".join(["", figures(results), "", *(part for step in looks + steps for part in _told(step))])


def figures(results: RunResults) -> str:
    """Return the verdict and the figures of a run, a line for each."""
    known = headline(results)

    def line(label: str, name: str, unit: str, note: str = "", form: str = ".1f") -> list[str]:
        return [f"  {label:<36}{known[name]:>8{form}} {unit:<4}{note}".rstrip()] if name in known else []

    through = f" through {known['views']}" if "views" in known else ""
    seeds = f"{known.get('victim')}, {known.get('seeds')} seed{'s' if known.get('seeds') != 1 else ''}"
    lines = [
        *line("trained on your originals", "clean_accuracy", "%", seeds),
        *line("trained on the protected release", "protected_accuracy", "%", f"guessing gives {known.get('chance_accuracy', 0):.3g} %"),
        *line("if an adversary renames predictions", "protected_relabelled_accuracy", "%", "by the best one-to-one map"),
        *line("other classes, from your originals", "clean_other_accuracy", "%", "classes that are not protected"),
        *line("other classes, from the release", "protected_other_accuracy", "%", "the same, trained on the release"),
        *line("missing victims", "missing_trials", "", f"of {known.get('trials')} results; the same command tries them again", "d"),
        *line("largest change", "linf_levels", "", f"of 255 grey levels; the budget is {known.get('budget')}", "d"),
        *line("PSNR", "psnr_db", "dB", f"mean of {known.get('protected_images')} images by {known.get('method')}{through}"),
        *line("SSIM", "ssim", "", "mean of the same images; 1 means no change", ".3f"),
        *line("gradients an image", "gradients_per_image", "", _pace(results), ".4g"),
        *line("release", "released_images", "", _released(results), "d"),
        *line("missing shards", "missing_shards", "", "crafting failed for them, and the run went on without them", "d"),
        *line("quarantined", "quarantined", "", f"refused; {known.get('train_images')} + {known.get('test_images')} were packed", "d"),
    ]
    said = [f"  {sentence}" for sentence in verdict(results).sentences]
    return "\n".join([*said, "", *lines])


def _told(step: Step) -> list[str]:
    """Return a step as one line, and its command alone on the next one, from which it can be copied."""
    start = f"  {step.name:<10}{step.why}".rstrip()
    return [start, f"    {step.command}"] if step.why and step.command else [f"  {step.name:<10}{step.why or step.command}"]
