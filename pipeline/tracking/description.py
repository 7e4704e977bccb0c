"""What a tracker says of a run, in Markdown: what came out, how it stands under each countermeasure, and where to look next."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from pipeline.config.schema import RunConfig
from pipeline.results import run_results
from pipeline.results.findings import findings, in_parts, on_missing, scope
from pipeline.results.run_results import VictimPair
from pipeline.results.summary import summary
from pipeline.storage.run import Run

LONGEST = 7900  # characters; MLflow takes 8000
OF_EXPERIMENT = """\
Each run here is one release of protected images. Open it (+) for what it was made of: `surrogate` (the network whose checkpoints protect),
`protect` (the crafting), and one run per trained victim, named *countermeasure · trained on · network · seed*.

- **Which protects best?** Select runs and compare `clean_accuracy`, `protected_accuracy` and `protected_relabelled_accuracy`: percent of
  clean test images that a victim trained on the clean or the protected images gets right. Lower protected figures are better.
- **What is more effort worth?** A run tagged `stage = 'sweep'` holds releases that differ in a few settings, which its tag `swept` names:
  chart `protected_accuracy` against `gradients`, or read its description.
- **Training curves:** `test_accuracy` and `train_loss` of the victims, `train_accuracy` of the surrogate, by epoch.
- **Filters:** `tags.stage = 'run'` shows releases alone, `tags.stage = 'victim' and tags.countermeasure = 'none'` certain victims. Tags are
  `method`, `budget`, `targets`, `dataset`, `preset`, `network`, `countermeasure`, `data` (clean or protected), `seed`.
- **Not here?** The switch at the top left must say *Model training*.
- **Pictures:** in a release's artifacts, under `report`; `report/index.html` is all of it on one page.
"""


def describe(config: RunConfig, folder: Run) -> str:
    """The description of a run, from whatever stages have finished."""
    found = run_results.finished(folder)
    there = run_results.trained(folder, found)
    measured = run_results.pairs(there.rows)
    figures = textwrap.dedent(summary(config, folder)).strip()
    parts = [f"```\n{figures}\n```"]
    if measured:
        whole, countered = in_parts(findings(found, measured, run_results.measured_images(folder, found)))
        parts[:0] = [" ".join(whole), *(["\n".join(f"- {sentence}" for sentence in countered)] if countered else []), scope(measured)]
        parts.append(f"Accuracy on clean test images in percent, trained on clean → **on protected** images:\n\n{_matrix(measured)}")
    parts += on_missing(there)
    parts.append("Pictures: artifacts, under `report`; `report/index.html` is all of it on one page.")
    text = "\n\n".join(parts)
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"


def _matrix(pairs: Sequence[VictimPair]) -> str:
    """A row per countermeasure, a column per network."""
    networks = list(dict.fromkeys(pair.clean.network for pair in pairs))
    cells = {(pair.clean.countermeasure, pair.clean.network): f"{pair.clean.last} → **{pair.protected.last}**" for pair in pairs}
    rows = [["countermeasure", *networks], ["---"] * (1 + len(networks))]
    rows += [[name, *(cells.get((name, network), "–") for network in networks)] for name in dict.fromkeys(name for name, _ in cells)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
