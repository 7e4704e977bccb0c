"""The main job as a user runs it: a process of its own, every stage, then again, then audited."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from pipeline.storage.folder import Folder
from pipeline.storage.stage import Manifest
from tests import ROOT

pytestmark = pytest.mark.ray
ALONE = ("--executor", "local", "--tracking-uri", "none")  # where neither Ray nor MLflow is the point


class Smoke(NamedTuple):
    """A whole run of the smoke preset: its folder, what it printed, and how long it took with starting and ending."""

    folder: Path
    out: str
    seconds: float


def start(*arguments: str) -> subprocess.Popen[str]:
    """`python pipeline/run.py` with the smoke preset."""
    command = [sys.executable, "pipeline/run.py", "--preset", "smoke", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(*arguments: str) -> tuple[int, str, str]:
    """Exit code, output and log of a whole run."""
    process = start(*arguments)
    out, err = process.communicate(timeout=500)
    return process.returncode, out, err


def kill_at(pattern: str, sign: int, *arguments: str) -> tuple[int, str]:
    """Send a signal to a run as soon as a line of its log matches; its exit code and log."""
    process, seen = start(*arguments), ""
    assert process.stderr is not None
    for line in process.stderr:
        seen += line
        if re.search(pattern, line):
            process.send_signal(sign)
            break
    else:
        pytest.fail(f"the log never said {pattern!r}:\n{seen}")
    _, rest = process.communicate(timeout=200)
    return process.returncode, seen + rest


def protected(run: Path) -> list[str]:
    return [shard.sha256 for shard in Manifest.load(Folder.open(str(run)), "protect").shards["train"]]


def tool(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """One of the other commands of the pipeline."""
    return subprocess.run([sys.executable, f"pipeline/{name}.py", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def whole(folder: Path, *arguments: str) -> Smoke:
    begun = time.monotonic()
    code, out, err = finish("--run", str(folder), *arguments)
    assert code == 0, err
    return Smoke(folder, out, time.monotonic() - begun)


@pytest.fixture(scope="module")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> Smoke:
    """The run that others are held to, on Ray."""
    return whole(tmp_path_factory.mktemp("runs") / "smoke", "--workers", "2")


@pytest.fixture(scope="module")
def smoke_run_alone(tmp_path_factory: pytest.TempPathFactory) -> Smoke:
    """The same in one process."""
    return whole(tmp_path_factory.mktemp("runs") / "alone", *ALONE)


def test_leaves_a_whole_run_and_a_short_table(smoke_run: Smoke) -> None:
    folder, out, _ = smoke_run
    for name in (
        "config.json",
        "mlflow.db",
        "pack/samples.parquet",
        "pack/quarantine.parquet",
        "surrogate/checkpoints.json",
        "surrogate/epoch_0001/weights.pt",
        "protect/samples.parquet",
        "victim/results.parquet",
        "report/index.html",
        *(f"{stage}/manifest.json" for stage in ("pack", "surrogate", "protect", "victim", "report")),
    ):
        assert (folder / name).is_file(), name
    assert not list(folder.rglob("*partial*"))
    assert Manifest.load(Folder.open(str(folder)), "surrogate").counts["workers"] == 2
    assert json.loads((folder / "config.json").read_text())["preset"] == "smoke"
    for word in ("clean", "protected", "relabel", "PSNR", "level", "index.html"):
        assert word in out


def test_second_start_does_nothing_and_says_the_same(smoke_run: Smoke) -> None:
    folder, out, _ = smoke_run
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*.tar")}
    code, again, err = finish("--run", str(folder))
    assert (code, again) == (0, out), err
    assert err.count("done before") == 5
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.tar")} == stamps


def test_verifies_and_exports(smoke_run: Smoke, tmp_path: Path) -> None:
    folder = smoke_run.folder
    audit = tool("verify", "--run", str(folder))
    assert audit.returncode == 0, audit.stdout + audit.stderr
    exported = tool("export", "--run", str(folder), "--to", str(tmp_path / "release"))
    assert exported.returncode == 0, exported.stderr
    assert len(list((tmp_path / "release").glob("*/*.png"))) == 80


def test_changed_setting_stops_with_its_name(smoke_run: Smoke) -> None:
    code, _, err = finish("--run", str(smoke_run.folder), "--protect.eps-levels", "4")
    assert code == 1
    assert "protect.eps_levels: 8 -> 4" in err
    assert "--overwrite" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([*ALONE, "--data", "/no/such/folder"], "/no/such/folder"),
        (["--workers", "99"], "lower --workers"),
        ([*ALONE, "--pack.size", "28", "--victim.networks", "resnet8", "vgg16-bn"], "victim.networks: vgg16-bn"),
    ],
)
def test_what_a_user_can_mend_ends_in_one_line_and_trains_nothing(tmp_path: Path, arguments: list[str], word: str) -> None:
    code, _, err = finish("--run", str(tmp_path / "run"), *arguments)
    assert code == 1
    assert word in err
    assert "Traceback" not in err
    assert not (tmp_path / "run" / "surrogate").exists()


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["surrogate: .* epoch 1", "victim: .* epoch 1"])
def test_interrupted_run_ends_orderly(tmp_path: Path, sign: int, moment: str) -> None:
    code, err = kill_at(moment, sign, "--run", str(tmp_path / "run"))
    assert code == 1
    assert "the same command goes on from there" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("undisturbed", "moment"),
    [
        ("smoke_run_alone", "surrogate: .* epoch 1"),  # what every change is held to: a training half done, and everything after it
        pytest.param("smoke_run", "surrogate: .* epoch 1", marks=pytest.mark.slow),
        pytest.param("smoke_run", "pack: started", marks=pytest.mark.slow),
        pytest.param("smoke_run", "protect: started", marks=pytest.mark.slow),
        pytest.param("smoke_run", "victim: .* epoch 1", marks=pytest.mark.slow),
    ],
)
def test_killed_driver_goes_on_to_the_same_bytes(
    undisturbed: str, moment: str, tmp_path: Path, seconds_lost: Callable[[float], None], request: pytest.FixtureRequest
) -> None:
    wanted: Smoke = request.getfixturevalue(undisturbed)
    run, begun = tmp_path / "run", time.monotonic()
    arguments = ("--run", str(run), *(ALONE if undisturbed == "smoke_run_alone" else ()))
    code, _ = kill_at(moment, signal.SIGKILL, *arguments)
    assert code == -signal.SIGKILL
    code, _, err = finish(*arguments)
    seconds_lost(time.monotonic() - begun - wanted.seconds)
    assert code == 0, err
    if "surrogate" in moment:
        assert "epoch 1 of" not in err, "a finished epoch was trained again"
    assert protected(run) == protected(wanted.folder)


@pytest.mark.slow
def test_a_second_driver_refuses_and_the_first_goes_on(smoke_run: Smoke, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = start("--run", str(run))
    assert first.stderr is not None
    next(line for line in first.stderr if "surrogate: started" in line)
    code, _, err = finish("--run", str(run))
    assert code == 1
    assert f"worked on by process {first.pid} on" in err
    assert "Traceback" not in err
    _, rest = first.communicate(timeout=500)
    assert first.returncode == 0, rest
    assert protected(run) == protected(smoke_run.folder)


@pytest.mark.slow
def test_folder_of_photographs(sep_data: Path, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    source = ["--data", str(sep_data / "tiny-imagenet-20"), "--run", run, "--pack.size", "64", "--pack.max-train-images", "400"]
    code, _, err = finish(*source, "--protect.steps", "1", "--stages", "pack", "surrogate", "protect")
    assert code == 0, err
    assert tool("verify", "--run", run).returncode == 0
