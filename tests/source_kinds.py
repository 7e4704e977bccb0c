"""The same six pictures of three classes written as every kind of source, and what must be found in each."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.schema import PackConfig, RunConfig
from pipeline.shards.pixels import Pixels
from pipeline.sources.dataset import Dataset
from pipeline.sources.decoding import decode
from tests.pictures import encoded, picture, write

IMAGES = [picture(i, 32, 32) for i in range(6)]
LABELS = [0, 1, 2, 0, 1, 2]
NAMES = ["ant", "bee", "cat"]


def config(data: Path, **pack: Any) -> RunConfig:
    return RunConfig(data=str(data), stages=("pack",), pack=PackConfig(**pack))


def contents(dataset: Dataset) -> dict[tuple[str, str], list[bytes]]:
    """The decoded images of every (split, class name), in the order of the pictures."""
    found: dict[tuple[str, str], list[bytes]] = {}
    for entry, data in dataset.reader.read(dataset.entries):
        pixels = decode(data, 10_000) if isinstance(data, bytes) else data
        found.setdefault((entry.split, dataset.classes[entry.label]), []).append(pixels.tobytes())
    return {place: sorted(images) for place, images in found.items()}


def expected(names: list[str]) -> dict[tuple[str, str], list[bytes]]:
    """All six pictures in training, the first three in testing."""
    places = {"train": range(6), "test": range(3)}
    return {(s, n): sorted(IMAGES[i].tobytes() for i in rows if LABELS[i] == k) for s, rows in places.items() for k, n in enumerate(names)}


def write_folders(root: Path, test: str = "test") -> None:
    for i, (image, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
        write(root / "train" / NAMES[label] / ("deep/er" if i == 4 else "") / f"{i}.png", encoded(image))
        if i < 3:
            write(root / test / NAMES[label] / f"{i}.png", encoded(image))
    write(root / "train" / "README.txt", b"no image, and in no class")
    write(root / "train" / "ant" / ".hidden.png", b"")


def write_parquet(
    root: Path, name: str, rows: range, *, path: Callable[[int], str | None], metadata: bool = False, column: str = "img"
) -> None:
    struct = [{"bytes": encoded(IMAGES[i]), "path": path(i)} for i in rows]
    table = pa.table({column: struct, "fine_label": [LABELS[i] for i in rows], "coarse_label": [0 for _ in rows]})
    if metadata:
        features = {"info": {"features": {"fine_label": {"names": NAMES, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    root.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, root / name, row_group_size=2)


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def write_tar(path: Path, rows: range, folder: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for i in rows:
            add(tar, f"{folder}{i:04d}.cls", b"%d\n" % LABELS[i])
            add(tar, f"{folder}{i:04d}.seg.json", b"{}")
            add(tar, f"{folder}{i:04d}.PNG", encoded(IMAGES[i]))


def planes(rows: range) -> Pixels:
    return np.stack([IMAGES[i].transpose(2, 0, 1).reshape(-1) for i in rows])


def write_cifar_pickles(root: Path, hundred: bool) -> None:
    """As the authors' Python 2 and NumPy 1 wrote them, but for the byte strings."""

    def dump(name: str, content: dict[bytes, Any]) -> None:
        write(root / name, pickle.dumps(content, protocol=3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))

    label = b"fine_labels" if hundred else b"labels"
    parts = {"train": range(6)} if hundred else {f"data_batch_{i}": range(i if i > 1 else 0, i + 1) for i in range(1, 6)}
    for name, rows in {**parts, "test" if hundred else "test_batch": range(3)}.items():
        dump(name, {b"data": planes(rows), label: [LABELS[i] for i in rows]})
    names = [name.encode() for name in NAMES]
    dump("meta" if hundred else "batches.meta", {b"fine_label_names" if hundred else b"label_names": names})


def write_cifar_binaries(root: Path, hundred: bool) -> None:
    def records(rows: range) -> bytes:
        coarse = b"\x07" if hundred else b""
        return b"".join(coarse + bytes([LABELS[i]]) + planes(range(i, i + 1)).tobytes() for i in rows)

    ten = {f"data_batch_{i}.bin": range(i if i > 1 else 0, i + 1) for i in range(1, 6)} | {"test_batch.bin": range(3)}
    hundreds = {"train.bin": range(6), "test.bin": range(3)}
    for name, rows in (hundreds if hundred else ten).items():
        write(root / name, records(rows))
    write(root / ("fine_label_names.txt" if hundred else "batches.meta.txt"), "\n".join([*NAMES, ""]).encode())


def hub(root: Path) -> None:
    write_parquet(root / "data", "train-00000-of-00002.parquet", range(4), path=lambda i: None, metadata=True)
    write_parquet(root / "data", "train-00001-of-00002.parquet", range(4, 6), path=lambda i: f"{i}.png", metadata=True)
    write_parquet(root / "data", "validation-00000-of-00001.parquet", range(3), path=lambda i: "same.png", metadata=True)


def hub_without_metadata(root: Path) -> None:
    write_parquet(root, "train.parquet", range(6), path=lambda i: f"x/{NAMES[LABELS[i]]}/{i}.png", column="image")
    write_parquet(root, "test-0.parquet", range(3), path=lambda i: f"{NAMES[LABELS[i]]}/{i}.png", column="image")


def named_tars(root: Path) -> None:
    write_tar(root / "train-000000.tar", range(4), "some.folder/")
    write_tar(root / "train-000001.tar", range(4, 6))
    write_tar(root / "test-000000.tar", range(3))
    write(root / "classes.txt", "\n".join(NAMES).encode())


def numbered_tars(root: Path) -> None:
    write_tar(root / "train.tar", range(6))
    write_tar(root / "val-0.tar", range(3))


KINDS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "class folders": (write_folders, NAMES),
    "class folders with val": (lambda root: write_folders(root, "val"), NAMES),
    "parquet of a hub": (hub, NAMES),
    "parquet, classes in the paths": (hub_without_metadata, NAMES),
    "tars with class names": (named_tars, NAMES),
    "tars with numbers": (numbered_tars, ["0", "1", "2"]),
    "cifar-10 pickles": (lambda root: write_cifar_pickles(root / "cifar-10-batches-py", False), NAMES),
    "cifar-100 pickles": (lambda root: write_cifar_pickles(root, True), NAMES),
    "cifar-10 binaries": (lambda root: write_cifar_binaries(root, False), NAMES),
    "cifar-100 binaries": (lambda root: write_cifar_binaries(root / "cifar-100-binary", True), NAMES),
}
