"""What changes training batches: on the device what it is on the CPU, for the same draws."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from sep.at_rest import AtRest
from sep.countermeasures.registry import COUNTERMEASURES, plan
from sep.execution import backends
from sep.models import Network
from tests.gpu.conftest import CLASSES
from tests.gpu.waiting import waits

CHANGES = [name for name, each in COUNTERMEASURES.items() if each.mixed or each.distorted or each.hardened]


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_batch_is_that_of_the_cpu(
    networks: list[Network], images: Tensor, labels: Tensor, device: torch.device, name: str
) -> None:
    """Rounding turns a few steps of an adversary the other way, and takes a few pixels from a neighbour."""
    change = plan(name).change(CLASSES)
    assert change is not None
    made = []
    for place in (torch.device("cpu"), device):
        network, levels = copy.deepcopy(networks[0]).train().to(place), images.float().to(place)
        with backends("float32"):
            changed, targets = change(AtRest(network), levels, labels.to(place), torch.Generator().manual_seed(1))
        assert (changed.device.type, changed.dtype, changed.shape) == (place.type, torch.float32, levels.shape)
        assert (targets.device.type, targets.shape) == (place.type, (len(labels), CLASSES))
        assert network.training
        made.append((changed.cpu(), targets.cpu()))
    (wanted, classes), (found, shared) = made
    torch.testing.assert_close(shared, classes)
    assert float(((found - wanted).abs() <= 1).double().mean()) > 0.95
    assert float(((found - images).abs() > 1).double().mean()) > 0.05
    assert 0 <= float(found.min()) <= float(found.max()) <= 255


@pytest.mark.counted
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_does_not_wait_for_the_device(networks: list[Network], images: Tensor, device: torch.device, name: str) -> None:
    if device.type == "cpu":
        pytest.skip("nothing waits for a CPU")
    change, at_rest = plan(name).change(CLASSES), AtRest(copy.deepcopy(networks[0]).to(device))
    assert change is not None
    given = images.float().to(device), torch.arange(64, device=device) % CLASSES
    assert waits(device, lambda: change(at_rest, *given, draws())) == 0


def draws() -> torch.Generator:
    return torch.Generator().manual_seed(1)
