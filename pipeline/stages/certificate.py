"""A certificate: one network is trained on a release and one on the originals, and both are measured with noise on their parameters.

Both are the plain victims of the run's first seed, and are trained in this process. Their weights stay with the run, so that another
certificate needs no training.
"""

from __future__ import annotations

from functools import partial

import torch

from cluster.deadline import NEVER
from cluster.display import showing
from cluster.executor import open_executor
from cluster.progress import Epochs, Progress
from pipeline.config.recorded import recorded
from pipeline.config.schema import RunConfig
from pipeline.config.seeds import generator
from pipeline.results.certificate import Certificate, Certified, Terms
from pipeline.results.run_results import RunResults
from pipeline.shards.sizes import image_bytes
from pipeline.storage.driver_lock import driver_lock
from pipeline.storage.layout import CERTIFICATE, CERTIFIED
from pipeline.storage.records import to_json
from pipeline.storage.run import Point, Run
from pipeline.storage.stage import Manifest
from pipeline.training.batches import open_tests
from pipeline.training.networks import build_network
from pipeline.training.states import StateFile
from pipeline.training.trial import Trial, VictimTask, epochs_of, task_of
from pipeline.training.victim_images import loading
from sep.certificate import distance, smoothed_accuracies
from sep.countermeasures.registry import Data
from sep.execution import use_cpu
from sep.fitting import accuracy, confusion
from sep.models import Network

DATA: tuple[Data, Data] = ("protected", "clean")


def certify(run: Run, terms: Terms, network: str | None = None) -> Certificate:
    """Return the certificate of a release, and write it into the run.

    Args:
        run: with a release, or a point of a sweep with one.
        terms: what is certified.
        network: architecture; the first victim's if not given.

    Raises:
        ValueError: the run has no release or no test images, its record is damaged, or a training diverged.
        OSError: storage refused.
    """
    pack, protect, config = Manifest.load(run, "pack"), Manifest.load(run, "protect"), recorded(run)
    if not pack.shards["test"]:
        raise ValueError("a certificate is measured on test images, and the packed data has none: pack with --pack.test-fraction 0.1")
    resources = open_executor("local", NEVER).connect()
    name, seed = network or config.victim.networks[0], config.victim.seeds[0]
    tasks = {data: task_of(Trial(name, data, "none", seed), config, run, pack, protect, resources, 1) for data in DATA}
    with driver_lock(run.parent if isinstance(run, Point) else run), showing():
        with Epochs("certify", {task.trial.name: config.victim.epochs for task in tasks.values()}) as progress:
            networks = {data: _trained(task, progress) for data, task in tasks.items()}
        counted = Progress("certify", "draws", len(DATA) * terms.draws)
        found = {data: _certified(tasks[data], networks[data], config, terms, counted) for data in DATA}
        results = RunResults.read(run)
        certificate = Certificate(
            terms=terms,
            network=name,
            release_sha256=protect.digest,
            protected=found["protected"],
            clean=found["clean"],
            distance=distance(networks["protected"], networks["clean"]),
            guess=results.chance,
            tests=results.measured_images,
        )
        run.write(CERTIFIED, to_json(certificate.record()))
    return certificate


def _trained(task: VictimTask, progress: Epochs) -> Network:
    """Return the network of a victim after its training, which goes on from where an earlier start has left it."""
    use_cpu(task.threads)
    file = StateFile(task.run.child(CERTIFICATE), task.trial.name, task.made_from)
    state = file.read() or {}
    if state.get("epochs") != task.config.epochs:
        for epoch, kept, last in epochs_of(task, state):
            progress.reached(task.trial.name, epoch.index + 1)
            if last or file.due:
                state = {**epoch.state(), **kept}
                file.write(state)
    network = build_network(task.trial.network, task.pack, task.input_size)
    network.load_state_dict(state["network"])
    return network.to("cuda" if task.gpu else "cpu").to(memory_format=torch.channels_last)


def _certified(task: VictimTask, network: Network, config: RunConfig, terms: Terms, progress: Progress) -> Certified:
    """Measure a network with and without noise. Both networks get the same noise."""
    pack, device = task.pack, network.mean.device
    each, classes = image_bytes(pack.counts), len(pack.counts["classes"])
    tests = open_tests(task.run.child("pack"), pack.shards["test"], each, config.memory_limit_mb, device, loading(task))
    itself = accuracy(confusion(network, tests(), classes, "float32"), task.protected)
    accuracies = []
    draws = map(partial(generator, config.seed, "certificate"), range(terms.draws))
    for found in smoothed_accuracies(network, terms.sigma, draws, tests, classes, task.protected):
        accuracies.append(found)
        progress.finished(1)
    return Certified(itself, terms.bound(accuracies), tuple(accuracies))
