"""A run: its folder, and the runs inside it.

```
pack/ surrogate/ protect/ victim/ report/    the five stages, each with its manifest
sweep/steps-5_checkpoints-1/                 a point of a sweep: a run folder that shares the run's pack and surrogate
added/0001/                                  images that came later: a run folder with a pack and a protect stage
```
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipeline.storage.folder import Folder
from pipeline.storage.layout import ADDED, MANIFEST, POINT, SHARED, SWEEP
from pipeline.storage.records import to_json


@dataclass(frozen=True)
class Point(Folder):
    """The folder of a point. Whoever looks for a shared stage in it is sent to that of the run, so that nothing is copied."""

    run: Folder

    def child(self, name: str) -> Folder:
        """The folder `name` of this point, or of the run if that stage is shared."""
        return self.run.child(name) if name in SHARED else super().child(name)

    def file(self, name: str) -> str:
        """The path of a file of this point, or of the run if it is of a shared stage."""
        return self.run.file(name) if name.split("/")[0] in SHARED else super().file(name)

    @contextmanager
    def errors(self, name: str = "") -> Iterator[None]:
        """As for any folder, with the URI of where the file really is."""
        with self.run.errors(name) if name.split("/")[0] in SHARED else super().errors(name):
            yield


def point(run: Folder, name: str) -> Point:
    """The point of that name, which need not be there."""
    place = run.child(SWEEP).child(name)
    return Point(place.filesystem, place.path, place.uri, run)


def begin(run: Folder, name: str, settings: dict[str, Any]) -> Point:
    """The point of that name, marked as one."""
    begun = point(run, name)
    if not begun.exists(POINT):
        begun.write(POINT, to_json(settings))
    return begun


def settings(folder: Folder) -> dict[str, Any]:
    """What was swept, and the values of this point; nothing of a run that is no point, or of a point that was not begun.

    Raises:
        ValueError: the file that says so is damaged.
    """
    if not isinstance(folder, Point) or not folder.exists(POINT):
        return {}
    try:
        return dict(json.loads(folder.read(POINT)))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder.uri}/{POINT} is damaged ({error}): delete that file and start the sweep again") from error


def sweep_of(folder: Folder) -> list[str]:
    """What `--sweep` asks for this point and no other: `protect.steps=5`, ...; nothing of a run that is no point.

    Raises:
        ValueError: see `settings`.
    """
    joined = {name: "+".join(map(str, value)) if isinstance(value, list) else value for name, value in settings(folder).items()}
    return [f"{name.replace('_', '-')}={value}" for name, value in joined.items()]


def sibling_points(folder: Folder) -> list[Folder]:
    """The run and every other point of the same sweep, if this folder is a point."""
    if not isinstance(folder, Point):
        return []
    listed = folder.run.child(SWEEP).names(recursive=True)
    names = [name.split("/")[0] for name in listed if name.endswith(f"/{POINT}")]
    return [folder.run, *(other for name in names if (other := point(folder.run, name)) != folder)]


def open_run(uri: str) -> Folder:
    """The folder of a run, or of a point of a sweep, which knows where its pack and surrogate are.

    Raises:
        ValueError: see `Folder.open`; or it is a point without its run.
        OSError: storage refused.
    """
    folder = Folder.open(uri)
    if not folder.exists(POINT):
        return folder
    path, shown = (place.rstrip("/").rsplit("/", 2)[0] for place in (folder.path, folder.uri))
    run = Folder(folder.filesystem, path, shown)
    if not run.exists(f"pack/{MANIFEST}"):
        raise ValueError(f"{folder.uri} is a point of a sweep, and reads the pack and surrogate of its run, which is not at {run.uri}")
    return Point(folder.filesystem, folder.path, folder.uri, run)


def additions(run: Folder) -> dict[str, Folder]:
    """Every addition of a run, finished or not, by name (`added/0001`), in the order in which they were made."""
    numbers = sorted({name.split("/")[0] for name in run.child(ADDED).names(recursive=True) if "/" in name})
    return {f"{ADDED}/{number}": run.child(ADDED).child(number) for number in numbers}
