"""The logs of each finished stage, and of a point of a sweep, for MLflow. What was logged live is completed, not logged again."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Collection, Mapping
from itertools import accumulate
from typing import Any

import pyarrow as pa
from pyarrow import csv

from pipeline.pages.gallery import image_drawings
from pipeline.results.detection import Detection
from pipeline.results.run_results import RunResults
from pipeline.results.summary import VISIBLE, headline
from pipeline.results.victims import Row, share_of
from pipeline.results.waiting import waiting_percent
from pipeline.storage.folder import Folder
from pipeline.storage.layout import AUDIT, CARD, CERTIFIED, CHECKPOINTS, DETECTION, PAGE, VERIFIED
from pipeline.storage.records import counted, digest, to_json
from pipeline.tracking import children, models
from pipeline.tracking.description import of_comparison
from pipeline.tracking.live import of_an_epoch
from pipeline.tracking.mlflow_store import NOTE, DataSet, MetricsAtStep
from pipeline.tracking.parent_run import ParentRun

Names = Collection[str]  # of the children of the stage
Log = Callable[[ParentRun, RunResults], Names]

COST = ("gradients", "gradients_per_image", "crafting_seconds")
PUBLISHED = (".html", ".png", ".csv")  # files of a comparison
SIMILARITY = ("gradient_similarity", "network_similarity")
MEASURED = ("clean", "protected", "protected_relabelled", "clean_other", "protected_other")
OUTCOMES = {
    "verify": "verified",
    "audit": "audit",
    "detect": "detection",
    "certify": "certificate",
}  # commands that look at a release, and the tags of what they found
HEADLINE = {  # figures of a run that come with a stage
    "protect": ("linf_levels", *VISIBLE, *COST, *SIMILARITY),
    "victim": tuple(f"{name}_accuracy{std}" for name in MEASURED for std in ("", "_std")),
}
CONSTANTS = {  # the same as tags: a chart of them would have a single bar
    "pack": ("train_images", "test_images", "classes", "quarantined", "chance_accuracy"),
    "protect": ("protected_images", "protected_classes"),
    "victim": ("seeds",),
}


def log_pack(parent: ParentRun, results: RunResults) -> Names:
    """Log the packed data set as an input."""
    assert parent.id
    parent.store.log_input(parent.id, clean(results), "clean")
    return ()


def log_surrogate(parent: ParentRun, results: RunResults) -> Names:
    """Log a child for each network, so that the same metrics stand beside one another, and its checkpoints as models."""
    names, manifest = [], results.manifests["surrogate"]
    for network, entries in results.checkpoints.items():
        about = children.surrogate(network, len(results.checkpoints) > 1, manifest.asked["surrogate"])
        names.append(about.name)
        content = digest([manifest.digest, network])
        if parent.is_whole(about, content):
            continue
        seconds = [entry["metrics"]["seconds"] for entry in entries]
        begun = time.time() - sum(seconds)
        points = [
            MetricsAtStep(step, begun + passed, of_an_epoch(entry["metrics"]))
            for step, (entry, passed) in enumerate(zip(entries, accumulate(seconds), strict=True))
        ]
        run = parent.trained(about, points, "train_loss", begun)
        parent.store.log_input(run, clean(results), "training")
        parent.store.log_files(run, {CHECKPOINTS: to_json({"checkpoints": entries})})
        models.log_checkpoints(parent, run, network, entries, results)
        parent.end_child(about, content)
    return names


def log_protect(parent: ParentRun, results: RunResults) -> Names:
    """Log a child for the crafting, with its pictures."""
    from pipeline.pages.canvas import LIGHT  # matplotlib takes seconds to load

    assert parent.id
    manifest = results.manifests["protect"]
    about = children.protect(manifest.asked["protect"])
    if not parent.is_whole(about, manifest.digest):
        run = parent.child(about, time.time() - manifest.seconds)
        parent.store.log_input(run, clean(results), "clean")
        parent.store.log_input(parent.id, protected(results), "protected")
        known = headline(results)
        measured: dict[str, Any] = {name: known[name] for name in (*VISIBLE, *COST, *SIMILARITY) if name in known}
        measured |= {"linf_levels": known["linf_levels"], "mean_images_per_second": manifest.timing.get("images_per_second", 0.0)}
        parent.store.log_metrics(run, measured)
        parent.store.log_files(run, {f"{name}.png": draw(LIGHT) for name, draw in image_drawings(results).items()})
        images = results.shown_images
        shown = [pair for place, pair in images.pairs.items() if place in images.first]
        parent.store.log_images(run, "clean", [pair.clean for pair in shown])
        parent.store.log_images(run, "protected", [pair.protected for pair in shown])
        parent.end_child(about, manifest.digest)
    released = {"sha256": manifest.digest, "images": manifest.counts["images"], "shards": manifest.as_dict()["shards"]}
    parent.store.log_files(parent.id, {"release.json": to_json(released)})
    earlier = [tag for command, tag in OUTCOMES.items() if command not in results.found]  # which was said of an earlier release
    parent.store.set_tags(parent.id, {"release_sha256": manifest.digest}, absent=earlier)
    return (about.name,)


def log_victims(parent: ParentRun, results: RunResults) -> Names:
    """Log a child for each trial, and a table of all of them."""
    assert parent.id
    drawn = set[tuple[str, ...]]()  # a picture takes half a second: the first seed has one, which the others resemble
    names = [_log_victim(parent, results, row, drawn) for row in results.trials]
    plain = [{name: value for name, value in row.items() if not isinstance(value, list)} for row in results.trials]
    stream = io.BytesIO()
    csv.write_csv(pa.Table.from_pylist(plain), stream)
    parent.store.log_files(parent.id, {"victims.csv": stream.getvalue()})
    _log_accuracies(parent, results)
    return names


def _log_victim(parent: ParentRun, results: RunResults, row: Row, drawn: set[tuple[str, ...]]) -> str:
    """Log the child of a trial and return its name; `drawn` has the kinds of trials that have a picture."""
    from pipeline.pages import confusion_figures  # matplotlib takes seconds to load

    trial = {name: row[name] for name in ("network", "data", "countermeasure", "seed")}
    about = children.victim(**trial, settings=results.victim_asked["victim"])
    share = share_of(row["countermeasure"])
    on = clean(results) if row["data"] == "clean" or (share and share.alone) else protected(results)
    content, like = digest([row, on.digest]), (row["network"], row["data"], row["countermeasure"])
    first = like not in drawn
    drawn.add(like)
    if parent.is_whole(about, content):
        return about.name
    record, classes = results.trial_record(**trial), results.count("pack", "classes")
    epochs = len(row["accuracy_per_epoch"])
    seconds = record.get("seconds", 0.0)
    begun = time.time() - seconds
    waiting = {"loader_percent": waiting_percent([record])}  # which is not known of each epoch, unless it was logged live
    points = [
        MetricsAtStep(step, begun + seconds * (step + 1) / epochs, {"test_accuracy": accuracy, "train_loss": loss, **waiting})
        for step, (accuracy, loss) in enumerate(zip(row["accuracy_per_epoch"], row["loss_per_epoch"], strict=True))
    ]
    run = parent.trained(about, points, "test_accuracy", begun)
    parent.store.log_input(run, on, "training")
    parent.store.log_metrics(run, {name: value for name, value in row.items() if isinstance(value, float)})
    files = {"classes.csv": confusion_figures.table(record["confusion"], classes)}
    if first:
        title = f"trained on {row['data']} images, seed {row['seed']}"
        files["classes.png"] = confusion_figures.picture(record["confusion"], classes, title)
    parent.store.log_files(run, files)
    parent.end_child(about, content)
    return about.name


def _log_accuracies(parent: ParentRun, results: RunResults) -> None:
    """Log the accuracies of every victim in the run itself, under the same names in every run, so that runs chart side by side."""
    assert parent.id
    every = [stats for pair in results.pairs for stats in pair.trained]
    names = [f"{stats.data}_accuracy/{stats.network}/{stats.countermeasure.replace('+', '_')}" for stats in every]  # MLflow takes no +
    parent.store.log_metrics(parent.id, {name: stats.last.mean for name, stats in zip(names, every, strict=True)})


def log_report(parent: ParentRun, results: RunResults) -> Names:
    """Log the report and its pictures as artifacts."""
    assert parent.id
    report = results.folder.child("report")
    files = {f"report/{name}": report.read(name) for name in report.names() if name.endswith((".html", ".png"))}
    parent.store.log_files(parent.id, files)
    return ()


def log_verification(parent: ParentRun, results: RunResults) -> Names:
    """Log what verify.py found in the release: a tag to filter by, and the record with the first faults."""
    assert parent.id
    found = results.found["verify"]
    faults = found["faults"]
    parent.store.set_tags(parent.id, {OUTCOMES["verify"]: counted(faults, "fault") if faults else "no fault"})
    parent.store.log_files(parent.id, {VERIFIED: to_json(found)})
    return ()


def log_audit(parent: ParentRun, results: RunResults) -> Names:
    """Log what audit.py found: the verdict to filter by, what the strongest adversary gets to sort by, the page and the card."""
    assert parent.id
    found = results.found["audit"]
    parent.store.set_tags(parent.id, {OUTCOMES["audit"]: found["verdict"]})
    gets = found["decided_accuracy"]
    parent.store.log_metrics(parent.id, {} if gets is None else {"strongest_adversary_accuracy": gets})
    files = {PAGE: results.folder.child(AUDIT).read(PAGE), CARD: to_json(found)}
    parent.store.log_files(parent.id, {f"{AUDIT}/{name}": data for name, data in files.items()})
    return ()


def log_detection(parent: ParentRun, results: RunResults) -> Names:
    """Log how well detectors tell the release from clean images: a tag with the best of them, and the record."""
    assert parent.id
    found = results.found["detect"]
    best = Detection.of(found).best
    parent.store.set_tags(parent.id, {OUTCOMES["detect"]: f"AUC {best.figure} by {best.name}"})
    parent.store.log_files(parent.id, {DETECTION: to_json(found)})
    return ()


def log_certificate(parent: ParentRun, results: RunResults) -> Names:
    """Log the certificate: its bound to read and to sort by, and the record."""
    assert parent.id
    found = results.found["certify"]
    parent.store.set_tags(parent.id, {OUTCOMES["certify"]: f"at most {found['protected']['bound']:.1f} %, {found['network']}"})
    parent.store.log_metrics(parent.id, {"certified_accuracy": found["protected"]["bound"]})
    parent.store.log_files(parent.id, {CERTIFIED: to_json(found)})
    return ()


def log_comparison(run: ParentRun, comparison: Folder, text: str, links: Mapping[str, str] | None = None) -> None:
    """Log the files of a comparison as artifacts, and its tables as the description, with links to the runs by their names."""
    assert run.id
    shown = [name for name in comparison.names() if name.endswith(PUBLISHED)]
    run.store.log_files(run.id, {f"comparison/{name}": comparison.read(name) for name in shown})
    run.store.set_tags(run.id, {NOTE: of_comparison(text, links or {})})


def clean(results: RunResults) -> DataSet:
    """Return the user's images, as they were packed."""
    return _data_set(results, "pack", results.manifests["pack"].asked["pack"]["data"])


def protected(results: RunResults) -> DataSet:
    """Return the release."""
    return _data_set(results, "protect", results.folder.child("protect").uri)


def _data_set(results: RunResults, stage: str, source: str) -> DataSet:
    manifest, size = results.manifests[stage], results.manifests["pack"].counts
    counts = {split: sum(shard.count for shard in shards) for split, shards in manifest.shards.items()}
    kind = source.split(":")[0] if "://" in source else "local"
    content = digest(manifest.as_dict()["shards"])
    shape = (size["height"], size["width"], 3)
    return DataSet(
        {"pack": "clean", "protect": "protected"}[stage], content, kind, source, shape, counts | {"classes": len(size["classes"])}
    )


OF_RUN: Mapping[str, Log] = {
    "pack": log_pack,
    "surrogate": log_surrogate,
    "protect": log_protect,
    "victim": log_victims,
    "report": log_report,
    "verify": log_verification,
    "audit": log_audit,
    "detect": log_detection,
    "certify": log_certificate,
}


def log_nothing(parent: ParentRun, results: RunResults) -> Names:
    """Log nothing: the surrogate of a point is the run's."""
    return ()


OF_POINT: Mapping[str, Log] = {**OF_RUN, "surrogate": log_nothing}
