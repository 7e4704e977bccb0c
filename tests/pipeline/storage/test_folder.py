from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from pyarrow import fs

from pipeline.storage import folder as folder_module
from pipeline.storage.folder import TEMPORARY, Folder, absolute


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder.open(str(tmp_path / "run"))


def files(folder: Folder) -> list[str]:
    """Return all files on disk, hidden or not."""
    return sorted(str(path.relative_to(folder.path)) for path in Path(folder.path).rglob("*") if path.is_file())


def test_what_is_written_is_read_and_listed(folder: Folder) -> None:
    assert folder.names() == []
    assert not folder.exists()
    folder.write("b.txt", b"b")
    folder.child("sub").write("a.txt", b"a")
    folder.write("deep/er/c.txt", b"c")
    folder.write("b.txt", b"again")
    assert folder.read("b.txt") == b"again"
    assert folder.child("sub").read("a.txt") == folder.read("sub/a.txt") == b"a"
    assert folder.names() == ["b.txt"]
    assert folder.names(recursive=True) == ["b.txt", "deep/er/c.txt", "sub/a.txt"]
    assert folder.exists("b.txt")
    assert not folder.exists("none.txt")
    with pytest.raises(FileNotFoundError):
        folder.read("none.txt")


@pytest.mark.parametrize("local", [True, False], ids=["local", "object store"])
def test_a_file_is_written_from_its_beginning_a_block_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local: bool) -> None:
    monkeypatch.setattr(folder_module, "BLOCK", 4)
    asked: list[int] = []

    class Noted(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            asked.append(-1 if size is None else size)
            return super().read(size)

    source = Noted(b"0123456789")
    source.seek(0, os.SEEK_END)
    elsewhere = Folder(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "bucket", "s3://bucket")
    elsewhere.filesystem.create_dir("bucket")
    folder = Folder.open(str(tmp_path / "run")) if local else elsewhere
    folder.write("a.bin", source)
    assert folder.read("a.bin") == b"0123456789"
    assert set(asked) == {4}


def test_hidden_and_half_built_files_are_not_listed_and_are_swept(folder: Folder) -> None:
    folder.write("whole.tar", b"whole")
    for name in (f"{TEMPORARY}abc", f"sub/{TEMPORARY}def", ".hidden"):
        Path(folder.path, name).parent.mkdir(exist_ok=True)
        Path(folder.path, name).write_bytes(b"half")
    assert folder.names(recursive=True) == ["whole.tar"]
    folder.remove_partials()
    assert files(folder) == [".hidden", "whole.tar"]
    folder.child("none").remove_partials()


@pytest.mark.parametrize("refuses", ["replace", "fsync"])
def test_a_write_that_fails_leaves_the_old_content_and_no_leftovers(folder: Folder, monkeypatch: pytest.MonkeyPatch, refuses: str) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    folder.write("a.bin", b"old")
    monkeypatch.setattr(os, refuses, full)
    with pytest.raises(OSError, match="No space left"):
        folder.write("a.bin", b"new")
    with pytest.raises(OSError, match="No space left"):
        folder.write("b.bin", b"new")
    assert files(folder) == ["a.bin"]
    assert folder.read("a.bin") == b"old"


def test_a_reader_never_sees_half_a_file(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Just before the move into place, the new content is complete on disk under another name."""
    seen: list[tuple[bytes, bytes, list[str]]] = []
    replace = os.replace

    def watching(source: str, target: str) -> None:
        seen.append((Path(source).read_bytes(), Path(target).read_bytes(), folder.names()))
        replace(source, target)

    folder.write("a.bin", b"old")
    monkeypatch.setattr(os, "replace", watching)
    folder.write("a.bin", b"new" * 100_000)
    assert seen == [(b"new" * 100_000, b"old", ["a.bin"])]


def test_files_can_be_read_by_others(folder: Folder) -> None:
    folder.write("a.bin", b"")
    assert Path(folder.file("a.bin")).stat().st_mode & 0o777 == 0o644


def test_delete_removes_all_of_a_folder_and_nothing_else(folder: Folder) -> None:
    folder.child("one").write("a/b.txt", b"")
    folder.child("two").write("c.txt", b"")
    folder.child("one").delete()
    folder.child("one").delete()
    assert files(folder) == ["two/c.txt"]


def test_staging_appears_whole_or_not_at_all(folder: Folder) -> None:
    with folder.staging() as building:
        building.write("a.txt", b"a")
        assert not folder.exists()
    assert folder.names() == ["a.txt"]
    other = Folder.open(folder.path + "-2")
    with pytest.raises(KeyError), other.staging() as building:  # noqa: PT012
        building.write("a.txt", b"a")
        raise KeyError
    assert not other.exists()
    assert os.listdir(os.path.dirname(folder.path)) == ["run"]


def test_paths_become_absolute_and_uris_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert absolute("runs/a") == str(tmp_path / "runs" / "a")
    assert absolute("~/a") == str(tmp_path / "a")
    assert absolute("file:///data/a") == "/data/a"
    assert absolute("s3://bucket/a") == "s3://bucket/a"


def test_a_file_uri_is_the_local_folder(tmp_path: Path) -> None:
    folder = Folder.open(f"file://{tmp_path}")
    assert folder.is_local
    assert folder.path == str(tmp_path)


def test_a_relative_path_in_a_job_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ValueError, match=r"'runs/a' is a relative path.*deleted with the job"):
        absolute("runs/a")
    assert absolute("/runs/a") == "/runs/a"
    assert absolute("s3://bucket/a") == "s3://bucket/a"


def test_credentials_are_refused_and_not_repeated() -> None:
    for uri in ("s3://key:secret@bucket/a", "gs://key:secret@bucket/a", "s3://key@bucket/a"):
        with pytest.raises(ValueError, match="must not carry credentials") as refused:
            absolute(uri)
        assert "secret" not in str(refused.value)
        assert "key" not in str(refused.value)


def test_an_unknown_scheme_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"s3://.*got ftp://"):
        absolute("ftp://host/a")


def test_an_object_store_is_written_in_one_put(tmp_path: Path) -> None:
    """Every non-local filesystem of pyarrow takes the same path as an object store."""
    folder = Folder(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "bucket", "s3://bucket")
    folder.filesystem.create_dir("bucket")
    assert not folder.is_local
    folder.write("a.bin", b"a")
    folder.write("a.bin", b"again")
    assert folder.names() == ["a.bin"]
    assert folder.read("a.bin") == b"again"
    assert folder.child("x").uri == "s3://bucket/x"
    folder.remove_partials()


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/a?access_key=AKIA&secret_key=hidden",
        "s3://bucket/a?region=us-east-1&secret_key=hidden",
        "s3://bucket/a?session_token=hidden",
        "s3://bucket/a?endpoint_override=http://AKIA:hidden@host:9000",
        "s3://bucket/a?endpoint_override=AKIA:hidden@host:9000",
        "s3://bucket/a?hidden",
        "s3://bucket/a#hidden",
        "gs://bucket/a?access_token=hidden",
        "abfs://container/a?account_key=hidden",
        "abfs://:hidden@account/a",
        "file:///a?hidden=hidden",
    ],
)
def test_credentials_in_a_query_are_refused_and_not_repeated(uri: str) -> None:
    for look in (absolute, Folder.open):
        with pytest.raises(ValueError, match="credentials: set th") as refused:
            look(uri)
        assert "hidden" not in str(refused.value)
        assert "AKIA" not in str(refused.value)


def test_credentials_in_the_endpoint_of_the_environment_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://AKIA:hidden@host:9000")
    with pytest.raises(ValueError, match="must not carry credentials") as refused:
        Folder.open("s3://bucket/a")
    assert "hidden" not in str(refused.value)


def test_a_query_names_the_server_and_is_not_part_of_any_name() -> None:
    folder = Folder.open("s3://bucket/a%20b/?endpoint_override=127.0.0.1:9&scheme=http&region=x")
    assert (folder.path, folder.uri) == ("bucket/a b", "s3://bucket/a%20b")
    assert folder.filesystem.region == "x"
    assert folder.child("c").file("d") == "bucket/a b/c/d"


def test_google_storage_is_opened_without_asking_anybody() -> None:
    folder = Folder.open("gs://bucket/a/")
    assert isinstance(folder.filesystem, fs.GcsFileSystem)
    assert (folder.path, folder.uri) == ("bucket/a", "gs://bucket/a")
    with pytest.raises(ValueError, match="names no bucket"):
        Folder.open("gs:///a")
