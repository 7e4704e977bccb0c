"""Decoded shards on disk: decoded once, never half-written, never more than the limit, and the same images."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.shards import tensors
from pipeline.shards.decoded_cache import DecodedCache
from pipeline.shards.pixels import encode_png
from pipeline.shards.shard import Sample, read_shard, write_shard
from pipeline.shards.tensors import Loading, load, load_images
from pipeline.storage.folder import Folder
from pipeline.storage.stage import Shard
from pipeline.training.batches import Split, open_batches, open_tests
from sep.pictures import Pictures
from tests import ROOT
from tests.fixtures.pictures import picture

ONE = 40_000  # bytes of a decoded shard of the fixture with what torch writes around it, at most
IMAGES = 12
WRITERS = """
import os, resource, signal, sys
from pathlib import Path
import torch
from pipeline.shards.decoded_cache import DecodedCache

cache, images, labels = DecodedCache(Path(sys.argv[1]), 10**9), torch.ones(12, 3, 64, 64, dtype=torch.uint8), torch.ones(12)

def half_way():  # the system kills who writes a larger file than this
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000))

def at_the_end():
    sys.addaudithook(lambda event, _: os.kill(os.getpid(), signal.SIGKILL) if event == "os.rename" else None)

for digest, killed in zip(sys.argv[2:], (half_way, at_the_end)):
    if not (writer := os.fork()):
        killed()
        cache.write(digest, images, labels)
        os._exit(0)
    print(signal.Signals(-os.waitstatus_to_exitcode(os.waitpid(writer, 0)[1])).name, flush=True)
while True:
    cache.write("both", images, labels)
"""


@pytest.fixture
def shards(tmp_path: Path) -> tuple[Folder, list[Shard]]:
    folder = Folder.open(str(tmp_path / "pack"))

    def samples(number: int) -> list[Sample]:
        return [Sample(f"{number}{i:03d}", encode_png(picture(100 * number + i, 32, 32)), i % 3, b"{}") for i in range(IMAGES)]

    return folder, [write_shard(folder, f"train-{number:06d}.tar", samples(number))[0] for number in range(3)]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of images that were decoded together."""
    counts, decode = [], tensors._decoded

    def counted(samples: Sequence[Sample]) -> Tensor:
        counts.append(len(samples))
        return decode(samples)

    monkeypatch.setattr(tensors, "_decoded", counted)
    return counts


@pytest.fixture
def cache(tmp_path: Path) -> DecodedCache:
    (tmp_path / "cache").mkdir()
    return DecodedCache(tmp_path / "cache", 10 * ONE)


def equal(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_a_shard_is_decoded_once(shards: tuple[Folder, list[Shard]], decoded: list[int], cache: DecodedCache) -> None:
    wanted = load(*shards)
    decoded.clear()
    assert equal(load(*shards, loading=Loading(3, cache)), wanted)
    assert sum(decoded) == 3 * IMAGES
    decoded.clear()
    assert equal(load(*shards, loading=Loading(1, cache)), wanted)
    assert not decoded


def test_pictures_of_their_own_size_are_decoded_once_too(
    shards: tuple[Folder, list[Shard]], cache: DecodedCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the same shard as images of one size."""
    folder, (same, *_) = shards
    samples = [Sample(f"{i:03d}", encode_png(picture(i, 8 + i, 20)), i % 3, b"{}") for i in range(IMAGES)]
    mixed, _ = write_shard(folder, "train-000009.tar", samples)
    wanted, labels = load_images(folder, [same, mixed], loading=Loading(input_size=8))
    first = load(folder, [same], loading=Loading(2, cache))
    for loading in [Loading(2, cache, input_size=8)] * 2:
        found, known = load_images(folder, [same, mixed], loading=loading)
        assert isinstance(found, Pictures)
        assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
        assert torch.equal(known, labels)
        monkeypatch.setattr(tensors, "_of_any_size", None)
    assert equal(load(folder, [same], loading=Loading(2, cache)), first)
    assert len([*cache.folder.iterdir()]) == 3


def test_another_shard_of_the_same_name_is_another(shards: tuple[Folder, list[Shard]], cache: DecodedCache) -> None:
    folder, (first, second, _) = shards
    load(folder, [first], loading=Loading(2, cache))
    folder.write(first.name, folder.read(second.name))
    other = Shard(first.name, second.sha256, second.count)
    assert equal(load(folder, [other], loading=Loading(2, cache)), load(folder, [second]))


@pytest.mark.faults
def test_killed_writers_leave_nothing_that_is_read_and_two_at_once_do_not_mix(
    shards: tuple[Folder, list[Shard]], decoded: list[int], cache: DecodedCache
) -> None:
    """A writer dies half-way, another before its file is in place, a third at any moment, while this process writes the same shard."""
    folder, (first, second, _) = shards
    program = [sys.executable, "-c", WRITERS, str(cache.folder), first.sha256, second.sha256]
    with subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE, text=True) as writers:
        try:
            assert writers.stdout
            assert [writers.stdout.readline().strip() for _ in range(2)] == ["SIGXFSZ", "SIGKILL"]
            wanted = load(folder, [first, second])
            decoded.clear()
            for _ in range(2):
                cache = DecodedCache(cache.folder, 10**9)
                assert equal(load(folder, [first, second], loading=Loading(2, cache)), wanted)
            assert sum(decoded) == 2 * IMAGES
            seen: list[set[int]] = []
            while {1} not in seen or {2} not in seen:
                cache.write("both", torch.full((12, 3, 64, 64), 2, dtype=torch.uint8), torch.full((12,), 2))
                for _ in range(5):
                    seen += [read(cache)]
                assert writers.poll() is None
        finally:
            writers.kill()
    assert {frozenset(values) for values in [*seen, read(cache)]} == {frozenset({1}), frozenset({2})}


def read(cache: DecodedCache) -> set[int]:
    """Return the values of a shard that the next training finds."""
    found = DecodedCache(cache.folder, 10**9).read("both")
    return {int(value) for values in found or () for value in torch.unique(values)}


@pytest.mark.faults
def test_what_is_half_written_or_cut_short_is_not_read(
    shards: tuple[Folder, list[Shard]], decoded: list[int], cache: DecodedCache, caplog: pytest.LogCaptureFixture
) -> None:
    folder, (first, second, _) = shards
    loading = Loading(2, cache)
    wanted = load(folder, [first, second], loading=loading)
    file = cache.folder / f"{first.sha256}.pt"
    file.write_bytes(file.read_bytes()[: ONE // 2])
    decoded.clear()
    assert equal(load(folder, [first, second], loading=loading), wanted)
    assert sum(decoded) == IMAGES
    assert "cannot be read, and is made anew" in caplog.text
    assert equal(load(folder, [first, second], loading=loading), wanted)
    assert sum(decoded) == IMAGES


@pytest.mark.faults
@pytest.mark.parametrize("place", [0.2, 0.9])
def test_an_altered_byte_is_found_by_the_next_training(
    place: float, shards: tuple[Folder, list[Shard]], decoded: list[int], cache: DecodedCache, caplog: pytest.LogCaptureFixture
) -> None:
    folder, (first, *_) = shards
    wanted = load(folder, [first], loading=Loading(2, cache))
    file = cache.folder / f"{first.sha256}.pt"
    content = bytearray(file.read_bytes())
    content[int(place * IMAGES * 32 * 32 * 3)] ^= 1
    file.write_bytes(content)
    decoded.clear()
    assert equal(load(folder, [first], loading=Loading(2, DecodedCache(cache.folder, cache.limit))), wanted)
    assert sum(decoded) == IMAGES
    assert "is damaged" in caplog.text


def test_what_is_held_in_memory_needs_no_folder(
    shards: tuple[Folder, list[Shard]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    place, loading = tmp_path / f"decoded-shards-{os.getuid()}", Loading(2, cache_gb=1.0)
    for limit_mb in (100, 0):
        batches = open_batches(*shards, 3072, limit_mb, Split(12, 0), torch.device("cpu"), loading=loading)
        tests = open_tests(*shards, 3072, limit_mb, torch.device("cpu"), loading)
        assert sum(len(labels) for source in (batches.epoch(0), tests()) for _, labels in source) == 6 * IMAGES
        assert place.exists() is (limit_mb == 0)
    assert len(list(place.iterdir())) == 3


def test_it_stays_below_its_limit_and_keeps_what_this_training_uses(
    shards: tuple[Folder, list[Shard]], decoded: list[int], cache: DecodedCache
) -> None:
    folder, all_three = shards
    old = [cache.folder / name for name in ("a.pt", "b.pt", ".building-c")]  # of an earlier training, and of one that was killed
    for number, file in enumerate(old):
        file.write_bytes(bytes(ONE))
        os.utime(file, (number, number))
    full = DecodedCache(cache.folder, 3 * ONE)
    load(folder, all_three[:1], loading=Loading(2, full))
    assert [file.exists() for file in old] == [False, True, True]
    for _ in range(2):
        load(folder, all_three, loading=Loading(2, full))
        assert sum(file.stat().st_size for file in cache.folder.iterdir()) <= 3 * ONE
    assert sorted(file.stem for file in cache.folder.iterdir()) == sorted(shard.sha256 for shard in all_three)
    small = DecodedCache(cache.folder, 2 * ONE, begun=0)
    decoded.clear()
    small.write("d", torch.zeros(ONE, dtype=torch.uint8), torch.zeros(1))
    assert small.read("d") is None
    load(folder, all_three, loading=Loading(2, small))
    assert not decoded


def test_only_what_the_digest_stands_for_is_kept(shards: tuple[Folder, list[Shard]], cache: DecodedCache) -> None:
    """Another reader may give other samples, such as clean ones in the place of some."""
    load(*shards, lambda folder, shard: read_shard(folder, shard)[::-1], Loading(2, cache))
    assert not list(cache.folder.iterdir())


@pytest.mark.faults
def test_a_full_disk_costs_a_line(
    shards: tuple[Folder, list[Shard]], cache: DecodedCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = load(*shards)

    def full(folder: Folder, name: str, data: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Folder, "write", full)
    assert equal(load(*shards, loading=Loading(2, cache)), wanted)
    assert "decoded images are not cached: No space left on device" in caplog.text


def test_the_folder_is_this_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert DecodedCache.of_this_machine(0) is None
    cache = DecodedCache.of_this_machine(1.5)
    assert cache is not None
    assert (cache.folder.parent, cache.limit) == (tmp_path, 1_500_000_000)
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    cache.folder.chmod(0o777)
    with caplog.at_level(logging.WARNING):
        assert DecodedCache.of_this_machine(1.5) is None
    assert "decoded images are not cached there" in caplog.text


def test_what_nobody_used_for_a_week_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    cache = DecodedCache.of_this_machine(1)
    assert cache
    for name, days in (("old", 8), ("new", 6)):
        (cache.folder / name).write_bytes(b"")
        os.utime(cache.folder / name, (cache.begun - 86400 * days,) * 2)
    DecodedCache.of_this_machine(1)
    assert [file.name for file in cache.folder.iterdir()] == ["new"]


@pytest.mark.parametrize("place", ["a file", "a link to nowhere", "no folder at all"])
def test_without_a_place_for_it_nothing_is_kept(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path if place != "no folder at all" else tmp_path / "gone"))
    folder = tmp_path / f"decoded-shards-{os.getuid()}"
    if place == "a file":
        folder.write_bytes(b"")
    elif place == "a link to nowhere":
        folder.symlink_to(tmp_path / "nowhere")
    assert DecodedCache.of_this_machine(1) is None
