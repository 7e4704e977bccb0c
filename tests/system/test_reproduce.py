"""`reproduce.py` in miniature: stopped after every piece, damaged, killed and gone on with, it measures what it measures in one go."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.deadline import Deadline
from cluster.resources import Resources
from pipeline import reproduce
from pipeline.shards.tables import read_table
from pipeline.storage.folder import Folder

TRAINING = ("--networks", "resnet8", "--epochs", "2", "--batch-size", "20")
COMMAND = [
    *("--data", "generated", "--pack.max-train-images", "40", "--pack.max-test-images", "20", "--pack.shard-images", "20"),
    *(f"--{stage}.{word[2:]}" if word.startswith("--") else word for stage in ("surrogate", "victim") for word in TRAINING),
    *("--protect.checkpoints", "2", "--protect.steps", "2"),
]
POINTS = ("eps_levels-2", "eps_levels-8")
FIRST = Path("sweep", POINTS[0])


class Killed(BaseException):
    """The end of a process, as far as one that goes on can have it."""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Sums in one order."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Resources, "cpus_for", lambda *_: 1)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run in one go."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert start(run) == 0
    return run


def start(run: Path, *flags: str) -> int:
    return reproduce.main([*COMMAND, "--run", str(run), *flags])


def card(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "card.json").read_text())
    return found


def outcome(run: Path) -> dict[str, Any]:
    """Everything that was made and measured, without the time it took."""
    epochs = json.loads((run / "surrogate" / "checkpoints.json").read_text())["checkpoints"]
    tables = {point: read_table(Folder.open(str(run / "sweep" / point / "victim")), "results.parquet").to_pylist() for point in POINTS}
    return {
        "weights": [epoch["sha256"] for epoch in epochs],
        "shards": {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*.tar")},
        "victims": tables,
        "card": {name: card(run)[name] for name in ("data", "images", "missing", "settings")},
        "accuracies": [{name: value for name, value in victim.items() if name != "loader_percent"} for victim in card(run)["victims"]],
    }


def state(run: Path) -> dict[Path, bytes]:
    """Every file that a piece of work may leave."""
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name not in ("card.json", "unfinished.json")}


def stop_often(run: Path, monkeypatch: pytest.MonkeyPatch, between: Callable[[], None] = lambda: None) -> list[dict[str, Any]]:
    """Start again and again, each time for the fewest looks at the clock in which anything is finished; the cards of all starts."""
    looks, code, cards, before = 1, 3, [], state(run)
    while code == 3:
        left = iter([False] * looks)
        monkeypatch.setattr(Deadline, "passed", lambda _, left=left: next(left, True))
        code = start(run, "--minutes", "9")
        after = state(run)
        looks = looks + 1 if after == before else 1
        assert looks < 10
        before = after
        cards += [card(run)] if (run / "card.json").exists() else []
        between()
    assert code == 0
    return cards


def test_the_card_says_what_was_measured(whole: Path) -> None:
    found = card(whole)
    assert (found["name"], found["images"], found["missing"]) == ("run", {"train": 40, "test": 20, "classes": 10}, [])
    assert found["command"].startswith("python pipeline/reproduce.py --data generated --pack.max-train-images 40")
    assert [(v["data"], v["release"], v["seeds"]) for v in found["victims"]] == [
        ("clean", None, [0]),
        ("protected", "2/255", [0]),
        ("protected", "8/255", [0]),
    ]
    for victim, point, row in zip(found["victims"], (POINTS[0], *POINTS), (0, 1, 1), strict=True):
        measured = read_table(Folder.open(str(whole / "sweep" / point / "victim")), "results.parquet").to_pylist()[row]
        assert victim["last_accuracy"] == {"mean": pytest.approx(measured["last_accuracy"], abs=0.01), "std": None}
        assert victim["precision"] == ["float32"]
    assert {release["class_means_precision"] for release in found["protection"].values()} == {"float32"}
    for label in ("2/255", "8/255"):
        assert found["protection"][label]["gradients"] == 40 * 2 * (2 + 2 - 1)
        assert found["protection"][label]["linf_levels"] == 2  # two steps of one level
        assert found["protection"][label]["gradients_per_second"] > 0
    assert found["surrogate"][0].keys() >= {"loss", "train_accuracy", "seconds", "precision"}
    assert list(found["seconds"]) == sorted(["pack", "surrogate", "protect 2/255", "protect 8/255", "victim"])
    assert all(seconds > 0 for seconds in found["seconds"].values())
    assert found["machines"][0]["versions"]["torch"] == torch.__version__
    assert "published" not in found  # which is for the paper's settings
    clean = [whole / "sweep" / point / "victim" / "resnet8-clean-none-seed0.json" for point in POINTS]
    assert clean[0].read_bytes() == clean[1].read_bytes()  # trained once


def test_any_number_of_stops_gives_the_same_and_a_card_each(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cards = stop_often(tmp_path, monkeypatch)
    assert outcome(tmp_path) == outcome(whole)
    missing = list(dict.fromkeys(said for made in cards for said in made["missing"][:1]))
    assert missing == [
        *(f"surrogate: {done} of 2 epochs done" for done in range(3)),
        *(f"protect 2/255: {done} of 2 shards done" for done in range(2)),
        *(f"victim 2/255: {done} of 2 trainings done" for done in range(2)),
        *(f"protect 8/255: {done} of 2 shards done" for done in range(2)),
        "victim 8/255: 1 of 2 trainings done",
    ]
    said = capsys.readouterr()
    assert f"missing: {missing[0]}" in said.out
    assert "the 9 minutes are used up: run the same command again" in said.err
    assert [len(made["machines"]) for made in cards] == [1] * len(cards)
    (machine,) = cards[-1]["machines"]
    assert machine["starts"] >= len(cards) > 10
    assert cards[-1]["seconds"]["victim"] > 0
    early = next(made for made in cards if "victim 2/255: 1 of 2 trainings done" in made["missing"])
    assert [victim["data"] for victim in early["victims"]] == ["protected"]  # whose figure no other run can give


def test_what_was_damaged_between_two_starts_is_made_again(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once each: a packed shard, the last epoch, a protected shard, a training's state and an outcome, while their stage goes on."""
    damages = {
        "pack": "pack/train-000000.tar",
        "surrogate": "surrogate/epoch_0000/weights.pt",
        str(FIRST / "protect"): str(FIRST / "protect" / "train-000000.tar"),
        str(FIRST / "victim"): str(FIRST / "victim" / "resnet8-protected-none-seed0.pt"),
        str(FIRST / "victim") + "/": str(FIRST / "victim" / "resnet8-protected-none-seed0.json"),
    }

    def damage() -> None:
        for stage, file in list(damages.items()):
            path = tmp_path / file
            if path.exists() and not (tmp_path / stage / "manifest.json").exists():
                data = path.read_bytes()
                path.write_bytes(data[: len(data) // 2] if stage.endswith(("pack", "/")) else _with_one_wrong_byte(data))
                del damages[stage]

    stop_often(tmp_path, monkeypatch, damage)
    assert not damages
    assert outcome(tmp_path) == outcome(whole)


def _with_one_wrong_byte(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def test_a_run_that_was_killed_or_stopped_goes_on(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of writing: the first time that a file of each kind is to be put in place."""
    put = Folder.write
    ends = {"train-000001.tar": Killed, "training.pt": KeyboardInterrupt, "every-shard.pt": KeyboardInterrupt, "none-seed0.json": Killed}
    for name, end in ends.items():

        def write(folder: Folder, file: str, data: Any, name: str = name, end: type[BaseException] = end) -> None:
            if file.endswith(name):
                raise end
            put(folder, file, data)

        with monkeypatch.context() as patch:
            patch.setattr(Folder, "write", write)
            if end is Killed:
                with pytest.raises(Killed):
                    start(tmp_path)
            else:
                assert start(tmp_path) == 1
    assert start(tmp_path) == 0
    assert outcome(tmp_path) == outcome(whole)


def test_what_is_finished_is_not_done_again(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))

    def written() -> dict[Path, int]:
        changing = ("card.json", "config.json", ".driver.lock")
        return {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name not in changing}

    before = written()
    assert start(run) == 0
    assert written() == before
    assert card(run)["machines"][0]["starts"] == 2
    assert "epoch 1" not in capsys.readouterr().err


def test_an_interruption_leaves_the_card_of_this_start(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, writes, left = tmp_path / "run", Folder.write, [True]
    shutil.copytree(whole, run)
    starts = card(run)["machines"][0]["starts"]

    def interrupted(folder: Folder, name: str, content: bytes) -> None:
        if name == "card.json" and left:
            left.pop()
            raise KeyboardInterrupt
        writes(folder, name, content)

    monkeypatch.setattr(Folder, "write", interrupted)
    assert start(run) == 0
    assert not left
    assert card(run)["machines"][0]["starts"] == starts + 1


def test_budgets_and_seeds_can_be_added(whole: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    assert start(run, "--sweep", "protect.eps-levels=1,2,8", "--victim.seeds", "0", "1", "--overwrite") == 0
    found = card(run)
    assert list(found["protection"]) == ["1/255", "2/255", "8/255"]
    assert found["protection"]["1/255"]["linf_levels"] == 1
    assert [(victim["release"], victim["seeds"]) for victim in found["victims"]] == [
        (label, [0, 1]) for label in (None, "1/255", "2/255", "8/255")
    ]
    assert found["victims"][0]["last_accuracy"]["std"] is not None
    assert outcome(run)["shards"].items() >= outcome(whole)["shards"].items()


def test_another_configuration_is_refused_by_name_and_the_card_stays_that_of_the_run(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    for flag, says in {"--surrogate.epochs": "surrogate.epochs: 2 -> 3", "--protect.steps": "protect.steps: 2 -> 3"}.items():
        assert start(run, flag, "3") == 1
        assert says in capsys.readouterr().err
        assert card(run)["settings"] == card(whole)["settings"]


def test_one_release_needs_no_sweep(whole: Path, tmp_path: Path) -> None:
    """And nothing of a method that trains no surrogate is missing."""
    run = ("--sweep", "--protect.method", "noise", "--protect.eps-levels", "8", "--victim.epochs", "1")
    assert start(tmp_path, *run) == 0
    found = card(tmp_path)
    assert (found["surrogate"], found["missing"], list(found["protection"])) == ([], [], ["8/255"])
    assert not (tmp_path / "sweep").exists()


def test_what_went_wrong_ends_with_a_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    for wrong, says in (
        (["--data", "generated", "--surrogate.epochs", "0"], "epochs must be at least 1"),
        ([], "preset 'paper' needs --data"),
        (["--data", "generated", "--sweep", "protect.eps-levels=0"], "eps_levels must be 1 to 255"),
    ):
        with pytest.raises(SystemExit) as stopped:
            reproduce.main(["--run", run, *wrong])
        assert stopped.value.code == 2
        said = " ".join(capsys.readouterr().err.replace("│", " ").split())
        assert says in said
    assert reproduce.main(["--run", run, "--data", str(tmp_path / "nowhere")]) == 1
    assert reproduce.main(["--run", run, "--data", "generated", "--minutes", "1e-9"]) == 3
    assert not list(tmp_path.rglob("card.json"))  # before anything is packed


def test_a_damaged_card_is_named(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    (run / "card.json").write_text('{"machines": ')
    assert start(run) == 1
    assert "card.json is damaged" in capsys.readouterr().err
