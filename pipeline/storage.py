"""One way to reach a run's files: a local folder or an object store, both behind `pyarrow.fs`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from pyarrow import fs

SCHEMES = ("file", "s3", "gs", "abfs")
TEMPORARY = ".partial-"  # prefix of files that are still being built; never read, never listed


def absolute(uri: str) -> str:
    """A URI as it is; a local path made absolute.

    Raises:
        ValueError: the scheme is unknown, the URI carries credentials, or a relative path was given inside a Ray job,
            whose working directory vanishes with the job.
    """
    if "://" in uri:
        parts = urlsplit(uri)
        if parts.scheme not in SCHEMES:
            raise ValueError(f"storage must be a local path or one of {', '.join(s + '://' for s in SCHEMES)}; got {parts.scheme}://")
        if parts.password or (parts.username and parts.scheme != "abfs"):
            raise ValueError("storage URIs must not carry credentials: set them in the environment or an instance role")
        return parts.path if parts.scheme == "file" else uri
    if not os.path.isabs(uri) and "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        raise ValueError(
            f"{uri!r} is a relative path, and a Ray job's working directory is deleted with the job: "
            "give an absolute path or a URI such as s3://bucket/folder"
        )
    return os.path.abspath(os.path.expanduser(uri))


@dataclass(frozen=True)
class Folder:
    """A folder on any filesystem pyarrow knows. Cheap to copy and to send to a worker.

    Files appear whole or not at all: locally through a temporary file that is synced and renamed, on an object store
    through one put of the complete object.
    """

    filesystem: fs.FileSystem = field(compare=False)
    path: str
    uri: str

    @classmethod
    def open(cls, uri: str) -> Folder:
        """The folder at a local path or URI; nothing is created.

        Raises:
            ValueError: see `absolute`.
        """
        uri = absolute(uri)
        if "://" not in uri:
            return cls(fs.LocalFileSystem(), uri, uri)
        filesystem, path = fs.FileSystem.from_uri(uri)
        return cls(filesystem, path, uri.split("?")[0].rstrip("/"))

    @property
    def is_local(self) -> bool:
        """Whether `path` can be given to anything that opens local files."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def child(self, name: str) -> Folder:
        """The folder `name` inside this one."""
        return Folder(self.filesystem, f"{self.path.rstrip('/')}/{name}", f"{self.uri}/{name}")

    def file(self, name: str) -> str:
        """The path of a file in this folder, as `filesystem` wants it."""
        return f"{self.path.rstrip('/')}/{name}"

    def exists(self, name: str = "") -> bool:
        """Whether a file (or, without a name, this folder) is there."""
        path = self.file(name) if name else self.path
        return bool(self.filesystem.get_file_info(path).type != fs.FileType.NotFound)

    def read(self, name: str) -> bytes:
        """The whole of one file.

        Raises:
            FileNotFoundError: there is no such file.
        """
        with self.filesystem.open_input_stream(self.file(name)) as stream:
            return bytes(stream.read())

    def write(self, name: str, data: bytes) -> None:
        """Put a file in place whole, over whatever was there.

        Raises:
            OSError: storage refused; what was there before is still there.
        """
        if self.is_local:
            target = Path(self.file(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=target.parent, prefix=TEMPORARY, delete=False) as stream:
                try:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
                    os.chmod(stream.name, 0o644)
                    os.replace(stream.name, target)
                except BaseException:
                    os.unlink(stream.name)
                    raise
        else:
            with self.filesystem.open_output_stream(self.file(name)) as stream:
                stream.write(data)

    def names(self, recursive: bool = False) -> list[str]:
        """Sorted names of the files in this folder, relative to it; none if it does not exist.

        Hidden files and files still being built are left out.
        """
        selector = fs.FileSelector(self.path, recursive=recursive, allow_not_found=True)
        prefix = len(self.path.rstrip("/")) + 1
        found = (info.path[prefix:] for info in self.filesystem.get_file_info(selector) if info.type == fs.FileType.File)
        return sorted(name for name in found if not any(part.startswith(".") for part in name.split("/")))

    def delete(self) -> None:
        """Remove the folder and everything in it; nothing happens if it is not there."""
        if self.exists():
            self.filesystem.delete_dir(self.path)

    def sweep(self) -> None:
        """Remove what a killed writer left half-built."""
        if self.is_local and os.path.isdir(self.path):
            for path in Path(self.path).rglob(TEMPORARY + "*"):
                path.unlink(missing_ok=True)

    @contextmanager
    def staging(self) -> Iterator[Folder]:
        """A sibling folder to build in; it becomes this folder when the block ends well and vanishes when it does not.

        Only for local folders that do not exist yet.
        """
        building = Folder.open(f"{os.path.dirname(self.path)}/{TEMPORARY}{os.path.basename(self.path)}")
        building.delete()
        try:
            yield building
            os.replace(building.path, self.path)
        finally:
            building.delete()
