"""Image and label columns of a Parquet file: one rule finds them, whatever the order of the columns."""

from __future__ import annotations

from itertools import permutations

import pyarrow as pa
import pytest

from pipeline.sources.dataset import SourceError
from pipeline.sources.parquet import columns

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
CROPS = pa.struct([("bytes", pa.list_(pa.binary()))])  # lists of images

CHOSEN = {
    "by name": ({"image": IMAGE, "label": pa.int64()}, ("image", "label")),
    "image before img": ({"img": IMAGE, "image": IMAGE, "label": pa.int64()}, ("image", "label")),
    "img before others": ({"thumbnail": IMAGE, "img": IMAGE, "fine_label": pa.int64(), "coarse": pa.int64()}, ("img", "fine_label")),
    "the only ones": ({"photo": IMAGE, "species": pa.int16(), "width": pa.float32(), "crops": CROPS}, ("photo", "species")),
    "text": ({"image": IMAGE, "label": pa.large_string(), "id": pa.int64()}, ("image", "label")),
    "large binary": ({"photo": pa.struct([("bytes", pa.large_binary())]), "label": pa.int64()}, ("photo", "label")),
    "a name of another type": ({"image": pa.string(), "photo": IMAGE, "label": pa.int64()}, ("photo", "label")),
}
REFUSED = {
    "two images": (
        {"photo": IMAGE, "mask": IMAGE, "label": pa.int64()},
        "candidates are mask, photo: rename",
    ),
    "no image": ({"label": pa.int64()}, "no column is one, found label: int64"),
    "lists of images": ({"image": CROPS, "label": pa.int64()}, "no column is one"),
    "two labels": (
        {"image": IMAGE, "x": pa.int64(), "y": pa.int64()},
        "candidates are x, y: rename",
    ),
    "a number and text": ({"image": IMAGE, "species": pa.int16(), "note": pa.string()}, "candidates are note, species: rename"),
    "no label": ({"image": IMAGE, "label": pa.float32()}, "no column is one"),
    "a label of another type": ({"image": IMAGE, "label": pa.list_(pa.int64()), "id": pa.int64()}, "no column is one"),
}


@pytest.mark.parametrize("case", CHOSEN)
def test_a_known_name_comes_first_and_else_the_only_column_that_fits(case: str) -> None:
    fields, wanted = CHOSEN[case]
    for order in permutations(fields.items()):
        assert columns(pa.schema(order), "train.parquet") == wanted


@pytest.mark.parametrize("case", REFUSED)
def test_several_candidates_are_named_and_none_is_guessed(case: str) -> None:
    fields, says = REFUSED[case]
    names = "`label` or `fine_label`" if "label" in case or "number" in case else "`image` or `img`"
    with pytest.raises(SourceError, match=rf"^train\.parquet: expected .* named {names}, .*; {says}"):
        columns(pa.schema(sorted(fields.items())), "train.parquet")
