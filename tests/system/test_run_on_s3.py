"""The main job with everything on an object store: a process of its own, every stage, audited, exported, and no key left anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.storage.folder import Folder
from tests.fixtures import s3_servers
from tests.fixtures.commands import finish, refused, tool
from tests.fixtures.s3_servers import Server


def seen(folder: Folder) -> bytes:
    """Every byte of every file in a folder, hidden ones and all."""
    return b"".join(folder.read(name) for name in folder.names(recursive=True))


def whole_run(bucket: str, tmp_path: Path) -> None:
    """Run every stage, audit the run, give the images back, and start again, which must find everything done."""
    run = f"s3://{bucket}/runs/smoke"
    command = ("--run", run, "--tracking-uri", f"sqlite:///{tmp_path}/tracking/mlflow.db")
    code, out, err = finish(*command)
    assert code == 0, err
    assert f"{run}/report/index.html" in out
    folder = Folder.open(run)
    kept = set(folder.names(recursive=True))
    assert kept >= {"config.json", "pack/samples.parquet", "surrogate/epoch_0001/weights.pt", "victim/results.parquet", "report/index.html"}
    assert kept >= {f"{stage}/manifest.json" for stage in ("pack", "surrogate", "protect", "victim", "report")}
    assert not {name for name in kept if "parts/" in name or "partial" in name}

    audit = tool("verify", "--run", run)
    assert audit.returncode == 0, audit.stdout + audit.stderr
    assert "as recorded, no fault" in audit.stdout
    exported = tool("export", "--run", run, "--to", str(tmp_path / "release"))
    assert exported.returncode == 0, exported.stderr
    assert len(list((tmp_path / "release").glob("*/*.png"))) == 80

    again = finish(*command)
    assert again[:2] == (0, out), again[2]
    assert again[2].count("done before") == 5

    everything = seen(folder) + seen(Folder.open(str(tmp_path / "tracking"))) + (out + err + audit.stdout + exported.stdout).encode()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert s3_servers.ENVIRONMENT[name].encode() not in everything

    folder.write("protect/samples.parquet", b"damaged")
    audit = tool("verify", "--run", run)
    assert audit.returncode == 1
    assert f"{run}/protect/samples.parquet is missing or damaged" in audit.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_whole_run(s3_server: Server, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.url)
    whole_run(s3_bucket, tmp_path)


@pytest.mark.ray
@pytest.mark.slow
def test_whole_run_on_a_server_that_fails_one_request_in_ten(
    s3_server: Server, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_servers.proxy(s3_server, share=0.1, seed=1) as failing:
        monkeypatch.setenv("AWS_ENDPOINT_URL", failing.url)
        whole_run(s3_bucket, tmp_path)
        assert s3_servers.failures(failing) > 50


def test_a_bucket_that_is_not_there_ends_in_one_line(
    s3_server: Server, s3_credentials: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.url)
    said = refused(capsys, "--run", "s3://no-such-bucket/run", "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db")
    assert "s3://no-such-bucket/run/.driver.json: no such bucket: create it" in said
    assert "s3fs.cc" not in said
