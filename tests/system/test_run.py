"""The main job as a user runs it: a process of its own, every stage, then again, then audited."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fixtures.commands import Smoke, finish, goes_on_after_a_kill, kill_at, protected, start, tool

pytestmark = pytest.mark.ray


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
    assert json.loads((folder / "config.json").read_text())["preset"] == "smoke"
    for word in ("originals", "protected release", "renames", "PSNR", "level", "index.html"):
        assert word in out


def test_its_cluster_leaves_nothing_behind(smoke_run: Smoke, ray_folder: Path) -> None:
    assert list(ray_folder.iterdir()) == []
    listing = subprocess.run(["ps", "-axww", "-o", "args="], text=True, capture_output=True, check=True).stdout
    assert str(ray_folder) not in listing


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


@pytest.mark.slow
def test_more_workers_than_the_cluster_holds_are_refused_in_one_line(tmp_path: Path) -> None:
    code, _, err = finish("--run", str(tmp_path / "run"), "--workers", "99")
    assert code == 1
    assert "lower --workers" in err
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


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["surrogate: .* epoch 1", "pack: started", "protect: started", "victim: .* epoch 1"])
def test_killed_driver_goes_on_to_the_same_bytes(
    moment: str, smoke_run: Smoke, tmp_path: Path, seconds_lost: Callable[[float], None]
) -> None:
    goes_on_after_a_kill(smoke_run, moment, tmp_path / "run", seconds_lost, "--workers", "1")


@pytest.mark.slow
def test_a_second_driver_refuses_and_the_first_goes_on(smoke_run: Smoke, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = start("--run", str(run), "--workers", "1")
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
