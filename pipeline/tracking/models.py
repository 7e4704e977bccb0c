"""Checkpoints of a surrogate as models in MLflow: each with its figures, and the last one whole, ready to be loaded."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.results.run_results import RunResults
from pipeline.tracking.live import of_an_epoch
from pipeline.tracking.mlflow_store import MetricsAtStep
from pipeline.tracking.parent_run import ParentRun


def log_checkpoints(parent: ParentRun, run: str, network: str, entries: Sequence[Mapping[str, Any]], results: RunResults) -> None:
    """Log every checkpoint of a network as a model of its run: its place and digest, and the weights of the last one.

    The weights of a network that began pretrained are not logged: to load them takes what built it.
    """
    surrogate, last, there = results.folder.child("surrogate"), entries[-1], parent.store.models(run)
    for entry, logged in zip(entries, parent.store.curve(run, "train_loss"), strict=True):
        if entry["epoch"] in there:
            continue
        name = f"{network}-epoch-{entry['epoch']:04d}"
        tags = {"network": network, "sha256": entry["sha256"], "file": f"surrogate/{entry['file']}", "epoch": entry["epoch"]}
        figures = MetricsAtStep(logged.step, logged.time, of_an_epoch(entry["metrics"]))
        if entry is not last or results.count("surrogate", "initial"):
            parent.store.log_model(parent.experiment_id, run, name, tags, figures)
            continue
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place, "model")
            _save(network, surrogate.read(entry["file"]), results, folder, parent)
            parent.store.log_model(parent.experiment_id, run, name, tags, figures, folder)


def _save(network: str, weights: bytes, results: RunResults, folder: Path, parent: ParentRun) -> None:
    """Save a network with these weights in MLflow's format. It takes levels `(B, 3, H, W)` and gives features and logits."""
    import torch  # a second that a run on finished stages need not wait

    from sep.models import build

    counts = results.manifests["pack"].counts
    side = results.manifests["surrogate"].asked["surrogate"].get("input_size")  # of pictures of their own size
    height, width, classes = side or counts["height"], side or counts["width"], len(counts["classes"])
    built = build(network, classes, min(height, width), counts["mean"], counts["std"])
    built.load_state_dict(torch.load(io.BytesIO(weights), map_location="cpu", weights_only=True))
    built.eval()
    with torch.inference_mode():
        features = built(torch.zeros(1, 3, height, width))[0].shape[1]
    takes, gives = {"levels": (-1, 3, height, width)}, {"features": (-1, features), "logits": (-1, classes)}
    packages = [f"{name}=={version(name)}" for name in ("torch", "torchvision")]
    parent.store.save_network(built, folder, takes, gives, packages)
