"""Classes by name, by index or by a file that lists them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.class_selection import choose_classes, from_files

NAMES = ["ant", "bee", "cat", "dog"]


def test_names_and_indices_give_labels_in_the_order_of_the_classes() -> None:
    assert choose_classes(["dog", "bee"], NAMES, "flag") == (1, 3)
    assert choose_classes(["3", "0"], NAMES, "flag") == (0, 3)
    assert choose_classes(["cat", "0"], NAMES, "flag") == (0, 2)


def test_none_named_are_all_even_where_two_have_one_name() -> None:
    assert choose_classes((), NAMES, "flag") == (0, 1, 2, 3)
    assert choose_classes((), ["crane", "bee", "crane"], "flag") == (0, 1, 2)


def test_a_name_wins_over_an_index_that_looks_like_it() -> None:
    """The class folders are called 0, 1, 10 and 2, in that order."""
    assert choose_classes(["10"], ["0", "1", "10", "2"], "flag") == (2,)
    assert choose_classes(["2"], ["0", "1", "10", "2"], "flag") == (3,)
    assert choose_classes(["3"], ["0", "1", "10", "2"], "flag") == (3,)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (
            ["cow"],
            r"protect\.classes: 'cow' is no class; expected a name \(ant, bee, cat, dog\), an index from 0 to 3, or an existing file",
        ),
        (["4"], "'4' is no class"),
        (["-1"], "'-1' is no class"),
        (["Ant"], "'Ant' is no class"),
        (["bee", "bee"], "class 'bee' is named twice"),
        (["bee", "1"], "class 'bee' is named twice"),
    ],
)
def test_what_is_no_class_or_named_twice_is_refused(named: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_classes(named, NAMES, "protect.classes")


def test_of_two_classes_with_one_name_neither_is_guessed() -> None:
    with pytest.raises(ValueError, match="2 classes are called 'crane': give their indices"):
        choose_classes(["crane"], ["crane", "bee", "crane"], "flag")
    assert choose_classes(["2"], ["crane", "bee", "crane"], "flag") == (2,)


def test_many_classes_are_not_all_listed() -> None:
    with pytest.raises(ValueError, match=r"\(c0, .*, c9, \.\.\.\), an index from 0 to 999"):
        choose_classes(["cow"], [f"c{i}" for i in range(1000)], "flag")


def test_a_file_stands_for_its_lines_and_anything_else_for_itself(tmp_path: Path) -> None:
    file = tmp_path / "wanted.txt"
    file.write_bytes("bee\r\n\n  tabby cat  \n3\nåre".encode())
    assert from_files(["ant", str(file), "dog"]) == ("ant", "bee", "tabby cat", "3", "åre", "dog")
    assert from_files([str(tmp_path), str(tmp_path / "none.txt")]) == (str(tmp_path), str(tmp_path / "none.txt"))
    assert from_files(()) == ()


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "one class a line, found none"), (b" \n\n", "found none"), (b"\xff\xfe\x00", "expected a text file")]
)
def test_a_file_that_lists_nothing_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "wanted.txt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"wanted\.txt: .*{message}"):
        from_files([str(tmp_path / "wanted.txt")])
