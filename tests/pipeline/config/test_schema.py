from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.command_line import parse
from pipeline.config.presets import PRESETS, from_tree, preset
from pipeline.config.schema import STAGES, RunConfig, to_tree
from pipeline.config.sweep_grid import grid
from pipeline.results.run_results import RunResults
from pipeline.storage.folder import Folder
from sep.countermeasures.registry import COUNTERMEASURES
from sep.ensemble import equally_spaced
from sep.methods.registry import METHODS, Method


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line that a wrong command line prints, after checking for exit code 2."""
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
    assert config.stages == (STAGES[:-1] if name == "paper" else STAGES)
    assert len(equally_spaced(config.surrogate.epochs, config.protect.asked_checkpoints)) == config.protect.asked_checkpoints
    assert from_tree(json.loads(json.dumps(to_tree(config)))) == config
    assert parse(["--preset", name, "--data", "/images"]).surrogate == config.surrogate


def test_no_arguments_are_the_quickstart_on_generated_images() -> None:
    config = parse([])
    assert (config.preset, config.data, config.run) == ("quickstart", "generated", str(Path("runs/quickstart").absolute()))
    assert dataclasses.replace(config, run="runs/quickstart") == preset("quickstart")


def test_images_of_ones_own_are_protected_at_their_own_size_and_all_of_them(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("data: /images\nseed: 3\n")
    for arguments in (["--data", "/images"], ["--data=/images"], ["--config", str(file)]):
        config = parse(arguments)
        assert (config.preset, config.pack.size, config.input_size) == ("photos-small", None, 64)
        assert (config.pack.max_train_images, config.pack.max_test_images) == (None, None)
        assert (config.protect.method, config.needed_stages) == ("error-min-class-momentum", ("pack", "protect", "victim", "report"))
    for method in METHODS:  # any other is a flag away
        if METHODS[method].own_size:
            assert parse(["--data", "/images", "--protect.method", method]).protect.method == method
    assert parse(["--config", str(file), "--data", "generated"]).preset == "quickstart"
    assert parse(["--data", "/images", "--preset", "cifar10"]).preset == "cifar10"
    file.write_text("data: /images\npreset: smoke\n")
    assert parse(["--config", str(file)]).preset == "smoke"
    one_size = ["--data", "/images", "--pack.size", "32", "--protect.method", "error-min"]
    with pytest.raises(SystemExit):
        parse(one_size)
    assert parse([*one_size, "--input-size", "None"]).protect.method == "error-min"


def test_cifar10_is_the_papers_protocol() -> None:
    config = preset("cifar10")
    surrogate, protect = config.surrogate, config.protect
    assert (surrogate.networks, surrogate.epochs, surrogate.batch_size, surrogate.lr) == (("resnet18",), 120, 128, 0.1)
    assert (surrogate.momentum, surrogate.weight_decay, surrogate.schedule) == (0.9, 5e-4, "step")
    assert (protect.method, protect.per_network, protect.steps, protect.eps_levels) == ("sep-fa-vr", 15, 30, 8)
    assert protect.gradients_per_image(15) == 870


def with_method(name: str, method: Method) -> RunConfig:
    base = preset(name)
    return dataclasses.replace(base, protect=dataclasses.replace(base.protect, method=method))


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "imagenet-subset"])
def test_the_papers_number_of_checkpoints_is_that_of_the_method(name: str) -> None:
    usual: dict[Method, int] = {"sep": 30, "sep-fa": 30, "sep-fa-vr": 15, "tap": 1, "noise": 0, "one-pixel": 0}
    for method, count in usual.items():
        assert with_method(name, method).protect.per_network == count
    assert preset(name).protect.members(2) == 30
    points = grid(dataclasses.replace(preset(name), sweep=("protect.method=sep-fa-vr,sep,tap",)))
    assert [point.config.protect.per_network for point in points] == [15, 30, 1]


def test_a_number_that_is_given_stands_whatever_the_method() -> None:
    paper = ["--preset", "cifar10", "--data", "/images", "--protect.method", "sep"]
    assert parse(paper).protect.per_network == 30
    assert parse([*paper, "--protect.checkpoints", "10"]).protect.per_network == 10
    for name, count in {"quickstart": 5, "smoke": 2, "cifar10-small": 10, "imagenet-subset-small": 10}.items():
        assert with_method(name, "sep").protect.per_network == with_method(name, "sep-fa-vr").protect.per_network == count


def test_what_is_recorded_is_the_number_that_it_comes_to() -> None:
    methods: dict[Method, int] = {"sep": 30, "sep-fa-vr": 15, "tap": 15}  # for tap, the number that the preset once gave
    for method, count in methods.items():
        config = with_method("cifar10", method)
        tree = RunResults(Folder.open(config.run)).configuration(config)
        assert tree["protect"]["checkpoints"] == count
        assert from_tree(tree).protect == config.protect.resolved()


@pytest.mark.parametrize("method", ["noise", "linear-separable"])
def test_a_method_without_an_ensemble_trains_no_surrogate(method: str) -> None:
    config = parse(["--protect.method", method])
    assert config.needed_stages == ("pack", "protect", "victim", "report")
    assert not config.trains_surrogate
    assert "surrogate" in parse(["--protect.method", "tap"]).needed_stages


def test_cifar100_is_the_same_protocol() -> None:
    config, base = preset("cifar100"), preset("cifar10")
    assert dataclasses.replace(config, preset=base.preset, run=base.run) == base
    assert base.protect.classes == base.pack.classes == ()
    assert base.protect.targets == "shift"


def test_imagenet_subset_is_the_papers_protocol() -> None:
    config = preset("imagenet-subset")
    for trained in (config.surrogate, config.victim):
        assert (trained.networks, trained.epochs, trained.batch_size, trained.lr) == (("resnet18",), 120, 128, 0.1)
        assert (trained.momentum, trained.weight_decay, trained.schedule, trained.warmup_epochs) == (0.9, 1e-4, "step", 0)
        assert trained.augmentation == "resized-crop-flip"
    assert config.pack.size == 224
    assert config.protect == dataclasses.replace(preset("cifar10").protect, classes=tuple("0123456789"))


def test_imagenet_subset_small_differs_in_scale() -> None:
    config, paper, small = preset("imagenet-subset-small"), preset("imagenet-subset"), preset("cifar10-small")
    assert config.protect == dataclasses.replace(small.protect, classes=paper.protect.classes)
    assert config.pack == dataclasses.replace(paper.pack, size=64)
    for trained in (config.surrogate, config.victim):
        assert (trained.networks, trained.epochs, trained.augmentation) == (("resnet8",), 20, "crop-flip")


@pytest.mark.parametrize("section", ["pack", "protect"])
def test_a_file_of_classes_counts_by_its_content(section: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = tmp_path / "wanted.txt"
    listed.write_text("bee\ntabby cat\n")
    arguments = [f"--{section}.classes", "ant", str(listed), "3"]
    assert getattr(parse(arguments), section).classes == ("ant", "bee", "tabby cat", "3")
    (tmp_path / "run.yaml").write_text(f"{section}:\n  classes: [{listed}]\n")
    assert getattr(parse(["--config", str(tmp_path / "run.yaml")]), section).classes == ("bee", "tabby cat")
    listed.write_text("")
    assert "wanted.txt: expected one class a line, found none" in refused(arguments, capsys)


def test_epochs_stand_in_the_place_of_a_number_of_checkpoints() -> None:
    config = parse(["--surrogate.epochs", "3", "--protect.epochs", "2", "0"])  # the preset's 5 checkpoints need 5 epochs
    assert config.protect.epochs == (2, 0)
    assert parse(["--surrogate.networks", "resnet8", "resnet18"]).surrogate.networks == ("resnet8", "resnet18")


def test_flags_win_over_the_file_and_the_file_over_the_preset(file: Path) -> None:
    config = parse(["--config", str(file), "--protect.eps-levels", "2", "--victim.seeds", "3", "--stages", "protect", "pack"])
    base = preset("smoke")
    assert (config.preset, config.seed, config.surrogate.epochs, config.protect.method) == ("smoke", 7, 5, "sep")  # from the file
    assert (config.protect.eps_levels, config.victim.seeds) == (2, (3,))  # from the flags
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


def test_help_names_every_countermeasure(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    _, said = capsys.readouterr().out.split("--victim.countermeasures")
    assert COUNTERMEASURES.keys() <= set(re.findall(r"[\w-]+", said.split("--victim.seeds")[0]))


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
        (
            ["--preset", "cifar10", "--data", "/images", "--surrogate.epochs", "20", "--protect.method", "sep"],
            "protect.checkpoints = 30 (the paper's for sep) needs as many surrogate epochs, but surrogate.epochs = 20",
        ),
        (
            ["--preset", "cifar10", "--data", "/images", "--surrogate.epochs", "20", "--sweep", "protect.method=sep,sep-fa-vr"],
            "method-sep: protect.checkpoints = 30 (the paper's for sep) needs as many surrogate epochs",
        ),
        (["--surrogate.epochs", "0"], "epochs must be at least 1, got 0"),
        (["--protect.epochs", "0", "15"], "protect.epochs are counted from 0 to 14, as surrogate.epochs = 15; got 15"),
        (["--protect.epochs", "-1"], "protect.epochs are counted from 0, got -1"),
        (["--protect.method", "noise", "--protect.epochs", "1"], "names more checkpoints than noise reads, which is 0"),
        (["--protect.method", "one-pixel", "--protect.epochs", "1"], "names more checkpoints than one-pixel reads, which is 0"),
        (["--protect.method", "error-min", "--surrogate.networks", "resnet8", "vit-small"], "trains one network against its noise"),
        (["--protect.method", "sep-drawn", "--protect.members-per-step", "6"], "= 6 draws more than the ensemble has, which is 5"),
        (["--protect.method", "sep", "--protect.members-per-step", "2"], "members_per_step is not a setting of sep, but of sep-drawn"),
        (["--protect.method", "tap", "--protect.epochs", "0", "1"], "names more checkpoints than tap reads, which is 1"),
        (["--protect.epochs", "2", "2"], "protect.epochs needs each value once; got 2, 2"),
        (["--protect.batch-size", "0"], "protect.batch-size must be at least 1, or auto; got 0"),
        (["--surrogate.networks", "resnet8", "resnet8"], "surrogate.networks needs one value or more, none of them twice"),
        (["--protect.targets", "anywhere"], "random-class"),
        (
            ["--views", "jpeg-10", "blur", "--protect.method", "linear-separable"],
            "views = jpeg-10 blur, but linear-separable looks through none: leave them out, or take one of sep, sep-fa, ",
        ),
        (["--views", "blur", "--sweep", "protect.method=sep,noise"], "method-noise: views = blur, but noise looks through none"),
        (["--workers", "0"], "workers must be at least 1, got 0"),
        (["--minutes", "0"], "minutes must be above 0, got 0"),
        (["--minutes", "nan"], "minutes must be above 0, got nan"),
        (["--victim.trials-per-gpu", "0"], "victim.trials-per-gpu must be at least 1, got 0"),
        (["--victim.countermeasures", "blur"], "unknown countermeasure 'blur'; known are none, no-augmentation"),
        (["--victim.countermeasures", "none+cutmix"], "'none+cutmix' cannot be: none is nothing; known are none, no-augmentation"),
        (["--pack.test-fraction", "1"], "test-fraction must be"),
        (["--pack.shard-images", "0"], "shard-images must be at least 1, got 0"),
        (["--run", "ftp://host/a"], "got ftp://"),
        (["--run", "s3://key:secret@bucket/a"], "must not carry credentials"),
        (["--data", "s3://bucket/a?access_key=key&secret_key=secret"], "and no credentials"),
        (["--tracking-uri", "postgresql://user:secret@host/db"], "must not carry a password"),
        (["--tracking-uri", "http://user:secret@host:5000"], "MLFLOW_TRACKING_PASSWORD"),
        (["--tracking-uri", "postgresql://host/db?user=me&password=secret"], "must not carry a password"),
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
        ("protect:\n  eps_levels: many\n", "protect.eps-levels"),
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
    with pytest.raises(ValueError, match=rf"^{name}\b"):
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
