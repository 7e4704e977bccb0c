from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from pipeline.operations.verification import verify
from pipeline.shards.pixels import encode_png, pixels_sha256
from pipeline.shards.shard import Sample, decode_shard, encode_shard
from pipeline.shards.tables import read_table, rows_to_table, write_table
from pipeline.storage.folder import Folder
from pipeline.storage.records import digest, sha256
from pipeline.verify import main
from tests.fixtures import finished_run

SHARD = "protect/train-000001.tar"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with protected images."""
    path = tmp_path_factory.mktemp("finished") / "run"
    finished_run.write(path, stages=("pack", "surrogate", "protect"))
    return path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of that run to damage."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def faults(run: Path) -> tuple[str, ...]:
    """Return the faults without the original names of samples, which have a test of their own."""
    return tuple(re.sub(r"^([^:]+: [^:]+) \(.*?\): ", r"\1: ", fault) for fault in verify(Folder.open(str(run))).faults)


def samples_of(run: Path, name: str = SHARD) -> list[Sample]:
    return decode_shard((run / name).read_bytes())


def rewrite(run: Path, change: Callable[[list[Sample]], Sequence[Sample]], name: str = SHARD) -> None:
    """Change a shard's samples, and update the manifest to match the new file."""
    samples = list(change(samples_of(run, name)))
    (run / name).write_bytes(encode_shard(samples))
    fix_manifest(run, name, len(samples))


def fix_manifest(run: Path, name: str, count: int | None = None) -> None:
    stage, _, shard = name.partition("/")
    path = run / stage / "manifest.json"
    manifest = json.loads(path.read_text())
    for entry in (entry for entries in manifest["shards"].values() for entry in entries if entry["name"] == shard):
        entry["sha256"] = sha256((run / name).read_bytes())
        entry["count"] = count or entry["count"]
    path.write_text(json.dumps(manifest))


def record(run: Path, changes: dict[str, dict[str, Any]]) -> None:
    """Change the rows of some images in the table of protected images."""
    folder = Folder.open(str(run / "protect"))
    table = read_table(folder, "samples.parquet")
    rows = [{**row, **changes.get(row["key"], {})} for row in table.to_pylist()]
    write_table(folder, "samples.parquet", rows_to_table(rows, table.schema))


def unprotect(run: Path, label: int, levels: Literal[0, 1] = 0) -> None:
    """Release a class unchanged, apart from `levels` on one pixel of its first image, and record the result truthfully."""
    names = ("train-000000.tar", "train-000001.tar")
    clean = {sample.key: sample for name in names for sample in samples_of(run, f"pack/{name}") if sample.label == label}
    first = next(iter(clean))
    pixels = clean[first].pixels
    pixels[0, 0, 0] ^= levels
    clean[first] = replace(clean[first], image=encode_png(pixels))
    for name in names:
        rewrite(run, lambda samples: [clean.get(sample.key, sample) for sample in samples], f"protect/{name}")
    record(run, {k: {"sha256": pixels_sha256(s.pixels), "linf_levels": levels if k == first else 0} for k, s in clean.items()})
    kept, manifest = [k for k in range(3) if k != label], json.loads((path := run / "protect/manifest.json").read_text())
    manifest["asked"]["protect"]["classes"] = [str(k) for k in kept]
    manifest["counts"] |= {"classes": kept, "protected": 36 - len(clean)}
    path.write_text(json.dumps({**manifest, "hash": digest(manifest["asked"])}))


def test_a_finished_run_has_no_fault(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    audit = verify(Folder.open(str(run)))
    assert audit.faults == ()
    manifest = json.loads((run / "protect/manifest.json").read_text())
    assert (audit.images, audit.shards, str(audit.budget)) == (36, 2, "8/255")
    assert audit.largest_change == manifest["counts"]["linf_levels"] > 0
    assert main(["--run", str(run)]) == 0
    assert "36 protected images in 2 shards" in capsys.readouterr().out


def test_every_region_of_a_shard_a_byte_can_be_flipped_in_is_told_apart(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (run / SHARD).read_bytes()
    places: dict[int, str] = {}  # offset -> key of the sample that the byte belongs to, if any
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        for member in tar.getmembers()[9:15]:
            key, start, size = member.name.partition(".")[0], member.offset_data, member.size
            places |= dict.fromkeys((member.offset + 3, member.offset + 130, start, start + size // 2, start + size - 1), key)
            if size % 512:
                places[start + size] = ""  # padding
        places[len(whole) - 5] = ""  # end of the archive
    assert len(set(places.values())) == 3
    for offset, key in places.items():
        damaged = bytearray(whole)
        damaged[offset] ^= 1
        (run / SHARD).write_bytes(damaged)
        found = faults(run)
        assert all(fault.startswith(SHARD) for fault in found), found
        if key:
            assert found[0] == f"{SHARD}: its bytes are not those recorded"
            assert {fault.split(": ")[1] for fault in found[1:]} == {key}, (offset, found)
        else:
            assert found == (f"{SHARD}: its bytes are not those recorded, no sample affected",)
    assert main(["--run", str(run)]) == 1
    assert SHARD in capsys.readouterr().out


def test_a_class_that_is_not_protected_must_be_the_clean_one(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    unprotect(run, 1)
    assert main(["--run", str(run)]) == 0
    assert "24 protected images and 12 released as they are in 2 shards" in capsys.readouterr().out
    path = run / "protect/manifest.json"
    path.write_text(path.read_text().replace('"classes": [0, 2]', '"classes": [0, 1, 2]'))
    assert faults(run) == ("protect/manifest.json: protected classes [0, 1, 2], asked for [0, 2]",)
    unprotect(other, 1, levels=1)
    key = next(sample.key for sample in samples_of(other, "pack/train-000000.tar") if sample.label == 1)
    assert faults(other) == (f"protect/train-000000.tar: {key}: changed by 1 levels, though its class is not protected",)


def test_every_byte_of_a_png_is_watched(run: Path) -> None:
    """This includes checksums, which decoders skip, and the last chunk."""
    whole = (run / SHARD).read_bytes()
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        png = next(member for member in tar.getmembers() if member.name.endswith(".png"))
    for offset in [*range(0, png.size, 41), *range(png.size - 17, png.size)]:
        damaged = bytearray(whole)
        damaged[png.offset_data + offset] ^= 0x10
        (run / SHARD).write_bytes(damaged)
        assert any(png.name.partition(".")[0] in fault for fault in faults(run)), offset


def test_a_cut_shard_loses_the_samples_behind_the_cut_by_name(run: Path) -> None:
    whole = (run / SHARD).read_bytes()
    keys = [sample.key for sample in samples_of(run)]
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        cut = next(member for member in tar.getmembers() if member.name == f"{keys[10]}.png")
    (run / SHARD).write_bytes(whole[: cut.offset_data + 100])
    found = faults(run)
    assert f"{SHARD}: {keys[9]}" not in "".join(found)
    assert f"{SHARD}: {keys[10]}: its png is missing or unreadable" in found
    assert all(f"{SHARD}: {key}: missing" in found for key in keys[11:])


@pytest.mark.parametrize("fixed_up", [False, True])
def test_a_dropped_sample_is_named(run: Path, fixed_up: bool) -> None:
    gone = samples_of(run)[4].key
    kept = [sample for sample in samples_of(run) if sample.key != gone]
    (run / SHARD).write_bytes(encode_shard(kept))
    if fixed_up:
        fix_manifest(run, SHARD, len(kept))
    found = faults(run)
    assert f"{SHARD}: {gone}: missing" in found
    assert (f"{SHARD}: its bytes are not those recorded" in found) is not fixed_up
    assert sum(gone in fault for fault in found) == sum(": train-" in fault for fault in found)


def test_swapped_labels_are_named(run: Path) -> None:
    first, second = samples_of(run)[:2]
    assert first.label != second.label
    rewrite(run, lambda samples: [replace(first, label=second.label), replace(second, label=first.label), *samples[2:]])
    assert faults(run) == (
        f"{SHARD}: {first.key}: label '{second.label}', recorded {first.label}",
        f"{SHARD}: {second.key}: label '{first.label}', recorded {second.label}",
    )


def test_labels_swapped_in_the_table_as_well_are_named(run: Path) -> None:
    key, label = samples_of(run)[0].key, samples_of(run)[0].label
    rewrite(run, lambda samples: [replace(samples[0], label=(label + 1) % 3), *samples[1:]])
    record(run, {key: {"label": (label + 1) % 3}})
    assert f"{SHARD}: {key}: label '{(label + 1) % 3}', recorded {label}" in faults(run)


def test_a_pixel_nine_levels_off_is_named(run: Path) -> None:
    """The shard is intact, and its manifest agrees with it."""
    clean = samples_of(run, "pack/train-000001.tar")

    def nine_levels(samples: list[Sample]) -> list[Sample]:
        pixels, before = samples[7].pixels, clean[7].pixels
        pixels[3, 4, 1] = before[3, 4, 1] + (9 if before[3, 4, 1] < 128 else -9)
        return [*samples[:7], replace(samples[7], image=encode_png(pixels)), *samples[8:]]

    rewrite(run, nine_levels)
    found = faults(run)
    assert f"{SHARD}: {clean[7].key}: changed by 9 levels, budget 8" in found
    assert f"{SHARD}: {clean[7].key}: pixels are not those recorded" in found
    assert all(clean[7].key in fault for fault in found if fault.startswith(SHARD))


def test_a_change_inside_the_budget_is_seen_by_its_hash(run: Path) -> None:
    clean = samples_of(run, "pack/train-000001.tar")[2]
    rewrite(run, lambda samples: [*samples[:2], replace(samples[2], image=clean.image), *samples[3:]])
    found = faults(run)
    assert f"{SHARD}: {clean.key}: pixels are not those recorded" in found
    assert any(fault.startswith(f"{SHARD}: {clean.key}: changed by 0 levels, recorded") for fault in found)


def test_another_size_is_a_fault_and_not_a_crash(run: Path) -> None:
    small = encode_png(np.zeros((4, 4, 3), np.uint8))
    key = samples_of(run)[0].key
    rewrite(run, lambda samples: [replace(samples[0], image=small), *samples[1:]])
    assert any(fault.startswith(f"{SHARD}: {key}: size (4, 4, 3)") for fault in faults(run))


def test_a_key_that_is_there_twice_or_is_no_clean_one_is_named(run: Path) -> None:
    key = samples_of(run)[3].key
    rewrite(run, lambda samples: [*samples, samples[3], replace(samples[0], key="stranger")])
    found = faults(run)
    assert f"{SHARD}: {key}: there more than once" in found
    assert f"{SHARD}: stranger: not a clean image of this shard in pack/samples.parquet" in found


def test_a_fault_names_the_image_as_its_owner_knows_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample = samples_of(run)[5]
    rewrite(run, lambda samples: [s for s in samples if s.key != sample.key])
    assert main(["--run", str(run)]) == 1
    assert f"{SHARD}: {sample.key} ({json.loads(sample.info)['source']}): missing" in capsys.readouterr().out


def test_another_json_is_named(run: Path) -> None:
    key = samples_of(run)[5].key
    rewrite(run, lambda samples: [*samples[:5], replace(samples[5], info=b"{}"), *samples[6:]])
    assert faults(run) == (f"{SHARD}: {key}: json differs from the clean sample's",)


def test_a_missing_shard_costs_its_keys_and_the_rest_is_still_audited(run: Path) -> None:
    keys = [sample.key for sample in samples_of(run)]
    (run / SHARD).unlink()
    other = samples_of(run, "protect/train-000000.tar")[0].key
    rewrite(run, lambda samples: [replace(samples[0], info=b"{}"), *samples[1:]], "protect/train-000000.tar")
    found = faults(run)
    assert f"{SHARD}: missing" in found
    assert all(f"{SHARD}: {key}: missing" in found for key in keys)
    assert any(fault.startswith(f"protect/train-000000.tar: {other}: ") for fault in found)


@pytest.mark.parametrize("name", ["pack/train-000000.tar", "pack/test-000000.tar"])
def test_a_clean_shard_that_was_altered_is_named(run: Path, name: str) -> None:
    key = samples_of(run, name)[1].key
    white = encode_png(np.full((16, 16, 3), 255, np.uint8))
    rewrite(run, lambda samples: [samples[0], replace(samples[1], image=white), *samples[2:]], name)
    assert f"{name}: {key}: pixels are not those recorded" in faults(run)


def test_a_budget_raised_afterwards_is_seen(run: Path) -> None:
    path = run / "protect/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["asked"]["protect"]["eps_levels"] = 16
    path.write_text(json.dumps(manifest))
    altered, budget = faults(run)
    assert altered == "protect/manifest.json: its configuration was altered"
    assert budget.startswith("protect/manifest.json: budget ")


def test_images_of_another_run_are_seen(run: Path) -> None:
    path = run / "surrogate/manifest.json"
    path.write_text(path.read_text().replace('"workers": 1', '"workers": 3'))
    assert faults(run) == ("surrogate/manifest.json: not the one the protected images were made from",)
    path.unlink()
    assert len(faults(run)) == 1
    assert "'surrogate' has not finished" in faults(run)[0]


def test_files_and_rows_the_manifest_does_not_know_are_named(run: Path) -> None:
    shutil.copy(run / SHARD, run / "protect/train-000009.tar")
    folder = Folder.open(str(run / "protect"))
    table = read_table(folder, "samples.parquet")
    first = table.to_pylist()[0]
    write_table(folder, "samples.parquet", rows_to_table([*table.to_pylist(), first], table.schema))
    found = faults(run)
    assert "protect/train-000009.tar: not in the manifest" in found
    assert f"protect/samples.parquet: {first['key']}: recorded more than once" in found
    assert "protect/samples.parquet: 37 images recorded, 36 in the manifest" in found


@pytest.mark.parametrize("name", ["protect/manifest.json", "pack/manifest.json", "pack/samples.parquet", "protect/samples.parquet"])
@pytest.mark.parametrize("missing", [True, False])
def test_what_cannot_be_audited_is_one_clear_line(run: Path, capsys: pytest.CaptureFixture[str], name: str, missing: bool) -> None:
    (run / name).write_bytes((run / name).read_bytes()[:40])
    if missing:
        (run / name).unlink()
    assert main(["--run", str(run)]) == 1
    line = capsys.readouterr().err
    assert line.startswith("verify.py: ")
    assert f"{name.partition('/')[0]}" in line
    assert line.count("\n") == 1


def test_a_damaged_configuration_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run / "pack", run / "report")
    (run / "config.json").write_text("{")
    assert main(["--run", str(run)]) == 0
    assert f"not on the page of the run: {run}/config.json is damaged" in capsys.readouterr().err


def test_a_single_fault_is_no_faults(run: Path) -> None:
    (run / "protect" / "train-000009.tar").touch()
    assert str(verify(Folder.open(str(run)))).endswith(": 1 fault")


def test_wrong_usage_is_exit_code_2() -> None:
    assert main(["--nonsense"]) == 2
