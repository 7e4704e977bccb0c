"""The folder that a stage is given: a run, which is a folder, or a point of a sweep, which has a folder of its own and a parent.

```
pack/ surrogate/ protect/ victim/ report/    the five stages, each with its manifest
sweep/steps-5_checkpoints-1/                 a point: its protect, victim and report stages
added/0001/                                  an addition: a run folder with a pack and a protect stage
```
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, TypeAlias

from pipeline.storage.folder import Folder
from pipeline.storage.layout import ADDED, MANIFEST, POINT, SHARED, STARTED, SWEEP
from pipeline.storage.records import to_json


@dataclass(frozen=True)
class Point:
    """A point of a sweep. Its pack and surrogate stages are those of its parent, so nothing is copied.

    Attributes:
        folder: for the point's own files and stages.
        parent: the folder of the run that was swept.
    """

    folder: Folder
    parent: Folder

    def child(self, stage: str) -> Folder:
        """Return the folder of a stage: the parent's if all points share it."""
        return (self.parent if stage in SHARED else self.folder).child(stage)

    @property
    def uri(self) -> str:
        """The URI of the point's own folder."""
        return self.folder.uri

    @property
    def path(self) -> str:
        """The path of the point's own folder."""
        return self.folder.path

    @property
    def is_local(self) -> bool:
        """True if `path` can be given to anything that opens local files."""
        return self.folder.is_local

    def file(self, name: str) -> str:
        """Return the path of one of the point's own files."""
        return self._own(name).file(name)

    def exists(self, name: str) -> bool:
        """Return whether the point has a file of its own under this name."""
        return self._own(name).exists(name)

    def read(self, name: str) -> bytes:
        """Read one of the point's own files.

        Raises:
            FileNotFoundError: the file does not exist.
        """
        return self._own(name).read(name)

    def write(self, name: str, data: bytes) -> None:
        """Write one of the point's own files."""
        self._own(name).write(name, data)

    def _own(self, name: str) -> Folder:
        assert name.split("/")[0] not in SHARED, f"{name} is of a stage that the point shares: reach it by child()"
        return self.folder


Run: TypeAlias = Folder | Point


def point(run: Folder, name: str) -> Point:
    """Return the point `name` of a run, whether it was begun or not."""
    return Point(run.child(SWEEP).child(name), run)


def begin(run: Folder, name: str, settings: dict[str, Any]) -> Point:
    """Return the point `name` of a run, marked as one."""
    begun = point(run, name)
    if not begun.exists(POINT):
        begun.write(POINT, to_json(settings))
    return begun


def settings(run: Run) -> dict[str, Any]:
    """Return the fields that were swept, with the values of this point; nothing if the run is no point, or one that was not begun.

    Raises:
        ValueError: the point's record is damaged.
    """
    if not isinstance(run, Point) or not run.exists(POINT):
        return {}
    try:
        return dict(json.loads(run.read(POINT)))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{run.uri}/{POINT} is damaged ({error}): delete that file and start the sweep again") from error


def sweep_of(run: Run) -> list[str]:
    """Return the `--sweep` that asks for this point and no other, such as `protect.steps=5`; nothing if the run is no point.

    Raises:
        ValueError: see `settings`.
    """
    joined = {name: "+".join(map(str, value)) if isinstance(value, list) else value for name, value in settings(run).items()}
    return [f"{name.replace('_', '-')}={value}" for name, value in joined.items()]


def sibling_points(run: Run) -> list[Run]:
    """Return the parent and all other points of the same sweep; nothing if the run is no point."""
    if not isinstance(run, Point):
        return []
    listed = run.parent.child(SWEEP).names(recursive=True)
    names = [name.split("/")[0] for name in listed if name.endswith(f"/{POINT}")]
    return [run.parent, *(other for name in names if (other := point(run.parent, name)) != run)]


def open_run(uri: str) -> Run:
    """Return the run, or the point of a sweep, at a local path or URI.

    Raises:
        ValueError: see `Folder.open`; or it is a point without its parent.
        OSError: storage refused.
    """
    folder = Folder.open(uri)
    if not folder.exists(POINT):
        return folder
    path, shown = (place.rstrip("/").rsplit("/", 2)[0] for place in (folder.path, folder.uri))
    parent = Folder(folder.filesystem, path, shown)
    if not parent.child("pack").exists(MANIFEST):
        raise ValueError(f"{folder.uri} is a point of a sweep, and reads the pack and surrogate of its run, which is not at {parent.uri}")
    return Point(folder, parent)


def existing_run(uri: str) -> Run:
    """Return the run, or the point of a sweep, at a local path or URI where there is one.

    Raises:
        ValueError: see `open_run`; or nothing has been packed there.
        OSError: storage refused.
    """
    run = open_run(uri)
    if not run.child("pack").exists(STARTED):
        found = "something without" if Folder.open(uri).exists() else "nothing, and no"
        raise ValueError(f"{run.uri}: expected a run, as given to run.py by --run; found {found} pack/{STARTED}")
    return run


def additions(run: Run) -> dict[str, Folder]:
    """Return every addition of a run, finished or not, by name (`added/0001`), in the order in which they were made."""
    numbers = sorted({name.split("/")[0] for name in run.child(ADDED).names(recursive=True) if "/" in name})
    return {f"{ADDED}/{number}": run.child(ADDED).child(number) for number in numbers}
