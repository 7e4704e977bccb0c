"""The description of a run in a tracker, in Markdown: what came out, how it stands under each countermeasure, where to look next."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from pipeline.results.findings import findings, on_missing, scope
from pipeline.results.mlflow_address import runs_path
from pipeline.results.run_results import RunResults
from pipeline.results.summary import figures
from pipeline.results.victims import VictimPair

LONGEST = 7900  # characters; MLflow takes 8000
OF_EXPERIMENT = """\
**[Does the protection hold?](ADDRESS)** That view has the columns and charts that answer it.

Each run here is one release of protected images. Open it (+) for its parts: `surrogate` (the network whose checkpoints protect),
`protect` (the crafting), and one run per trial of a victim, a network that an adversary trains. Trials are named
*countermeasure · trained on · network · seed*.

- **Which protects best?** Select runs and compare `clean_accuracy`, `protected_accuracy` and `protected_relabelled_accuracy`: percent of
  clean test images that a victim trained on the clean or the protected images gets right. Lower protected figures are better.
- **Does more effort pay?** A run tagged `stage = 'sweep'` holds releases that differ in a few settings, which its tag `swept` names.
  Chart `protected_accuracy` against `gradients`, or read its description.
- **Training curves:** `test_accuracy` and `train_loss` of the victims, `train_accuracy` of the surrogate, by epoch.
- **Filters:** `tags.stage = 'run'` shows releases alone, `tags.stage = 'victim' and tags.countermeasure = 'none'` the trials without
  countermeasure. Tags are `method`, `budget`, `targets`, `dataset`, `preset`, `network`, `countermeasure`, `data` (clean or protected) and
  `seed`.
- **Not here?** The switch at the top left must say *Model training*.
- **Pictures:** in a release's artifacts, under `report`; `report/index.html` has everything on one page.
"""


def of_experiment(experiment: str) -> str:
    """Return the description of an experiment, by its id."""
    return OF_EXPERIMENT.replace("ADDRESS", runs_path(experiment))


def describe(results: RunResults) -> str:
    """Return the description of a run, from whatever stages have finished."""
    parts = [f"```\n{textwrap.dedent(figures(results)).strip()}\n```"]  # without commands: MLflow's page is as wide as its longest line
    if results.pairs:
        said = findings(results)
        countered = "\n".join(f"- {sentence}" for sentence in said.countermeasures)
        parts[:0] = [" ".join(said.overall), *([countered] if countered else []), scope(results.pairs)]
        parts.append(f"Accuracy on clean test images in percent, trained on clean → **on protected** images:\n\n{_matrix(results.pairs)}")
    parts += [*on_missing(results), "Pictures: artifacts, under `report`; `report/index.html` has everything on one page."]
    return cut("\n\n".join(parts))


def of_comparison(text: str, links: Mapping[str, str]) -> str:
    """Return the description of a comparison: links to the runs by their names, and its tables."""
    listed = "".join(f"- [{name}]({link})\n" for name, link in links.items())
    return cut(f"Page and pictures: artifacts, under `comparison`.\n\n{listed}\n```\n{text.strip()}\n```")


def cut(text: str) -> str:
    """Return a text no longer than MLflow takes."""
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"


def _matrix(pairs: Sequence[VictimPair]) -> str:
    """Return a table with a row per countermeasure and a column per network."""
    networks = list(dict.fromkeys(pair.clean.network for pair in pairs))
    cells = {(pair.clean.countermeasure, pair.clean.network): f"{pair.clean.last} → **{pair.protected.last}**" for pair in pairs}
    rows = [["countermeasure", *networks], ["---"] * (1 + len(networks))]
    rows += [[name, *(cells.get((name, network), "–") for network in networks)] for name in dict.fromkeys(name for name, _ in cells)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
