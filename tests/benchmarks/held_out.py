"""How near releases come to their targets in the eyes of networks that took no part in crafting: it predicts victims, and costs seconds.

python -m tests.benchmarks.held_out NAME RUN RUN [RUN ...]    add the distance to the card NAME of these runs

The runs have surrogates of their own. The checkpoints of each judge the release of the run before.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pipeline.config.seeds import generator
from pipeline.protection.checkpoints import Ensemble, choose, load_networks, read_index
from pipeline.shards.tensors import load
from pipeline.storage.records import to_json
from pipeline.storage.run import Run, open_run
from pipeline.storage.stage import Manifest
from sep.ensemble import class_sums
from sep.objective import choose_targets, feature_alignment
from tests.benchmarks.publish import spread
from tests.benchmarks.tables import CARDS

JUDGES = 10  # checkpoints at most, equally spaced
TOGETHER = 250  # images


def distance(run: Run, judge: Run) -> float:
    """Return the distance of a run's release for the checkpoints of another run's surrogate, see `seen_by`.

    Raises:
        ValueError: both have one surrogate, whose checkpoints have helped to craft.
    """
    if Manifest.load(judge, "surrogate").digest == Manifest.load(run, "surrogate").digest:
        raise ValueError(f"{judge.uri} has the surrogate of {run.uri}: take a run with a surrogate of its own")
    index = read_index(judge)
    return seen_by(run, Ensemble(judge, choose(index, min(JUDGES, *map(len, index.values())))))


@torch.inference_mode()
def seen_by(run: Run, judges: Ensemble) -> float:
    """Return the mean squared distance of features to the class mean of the target, in percent of that of the clean images.

    Args:
        run: with a release that is drawn towards the same wrong class for all images of a class.
        judges: the checkpoints that see the images. Of the same data.
    """
    pack, protect = Manifest.load(run, "pack"), Manifest.load(run, "protect")
    clean, labels = load(run.child("pack"), pack.shards["train"])
    protected, same = load(run.child("protect"), protect.shards["train"])
    assert torch.equal(labels, same)
    classes, targets = protect.counts["classes"], protect.counts["targets"]
    assert targets in ("shift", "random-class"), f"{targets}: the images of a class have no target in common"
    chosen = torch.isin(labels, torch.tensor(classes))
    wanted = choose_targets(targets, labels[chosen], classes, generator(protect.asked["seed"], "targets"), labels[chosen])
    totals = [0.0, 0.0]
    for network in load_networks(judges):
        sums, counts = class_sums(network, _batches(clean, labels), len(pack.counts["classes"]))
        means = (sums / counts[:, None]).float()
        for i, images in enumerate((clean, protected)):
            for part, of in _batches(images[chosen], wanted):
                totals[i] += float(feature_alignment(network.features(part.float()), means[of]))
    return 100 * totals[1] / totals[0]


def _batches(images: Tensor, classes: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(torch.split(images, TOGETHER), torch.split(classes, TOGETHER), strict=True)


def main(arguments: Sequence[str]) -> int:
    """Add the distance to a card."""
    if len(arguments) < 3:
        print(__doc__)
        return 2
    name, *uris = arguments
    runs = [open_run(uri) for uri in uris]
    path = CARDS / f"{name}.json"
    found = [distance(run, judge) for run, judge in zip(runs, [*runs[1:], runs[0]], strict=True)]
    path.write_bytes(to_json({**json.loads(path.read_text()), "held_out_distance": spread(found)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
