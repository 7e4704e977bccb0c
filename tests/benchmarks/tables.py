"""The tables of results in docs/results.md, and the results of the README, written from the cards.

The beginning of a card's name decides which table shows it; a card with no such beginning is in the first table.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from sep.choices import Targets
from sep.countermeasures.registry import plan
from sep.craft_config import OPTIONS, CraftConfig
from sep.methods.registry import METHODS
from tests.benchmarks.published import BY_METHOD, PUBLISHED

CARDS = Path(__file__).parent / "cards"
DETECTION = Path(__file__).parent / "detection.json"
ROOT = Path(__file__).parents[2]
README, RESULTS, PERFORMANCE = ROOT / "README.md", ROOT / "docs" / "results.md", ROOT / "docs" / "performance.md"
Card = dict[str, Any]
# The results of the README: the text, and the card and countermeasure of the figures.
HIGHLIGHTS = (
    ("5,000 CIFAR-10 images", "cifar10-small-sep-fa-drawn", "none"),
    ("Tiny-ImageNet, 20 classes, ten of them protected", "imagenet-subset-small-sep-fa-drawn", "none"),
    ("1,500 photographs of flowers, by noise of each class", "photos-error-min-class", "none"),
    ("5,000 CIFAR-10 images, recompressed as JPEG of quality 10 first", "cifar10-small-sep-fa-countermeasures", "jpeg-10"),
    ("the same, by noise of each class made for JPEG", "noise-grey-momentum-views", "jpeg-10"),
)
KINDS = ("targets", "transfer", "kernels", "countermeasures", "methods", "gradients", "noise", "photos")


def every_card() -> list[Card]:
    """Return all cards, by name."""
    return [json.loads(path.read_text()) for path in sorted(CARDS.glob("*.json"), key=lambda path: path.stem)]


def cards(kind: str) -> list[Card]:
    """Return the cards of one table, by name; `table` has the cards of no other table."""
    every = every_card()
    named = {other: [card for card in every if card["name"].startswith(f"{other}-")] for other in KINDS}
    return named[kind] if kind in named else [card for card in every if not any(card in own for own in named.values())]


def pairs(card: Card) -> list[tuple[Card, Card]]:
    """Yield the same victim on clean and on protected images."""
    victims = {(v["network"], v["countermeasure"], v["data"]): v for v in card["victims"]}
    return [(clean, victims[network, name, "protected"]) for (network, name, data), clean in victims.items() if data == "clean"]


def shown(figure: dict[str, float | None]) -> str:
    """Return a figure as `10.3 ± 0.4`."""
    return f"{figure['mean']:.1f}" + (f" ± {figure['std']:.1f}" if figure["std"] is not None else "")


def measured(victim: Card, *, bold: bool = False) -> str:
    """Return the accuracy after the last epoch and, if only some classes are protected, that on the others."""
    last, other = shown(victim["last_accuracy"]), victim.get("other_accuracy")  # cards of earlier versions lack it
    return (f"**{last}**" if bold else last) + (f" (others {shown(other)})" if other else "")


def setting(card: Card, quote: str = "") -> str:
    """Return the preset and any unusual settings of a card: protection of some classes only, other targets."""
    said = [f"{quote}{card['preset']}{quote}"]
    if card.get("protected_classes") != card.get("classes"):
        said.append(f"{card['protected_classes']} of {card['classes']} classes")
    if card.get("targets", "shift") != "shift" and METHODS[card["method"]].targets:
        said.append(f"{card['targets']} targets")
    return ", ".join(said)


def origin(card: Card) -> str:
    """Return the settings of a release, for the line above a table."""
    return f"Surrogate {card['surrogate']}, preset {setting(card, '`')}, {card['method']} at {card['budget']}"


def rows(header: str, lines: list[str]) -> str:
    """Return a table in Markdown."""
    return "\n".join([f"| {header} |", "|" + "---|" * len(header.split("|")), *(f"| {line} |" for line in lines)])


def highlights() -> str:
    """Return one line per result of the README, if its card exists: a test may have others."""
    by_name = {card["name"]: card for card in every_card()}
    return rows(
        "network trained on | clean images | protected images",
        [
            f"{said} | {shown(clean['last_accuracy'])} | **{shown(ours['last_accuracy'])}**"
            for said, name, countermeasure in HIGHLIGHTS
            for clean, ours in (pairs(by_name[name]) if name in by_name else ())
            if clean["countermeasure"] == countermeasure
        ],
    )


def results() -> str:
    """Return one line per network and countermeasure of each card."""
    return rows(
        "data, preset | method, budget | victim | countermeasure | n | clean | protected | peak | relabelled | PSNR",
        [
            f"{setting(card)} | {card['method']}, {card['budget']} | {clean['network']} | {clean['countermeasure']} | {ours['trainings']} "
            f"| {measured(clean)} | {measured(ours, bold=True)} | {shown(ours['peak_accuracy'])} | {shown(ours['relabelled_accuracy'])} "
            f"| {card['psnr_db']['mean']:.1f} dB"
            for card in cards("table")
            for clean, ours in pairs(card)
        ],
    )


def targets() -> str:
    """Return one line per kind of targets, below their common settings."""
    order, found = get_args(Targets), cards("targets")
    common = {origin({**card, "targets": "shift"}): None for card in found}
    table = rows(
        "targets | n | clean | protected | peak | relabelled | PSNR",
        [
            f"{', '.join([card['targets'], *victim])} | {ours['trainings']} | {measured(clean)} | {measured(ours, bold=True)} "
            f"| {shown(ours['peak_accuracy'])} | {shown(ours['relabelled_accuracy'])} | {card['psnr_db']['mean']:.1f} dB"
            for card in sorted(found, key=lambda card: order.index(card["targets"]))
            for clean, ours in pairs(card)
            for victim in ([clean["network"], clean["countermeasure"]] if len(pairs(card)) > 1 else [],)
        ],
    )
    return "\n\n".join([*(f"{line}." for line in common), table])


def transfer() -> str:
    """Return the victim networks of each kind of release, below its settings."""
    lines: dict[str, list[str]] = {}
    for card in cards("transfer"):
        lines.setdefault(origin(card), []).extend(
            f"{', '.join([clean['network'], *unusual(card, clean)])} | {', '.join(map(str, schedule(card, clean)))} "
            f"| {ours['trainings']} | {measured(clean)} | {measured(ours, bold=True)} | {shown(ours['relabelled_accuracy'])}"
            for clean, ours in pairs(card)
        )
    header = "victim | epochs, batch, rate | n | clean | protected | relabelled"
    return "\n\n".join([part for line, found in lines.items() for part in (f"{line}.", rows(header, found))] or [rows(header, [])])


def unusual(card: Card, victim: Card) -> list[str]:
    """Return a victim's countermeasure and the precision that it was asked to train in, if there is one."""
    precision = _section(card, victim).get("precision", "auto")  # cards of earlier versions lack it
    return [name for name in (victim["countermeasure"], precision) if name not in ("none", "auto")]


def schedule(card: Card, victim: Card) -> tuple[int, int, float]:
    """Return a victim's epochs, batch size and largest learning rate."""
    section = _section(card, victim)
    return section["epochs"], section["batch_size"], section["lr"]


def _section(card: Card, victim: Card) -> Card:
    return next(each for each in _sections(card) if victim["network"] in each["networks"])


def _sections(card: Card) -> list[Card]:
    """Return the settings of the victims, of which a card of several runs may have several."""
    sections = card["settings"]["victim"]
    return sections if isinstance(sections, list) else [sections]


def kernels() -> str:
    """Return one line per way to compute the same gradients; cards without a precision used float32 on a CPU."""
    return rows(
        "arithmetic | n | clean | protected | peak | relabelled",
        [
            f"{card['settings']['protect']['kernels']}, {card.get('precision', 'float32')} | {ours['trainings']} | {measured(clean)} "
            f"| {measured(ours, bold=True)} | {shown(ours['peak_accuracy'])} | {shown(ours['relabelled_accuracy'])}"
            for card in cards("kernels")
            for clean, ours in pairs(card)
        ],
    )


def countermeasures() -> str:
    """Return one line per countermeasure for each kind of release, beside published figures."""
    parts = []
    header = "countermeasure | n | clean | protected | peak | relabelled | published: clean | SEP | TAP | source"
    for card in cards("countermeasures"):
        lines = [
            f"{clean['countermeasure']} | {ours['trainings']} | {measured(clean)} | {_on_release(ours)} | {beside(clean['countermeasure'])}"
            for clean, ours in pairs(card)
        ]
        parts += [f"{origin(card)}; victims {trainings(card)}.", rows(header, lines)]
    return "\n\n".join(parts or [rows(header, [])])


def _on_release(ours: Card) -> str:
    """Return accuracy after the last epoch, peak and relabelled; blanks for a victim without images of the release."""
    if plan(ours["countermeasure"]).clean_only:
        return "– | – | –"
    return f"{measured(ours, bold=True)} | {shown(ours['peak_accuracy'])} | {shown(ours['relabelled_accuracy'])}"


def beside(countermeasure: str) -> str:
    """Return the published figures: clean, SEP, TAP, source."""
    known = PUBLISHED.get(countermeasure)
    if known is None:
        return " | | | "
    return " | ".join([*("" if value is None else f"{value:.1f}" for value in (known.clean, known.sep, known.tap)), known.source])


def methods() -> str:
    """Return one line per method and one for clean images, with a column per countermeasure that several of them met.

    Published figures are in parentheses: those of the method, or, with feature alignment, those of SEP.
    """
    found = sorted(cards("methods"), key=lambda card: list(METHODS).index(card["method"]))
    by_name, clean_of = met(found)
    several = min(2, len(found))
    names = [name for name in clean_of if sum(name in own for own in by_name) >= several]
    header = " | ".join(["method, budget", "n", "PSNR", *names])
    if not found:
        return rows(header, [])
    clean = " | ".join(shown(clean_of[name]["last_accuracy"]) + known("clean", name) for name in names)
    lines = [f"clean images | {clean_of[names[0]]['trainings']} | | {clean}"]
    for card, own in zip(found, by_name, strict=True):
        there = {name: f"**{shown(own[name][1]['last_accuracy'])}**{known(card['method'], name)}" for name in names if name in own}
        figures = " | ".join(there.get(name, "") for name in names)
        n = own[next(iter(own))][1]["trainings"]
        lines.append(f"{card['method']}, {card['budget']} | {n} | {card['psnr_db']['mean']:.1f} dB | {figures}")
    common = ", ".join(dict.fromkeys(f"preset {setting({**card, 'method': 'noise'}, '`')}; victims {trainings(card)}" for card in found))
    return f"{common[0].upper()}{common[1:]}.\n\n{rows(header, lines)}"


def met(found: list[Card]) -> tuple[list[dict[str, tuple[Card, Card]]], dict[str, Card]]:
    """Return the pairs of each card by countermeasure, and for each countermeasure the victim on clean images that most trainings saw."""
    by_name = [{ours["countermeasure"]: (clean, ours) for clean, ours in pairs(card)} for card in found]
    every = dict.fromkeys(name for own in by_name for name in own)
    clean = {name: [own[name][0] for own in by_name if name in own] for name in every}
    return by_name, {name: max(found, key=lambda each: each["trainings"]) for name, found in clean.items()}


def noise() -> str:
    """Return one line per recipe of noise of a class, below one for clean images, with a column per countermeasure."""
    found = sorted(cards("noise"), key=lambda card: [str(value) for value in _of_noise(card)])
    by_name, clean_of = met(found)
    header = " | ".join(["channels", "momentum", "patterns", "views", "rounds", "n", *clean_of])
    if not found:
        return rows(header, [])
    count = clean_of["none"]["trainings"]
    lines = [" | ".join(["clean images | | | |", str(count), *(_of_so_many(each, count) for each in clean_of.values())])]
    for card, own in zip(found, by_name, strict=True):
        count = own["none"][1]["trainings"]
        figures = [_of_so_many(own[name][1], count, "**") if name in own else "" for name in clean_of]
        lines.append(" | ".join([*map(str, _of_noise(card)), shown(card["noise_rounds"]), str(count), *figures]))
    return rows(header, lines)


def _of_so_many(victim: Card, count: int, mark: str = "") -> str:
    """Return a figure, with its number of trainings if it is another than that of the row."""
    return f"{mark}{shown(victim['last_accuracy'])}{mark}" + ("" if victim["trainings"] == count else f" (n = {victim['trainings']})")


def _of_noise(card: Card) -> tuple[str, str, int, str]:
    asked = card["settings"]["protect"]
    return asked["channels"], momentum(asked), asked["patterns"], " ".join(card["settings"]["views"])


def momentum(asked: Card) -> str:
    """Return the momentum of a protection as `0.9, normalised`."""
    return f"{asked['momentum'] or 0:g}" + (", normalised" if asked["normalised"] else "")


def photos() -> str:
    """Return one line for each form in which photographs are published and seen, with a column for each recipe of protection."""
    by_look: dict[tuple[str, str, str], dict[str, tuple[Card, Card]]] = {}
    for card in cards("photos"):
        asked = card["settings"]
        recipe = f"{card['method']}, {gradients_per_image(card)} gradients"
        for clean, ours in pairs(card):
            section = _section(card, ours)
            form = "PNG" if section["stored"] == "none" else section["stored"]
            look = (form, str(section["input_size"] or asked["input_size"]), ours["countermeasure"])
            by_look.setdefault(look, {})[recipe] = clean, ours
    recipes = list(dict.fromkeys(recipe for own in by_look.values() for recipe in own))
    lines = []
    for look, own in by_look.items():
        clean, ours = next(iter(own.values()))
        figures = [f"**{shown(own[recipe][1]['last_accuracy'])}**" if recipe in own else "" for recipe in recipes]
        lines.append(" | ".join([*look, str(ours["trainings"]), shown(clean["last_accuracy"]), *figures]))
    return rows(" | ".join(["published as", "pixels seen", "countermeasure", "n", "clean", *recipes]), lines)


def known(method: str, countermeasure: str) -> str:
    """Return a published figure as ` (8.2)`."""
    figure = BY_METHOD.get("sep" if method in ("sep", "sep-fa", "sep-fa-vr") else method, {}).get(countermeasure)
    return "" if figure is None else f" ({figure:.1f})"


def gradients_per_image(card: Card) -> int:
    """Return the gradients that crafting an image took."""
    config = _crafting(card)
    return config.gradients_per_image(config.per_network)


def _crafting(card: Card) -> CraftConfig:
    asked = card["settings"]["protect"]
    used = (*OPTIONS, "method", "steps", "checkpoints", "inner_steps", "noise_rounds")
    return CraftConfig(**{name: asked[name] for name in used if name in asked})  # cards of earlier versions have fewer settings


def gradients() -> str:
    """Return a table of recipes for each machine and precision of victims: surrogates differ by processor, and recipes by less."""
    groups: dict[str, list[Card]] = {}
    for card in sorted(cards("gradients"), key=lambda card: (gradients_per_image(card), card["name"])):
        groups.setdefault(f"Victims in {_precision_of_victims(card)}, on {card['hardware']}:", []).append(card)
    return "\n\n".join(part for where, found in groups.items() for part in (where, _recipes(found)))


def _precision_of_victims(card: Card) -> str:
    asked = {section["precision"] for section in _sections(card)}
    return " and ".join(sorted(asked)).replace("auto", "float32")  # on CPUs, which all cards of recipes come from


def _recipes(found: list[Card]) -> str:
    """Return one line per recipe, below one for clean images; a column per countermeasure that some of them met."""
    by_name, clean_of = met(found)
    others = [name for name in clean_of if name != "none"]
    columns = ["method", "checkpoints", "a step", "steps", "momentum", "gradients an image", "n", "none", "relabelled", *others, "distance"]
    clean = ["" if name == "relabelled" else shown(clean_of[name]["last_accuracy"]) for name in ("none", "relabelled", *others)]
    lines = [f"clean images | | | | | 0 | {clean_of['none']['trainings']} | {' | '.join(clean)} | 100"]
    for card, own in zip(found, by_name, strict=True):
        asked, (_, ours) = card["settings"]["protect"], own["none"]
        drawn = asked["members_per_step"] or "all"
        figures = [f"**{shown(ours['last_accuracy'])}**", shown(ours["relabelled_accuracy"])]
        figures += [shown(own[name][1]["last_accuracy"]) if name in own else "" for name in others]
        figures.append(shown(card["held_out_distance"]) if "held_out_distance" in card else "")
        settings = (card["method"], _crafting(card).per_network, drawn, asked["steps"], momentum(asked), f"{gradients_per_image(card):,}")
        lines.append(" | ".join(map(str, (*settings, ours["trainings"], *figures))))
    return rows(" | ".join(columns), lines)


def detection() -> str:
    """Return one line per release, with the area and its error of each detector, below where they were measured."""
    card = json.loads(DETECTION.read_text())
    releases = card["releases"]
    names = [detector["name"] for detector in releases[0]["detectors"]]
    judged = releases[0]["detectors"][0]
    lines = [
        " | ".join([f"{each['method']}, {each['budget']}", *(f"{of['auc']:.3f} ± {of['error']:.3f}" for of in each["detectors"])])
        for each in releases
    ]
    common = f"{card['data']}; {judged['protected']} protected and {judged['clean']} clean images were judged. {card['hardware']}."
    return f"{common}\n\n{rows(' | '.join(['method, budget', *names]), lines)}"


def trainings(card: Card) -> str:
    """Return the trained networks and their settings."""
    return ", ".join(
        dict.fromkeys(f"{v['network']} ({schedule(card, v)[0]} epochs in batches of {schedule(card, v)[1]})" for v in card["victims"])
    )


TABLES: dict[str, Callable[[], str]] = {
    "highlights": highlights,
    "table": results,
    "targets": targets,
    "transfer": transfer,
    "kernels": kernels,
    "countermeasures": countermeasures,
    "methods": methods,
    "gradients": gradients,
    "noise": noise,
    "photos": photos,
    "detection": detection,
}


def page(name: str) -> Path:
    """Return the page that shows a table."""
    return README if name == "highlights" else RESULTS


def with_table(text: str, name: str = "table") -> str:
    """Return a page with one of its tables as the cards have it.

    Raises:
        ValueError: the page has no place for the table.
    """
    word = "results" if name == "table" else name
    begin, end = f"<!-- {word}: made by tests/benchmarks/publish.py -->", f"<!-- end of {word} -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"{page(name).name} has no place for this table: put the lines {begin} and {end} where it shall stand")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{TABLES[name]()}\n{end}{rest.split(end)[1]}"
