"""The class of an image is right, or the source is refused: it is never guessed."""

from __future__ import annotations

import json
import logging
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.class_selection import from_files
from pipeline.sources.dataset import SourceError
from pipeline.sources.scan import scan
from tests.fixtures.pictures import class_folders, encoded, write
from tests.fixtures.source_kinds import IMAGES, add, config, contents, write_tar

Writer = Callable[[Path], None]
ANT, BEE = [0, 3], [1, 4]  # the numbers of the pictures of each class


def table(root: Path, name: str, pictures: Sequence[int], names: Sequence[str] = (), labelled: str = "label", **columns: Any) -> None:
    """A Parquet file of pictures and other columns, with class names for one of them as a data hub writes them."""
    content = pa.table({"image": [{"bytes": encoded(IMAGES[i]), "path": None} for i in pictures], **columns})
    if names:
        features = {"info": {"features": {labelled: {"names": names, "_type": "ClassLabel"}}}}
        content = content.replace_schema_metadata({"huggingface": json.dumps(features)})
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(content, root / name)


def files(**of_files: dict[str, Any]) -> Writer:
    """Parquet files, each with the pictures of ant, bee, ant, bee."""

    def write_it(root: Path) -> None:
        for name, columns in of_files.items():
            table(root, f"{name.replace('_', '-')}.parquet", [0, 1, 3, 4], **columns)

    return write_it


def folders(*prefixes: str) -> Writer:
    def write_it(root: Path) -> None:
        for prefix in prefixes:
            for name, pictures in (("ant", ANT), ("bee", BEE)):
                for i in pictures:
                    write(root / prefix / name / f"{i}.png", encoded(IMAGES[i]))

    return write_it


def with_file(file: str, *prefixes: str) -> Writer:
    def write_it(root: Path) -> None:
        folders(*prefixes)(root)
        write(root / file, b"")

    return write_it


def tar_with_names(names: bytes, place: str = "classes.txt") -> Writer:
    def write_it(root: Path) -> None:
        write_tar(root / "data" / "train-0.tar", range(6))
        write(root / place, names)

    return write_it


def tar_with_label(root: Path, label: bytes) -> None:
    with tarfile.open(root / "train-0.tar", "w") as tar:
        add(tar, "a.cls", label)
        add(tar, "a.png", b"")


def unsorted_test(root: Path) -> None:
    folders("train")(root)
    write(root / "test" / "1.png", b"")


def names_twice(root: Path) -> None:
    tar_with_names(b"ant\nbee\ncat")(root)
    write(root / "data" / "classes.txt", b"cat\nbee\nant")


TEXT = ["ant", "bee", "ant", "bee"]
BOM = b"\xef\xbb\xbf"
RIGHT: dict[str, Writer] = {
    "splits with capitals": folders("Train", "Test"),
    "splits by other words": folders("TRAINING", "Valid"),
    "text beside numbers": files(train={"label": TEXT, "id": [0, 1, 2, 3]}),
    "text in a dictionary": files(train={"label": pa.array(TEXT).dictionary_encode(), "n": [5, 6, 7, 8]}),
    "large text": files(train={"fine_label": pa.array(TEXT, pa.large_string()), "id": [0, 0, 1, 1]}),
    "the only text": files(train={"kind": TEXT}),
    "names in another order": files(
        train_0={"names": ["ant", "bee"], "label": [0, 1, 0, 1]}, train_1={"names": ["bee", "ant"], "label": [1, 0, 1, 0]}
    ),
    "names in another order in testing": files(
        train={"names": ["ant", "bee"], "label": [0, 1, 0, 1]}, test={"names": ["bee", "ant"], "label": [1, 0, 1, 0]}
    ),
    "more names in another file": files(train_0={"label": TEXT}, train_1={"names": ["bee", "ant"], "label": [1, 0, 1, 0]}),
    "text in one file that has fewer classes": files(train_0={"label": TEXT}, train_1={"label": TEXT}),
    "a column of classes by its metadata": files(
        train={"names": ["ant", "bee"], "labelled": "insect", "insect": [0, 1, 0, 1], "id": [0, 1, 2, 3]}
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_images_are_in_their_classes(name: str, tmp_path: Path) -> None:
    RIGHT[name](tmp_path)
    dataset = scan(config(tmp_path))
    assert sorted(dataset.classes) == ["ant", "bee"]
    found = contents(dataset)
    assert {split for split, _ in found} <= {"train", "test"}
    for (_, kind), images in found.items():
        assert set(images) == {IMAGES[i].tobytes() for i in (ANT if kind == "ant" else BEE)}
    assert len(dataset.entries) == 4 * (len(list(tmp_path.glob("*.parquet"))) or len(list(tmp_path.iterdir())))


@pytest.mark.parametrize(("column", "says"), [("label", []), ("species", ["pack: labels from the column `species`"])])
def test_the_log_says_which_column_has_the_labels(column: str, says: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    files(train={column: TEXT})(tmp_path)
    scan(config(tmp_path))
    assert [line for line in caplog.messages if "labels" in line] == says


def test_the_values_of_all_files_decide_whether_a_column_holds_labels(tmp_path: Path) -> None:
    table(tmp_path, "train.parquet", [0, 1] * 10, species=[0, 1] * 10)
    table(tmp_path, "test.parquet", [0, 1], species=[0, 1])
    assert scan(config(tmp_path)).classes == ("0", "1")


NAMES = {
    "a byte-order mark": tar_with_names(BOM + b"ant\nbee\ncat\n"),
    "lines of Windows": tar_with_names(b"ant\r\nbee\r\ncat\r\n\r\n"),
    "in the folder of the tars": tar_with_names(b"ant\nbee\ncat", "data/Classes.txt"),
}


@pytest.mark.parametrize("name", NAMES)
def test_class_names_of_tars_are_those_of_the_file(name: str, tmp_path: Path) -> None:
    NAMES[name](tmp_path)
    assert scan(config(tmp_path)).classes == ("ant", "bee", "cat")


def test_only_the_end_of_a_line_ends_a_class_name(tmp_path: Path) -> None:
    tar_with_names("ant\u2028x\rbee\u0085y\r\ncat".encode())(tmp_path)
    assert scan(config(tmp_path)).classes == ("ant\u2028x", "bee\u0085y", "cat")


REFUSED: dict[str, tuple[Writer, str]] = {
    "numbers of rows alone": (
        files(train={"id": [0, 1, 2, 3]}),
        r"train\.parquet: column `id` has 4 values in 4 rows, and may be no label",
    ),
    "numbers that are repeated a few times": (files(train={"id": [0, 1, 0, 1]}), "column `id` has 2 values in 4 rows"),
    "captions alone": (files(train={"caption": ["one", "two", "three", "four"]}), "`caption`"),
    "numbers and text of other names": (files(train={"id": [0, 1, 0, 1], "kind": TEXT}), "candidates are id, kind"),
    "labels that are lists beside numbers": (
        files(train={"label": [[0], [1], [0], [1]], "id": [0, 1, 0, 1]}),
        "no column is one, found .*label: list",
    ),
    "a file without names": (
        files(train_0={"names": ["ant", "bee"], "label": [0, 1, 0, 1]}, train_1={"label": [0, 1, 0, 1]}),
        r"train-1\.parquet has no class names",
    ),
    "other columns in another file": (files(train_0={"label": TEXT}, train_1={"fine_label": TEXT}), "`fine_label`.*`label`"),
    "a number beyond the names": (files(train={"names": ["ant", "bee"], "label": [0, 1, 2, 1]}), r"0\.\.1 .* found 2$"),
    "a test set without labels": (
        files(train={"names": ["ant", "bee"], "label": [0, 1, 0, 1]}, test={"names": ["ant", "bee"], "label": [-1] * 4}),
        r"test\.parquet.* found -1$",
    ),
    "an empty text": (files(train={"label": ["ant", "", "ant", ""]}), "2 rows have no label"),
    "two names alike": (files(train={"names": ["ant", "ant"], "label": [0, 1, 0, 1]}), "ant"),
    "splits of other names": (folders("fold1", "fold2"), "fold1, fold2 .* ant, bee"),
    "a layer above the classes of a split": (folders("train/images", "train/masks"), "train/images, train/masks .* ant, bee"),
    "a layer with notes in it": (with_file("train/2023/notes.txt", "train/2023", "train/2024"), "train/202[34], train/202[34] .* ant, bee"),
    "splits inside a split": (folders("train/train", "train/test"), "train/t.*, train/t.* .* ant, bee"),
    "a test set beside the classes of a split": (folders("train", "train/test"), "train/test/ .* ant, bee"),
    "the same with an image of its own": (with_file("train/test/1.png", "train", "train/test"), "train/test/ .* ant, bee"),
    "more images beside the classes": (folders("", "more"), "more/ .* ant, bee"),
    "a whole data set in a split": (folders("train/flowers/train", "train/flowers/test"), "train/flowers/ has a train folder"),
    "a whole data set inside": (folders("flowers/train", "flowers/test"), "flowers/ has a train folder"),
    "a whole data set beside its archive's rest": (folders("set/Training", "__MACOSX/set"), "set/ has a train folder"),
    "test sets alone": (folders("test", "val"), "no train/"),
    "classes beside a test set": (folders("", "test"), "no train/"),
    "a split without classes": (unsorted_test, "test/ is named for a split"),
    "a line of names left empty": (tar_with_names(b"ant\n\nbee\ncat"), "line 2"),
    "names in UTF-16": (tar_with_names("ant\nbee\ncat".encode("utf-16")), r"classes\.txt: expected a text file in UTF-8"),
    "two files with names": (names_twice, r"several files with class names, classes\.txt, data/classes\.txt"),
    "a label of many bytes": (
        lambda root: tar_with_label(root, b" " * 40 + b"1"),
        r"a\.cls: expected the number of a class, found 41 bytes",
    ),
    "digits with a line between them": (lambda root: tar_with_label(root, b"1_0"), r"a\.cls: expected the number of a class, found '1_0'"),
    "text as the label of a tar": (lambda root: tar_with_label(root, b"ant"), r"a\.cls: expected the number of a class, found 'ant'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_could_be_another_class_is_refused(name: str, tmp_path: Path) -> None:
    write_source, says = REFUSED[name]
    write_source(tmp_path)
    with pytest.raises(SourceError, match=says) as raised:
        scan(config(tmp_path))
    assert "\n" not in str(raised.value)


def test_a_class_with_a_folder_inside_is_a_class(tmp_path: Path) -> None:
    class_folders(tmp_path, {"ant/images": 2, "bee/images": 2, "cat": 1})
    assert scan(config(tmp_path)).classes == ("ant", "bee", "cat")


def test_picked_classes_may_come_from_a_file_with_a_byte_order_mark(tmp_path: Path) -> None:
    write(tmp_path / "classes.txt", BOM + b"ant\r\n\nbee\r\n")
    assert from_files([str(tmp_path / "classes.txt")]) == ("ant", "bee")
    write(tmp_path / "classes.txt", "ant\n".encode("utf-16"))
    with pytest.raises(ValueError, match=r"classes\.txt: expected a text file in UTF-8"):
        from_files([str(tmp_path / "classes.txt")])
