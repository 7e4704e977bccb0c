"""Folders on an object store behave like local ones: with a sound server, with one that fails, with one that dies and comes back."""

from __future__ import annotations

import io
import logging
import pickle
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
from pyarrow import fs

from pipeline.config.schema import RunConfig
from pipeline.sources.scan import scan
from pipeline.storage import filesystems
from pipeline.storage import folder as storage_folder
from pipeline.storage.filesystems import PatientS3
from pipeline.storage.folder import PUTS, Folder
from tests.fixtures import s3_servers
from tests.fixtures.s3_servers import SECRET, Server
from tests.fixtures.source_kinds import KINDS, contents, expected

PART = 10 * 2**20  # bytes; large files are sent in parts of this size
PART_2, BEGIN, COMPLETE = r"PUT .*partNumber=2", r"POST .*\?uploads", r"POST .*\?uploadId="


def open_at(server: Server, bucket: str, name: str = "run") -> Folder:
    return Folder.open(f"s3://{bucket}/{name}?endpoint_override={server.url}")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make permanent failures fail within seconds."""
    monkeypatch.setattr(filesystems, "ATTEMPTS", 2)
    filesystems._s3.cache_clear()
    yield
    filesystems._s3.cache_clear()


def use(folder: Folder) -> None:
    """Use every operation of a folder, and check for the same outcome as locally."""
    assert folder.names() == []
    assert not folder.exists()
    folder.write("b.txt", b"b")
    folder.child("sub").write("a.txt", b"a")
    folder.write("deep/er/c.txt", b"")
    folder.write("b.txt", b"again")
    assert folder.read("b.txt") == b"again"
    assert folder.child("sub").read("a.txt") == folder.read("sub/a.txt") == b"a"
    assert folder.read("deep/er/c.txt") == b""
    with folder.stream("b.txt") as stream:
        stream.seek(2)
        assert stream.read(2) == b"ai"
    assert folder.names() == ["b.txt"]
    assert folder.names(recursive=True) == ["b.txt", "deep/er/c.txt", "sub/a.txt"]
    for name, there in {"b.txt": True, "sub": True, "": True, "none.txt": False, "su": False}.items():
        assert folder.exists(name) is there
    with pytest.raises(FileNotFoundError, match=r"none\.txt"):
        folder.read("none.txt")
    folder.remove("sub/a.txt")
    folder.remove("sub/a.txt")
    assert not folder.exists("sub/a.txt")
    assert folder.names(recursive=True) == ["b.txt", "deep/er/c.txt"]
    folder.child("sub").delete()
    folder.child("deep").delete()
    folder.child("deep").delete()
    assert not folder.exists("sub")
    assert folder.names(recursive=True) == ["b.txt"]
    folder.delete()
    assert not folder.exists()
    assert folder.names(recursive=True) == []


def test_a_local_folder(tmp_path: Path) -> None:
    use(Folder.open(str(tmp_path / "run")))


def test_a_sound_server(s3_server: Server, s3_bucket: str) -> None:
    use(open_at(s3_server, s3_bucket))


def test_a_server_that_fails_one_request_in_ten(s3_server: Server, s3_bucket: str) -> None:
    with s3_servers.proxy(s3_server, share=0.1, seed=3) as failing:
        use(open_at(failing, s3_bucket))
        assert s3_servers.failures(failing) > 5


@pytest.mark.parametrize("kind", ["503", "500", "refused", "unanswered", "halved"])
def test_each_way_to_fail(s3_server: Server, s3_bucket: str, kind: str) -> None:
    with s3_servers.proxy(s3_server, share=0.25, seed=1, kinds=[kind]) as failing:
        folder = open_at(failing, s3_bucket)
        for number in range(3):
            folder.write("a.bin", bytes([number]) * 1000)
            assert folder.read("a.bin") == bytes([number]) * 1000
        assert s3_servers.counts(failing)[kind] > 1


def test_a_server_that_dies_and_comes_back(s3_server: Server, s3_bucket: str) -> None:
    with s3_servers.proxy(s3_server, share=0) as mortal:
        folder = open_at(mortal, s3_bucket)
        folder.write("before.txt", b"before")
        mortal.kill()
        back = threading.Timer(4, mortal.start)
        begun = time.monotonic()
        back.start()
        try:
            folder.write("during.txt", b"during")
            assert time.monotonic() - begun > 4, "written while the server was gone"
        finally:
            back.join()
        assert folder.read("before.txt") == b"before"
        assert open_at(s3_server, s3_bucket).read("during.txt") == b"during"


def test_a_server_that_stays_away_is_said_in_one_line(
    impatient: None, s3_server: Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(storage_folder, "SLOW_SECONDS", 0.01)
    caplog.set_level(logging.INFO)
    with s3_servers.proxy(s3_server, share=0) as mortal:
        folder = open_at(mortal, s3_bucket)
    with pytest.raises(OSError, match=rf"^s3://{s3_bucket}/run/a\.txt: storage is out of reach.*AWS_ENDPOINT_URL") as failed:
        folder.write("a.txt", b"")
    assert "\n" not in str(failed.value)
    assert SECRET not in str(failed.value)
    assert f"s3://{s3_bucket}/run/a.txt: no answer for 0 s; storage that is out of reach is given up after about 3 minutes" in caplog.text


@pytest.mark.parametrize(("request_", "kind", "size"), [(PART_2, "503", 2 * PART + 9), (BEGIN, "503", PART + 9), (COMPLETE, "refused", 9)])
def test_a_write_that_fails_leaves_the_old_content(
    impatient: None, s3_server: Server, s3_bucket: str, request_: str, kind: str, size: int
) -> None:
    open_at(s3_server, s3_bucket).write("a.bin", b"old")
    with s3_servers.proxy(s3_server, share=1, only=request_, kinds=[kind]) as failing:
        with pytest.raises(OSError, match=r"a\.bin: "):
            open_at(failing, s3_bucket).write("a.bin", bytes(size))
        assert s3_servers.failures(failing)
    assert open_at(s3_server, s3_bucket).read("a.bin") == b"old"


@pytest.mark.parametrize("kind", ["forgotten", "lost"])
@pytest.mark.parametrize("data", [b"whole", io.BytesIO(b"whole")], ids=["bytes", "file"])
def test_an_upload_whose_end_goes_wrong_is_put_again(s3_server: Server, s3_bucket: str, kind: str, data: bytes | BinaryIO) -> None:
    with s3_servers.proxy(s3_server, share=1, only=COMPLETE, kinds=[kind], at_most=PUTS - 1) as failing:
        open_at(failing, s3_bucket).write("a.bin", data)
        assert s3_servers.counts(failing)[kind] == PUTS - 1
    assert open_at(s3_server, s3_bucket).read("a.bin") == b"whole"


def test_what_is_said_to_be_written_and_is_not_there_is_an_error(s3_server: Server, s3_bucket: str) -> None:
    with (
        s3_servers.proxy(s3_server, share=1, only=COMPLETE, kinds=["lost"]) as failing,
        pytest.raises(OSError, match=r"a\.bin: .*5 bytes were written, but none are there"),
    ):
        open_at(failing, s3_bucket).write("a.bin", b"whole")


def test_a_file_is_read_in_one_request_however_large(s3_server: Server, s3_bucket: str) -> None:
    open_at(s3_server, s3_bucket).write("a.bin", bytes(2_000_000))
    with s3_servers.proxy(s3_server, share=0) as counting:
        assert open_at(counting, s3_bucket).read("a.bin") == bytes(2_000_000)
        assert s3_servers.counts(counting)["passed"] <= 2  # one for its size, one for its content


def test_a_missing_bucket_says_what_to_do(s3_server: Server, s3_credentials: None) -> None:
    folder = open_at(s3_server, "no-such-bucket")
    assert not folder.exists("a.txt")
    assert folder.names() == []
    with pytest.raises(FileNotFoundError, match=r"s3://no-such-bucket/run/a\.txt is not there"):
        folder.read("a.txt")
    with pytest.raises(OSError, match=r"^s3://no-such-bucket/run/a\.txt: no such bucket: create it"):
        folder.write("a.txt", b"")


def test_refused_access_says_what_to_do_and_no_secret(s3_server: Server, s3_bucket: str) -> None:
    folder = open_at(s3_server, s3_bucket)
    folder.write("a.txt", b"")
    s3_servers.require_access(s3_server, required=True)
    try:
        for action in (lambda: folder.read("a.txt"), lambda: folder.write("a.txt", b"b"), folder.names, folder.exists):
            with pytest.raises(
                OSError, match=rf"^s3://{s3_bucket}/run.*: (access is refused|the access key is not known).*AWS_PROFILE"
            ) as no:
                action()
            assert not any(value in str(no.value) for value in s3_servers.ENVIRONMENT.values() if "must-not" in value)
    finally:
        s3_servers.require_access(s3_server, required=False)
    assert folder.read("a.txt") == b""


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_a_worker_without_the_endpoint_in_its_environment_finds_it(
    s3_server: Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # the service's own variable wins
    monkeypatch.setenv(variable, s3_server.url)
    folder = Folder.open(f"s3://{s3_bucket}/run")
    folder.write("a.txt", b"a")
    sent = pickle.dumps(folder)
    assert b"must-not-be-seen" not in sent
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.delenv(variable, raising=False)
    arrived: Folder = pickle.loads(sent)
    assert arrived == folder
    assert arrived.read("a.txt") == b"a"


def test_a_worker_is_as_patient_as_the_driver(s3_server: Server, s3_bucket: str) -> None:
    """A pyarrow filesystem loses its retries when it is pickled. It is left with three attempts, too few for two failures in three."""
    with s3_servers.proxy(s3_server, share=1, kinds=["503"], at_most=4) as failing:
        arrived: Folder = pickle.loads(pickle.dumps(open_at(failing, s3_bucket)))
        assert isinstance(arrived.filesystem, PatientS3)
        assert not arrived.exists("a.txt")
        assert s3_servers.failures(failing) == 4


@pytest.mark.parametrize("kind", ["class folders", "parquet of a hub", "tars with class names", "cifar-10 pickles"])
def test_a_source_on_an_object_store(s3_server: Server, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    write, names = KINDS[kind]
    write(tmp_path)
    target = open_at(s3_server, s3_bucket, "data")
    fs.copy_files(str(tmp_path), target.path, fs.LocalFileSystem(), target.filesystem, use_threads=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.url)
    found = scan(RunConfig(data=f"s3://{s3_bucket}/data", stages=("pack",)))
    assert contents(found) == expected(names)
    assert contents(pickle.loads(pickle.dumps(found))) == expected(names)
