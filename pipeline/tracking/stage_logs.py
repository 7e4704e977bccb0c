"""What MLflow gets of each stage, and of a point of a sweep."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import pyarrow as pa
from pyarrow import csv

from pipeline.pages.gallery import image_drawings
from pipeline.results.run_results import RunResults
from pipeline.results.summary import VISIBLE, headline
from pipeline.results.victims import share_of
from pipeline.storage.layout import CHECKPOINTS
from pipeline.storage.records import to_json
from pipeline.tracking.parent_run import ParentRun

Log = Callable[[ParentRun, RunResults], None]

OF_AN_EPOCH = {"loss": "train_loss", "accuracy": "train_accuracy", "lr": "lr", "seconds": "seconds"}
COST = ("gradients", "gradients_per_image", "crafting_seconds")
SIMILARITY = ("gradient_similarity", "network_similarity")
MEASURED = ("clean", "protected", "protected_relabelled", "clean_other", "protected_other")
HEADLINE = {  # figures of a run that come with a stage
    "pack": ("train_images", "test_images", "quarantined", "chance_accuracy"),
    "protect": ("linf_levels", *VISIBLE, "protected_images", "protected_classes", *COST, *SIMILARITY),
    "victim": tuple(f"{name}_accuracy{std}" for name in MEASURED for std in ("", "_std")),
}


def log_pack(parent: ParentRun, results: RunResults) -> None:
    """Log the packed data set as an input."""
    assert parent.id
    parent.log_input(parent.id, results, "pack", "clean")


def log_surrogate(parent: ParentRun, results: RunResults) -> None:
    """Log a child for each network, so that the same metrics stand beside one another."""
    for network, entries in results.checkpoints.items():
        epochs = [entry["metrics"] for entry in entries]
        name = "surrogate" if len(results.checkpoints) == 1 else f"surrogate · {network}"
        of, settings = {"network": network}, results.manifests["surrogate"].asked["surrogate"]
        run = parent.child("surrogate", name, of | {"data": "clean"}, settings | of, sum(epoch["seconds"] for epoch in epochs))
        parent.log_input(run, results, "pack", "training")
        rows = [{new: epoch[old] for old, new in OF_AN_EPOCH.items()} for epoch in epochs]
        shares = [{"loader_percent": 100 * epoch.get("waiting_seconds", 0) / epoch["seconds"]} for epoch in epochs]
        parent.store.log_metrics(run, *[row | share for row, share in zip(rows, shares, strict=True)])
        parent.store.log_files(run, {CHECKPOINTS: to_json({"checkpoints": entries})})
        parent.store.client.set_terminated(run)


def log_protect(parent: ParentRun, results: RunResults) -> None:
    """Log a child for the crafting, with its pictures."""
    from pipeline.pages.canvas import LIGHT  # matplotlib takes seconds to load

    assert parent.id
    manifest = results.manifests["protect"]
    run = parent.child("protect", "protect", {"data": "protected"}, manifest.asked["protect"], manifest.seconds)
    parent.log_input(run, results, "pack", "clean")
    parent.log_input(parent.id, results, "protect", "protected")
    measured = {name: value for name, value in manifest.counts.items() if name not in manifest.asked["protect"]} | manifest.timing
    measured |= {name: value for name, value in headline(results).items() if name in VISIBLE}
    parent.store.log_metrics(run, {name: value for name, value in measured.items() if isinstance(value, int | float)})
    parent.store.log_files(run, {f"{name}.png": draw(LIGHT) for name, draw in image_drawings(results).items()})
    parent.store.client.set_terminated(run)


def log_victims(parent: ParentRun, results: RunResults) -> None:
    """Log a child for each trial, and a table of all of them."""
    from pipeline.pages import confusion_figures  # matplotlib takes seconds to load

    assert parent.id
    training = {name: value for name, value in results.victim_asked["victim"].items() if not isinstance(value, list)}
    names, drawn = results.count("pack", "classes"), set[tuple[str, ...]]()
    for row in results.trials:
        trial = {name: row[name] for name in ("network", "data", "countermeasure", "seed")}
        # What differs most comes first, because the UI cuts names short.
        name = f"{row['countermeasure']} · {row['data']} · {row['network']} · seed {row['seed']}"
        run = parent.child("victim", name, trial, training | trial)
        share = share_of(row["countermeasure"])
        data = "clean" if share and share.alone else row["data"]
        parent.log_input(run, results, "pack" if data == "clean" else "protect", "training")
        curves = zip(row["accuracy_per_epoch"], row["loss_per_epoch"], strict=True)
        parent.store.log_metrics(run, *[{"test_accuracy": accuracy, "train_loss": loss} for accuracy, loss in curves])
        parent.store.log_metrics(run, {name: value for name, value in row.items() if isinstance(value, float)})
        counts = results.trial_confusion(**trial)
        files = {"classes.csv": confusion_figures.table(counts, names)}
        # A picture takes half a second in this process: the first seed has one, which the others resemble, and tables have the figures.
        if (like := (row["network"], row["data"], row["countermeasure"])) not in drawn:
            files["classes.png"] = confusion_figures.picture(counts, names, f"trained on {data} images, seed {row['seed']}")
            drawn.add(like)
        parent.store.log_files(run, files)
        parent.store.client.set_terminated(run)
    plain = [{name: value for name, value in row.items() if not isinstance(value, list)} for row in results.trials]
    stream = io.BytesIO()
    csv.write_csv(pa.Table.from_pylist(plain), stream)
    parent.store.log_files(parent.id, {"victims.csv": stream.getvalue()})


def log_accuracies(parent: ParentRun, results: RunResults) -> None:
    """Log the accuracies of every victim in the run itself, under the same names in every run, so that runs chart side by side."""
    assert parent.id
    every = [stats for pair in results.pairs for stats in pair.trained]
    names = [f"{stats.data}_accuracy/{stats.network}/{stats.countermeasure.replace('+', '_')}" for stats in every]  # MLflow takes no +
    parent.store.log_metrics(parent.id, {name: stats.last.mean for name, stats in zip(names, every, strict=True)})


def log_report(parent: ParentRun, results: RunResults) -> None:
    """Log the report and its pictures as artifacts."""
    assert parent.id
    report = results.folder.child("report")
    files = {f"report/{name}": report.read(name) for name in report.names() if name.endswith((".html", ".png"))}
    parent.store.log_files(parent.id, files)


OF_RUN: Mapping[str, tuple[Log, ...]] = {
    "pack": (log_pack,),
    "surrogate": (log_surrogate,),
    "protect": (log_protect,),
    "victim": (log_victims, log_accuracies),
    "report": (log_report,),
}
OF_POINT: Mapping[str, tuple[Log, ...]] = {**OF_RUN, "surrogate": ()}  # the surrogate is the run's
