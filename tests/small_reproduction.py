"""The protocol on one device in miniature, for tests: its images, its command line, and what it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torchvision.io import encode_png

from pipeline.reproduction.pieces import load

TRAIN, TEST, CLASSES, SIZE = 40, 16, 4, 8
EPOCHS, CHECKPOINTS, INNER, STEPS, CHUNK = 3, 2, 3, 2, 16


def pictures(count: int) -> tuple[Tensor, list[int]]:
    """Noise whose brightness is the class."""
    labels = [i % CLASSES for i in range(count)]
    noise = torch.randint(60, (count, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(count))
    return (noise + 60 * torch.tensor(labels).view(-1, 1, 1, 1)).to(torch.uint8), labels


def write_parquet(folder: Path) -> None:
    """The pictures as data hubs publish them."""
    for split, count in (("train", TRAIN), ("test", TEST)):
        images, labels = pictures(count)
        structs = [{"bytes": bytes(encode_png(image)), "path": f"{i}.png"} for i, image in enumerate(images)]
        pq.write_table(pa.table({"img": structs, "label": labels}), folder / f"{split}-00000-of-00001.parquet")


def command(data: Path, out: Path, **changed: Any) -> list[str]:
    """The arguments; any flag can be changed."""
    flags: dict[str, Any] = {
        "data": data,
        "out": out,
        "network": "resnet8",
        "epochs": EPOCHS,
        "checkpoints": CHECKPOINTS,
        "inner_steps": INNER,
        "steps": STEPS,
        "chunk_images": CHUNK,
        "device": "cpu",
    } | changed
    return [
        word
        for name, value in flags.items()
        for word in (f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value]))
    ]


def card(out: Path) -> dict[str, Any]:
    """As written."""
    found: dict[str, Any] = json.loads((out / "card.json").read_text())
    return found


def figures(out: Path) -> dict[str, Any]:
    """What of a card does not depend on the clock."""
    found = card(out)
    protection = {
        budget: {name: of[name] for name in ("linf_levels", "psnr_db", "gradients")} for budget, of in found["protection"].items()
    }
    surrogate = found["surrogate"]["train_accuracy"]
    return {"victims": found["victims"], "protection": protection, "surrogate": surrogate, "settings": found["settings"]}


def protected(out: Path, eps_levels: int) -> Tensor:
    """The release of a budget."""
    chunks = [load(path) for path in sorted((out / "craft" / f"eps{eps_levels}").glob("*.pt"))]
    return torch.cat([chunk["images"] for chunk in chunks if chunk])
