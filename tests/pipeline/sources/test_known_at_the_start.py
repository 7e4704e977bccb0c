"""What the scan and the configuration know is said right after the scan, and not after hours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.deadline import NEVER
from cluster.resources import Resources
from pipeline.config.schema import STAGES, PackConfig, ProtectConfig, RunConfig, StageName, SurrogateConfig, VictimConfig
from pipeline.sources.dataset import SourceError
from pipeline.sources.scan import scan
from pipeline.stages import pack
from pipeline.stages.sequence import check
from pipeline.storage.folder import Folder
from tests.fixtures.executors import LOCAL, OneThread
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


class Untouched(OneThread):
    """An executor that must not be started."""

    def connect(self, workers: int | None = None) -> Resources:
        raise AssertionError("work has begun")


UNSUITABLE: dict[str, tuple[dict[str, Any], str]] = {
    "surrogate that halves too often": (
        {"surrogate": SurrogateConfig(networks=("vgg16-bn",), batch_size=4)},
        r"surrogate\.networks: vgg16-bn .* needs 32 pixels a side or more, got 8",
    ),
    "victim that halves too often": (
        {"victim": VictimConfig(networks=("resnet8", "vgg16-bn"), batch_size=4)},
        r"victim\.networks: vgg16-bn .* needs 32 pixels a side or more, got 8",
    ),
    "victim that cannot cut the size asked for into patches": (
        {"pack": PackConfig(size=33), "victim": VictimConfig(networks=("vit-small",), batch_size=4)},
        r"victim\.networks: vit-small cuts images of 33 pixels",
    ),
    "share of clean images without one of a class": (
        {"victim": VictimConfig(networks=("resnet8",), countermeasures=("none", "clean-only-1"), batch_size=4)},
        r"victim\.countermeasures: clean-only-1: of the 2 images of class \d none",
    ),
    "noise that memory has no room for": (
        {"protect": ProtectConfig(method="error-min"), "memory_limit_mb": 0},
        r"error-min holds all training images and their noise in memory",
    ),
}


@pytest.mark.parametrize("name", UNSUITABLE)
def test_what_a_later_stage_would_refuse_is_refused_before_work_begins(name: str, tmp_path: Path) -> None:
    sections, says = UNSUITABLE[name]
    class_folders(tmp_path / "data", {"a": 2, "b": 2}, "train/")
    class_folders(tmp_path / "data", {"a": 2, "b": 2}, "test/")
    small = {"surrogate": SurrogateConfig(networks=("resnet8",), batch_size=4), "victim": VictimConfig(networks=("resnet8",), batch_size=4)}
    asked: RunConfig = replace(config(tmp_path / "data"), stages=STAGES, **{**small, **sections})
    folder = Folder.open(str(tmp_path / "run"))
    with pytest.raises(ValueError, match=says):
        pack.execute(asked, folder, Untouched(NEVER))
    assert not folder.child("pack").names()  # so that another size is no changed configuration
    assert pack.execute(replace(asked, stages=("pack",)), folder, LOCAL).counts["train"] == 4


def test_packed_shards_stay_where_only_a_later_stage_cannot_go_on(tmp_path: Path) -> None:
    class_folders(tmp_path / "data", {"a": 2, "b": 2})
    asked = replace(config(tmp_path / "data"), stages=("pack",))
    folder = Folder.open(str(tmp_path / "run"))
    pack.execute(asked, folder, LOCAL)
    folder.remove("pack/manifest.json")  # as if the last start had been cut short
    folder.write("pack/parts/train-000000.json", b"{}")
    with pytest.raises(ValueError, match=r"vgg16-bn .* needs 32 pixels"):
        pack.execute(
            replace(asked, stages=("pack", "surrogate"), surrogate=SurrogateConfig(networks=("vgg16-bn",), batch_size=4)), folder, LOCAL
        )
    assert folder.exists("pack/train-000000.tar")


def test_an_image_that_cannot_be_read_does_not_hide_the_size_of_the_others(tmp_path: Path) -> None:
    class_folders(tmp_path / "data", {"a": 2, "b": 2})
    write(tmp_path / "data" / "a" / "0.png", b"no image")
    asked = replace(
        config(tmp_path / "data"), stages=("pack", "surrogate"), surrogate=SurrogateConfig(networks=("vgg16-bn",), batch_size=4)
    )
    with pytest.raises(ValueError, match=r"vgg16-bn .* needs 32 pixels a side or more, got 8"):
        pack.execute(asked, Folder.open(str(tmp_path / "run")), Untouched(NEVER))
