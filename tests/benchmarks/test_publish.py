"""Published results: the pages show what the cards say, and the cards say what the runs measured."""

from __future__ import annotations

import json
import shutil
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.schema import RunConfig, to_tree
from pipeline.shards.tables import read_table
from pipeline.storage.records import to_json
from tests.benchmarks import publish, tables
from tests.benchmarks.publish import make
from tests.benchmarks.tables import CARDS, TABLES, Card, page, with_table
from tests.fixtures import finished_run


@pytest.mark.parametrize("name", TABLES)
def test_pages_show_the_cards(name: str) -> None:
    assert list(CARDS.glob("*.json"))
    text = page(name).read_text()
    assert with_table(text, name) == text, f"run: python -m tests.benchmarks.publish {name}"


def test_every_card_is_in_one_table() -> None:
    names = [card["name"] for kind in ("table", *tables.KINDS) for card in tables.cards(kind)]
    assert sorted(names) == sorted(path.stem for path in CARDS.glob("*.json"))


@pytest.mark.parametrize("path", sorted(CARDS.glob("*.json")), ids=lambda path: path.stem)
def test_card_says_how_it_was_measured(path: Path) -> None:
    card = json.loads(path.read_text())
    for field in ("hardware", "versions", "settings", "seeds", "psnr_db", "seconds"):
        assert card[field], field
    if card["budget"].endswith("/255"):  # an L-infinity ball; other budgets do not limit a single value
        assert card["linf_levels"] <= int(card["budget"].split("/")[0])
    assert {victim["data"] for victim in card["victims"]} == {"clean", "protected"}


def test_card_is_made_of_what_the_runs_measured(tmp_path: Path) -> None:
    config, folder = finished_run.write(tmp_path / "run")
    folder.write("config.json", to_json(to_tree(config)))
    card = make("name", [config.run])
    assert card["precision"] == "float32"
    rows = [row for row in read_table(folder.child("victim"), "results.parquet").to_pylist() if row["data"] == "protected"]
    (victim,) = (victim for victim in card["victims"] if victim["data"] == "protected")
    values = [row["last_accuracy"] for row in rows]
    assert victim["trainings"] == len(rows) == 2
    assert victim["last_accuracy"] == {"mean": round(statistics.fmean(values), 4), "std": round(statistics.stdev(values), 4)}
    assert card["budget"] == "8/255"
    assert card["linf_levels"] <= 8
    assert (card["targets"], card["protected_classes"], card["classes"]) == ("shift", 3, 3)
    assert victim["other_accuracy"] is None


def test_card_has_what_the_gradients_of_the_checkpoints_have_in_common(tmp_path: Path) -> None:
    config, folder = finished_run.write(tmp_path / "run")
    folder.write("config.json", to_json(to_tree(config)))
    card = make("name", [config.run])
    (own,) = (matrix for matrix in json.loads(folder.read("protect/similarity.json"))["checkpoints"])
    above = [value for i, row in enumerate(own["cosines"]) for value in row[i + 1 :]]
    (shown,) = (alike for alike in card["gradient_cosines"] if alike["network"] == "resnet8")
    assert shown["mean"] == pytest.approx(statistics.fmean(above), abs=0.001)
    assert shown["members"] == [str(epoch + 1) for epoch in own["epochs"]]


def write(run: Path, **victim: Any) -> RunConfig:
    """A run with one short training unless asked otherwise."""
    config = finished_run.configuration(run)
    config = replace(config, victim=replace(config.victim, **{"epochs": 1, "seeds": (0,), **victim}))
    return finished_run.write(run, config=config)[0]


def copied(first: RunConfig, run: Path, **victim: Any) -> RunConfig:
    """Return a run with other victims on the same release."""
    shutil.copytree(first.run, run, ignore=shutil.ignore_patterns("victim"))
    config = replace(first, run=str(run), victim=replace(first.victim, **victim))
    return finished_run.write(run, ("victim",), config)[0]


def of_noise(run: Path, seed: int, rounds: int, error: float) -> RunConfig:
    """Write a run whose release records how far its noise came."""
    config = replace(finished_run.configuration(run), seed=seed)
    config = replace(config, victim=replace(config.victim, epochs=1, seeds=(0,)))
    _, folder = finished_run.write(run, ("pack", "surrogate", "protect"), config)
    said = json.loads(folder.read("protect/manifest.json"))
    said["counts"] |= {"noise_rounds": rounds, "noise_error": error}
    folder.write("protect/manifest.json", to_json(said))
    return finished_run.write(run, ("victim",), config)[0]


def test_card_says_how_far_error_minimising_noise_came(tmp_path: Path) -> None:
    """The card counts releases: one that two runs share counts once."""
    first, second = of_noise(tmp_path / "first", 0, 12, 0.9), of_noise(tmp_path / "second", 1, 30, 2.5)
    more = copied(first, tmp_path / "more", seeds=(1,))
    card = make("name", [first.run, more.run, second.run])
    assert card["noise_rounds"] == {"mean": 21.0, "std": round(18 / 2**0.5, 4)}
    assert card["noise_error"] == {"mean": 1.7, "std": round(1.6 / 2**0.5, 4)}
    assert make("name", [first.run])["noise_error"] == {"mean": 0.9, "std": None}
    assert not {"noise_rounds", "noise_error"} & make("name", [write(tmp_path / "other").run]).keys()


def test_victims_of_one_release_from_several_runs_make_one_card(tmp_path: Path) -> None:
    first = write(tmp_path / "first")
    more = copied(first, tmp_path / "more", seeds=(1,))
    other = copied(first, tmp_path / "other", networks=("vit-small",), epochs=2, lr=0.01)
    card = make("name", [first.run, more.run, other.run])
    assert {(v["network"], v["data"]): v["trainings"] for v in card["victims"]} == {
        ("resnet8", "clean"): 2,
        ("resnet8", "protected"): 2,
        ("vit-small", "clean"): 1,
        ("vit-small", "protected"): 1,
    }
    assert [(section["networks"], section["seeds"], section["epochs"]) for section in card["settings"]["victim"]] == [
        (["resnet8"], [0], 1),
        (["resnet8"], [1], 1),
        (["vit-small"], [0], 2),
    ]
    assert card["psnr_db"]["std"] is None  # of the one shared release
    assert card["seeds"] == [0]
    with pytest.raises(ValueError, match="seed 0 was trained on the same clean images in two runs"):
        make("name", [first.run, first.run])
    longer = copied(first, tmp_path / "longer", seeds=(2,), epochs=2)
    with pytest.raises(ValueError, match="resnet8 was trained with different settings"):
        make("name", [first.run, longer.run])


@pytest.fixture
def mixed_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Card:
    """The only card, of a run with two victim networks and two of three classes protected."""
    monkeypatch.setattr(tables, "CARDS", tmp_path / "cards")
    tables.CARDS.mkdir()
    run = tmp_path / "run"
    finished_run.write(run, config=finished_run.mixed_configuration(run))
    return make("mixed", [str(run)])


def test_cards_are_shown_where_their_names_say(mixed_card: Card) -> None:
    def put(name: str, **changes: Any) -> None:
        (tables.CARDS / f"{name}.json").write_bytes(to_json({**mixed_card, "name": name, **changes}))

    empty = {name: table() for name, table in TABLES.items()}
    victims = {(v["network"], v["data"]): v for v in mixed_card["victims"]}

    def last(network: str, data: str) -> str:
        victim = victims[network, data]
        figure = f"{victim['last_accuracy']['mean']:.1f}"
        return f"{f'**{figure}**' if data == 'protected' else figure} (others {victim['other_accuracy']['mean']:.1f})"

    put("mixed")
    assert TABLES["table"]().count("\n") == empty["table"].count("\n") + 2
    for network in ("resnet8", "vit-small"):
        line = f"| smoke, 2 of 3 classes, random-class targets | sep-fa, 8/255 | {network} | none | 1 "
        assert f"{line}| {last(network, 'clean')} | {last(network, 'protected')} |" in TABLES["table"]()
    assert {name: TABLES[name]() for name in tables.KINDS} == {name: empty[name] for name in tables.KINDS}

    put("transfer-mixed")
    before, table = TABLES["transfer"]().split("\n\n")
    assert before == "Surrogate resnet8, vit-small, preset `smoke`, 2 of 3 classes, random-class targets, sep-fa at 8/255."
    assert f"\n| vit-small | 2, 12, 0.1 | 1 | {last('vit-small', 'clean')} | {last('vit-small', 'protected')} |" in table

    put("transfer-more")
    assert TABLES["transfer"]().count("\n\n") == 1  # one table for equal settings
    assert TABLES["transfer"]().count("| vit-small |") == 2

    put("kernels-fused")
    assert f"\n| fused, float32 | 1 | {last('vit-small', 'clean')} | {last('vit-small', 'protected')} |" in TABLES["kernels"]()

    one = [victim for victim in mixed_card["victims"] if victim["network"] == "resnet8"]
    for kind in ("untargeted", "random-class", "shift"):
        put(f"targets-{kind}", targets=kind, victims=one)
    before, table = TABLES["targets"]().split("\n\n")
    assert before == "Surrogate resnet8, vit-small, preset `smoke`, 2 of 3 classes, sep-fa at 8/255."
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == ["| shift", "| random-class", "| untargeted"]
    assert TABLES["table"]().count("\n") == empty["table"].count("\n") + 2

    put("countermeasures-mixed", victims=[{**victim, "countermeasure": "jpeg-10"} for victim in one])
    before, table = TABLES["countermeasures"]().split("\n\n")
    assert before.endswith("sep-fa at 8/255; victims resnet8 (2 epochs in batches of 12).")
    cells = f"{last('resnet8', 'clean')} | {last('resnet8', 'protected')} "
    assert f"\n| jpeg-10 | 1 | {cells}" in table
    assert "| 85.4 | 84.4 | 84.1 | ISS; TAP: APBench |" in table


def test_methods_stand_side_by_side_where_several_were_measured(mixed_card: Card) -> None:
    one = [victim for victim in mixed_card["victims"] if victim["network"] == "resnet8"]
    more = [{**victim, "countermeasure": "jpeg-10"} for victim in one]
    only = [{**victim, "countermeasure": "grayscale"} for victim in one]  # a single method, with no other to compare
    for method, budget, victims in (("one-pixel", "1 pixel", one + more), ("tap", "8/255", one), ("sep-fa", "8/255", one + more + only)):
        card = {**mixed_card, "name": f"methods-{method}", "method": method, "budget": budget, "victims": victims}
        (tables.CARDS / f"methods-{method}.json").write_bytes(to_json(card))
    before, table = TABLES["methods"]().split("\n\n")
    assert before == "Preset `smoke`, 2 of 3 classes; victims resnet8 (2 epochs in batches of 12)."
    figures = {victim["data"]: f"{victim['last_accuracy']['mean']:.1f}" for victim in one}
    psnr = f"{mixed_card['psnr_db']['mean']:.1f} dB"
    assert table.splitlines() == [
        "| method, budget | n | PSNR | none | jpeg-10 |",
        "|---|---|---|---|---|",
        f"| clean images | 1 | | {figures['clean']} (94.7) | {figures['clean']} (85.4) |",
        f"| sep-fa, 8/255 | 1 | {psnr} | **{figures['protected']}** (3.9) | **{figures['protected']}** (84.4) |",
        f"| tap, 8/255 | 1 | {psnr} | **{figures['protected']}** (8.2) |  |",
        f"| one-pixel, 1 pixel | 1 | {psnr} | **{figures['protected']}** (36.5) | **{figures['protected']}** (82.5) |",
    ]


def test_the_readme_has_its_results() -> None:
    lines = TABLES["highlights"]().splitlines()
    assert len(lines) == 2 + len(tables.HIGHLIGHTS)
    by_name = {path.stem: json.loads(path.read_text()) for path in CARDS.glob("*.json")}
    for line, (said, name, countermeasure) in zip(lines[2:], tables.HIGHLIGHTS, strict=True):
        last = [v["last_accuracy"]["mean"] for v in by_name[name]["victims"] if v["countermeasure"] == countermeasure]
        assert line.startswith(f"| {said} | ")
        assert all(f"{mean:.1f}" in line for mean in last)
        assert len(last) == 2


@pytest.mark.parametrize(("table", "name"), [("targets", "results.md"), ("highlights", "README.md")])
def test_a_page_without_a_place_is_named(
    table: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for each in ("README", "RESULTS"):
        monkeypatch.setattr(tables, each, tmp_path / getattr(tables, each).name)
        getattr(tables, each).write_text("nothing\n")
    assert publish.main([table]) == 1
    assert f"{name} has no place for this table: put the lines <!-- {table}: made by" in capsys.readouterr().err
    assert publish.main(["nonsense"]) == 2
    assert (tmp_path / name).read_text() == "nothing\n"


def test_all_tables_are_written_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for each in ("README", "RESULTS"):
        monkeypatch.setattr(tables, each, tmp_path / getattr(tables, each).name)
        words = ["results" if name == "table" else name for name in TABLES if page(name) == getattr(tables, each)]
        places = [f"<!-- {word}: made by tests/benchmarks/publish.py -->\n<!-- end of {word} -->\n" for word in words]
        getattr(tables, each).write_text("".join(places))
    assert publish.main(["all"]) == 0
    assert all(table() in page(name).read_text() for name, table in TABLES.items())


def test_runs_that_differ_in_more_than_their_seed_make_no_card(tmp_path: Path) -> None:
    runs = []
    for steps in (1, 2):
        run = tmp_path / str(steps)
        config = finished_run.configuration(run)
        config, folder = finished_run.write(run, config=replace(config, protect=replace(config.protect, steps=steps)))
        folder.write("config.json", to_json(to_tree(config)))
        runs.append(config.run)
    with pytest.raises(ValueError, match="differ in more than their seed"):
        make("name", runs)


def test_photographs_are_shown_by_form_and_size(mixed_card: Card) -> None:
    asked = mixed_card["settings"]
    for name, changes in {"photos-as-stored": {}, "photos-jpeg": {"stored": "jpeg-90", "input_size": 96}}.items():
        victim = {**asked["victim"], "networks": ["resnet8"], **changes}
        ours = [each for each in mixed_card["victims"] if each["network"] == "resnet8"]
        card = {**mixed_card, "name": name, "victims": ours, "settings": {**asked, "input_size": 64, "victim": victim}}
        (tables.CARDS / f"{name}.json").write_bytes(to_json(card))
    last = {each["data"]: f"{each['last_accuracy']['mean']:.1f}" for each in ours}
    gradients = tables.gradients_per_image(mixed_card)
    assert tables.photos().splitlines() == [
        f"| published as | pixels seen | countermeasure | n | clean | sep-fa, {gradients} gradients |",
        "|---|---|---|---|---|---|",
        f"| PNG | 64 | none | 1 | {last['clean']} | **{last['protected']}** |",
        f"| jpeg-90 | 96 | none | 1 | {last['clean']} | **{last['protected']}** |",
    ]


def test_noise_of_a_class_is_shown_by_what_it_was_made_through(mixed_card: Card) -> None:
    asked, ours = mixed_card["settings"], [each for each in mixed_card["victims"] if each["network"] == "resnet8"]
    jpeg = [{**each, "countermeasure": "jpeg-10", "trainings": 2} for each in ours]
    for name, channels, mix, victims in (("plain", "grey", ["none"], ours), ("views", "colour", ["none", "blur"], ours + jpeg)):
        protect = {**asked["protect"], "channels": channels, "momentum": 0.9, "normalised": True, "patterns": 1}
        settings = {**asked, "protect": protect, "views": mix}
        card = {**mixed_card, "name": f"noise-{name}", "victims": victims, "settings": settings, "noise_rounds": {"mean": 7, "std": None}}
        (tables.CARDS / f"noise-{name}.json").write_bytes(to_json(card))
    clean, protected = (f"{each['last_accuracy']['mean']:.1f}" for each in sorted(ours, key=lambda each: each["data"]))
    assert tables.noise().splitlines() == [
        "| channels | momentum | patterns | views | rounds | n | none | jpeg-10 |",
        "|---|---|---|---|---|---|---|---|",
        f"| clean images | | | | | 1 | {clean} | {clean} (n = 2) |",
        f"| colour | 0.9, normalised | 1 | none blur | 7.0 | 1 | **{protected}** | **{protected}** (n = 2) |",
        f"| grey | 0.9, normalised | 1 | none | 7.0 | 1 | **{protected}** |  |",
    ]
