"""Lossless WebP beside PNG for stored pictures: bytes, and CPU milliseconds to encode and to decode.

`python -m tests.benchmarks.stored_format FOLDER` reads every image below a folder and cuts it to 224 x 224, unless `--size` says otherwise.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torchvision.io import ImageReadMode, decode_png, decode_webp

from pipeline.shards.file_formats import FileFormat
from pipeline.shards.pixels import Pixels, decode, encode_png
from pipeline.sources.decoding import IMAGE_SUFFIXES, fit
from pipeline.sources.decoding import decode as decode_source

MOST_PIXELS = 64_000_000
ENCODERS: dict[str, Callable[[Pixels], bytes]] = {
    "png": encode_png,
    "webp": lambda pixels: FileFormat("WEBP", {"lossless": True}).encode(pixels, {}),
    "webp, least effort": lambda pixels: FileFormat("WEBP", {"lossless": True, "method": 0, "quality": 0}).encode(pixels, {}),
}


def measure(pictures: Sequence[Pixels]) -> dict[str, Any]:
    """Return the means over pictures `(H, W, 3)` by encoder: kilobytes, and milliseconds of this process's CPU time."""
    found = {}
    for name, encode in ENCODERS.items():
        encoding, files = _timed(encode, pictures)
        plain, decoded = _timed(decode, files)
        assert all((one == other).all() for one, other in zip(decoded, pictures, strict=True))
        tensors = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]
        fast, _ = _timed(_png if name == "png" else decode_webp, tensors)
        size = round(fmean(map(len, files)) / 1000, 1)
        found[name] = {"kilobytes": size, "encode_ms": encoding, "decode_pillow_ms": plain, "decode_torchvision_ms": fast}
    return {"pictures": len(pictures), "size": list(pictures[0].shape[:2]), **found}


def _png(data: torch.Tensor) -> torch.Tensor:
    decoded: torch.Tensor = decode_png(data, ImageReadMode.RGB)
    return decoded


def _timed(function: Callable[[Any], Any], values: Sequence[Any]) -> tuple[float, list[Any]]:
    """Return the mean milliseconds of a call, after one that is not counted, and the results."""
    function(values[0])
    begun = time.process_time()
    results = [function(value) for value in values]
    return round(1000 * (time.process_time() - begun) / len(values), 2), results


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--most", type=int, default=200, help="images to read")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    files = sorted(path for path in asked.folder.rglob("*") if path.suffix[1:].lower() in IMAGE_SUFFIXES)
    chosen = files[:: max(1, len(files) // asked.most)][: asked.most]
    print(json.dumps(measure([fit(decode_source(path.read_bytes(), MOST_PIXELS), asked.size) for path in chosen]), indent=2))


if __name__ == "__main__":
    main()
