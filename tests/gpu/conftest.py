"""The device, and a small ensemble and images for it."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator

import pytest
import torch
from torch import Tensor

from sep.models import Network, build
from tests.gpu import without_values

CLASSES = 5


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device of `--device`."""
    name = str(request.config.getoption("--device"))
    assert name == "cpu" or torch.cuda.is_available(), "--device cuda: torch sees no GPU"
    return torch.device(name)


@pytest.fixture(scope="session", autouse=True)
def compiling_alone() -> Iterator[None]:
    """No processes that help to compile: they may outlive the tests by minutes."""
    from torch._inductor import config

    with config.patch(compile_threads=1):
        yield


@pytest.fixture(scope="session")
def networks() -> list[Network]:
    """Three checkpoints on the CPU with batch-norm statistics of their own."""
    found = []
    for seed in range(3):
        torch.manual_seed(seed)
        network = build("resnet8", CLASSES, 16, [120.0, 125.0, 130.0], [60.0, 65.0, 70.0])
        with torch.no_grad():
            for _ in range(5):  # in training mode, which moves the running statistics
                network(torch.rand(32, 3, 16, 16) * 255)
        found.append(network)
    return found


@pytest.fixture(scope="session")
def images() -> Tensor:
    """Images of noise, `(64, 3, 16, 16)` uint8, on the CPU."""
    return torch.randint(256, (64, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture(scope="session")
def labels() -> Tensor:
    """A class for each of them, `(64,)`."""
    return torch.arange(64) % CLASSES


# Errors of `sep` about what a device computed, and of what a device that computes nothing lacks: parts of its driver, on which compiled
# kernels and random numbers within a recording depend, fused attention, and Fourier transforms.
NEEDS_VALUES = re.compile(
    "not finite|the budget is|undefined symbol: cu|Offset increment outside graph capture|No execution plans support|cuFFT error"
)


@pytest.fixture(autouse=True)
def any_value_will_do(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `--no-values`, let nothing end because of a value: see `without_values`."""
    if request.config.getoption("--no-values"):
        without_values.any_value_will_do(monkeypatch.setattr)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """With `--no-values`, let a test run to the first comparison that fails, unless it is marked `counted`. Every other error counts."""
    try:
        return (yield)
    except Exception as error:
        compared = isinstance(error, AssertionError) or NEEDS_VALUES.search(str(error))
        excused = compared and pyfuncitem.get_closest_marker("counted") is None
        if excused and pyfuncitem.config.getoption("--no-values"):
            pytest.xfail("no values")
        raise
