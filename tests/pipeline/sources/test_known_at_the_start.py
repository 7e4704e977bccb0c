"""What the scan and the configuration know is said right after the scan, and not after hours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.schema import ProtectConfig, RunConfig, StageName, SurrogateConfig, VictimConfig
from pipeline.sources.dataset import SourceError
from pipeline.sources.scan import scan
from pipeline.stages import pack
from pipeline.stages.sequence import check
from pipeline.storage.folder import Folder
from tests.fixtures.executors import LOCAL
from tests.fixtures.pictures import class_folders, write
from tests.fixtures.source_kinds import config, write_tar

Writer = Callable[[Path], None]


def folders(*names: str) -> Writer:
    return lambda root: class_folders(root, dict.fromkeys(names, 2))


def tar_of_classes(names: bytes) -> Writer:
    def write_it(root: Path) -> None:
        write_tar(root / "train-0.tar", range(6))
        write(root / "classes.txt", names)

    return write_it


LONG = "n" * 121
ALIKE: dict[str, tuple[Writer, str]] = {
    "one name": (tar_of_classes(b"ant\nant\nbee"), "'ant', 'ant'"),
    "another case": (folders("Cat", "cat", "dog"), "'Cat', 'cat'"),
    "a dot at the end": (folders("cat", "cat.", "dog"), r"'cat', 'cat\.'"),
    "a blank at the end": (folders("cat", "cat ", "dog"), "'cat', 'cat '"),
    "long names that begin alike": (folders(LONG + "a", LONG + "b", "dog"), f"'{LONG}a', '{LONG}b'"),
    "a colon and a question mark": (folders("a:b", "a?b", "dog"), r"'a:b', 'a\?b'"),
    "an accent in one character and in two": (folders("caf\u00e9", "cafe\u0301", "dog"), "'cafe\u0301', 'caf\u00e9'"),
    "case beyond ASCII": (folders("STRASSE", "straße", "dog"), "'STRASSE', 'straße'"),
}


@pytest.mark.parametrize("name", ALIKE)
def test_classes_that_an_export_could_not_tell_apart_are_refused(name: str, tmp_path: Path) -> None:
    write_source, says = ALIKE[name]
    write_source(tmp_path)
    with pytest.raises(SourceError, match=rf"one name as folders: {says}: rename"):
        scan(config(tmp_path))


def test_classes_that_are_not_packed_may_have_any_name(tmp_path: Path) -> None:
    folders("Cat", "cat", "dog")(tmp_path)
    assert scan(config(tmp_path, classes=("cat", "dog"))).classes == ("cat", "dog")


SMALL = {"surrogate": SurrogateConfig(batch_size=4), "victim": VictimConfig(batch_size=4)}
TOO_LARGE: dict[str, tuple[tuple[StageName, ...], dict[str, Any], str]] = {
    "surrogate": (("pack", "surrogate"), {"surrogate": SurrogateConfig(batch_size=5)}, "surrogate"),
    "victim": (("pack", "protect", "victim"), {"victim": VictimConfig(batch_size=5)}, "victim"),
    "noise": (
        ("pack", "protect"),
        {"surrogate": SurrogateConfig(batch_size=5), "protect": ProtectConfig(method="error-min")},
        "surrogate",
    ),
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_a_batch_of_more_images_than_there_are_is_refused_with_its_flag(name: str, tmp_path: Path) -> None:
    stages, sections, flag = TOO_LARGE[name]
    class_folders(tmp_path, {"a": 2, "b": 2}, "train/")
    class_folders(tmp_path, {"a": 2, "b": 2}, "test/")
    asked: RunConfig = replace(config(tmp_path), stages=stages, **{**SMALL, **sections})
    with pytest.raises(SourceError, match=rf"{flag}\.batch-size = 5 is more than the 4 training .* --{flag}\.batch-size 4 or less"):
        scan(asked)
    assert len(scan(replace(asked, stages=("pack",))).entries) == 8


def test_a_batch_that_only_refused_images_would_fill_is_refused_after_packing(tmp_path: Path) -> None:
    class_folders(tmp_path / "data", {"a": 2, "b": 2})
    write(tmp_path / "data" / "a" / "broken.png", b"no image")
    asked = replace(config(tmp_path / "data"), stages=("pack", "surrogate"), surrogate=SurrogateConfig(networks=("resnet8",), batch_size=5))
    folder = Folder.open(str(tmp_path / "run"))
    assert pack.execute(asked, folder, LOCAL).counts["train"] == 4
    with pytest.raises(ValueError, match=r"surrogate\.batch-size = 5 is more than the 4 training images"):
        check(asked, folder)
