"""A folder on a local disk or an object store, both behind `pyarrow.fs`."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from pyarrow import NativeFile, fs

from pipeline.storage.filesystems import PATIENCE_SECONDS, connect, split

log = logging.getLogger(__name__)

TEMPORARY = ".partial-"  # prefix of files that are still being built; never read, never listed
BLOCK = 2**24  # bytes; each costs an object store one request
SLOW_SECONDS = 10.0  # for one request, before a line says what is waited for
PUTS = 3  # of one object, if the answer to the first was lost or an object of another size is there
FORGOTTEN = "NO_SUCH_UPLOAD"  # the answer of a store that is asked to finish an upload which it has finished already
ADVICE = {
    "NO_SUCH_BUCKET": "no such bucket: create it, or correct the URI",
    "ACCESS_DENIED": "access is refused: {credentials}",
    "INVALID_ACCESS_KEY_ID": "the access key is not known there: {credentials}",
    "SIGNATURE_DOES_NOT_MATCH": "the secret key is not the access key's: {credentials}",
    "NETWORK_CONNECTION": "storage is out of reach, also after waiting: correct the endpoint (AWS_ENDPOINT_URL), or start again later",
}
CREDENTIALS = "give ones that may read and write there, by AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE or an instance role"


def absolute(uri: str) -> str:
    """Return a URI unchanged and a local path absolute.

    Raises:
        ValueError: nothing is given, the scheme is unknown, the URI carries credentials, or a relative path was given inside a Ray
            job, whose working directory vanishes with the job.
    """
    if "://" in uri:
        parts = split(uri)
        return parts.path if parts.scheme == "file" else uri
    if not uri:
        raise ValueError("expected the path or URI of a folder; got ''")
    if not os.path.isabs(uri) and "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        raise ValueError(
            f"{uri!r} is a relative path, and a Ray job's working directory is deleted with the job: "
            "give an absolute path or a URI such as s3://bucket/folder"
        )
    return os.path.abspath(os.path.expanduser(uri))


@dataclass(frozen=True)
class Folder:
    """A folder on any filesystem pyarrow knows. Cheap to copy and to send to a worker.

    Files appear whole or not at all. Locally a temporary file is synced and renamed. On an object store the complete object is put at
    once, and its size is checked.

    If storage refuses or cannot be reached, every method raises an OSError that names the URI and says what to do.
    """

    filesystem: fs.FileSystem = field(compare=False)
    path: str
    uri: str

    @classmethod
    def open(cls, uri: str) -> Folder:
        """Return the folder at a local path or URI, without creating it.

        Raises:
            ValueError: see `absolute`; or the URI is malformed.
            OSError: the region of a bucket cannot be determined.
        """
        uri = absolute(uri)
        if "://" not in uri:
            return cls(fs.LocalFileSystem(), uri, uri)
        shown = uri.split("?")[0].rstrip("/")
        with _named(shown):
            return cls(*connect(uri), shown)

    @property
    def is_local(self) -> bool:
        """True if `path` can be given to anything that opens local files."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def make(self) -> None:
        """Make the folder, if it is a local one that is not there; object stores have none.

        Raises:
            ValueError: it cannot be made.
        """
        if self.is_local:
            try:
                Path(self.path).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                said = (
                    "a file has its name"
                    if isinstance(error, FileExistsError)
                    else f"none can be made ({os.strerror(error.errno or 0).lower()})"
                )
                raise ValueError(f"{self.uri}: expected a folder, or a place for one, but {said}: give another path") from error

    def child(self, name: str) -> Folder:
        """Return the folder `name` inside this one."""
        return Folder(self.filesystem, f"{self.path.rstrip('/')}/{name}", f"{self.uri}/{name}")

    def file(self, name: str) -> str:
        """Return the path of a file in this folder, in the form that `filesystem` takes."""
        return f"{self.path.rstrip('/')}/{name}"

    def exists(self, name: str = "") -> bool:
        """Return whether a file (or, without a name, this folder) exists."""
        return self._info(name).type is not fs.FileType.NotFound

    def read(self, name: str) -> bytes:
        """Read a whole file.

        Raises:
            FileNotFoundError: the file does not exist.
        """
        with self.stream(name) as stream:
            return bytes(stream.read())

    def sha256(self, name: str) -> str:
        """Return the digest of a file's bytes. Only one block is in memory at a time.

        Raises:
            FileNotFoundError: the file does not exist.
        """
        hashed = hashlib.sha256()
        with self.stream(name) as stream:
            while block := stream.read(BLOCK):
                hashed.update(block)
        return hashed.hexdigest()

    @contextmanager
    def stream(self, name: str) -> Iterator[NativeFile]:
        """Open a file to read from any position. Only the parts that are read are fetched.

        Raises:
            FileNotFoundError: the file does not exist.
        """
        with self.errors(name), self.filesystem.open_input_file(self.file(name)) as stream:
            yield stream

    def write(self, name: str, data: bytes | BinaryIO) -> None:
        """Put a whole file in place, over an earlier one.

        Args:
            name: of the file.
            data: its bytes, or a file that is read from its beginning, a block at a time.

        Raises:
            OSError: storage refused; an earlier file is still in place.
        """
        if self.is_local:
            self._replace(Path(self.file(name)), data)
        else:
            with self.errors(name), self._patience(name):
                self._put(name, data)

    @staticmethod
    def _replace(target: Path, data: bytes | BinaryIO) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=TEMPORARY, delete=False) as stream:
            try:
                for block in _blocks(data):
                    stream.write(block)
                stream.flush()
                os.fsync(stream.fileno())
                os.chmod(stream.name, 0o644)
                os.replace(stream.name, target)
            except OSError as error:
                os.unlink(stream.name)
                raise OSError(error.errno, error.strerror, str(target)) from error
            except BaseException:
                os.unlink(stream.name)
                raise

    def _put(self, name: str, data: bytes | BinaryIO) -> None:
        """Put an object and check its size. Put it again if the store finished the upload and its answer was lost."""
        for left in reversed(range(PUTS)):
            written = 0
            try:
                with self.filesystem.open_output_stream(self.file(name)) as stream:
                    for block in _blocks(data):
                        stream.write(block)
                        written += len(block)
            except OSError as error:
                if left and FORGOTTEN in str(error):
                    continue
                raise
            if (size := self._info(name).size) == written:
                return
        raise OSError(f"{written} bytes were written, but {size or 'none'} are there")

    def _info(self, name: str = "") -> fs.FileInfo:
        with self.errors(name), self._patience(name):
            return self.filesystem.get_file_info(self.file(name) if name else self.path)

    def modified(self, name: str) -> datetime | None:
        """Return when a file was written last; None where storage does not say, or there is no such file."""
        found: datetime | None = self._info(name).mtime
        return found

    def names(self, recursive: bool = False) -> list[str]:
        """Return the sorted names of the files in this folder, relative to it; none if it does not exist.

        Hidden files and files still being built are left out.
        """
        selector = fs.FileSelector(self.path, recursive=recursive, allow_not_found=True)
        prefix = len(self.path.rstrip("/")) + 1
        with self.errors(), self._patience():
            found = (info.path[prefix:] for info in self.filesystem.get_file_info(selector) if info.type == fs.FileType.File)
        return sorted(name for name in found if not any(part.startswith(".") for part in name.split("/")))

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        with suppress(FileNotFoundError), self.errors(name):
            self.filesystem.delete_file(self.file(name))

    def delete(self) -> None:
        """Remove the folder and everything in it, if it exists."""
        with suppress(FileNotFoundError), self.errors():
            self.filesystem.delete_dir(self.path)

    @contextmanager
    def errors(self, name: str = "") -> Iterator[None]:
        """Add the URI, and what to do, to errors that an object store raises in the block."""
        if self.is_local:
            yield
        else:
            with _named(f"{self.uri}/{name}" if name else self.uri):
                yield

    @contextmanager
    def _patience(self, name: str = "") -> Iterator[None]:
        """Say what is waited for, and until when, if an object store takes long over the request in the block."""
        if self.is_local:
            yield
            return
        said = "%s: no answer for %.0f s; storage that is out of reach is given up after about %.0f minutes"
        patience = threading.Timer(SLOW_SECONDS, log.info, (said, f"{self.uri}/{name}".rstrip("/"), SLOW_SECONDS, PATIENCE_SECONDS / 60))
        patience.daemon = True
        patience.start()
        try:
            yield
        finally:
            patience.cancel()

    def remove_partials(self) -> None:
        """Remove the half-built files of a killed writer."""
        if self.is_local and os.path.isdir(self.path):
            for path in Path(self.path).rglob(TEMPORARY + "*"):
                path.unlink(missing_ok=True)

    @contextmanager
    def staging(self) -> Iterator[Folder]:
        """Yield a sibling folder to build in. It becomes this folder if the block ends well, and is removed otherwise.

        This works for local folders that do not exist yet.
        """
        building = Folder(self.filesystem, f"{os.path.dirname(self.path)}/{TEMPORARY}{os.path.basename(self.path)}", self.uri)
        building.make()
        building.delete()
        try:
            yield building
            os.replace(building.path, self.path)
        finally:
            building.delete()


def _blocks(data: bytes | BinaryIO) -> Iterator[bytes]:
    if isinstance(data, bytes):
        yield data
        return
    data.seek(0)
    while block := data.read(BLOCK):
        yield block


@contextmanager
def _named(uri: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{uri} is not there") from error
    except OSError as error:
        said = str(error)
        if said.startswith(uri):
            raise
        advice = next((text for code, text in ADVICE.items() if code in said), "storage failed")
        raise OSError(f"{uri}: {advice.format(credentials=CREDENTIALS)} ({said})") from error
