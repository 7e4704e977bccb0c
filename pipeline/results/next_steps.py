"""The next steps after a run: finish it, test it harder, check it, publish it; each with the command."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from pipeline.config.schema import RunConfig
from pipeline.results.commands import command, same_way
from pipeline.results.run_results import RunResults
from pipeline.results.verdict import held_out, untested, verdict
from pipeline.storage.records import shown
from pipeline.storage.run import sweep_of

SET_ASIDE = 0.1  # of the images of each class, for testing
NAMED = 4  # countermeasures that nobody has tried


@dataclass(frozen=True)
class Step:
    """One thing to do: a word for it, why, and the command, which starts in the folder of the project."""

    name: str
    why: str
    command: str = ""


def next_steps(config: RunConfig, results: RunResults) -> list[Step]:
    """Return what to do next, in order; nothing where nothing is protected."""
    if "protect" not in results.manifests:
        return []
    label, where = verdict(results).label, shlex.quote(results.folder.uri)
    export_to = shlex.quote(f"{results.folder.path.rstrip('/')}-export" if results.folder.is_local else "protected-images")
    steps = []
    if results.manifests["protect"].missing or results.missing_trials:
        steps.append(Step("finish", "some pieces failed, and are tried again", _again(config, results, ())))
    if label != "not measured" and (left := [*held_out(results), *(attempt.countermeasure for attempt in untested(results))]):
        why = f"try what an adversary may, for one verdict: {shown(list(dict.fromkeys(left)), NAMED)}"
        steps.append(Step("audit", why, f"python pipeline/audit.py --run {where}"))
    if not results.of_release and not results.missing_trials:
        steps.append(_measure(config, results))
    check = "check every released image against its original, the budget and the records"
    steps.append(Step("verify", check, f"python pipeline/verify.py --run {where}"))
    if label == "does not hold":
        return [*steps, Step("publish", "not this release as a protected one: it teaches nearly what the originals teach")]
    if results.of_release and "certify" not in results.found:
        bound = "bound what networks near one that is trained on the release can learn"
        steps.append(Step("certify", bound, f"python pipeline/certify.py --run {where}"))
    return [
        *steps,
        Step("export", "write the images of the release as files", f"python pipeline/export.py --run {where} --to {export_to}"),
        Step("publish", "the exported files unchanged: scaling, cropping or recompressing them may weaken the protection"),
        Step("keep back", "the originals, and this run folder: anyone with images in both forms, or what made the release, can undo it"),
    ]


def _measure(config: RunConfig, results: RunResults) -> Step:
    """Return the step that trains victims: in another run, with images set aside, where this one has none for testing."""
    if results.manifests["pack"].counts["test"]:
        return Step("measure", "train victims on the release", _again(config, results, ("none",)))
    tree = results.configuration(config)
    aside = {"run": f"{config.run.rstrip('/')}-measured", "stages": list(RunConfig.stages)}
    other = tree | aside | {"pack": tree["pack"] | {"test_fraction": SET_ASIDE}}
    why = "in a run of its own: it takes images for testing, which this one has not set aside"
    return Step("measure", why, command(other) + same_way(config))


def _again(config: RunConfig, results: RunResults, countermeasures: tuple[str, ...] | list[str]) -> str:
    """Return the command that goes on with this run, asking for these countermeasures; as before if none is given."""
    run = results.folder
    tree = results.configuration(config) | {"sweep": sweep_of(run)}
    if not countermeasures:
        return command(tree | {"stages": list(config.stages)}) + same_way(config)
    victim = {**tree["victim"], "countermeasures": list(dict.fromkeys(countermeasures))}
    stages = [*(["protect"] if tree["sweep"] else []), "victim", "report"]
    return command(tree | {"victim": victim, "stages": stages}) + same_way(config) + " --overwrite"
