from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor
from torchvision.io import encode_jpeg, encode_png

from pipeline.reproduction import resident
from pipeline.reproduction.resident import Split


def pictures(count: int, channels: int = 3, size: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(256, (count, channels, size, size), dtype=torch.uint8, generator=generator)


def encoded(image: Tensor) -> dict[str, Any]:
    return {"bytes": bytes(encode_png(image)), "path": "a.png"}


def write(path: Path, images: list[Any], labels: list[Any], image: str = "img") -> None:
    pq.write_table(pa.table({image: images, "label": labels}), path, row_group_size=3)


def test_files_are_read_in_order_and_exactly(tmp_path: Path) -> None:
    images = pictures(10)
    write(tmp_path / "train-00001-of-00002.parquet", [encoded(i) for i in images[6:]], [6, 7, 8, 9], "image")
    write(tmp_path / "train-00000-of-00002.parquet", [encoded(i) for i in images[:6]], [0, 1, 2, 3, 4, 5])
    whole = resident.read(tmp_path, "train", None)
    assert torch.equal(whole.images, images)
    assert whole.labels.tolist() == list(range(10))
    for limit in (1, 6, 7):
        part = resident.read(tmp_path, "train", limit)
        assert torch.equal(part.images, images[:limit])
        assert part.labels.tolist() == list(range(limit))


def test_jpeg_and_gray_images_become_rgb(tmp_path: Path) -> None:
    gray = pictures(1, channels=1)[0]
    write(tmp_path / "test-0.parquet", [encoded(gray), {"bytes": bytes(encode_jpeg(gray, 95)), "path": None}], [0, 1])
    split = resident.read(tmp_path, "test", None)
    assert torch.equal(split.images[0], gray.expand(3, -1, -1))
    assert split.images[1].shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("images", "labels", "image", "says"),
    [
        ([b"a"], [0], "img", "expected `img` or `image`"),
        ([encoded(pictures(1)[0])], [0], "photo", "found photo: struct"),
        ([{"bytes": b"no image", "path": ""}], [0], "img", "row 0 of the split: the image cannot be decoded"),
        ([{"bytes": None, "path": ""}, encoded(pictures(1)[0])], [0, 1], "img", "row 0 of the split: there is no image"),
        ([encoded(pictures(1)[0]), None], [0, 1], "img", "row 1 of the split: there is no image"),
        ([encoded(pictures(1)[0]), encoded(pictures(1, size=9)[0])], [0, 1], "img", "must have one size"),
        ([encoded(pictures(1)[0])] * 2, [0, -1], "img", "labels must be whole numbers from 0"),
        ([encoded(pictures(1)[0])] * 2, [0, None], "img", "labels must be whole numbers from 0"),
        ([encoded(pictures(1)[0])] * 2, ["cat", "dog"], "img", "`label` \\(integer\\), found .*label: string"),
    ],
)
def test_what_is_not_understood_is_named(tmp_path: Path, images: list[Any], labels: list[Any], image: str, says: str) -> None:
    write(tmp_path / "train-0.parquet", images, labels, image)
    with pytest.raises(ValueError, match=says):
        resident.read(tmp_path, "train", None)


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no train-\*\.parquet"):
        resident.read(tmp_path, "train", None)
    (tmp_path / "train-0.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"train-0\.parquet is not a whole Parquet file"):
        resident.read(tmp_path, "train", None)


def test_the_digest_is_of_the_contents(tmp_path: Path) -> None:
    digests = []
    for folder, label in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "train-0.parquet", [encoded(pictures(1)[0])], [label])
        write(tmp_path / folder / "test-0.parquet", [encoded(pictures(1)[0])], [0])
        digests.append(resident.digest(tmp_path / folder))
    assert digests[0] == digests[1] != digests[2]


def test_batches_hold_every_image_once_with_its_label() -> None:
    split = Split(torch.arange(10, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2), torch.arange(10))
    orders = []
    for seed in (0, 0, 1):
        batches = list(split.shuffled(4, torch.Generator().manual_seed(seed)))
        assert [len(labels) for _, labels in batches] == [4, 4, 2]
        for images, labels in batches:
            assert torch.equal(images[:, 0, 0, 0].long(), labels)
        orders.append(torch.cat([labels for _, labels in batches]).tolist())
    assert sorted(orders[0]) == list(range(10))
    assert orders[0] == orders[1] != orders[2]
    assert torch.cat([labels for _, labels in split.in_order(3)]).tolist() == list(range(10))


def test_statistics_are_exact() -> None:
    images = pictures(50)
    levels = images.double()
    found = resident.statistics(images)
    assert found["mean"] == pytest.approx(levels.mean((0, 2, 3)).tolist(), rel=1e-12)
    assert found["std"] == pytest.approx(levels.std((0, 2, 3), correction=0).tolist(), rel=1e-12)
