from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import PRESETS, STAGES, RunConfig, from_tree, parse, preset, to_tree
from sep.ensemble import equally_spaced


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a wrong command line prints, on one line; its exit code is 2."""
    with pytest.raises(SystemExit) as stopped:
        parse(arguments)
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    return re.sub(r"[\s│]+", " ", printed.err + printed.out)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("preset: smoke\nseed: 7\nsurrogate:\n  epochs: 5\nprotect:\n  method: sep\n  eps_levels: 4\nvictim:\n  seeds: [1, 2]\n")
    return path


@pytest.mark.parametrize("name", PRESETS)
def test_presets_resolve_and_survive_json(name: str) -> None:
    config = preset(name)
    assert config.preset == name
    assert config.stages == STAGES
    assert len(equally_spaced(config.surrogate.epochs, config.protect.members)) == config.protect.checkpoints
    assert from_tree(json.loads(json.dumps(to_tree(config)))) == config
    assert parse(["--preset", name, "--data", "/images"]).surrogate == config.surrogate


def test_no_arguments_are_the_quickstart_on_generated_images() -> None:
    config = parse([])
    assert (config.preset, config.data, config.run) == ("quickstart", "generated", str(Path("runs/quickstart").absolute()))
    assert dataclasses.replace(config, run="runs/quickstart") == preset("quickstart")


def test_cifar10_is_the_papers_protocol() -> None:
    config = preset("cifar10")
    surrogate, protect = config.surrogate, config.protect
    assert (surrogate.network, surrogate.epochs, surrogate.batch_size, surrogate.lr) == ("resnet18", 120, 128, 0.1)
    assert (surrogate.momentum, surrogate.weight_decay, surrogate.schedule) == (0.9, 5e-4, "step")
    assert (protect.method, protect.checkpoints, protect.steps, protect.eps_levels) == ("sep-fa-vr", 15, 30, 8)
    assert protect.gradients_per_image == 900


def test_flags_win_over_the_file_and_the_file_over_the_preset(file: Path) -> None:
    config = parse(["--config", str(file), "--protect.eps-levels", "2", "--victim.seeds", "3", "--stages", "protect", "pack"])
    base = preset("smoke")
    assert (config.preset, config.seed, config.surrogate.epochs, config.protect.method) == ("smoke", 7, 5, "sep")  # the file
    assert (config.protect.eps_levels, config.victim.seeds) == (2, (3,))  # the flags
    assert (config.surrogate.batch_size, config.pack, config.protect.steps) == (base.surrogate.batch_size, base.pack, base.protect.steps)
    assert set(config.stages) == {"pack", "protect"}
    assert parse(["--config", str(file), "--preset", "quickstart"]).pack == preset("quickstart").pack
    assert parse(["--config", str(file)]).victim.seeds == (1, 2)


def test_every_field_is_a_flag_with_its_unit_or_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(["--help"])
    assert stopped.value.code == 0
    text = re.sub(r"[\s│]+", " ", capsys.readouterr().out)
    for name in to_tree(preset("quickstart")):
        section = getattr(RunConfig(), name)
        fields = [f"{name}.{field.name}" for field in dataclasses.fields(section)] if dataclasses.is_dataclass(section) else [name]
        for field in fields:
            assert re.search(rf"--{field.replace('_', '-')}[ ,]", text), field
    for unit in ("grey levels of 255", "side in pixels", "passes over the training images", "images per step", "one grey level each"):
        assert unit in text
    assert "sep-fa-vr" in text
    assert "default: 8" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nonsense", "1"], "nonsense"),
        (["--protect.eps-levels", "many"], "eps-levels"),
        (["--protect.eps-levels", "0"], "eps_levels must be 1 to 255 grey levels, got 0"),
        (["--protect.method", "magic"], "sep-fa-vr"),
        (["--preset", "imagenet"], "unknown preset 'imagenet'; known are quickstart, smoke"),
        (["--preset", "cifar10"], "needs --data"),
        (["--config", "/none/run.yaml"], "/none/run.yaml"),
        (["--surrogate.epochs", "3"], "protect.checkpoints = 5 needs as many surrogate epochs, but surrogate.epochs = 3"),
        (["--surrogate.epochs", "0"], "epochs must be at least 1, got 0"),
        (["--workers", "0"], "workers must be at least 1, got 0"),
        (["--victim.countermeasures", "blur"], "unknown 'blur'; known are none, grayscale"),
        (["--pack.test-fraction", "1"], "test-fraction must be"),
        (["--pack.shard-images", "0"], "shard-images must be at least 1, got 0"),
        (["--run", "ftp://host/a"], "got ftp://"),
        (["--run", "s3://key:secret@bucket/a"], "must not carry credentials"),
        (["--stages", "train"], "protect"),
    ],
)
def test_wrong_usage_says_what_is_wrong(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(arguments, capsys)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("surrogate:\n  epoch: 3\n", "surrogate.epoch"),
        ("surrogat:\n  epochs: 3\n", "surrogat"),
        ("surrogate: 5\n", "surrogate"),
        ("protect:\n  eps_levels: many\n", "protect.eps_levels"),
        ("- a\n- b\n", "expected a mapping of settings, found list"),
        ("a: [1\n", "expected ',' or ']'"),
        ("preset: imagenet\n", "unknown preset 'imagenet'"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    assert message in refused(["--config", str(path)], capsys)


@pytest.mark.parametrize(
    "tree", [{"seeds": 1}, {"protect": {"epsilon": 8}}, {"victim": {"networks": ["vgg99"]}}, {"victim": {"seeds": []}}]
)
def test_unknown_keys_and_values_are_refused_by_name(tree: dict[str, Any]) -> None:
    name = next(iter(tree))
    with pytest.raises(ValueError, match=f"configuration: {name}"):
        from_tree(tree)


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        preset("smoke").protect.eps_levels = 16  # type: ignore[misc]


def test_every_preset_can_be_submitted_as_a_job(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    for name in PRESETS:
        assert parse(["--preset", name, "--data", "/images", "--run", "/runs/job"]).run == "/runs/job"
    with pytest.raises(SystemExit) as refused:
        parse(["--run", "runs/job"])
    assert refused.value.code == 2
    assert "'runs/job' is a relative path" in capsys.readouterr().err
