"""How near releases come to their targets in the eyes of networks that took no part in crafting: it predicts victims, and costs less.

python -m tests.benchmarks.held_out NAME RUN RUN [RUN ...] [-- NAME RUN RUN ...]    add the distance to the card NAME of these runs

The runs have surrogates of their own. The checkpoints of each judge the release of the run before. What they make of the clean images is
computed once for all cards of a command.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby

import torch
from torch import Tensor

from pipeline.config.seeds import generator
from pipeline.protection.checkpoints import Ensemble, choose, load_networks, read_index
from pipeline.shards.tensors import load
from pipeline.storage.folder import Folder
from pipeline.storage.records import to_json
from pipeline.storage.run import Point, Run, open_run
from pipeline.storage.stage import Manifest
from sep.choices import Targets
from sep.ensemble import class_sums
from sep.models import Network
from sep.objective import choose_targets, feature_alignment
from tests.benchmarks.publish import spread
from tests.benchmarks.tables import CARDS

JUDGES = 10  # checkpoints at most, equally spaced
TOGETHER = 250  # images


@dataclass(frozen=True)
class Asked:
    """What a release draws its images to."""

    targets: Targets
    classes: tuple[int, ...]
    seed: int

    def of(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return which images are protected, `(B,)` bool, and the target of each of them."""
        chosen = torch.isin(labels, torch.tensor(self.classes))
        own = labels[chosen]
        return chosen, choose_targets(self.targets, own, self.classes, generator(self.seed, "targets"), own)


@dataclass(frozen=True)
class Judges:
    """Networks, and what they make of the clean images.

    Attributes:
        networks: the checkpoints.
        means: of each of them, features of each class on average, `(K, D)`.
        labels: of the clean images, `(B,)`.
        apart: sum over networks and chosen clean images of the squared distance to the mean of the target.
    """

    networks: Sequence[Network]
    means: Sequence[Tensor]
    labels: Tensor
    apart: float


def distance(run: Run, judge: Run) -> float:
    """Return the mean squared distance of features to the class mean of the target, in percent of that of the clean images.

    Args:
        run: with a release that is drawn towards the same wrong class for all images of a class.
        judge: a run whose surrogate's checkpoints see the images. Of the same images, by another surrogate.

    Raises:
        ValueError: both have one surrogate, whose checkpoints have helped to craft.
    """
    if Manifest.load(judge, "surrogate").digest == Manifest.load(run, "surrogate").digest:
        raise ValueError(f"{judge.uri} has the surrogate of {run.uri}: take a run with a surrogate of its own")
    return seen_by(run, judge, JUDGES)


@torch.inference_mode()
def seen_by(run: Run, judge: Run, count: int) -> float:
    """Return the same for a number of checkpoints at most, equally spaced, whoever they helped to craft."""
    protect = Manifest.load(run, "protect")
    protected, labels = load(run.child("protect"), protect.shards["train"])
    targets = protect.counts["targets"]
    assert targets in ("shift", "random-class"), f"{targets}: the images of a class have no target in common"
    asked = Asked(targets, tuple(protect.counts["classes"]), protect.asked["seed"])
    judges = _judges(judge.parent if isinstance(judge, Point) else judge, count, asked)
    assert torch.equal(labels, judges.labels)
    chosen, wanted = asked.of(labels)
    pairs = zip(judges.networks, judges.means, strict=True)
    return 100 * sum(_apart(network, protected[chosen], means, wanted) for network, means in pairs) / judges.apart


@cache  # points of a sweep share their judges
def _judges(run: Folder, count: int, asked: Asked) -> Judges:
    """Let checkpoints of a run see its clean images."""
    pack, index = Manifest.load(run, "pack"), read_index(run)
    clean, labels = load(run.child("pack"), pack.shards["train"])
    chosen, wanted = asked.of(labels)
    networks = load_networks(Ensemble(run, choose(index, min(count, *map(len, index.values())))))
    seen = [class_sums(network, _batches(clean, labels), len(pack.counts["classes"])) for network in networks]
    means = [(sums / counts[:, None]).float() for sums, counts in seen]
    pairs = zip(networks, means, strict=True)
    return Judges(networks, means, labels, sum(_apart(network, clean[chosen], own, wanted) for network, own in pairs))


def _apart(network: Network, images: Tensor, means: Tensor, wanted: Tensor) -> float:
    return sum(float(feature_alignment(network.features(part.float()), means[of])) for part, of in _batches(images, wanted))


def _batches(images: Tensor, classes: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(torch.split(images, TOGETHER), torch.split(classes, TOGETHER), strict=True)


def main(arguments: Sequence[str]) -> int:
    """Add the distance to each card."""
    groups = [list(of) for is_break, of in groupby(arguments, lambda word: word == "--") if not is_break]
    if not groups or min(map(len, groups)) < 3:
        print(__doc__)
        return 2
    for name, *uris in groups:
        runs = [open_run(uri) for uri in uris]
        path = CARDS / f"{name}.json"
        found = [distance(run, judge) for run, judge in zip(runs, [*runs[1:], runs[0]], strict=True)]
        path.write_bytes(to_json({**json.loads(path.read_text()), "held_out_distance": spread(found)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
