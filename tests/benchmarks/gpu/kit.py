"""What travels to a GPU machine without a network, beside the tree: wheels and images, in a folder that git ignores.

python -m tests.benchmarks.gpu.kit DATA [--to gpu-kit]      DATA: the folder with CIFAR-10's Parquet files
python -m tests.benchmarks.gpu.kit --ray [--to gpu-kit]     Ray in the place of the images, which takes a transfer of its own
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tests import ROOT

WHEELS = (
    *("pydantic", "pydantic-core", "annotated-types", "typing-extensions", "typing-inspection"),
    *("tyro", "docstring-parser", "typeguard", "webdataset", "braceexpand", "loky", "cloudpickle", "tqdm"),
)
RAY = (
    *("ray", "click", "jsonschema", "jsonschema-specifications", "attrs", "referencing", "rpds-py", "msgpack", "protobuf"),
    *("requests", "urllib3", "certifi", "idna", "charset-normalizer", "tensorboardX", "python-dateutil", "six"),
)
NOT_OF_RAY = ("./ray/jars", "./ray/dashboard/client", "./ray/rllib")  # large, and of no use there
MOST_MIB = 64  # of the tree and the kit together, in one transfer


def wheels(to: Path, names: Sequence[str] = WHEELS) -> list[str]:
    """Return the command that unpacks wheels into a folder; if none are named, those of docs/reproduce.md."""
    asked = ("--no-deps", "--no-compile", "--constraint", str(ROOT / "constraints.txt"), "--python-version", "3.12", "--only-binary=:all:")
    return [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(to), *asked, *names]


def pack(source: Path, to: Path) -> None:
    """Write a compressed archive of a folder, without what Ray needs for other languages and its pages."""
    with tarfile.open(to, "w:gz") as archive:
        archive.add(source, ".", filter=lambda entry: None if entry.name.startswith(NOT_OF_RAY) else entry)


def ray(to: Path) -> None:
    """Pack Ray, and what it needs beside the wheels."""
    with TemporaryDirectory() as folder:
        subprocess.run(wheels(Path(folder), RAY), check=True)
        pack(Path(folder), to)


def images(source: Path, to: Path) -> None:
    """Copy the Parquet files.

    Raises:
        ValueError: there are none.
    """
    files = sorted(source.glob("*.parquet"))
    if not files:
        raise ValueError(f"no Parquet files in {source}: give the folder with CIFAR-10's train-*.parquet and test-*.parquet")
    to.mkdir(parents=True)
    for file in files:
        shutil.copy(file, to)


def tree() -> list[Path]:
    """Return the files of the project that git tracks or would track."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def mib(paths: Sequence[Path]) -> float:
    """Return the size of files, in folders too, in MiB."""
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]
    return sum(file.stat().st_size for file in files) / 2**20


def main(arguments: Sequence[str] | None = None) -> int:
    """Fill the folder, and say how much there is to carry."""
    parser = argparse.ArgumentParser("kit.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given_one = parser.add_mutually_exclusive_group(required=True)
    given_one.add_argument("data", type=Path, nargs="?")
    given_one.add_argument("--ray", action="store_true")
    parser.add_argument("--to", type=Path, default=ROOT / "gpu-kit")
    given = parser.parse_args(arguments)
    shutil.rmtree(given.to, ignore_errors=True)
    try:
        if given.ray:
            given.to.mkdir(parents=True)
            ray(given.to / "ray.tgz")
        else:
            images(given.data, given.to / "data")
        subprocess.run(wheels(given.to / "wheels"), check=True)
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        print(f"kit.py: {error}", file=sys.stderr)
        return 1
    parts = {"tree": mib(tree()), "wheels": mib([given.to / "wheels"])}
    parts |= {"ray": mib([given.to / "ray.tgz"])} if given.ray else {"images": mib([given.to / "data"])}
    whole = sum(parts.values())
    print(f"{', '.join(f'{name} {size:.1f}' for name, size in parts.items())}: {whole:.1f} MiB of {MOST_MIB}, in {given.to}")
    if whole > MOST_MIB:
        print(f"kit.py: more than one transfer takes: move files out of {given.to}, and send them in a second one", file=sys.stderr)
    return int(whole > MOST_MIB)


if __name__ == "__main__":
    sys.exit(main())
