from __future__ import annotations

import copy
import os
import platform
import shutil
import subprocess
import sys
from itertools import chain

import pytest
import torch
from torch import Tensor

import sep.craft
from sep.choices import Kernels
from sep.craft import Method, craft, gradient
from sep.craft_config import CraftConfig
from sep.ensemble import Member, _compiled_for, class_sums, compile_together, freeze
from sep.execution import MicroBatch, arithmetic, resolve, to_device
from sep.models import Network, build
from sep.views.registry import Look

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def networks() -> list[Network]:
    """Two checkpoints with different batch-norm statistics."""
    found = []
    for seed in range(2):
        torch.manual_seed(seed)
        network = build("resnet8", 5, 16, [120.0, 125.0, 130.0], [60.0, 65.0, 70.0])
        network(torch.rand(32, 3, 16, 16) * 255)  # in training mode, which moves the running statistics
        found.append(network)
    return found


def gradients(networks: list[Network], kernels: Kernels, precision: str = "auto") -> Tensor:
    frozen = [freeze(network, kernels) for network in networks]
    if kernels == "compiled":
        compile_together(frozen)
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (16, 3, 16, 16), generator=draw, dtype=torch.uint8)
    targets = torch.randint(5, (16,), generator=draw)
    levels = to_device(images, frozen[0].mean, kernels)
    with arithmetic(CPU, precision):  # type: ignore[arg-type]
        return torch.stack([gradient(Member(network), levels, targets) for network in frozen])


def same_signs(a: Tensor, b: Tensor) -> float:
    return float((a.sign() == b.sign()).double().mean())


def test_fused_kernels_give_the_plain_gradient(networks: list[Network]) -> None:
    plain, fused = gradients(networks, "plain"), gradients(networks, "fused")
    assert torch.allclose(plain, fused, rtol=1e-3, atol=1e-4 * float(plain.abs().max()))
    assert same_signs(plain, fused) > 0.999


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_kernels_give_the_plain_gradient_of_each_checkpoint(networks: list[Network]) -> None:
    plain, compiled = gradients(networks, "plain"), gradients(networks, "compiled")
    assert same_signs(plain, compiled) > 0.999
    assert same_signs(plain, compiled.flip(0)) < 0.9  # both share the compiled code, but not the weights


def test_bf16_gradients_point_the_same_way(networks: list[Network]) -> None:
    plain, coarse = gradients(networks, "fused", "float32"), gradients(networks, "fused", "bf16")
    assert coarse.dtype == torch.float32
    assert not torch.equal(plain, coarse)
    assert same_signs(plain, coarse) > 0.9


def test_arithmetic_leaves_no_trace() -> None:
    def switches() -> tuple[bool, ...]:
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        return matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark

    torch.backends.cudnn.benchmark = True
    before = switches()
    try:
        for precision, allowed in (("tf32", True), ("bf16", True), ("float32", False)):
            with arithmetic(CPU, precision):  # type: ignore[arg-type]
                assert switches() == (allowed, allowed, True, False)
                assert torch.is_autocast_enabled("cpu") == (precision == "bf16")
        assert switches() == before
    finally:
        torch.backends.cudnn.benchmark = False
    with arithmetic(CPU, "auto"):
        assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(("device", "own_bf16", "expected"), [("cpu", True, "float32"), ("cuda", True, "bf16"), ("cuda", False, "tf32")])
def test_auto_is_what_the_device_has(device: str, own_bf16: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: own_bf16 or including_emulation)
    assert resolve("auto", torch.device(device)) == expected
    assert resolve("float32", torch.device(device)) == "float32"


def test_layout_is_what_the_kernels_want() -> None:
    images = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    assert to_device(images, torch.zeros(1), "fused").is_contiguous(memory_format=torch.channels_last)
    assert to_device(images, torch.zeros(1), "plain").is_contiguous()
    assert to_device(images, torch.zeros(1, dtype=torch.float64), "plain").dtype == torch.float64


class Memory:
    """A function that runs out of memory on more than `most` images at once."""

    def __init__(self, most: int, error: RuntimeError) -> None:
        self.most, self.error = most, error
        self.asked: list[tuple[int, int]] = []

    def __call__(self, part: slice) -> list[int]:
        self.asked.append((part.start, part.stop))
        if part.stop - part.start > self.most:
            raise self.error
        return list(range(part.start, part.stop))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
    ],
)
def test_out_of_memory_halves_the_batch_and_loses_nothing(error: RuntimeError) -> None:
    batch, memory = MicroBatch(64), Memory(13, error)
    assert list(chain.from_iterable(batch.run(memory, 100))) == list(range(100))
    assert batch.size == 8
    assert memory.asked[:5] == [(0, 64), (0, 32), (0, 16), (0, 8), (8, 16)]
    again = Memory(13, error)
    assert list(chain.from_iterable(batch.run(again, 20))) == list(range(20))
    assert again.asked[0] == (0, 8)  # the size that failed is not tried again


def test_true_out_of_memory_of_the_cpu_is_survived() -> None:
    """The error is the one that torch really raises when the operating system refuses: no address space is large enough."""
    done = []

    def function(part: slice) -> int:
        count: int = part.stop - part.start
        if count > 2:
            torch.empty(count * 2**46)
        done.append(count)
        return count

    assert list(MicroBatch(8).run(function, 5)) == [2, 2, 1]
    assert done == [2, 2, 1]


def test_parts_may_be_as_large_as_each_other() -> None:
    """For compiled kernels, also after memory ran out."""
    assert list(MicroBatch(400, even=True).run(lambda part: (part.start, part.stop), 500)) == [(0, 250), (250, 500)]
    batch, memory = MicroBatch(sys.maxsize, even=True), Memory(500, torch.OutOfMemoryError("no"))
    assert [len(part) for part in batch.run(memory, 1001)] == [334, 334, 333]
    assert [len(part) for part in batch.run(memory, 1000)] == [500, 500]
    assert memory.asked[0] == (0, 1001)


def test_other_errors_and_one_image_too_many_are_final() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        list(MicroBatch(8).run(Memory(2, RuntimeError("shapes differ")), 8))
    with pytest.raises(torch.OutOfMemoryError):
        list(MicroBatch(8).run(Memory(0, torch.OutOfMemoryError("no")), 8))


class Scarce:
    """The gradient on a device that has memory for any number of images at first, and after so many gradients only for `most`."""

    def __init__(self, most: int, plenty: int) -> None:
        self.most, self.plenty = most, plenty
        self.sizes: list[int] = []

    def __call__(self, member: Member, x: Tensor, targets: Tensor, look: Look, *, ascend: bool) -> Tensor:
        self.sizes.append(len(x))
        if len(self.sizes) > self.plenty and len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return gradient(member, x, targets, look, ascend=ascend)


@pytest.mark.parametrize("method", ["sep-fa", "sep-fa-vr", "sep-fa-drawn"])
@pytest.mark.parametrize("when", ["at once", "in the midst of a step", "after half of the images"])
def test_crafting_gives_the_same_images_where_memory_runs_out(
    networks: list[Network], monkeypatch: pytest.MonkeyPatch, method: Method, when: str
) -> None:
    """The interrupted batch starts again, towards the same means, by the same draws, and adds each step to the momentum once."""
    images = torch.randint(256, (8, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    labels = torch.arange(8) % 5
    frozen = [freeze(copy.deepcopy(network).double()) for network in networks]
    sums = [class_sums(network, [(images, labels)], 5) for network in frozen]
    members = [Member(network, total / count[:, None]) for network, (total, count) in zip(frozen, sums, strict=True)]
    config = CraftConfig(method=method, eps_levels=4, steps=2, inner_steps=2, members_per_step=2 if method == "sep-fa-drawn" else None)

    def crafted(batch_size: int) -> Tensor:
        return craft(members, images, (labels + 2) % 5, config, torch.Generator().manual_seed(1), batch_size)

    wanted = crafted(2)
    of_a_step = config.gradients_per_image(len(members)) // 2
    scarce = Scarce(2, {"at once": 0, "in the midst of a step": 1, "after half of the images": of_a_step}[when])
    monkeypatch.setattr(sep.craft, "gradient", scarce)
    assert torch.equal(crafted(4), wanted)
    begun, left = scarce.plenty + 1, 6 if scarce.plenty == of_a_step else 8  # gradients of four images, and steps of pairs after those
    assert scarce.sizes == [4] * begun + [2] * (of_a_step * left)
    assert not torch.equal(wanted, images)


def test_size_to_begin_with() -> None:
    assert MicroBatch.fitting((3, 32, 32), CPU).size == 64
    assert MicroBatch.fitting((3, 512, 512), CPU).size == 1
    assert MicroBatch.fitting((3, 32, 32), torch.device("cuda")).size > 10**6  # no shard holds more
    assert MicroBatch.fitting((3, 32, 32), CPU, 7, "compiled") == MicroBatch(7, even=True)


def test_compiled_kernels_are_for_few_numbers_of_images_hardly_larger_than_those_asked_for() -> None:
    assert all(_compiled_for(count) == count for count in (1, 2, 3, 5, 25, 50, 64, 100, 128, 250, 500, 512, 1000, 2000))
    assert all(count <= _compiled_for(count) <= 1.25 * count for count in range(1, 3000))
    assert sorted({_compiled_for(count) for count in range(400, 800)}) == [400, 448, 500, 512, 600, 640, 700, 768, 800]


FREED = """
import resource, sys
import torch
from sep.execution import use_cpu

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        several = [torch.ones(2**20 + 2**12 * i) for i in range(8)]
        del several
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

use_cpu(1) if sys.argv[1] == "kept" else torch.set_num_threads(1)
faults()
print(faults(), torch.get_num_threads())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be asked to keep memory")
def test_memory_of_tensors_is_kept_for_the_next() -> None:
    # glibc adapts its thresholds as memory is freed. With fixed ones, it returns the memory of every large tensor.
    held = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}

    def run(how: str) -> list[int]:
        done = subprocess.run([sys.executable, "-c", FREED, how], env=held, capture_output=True, text=True, check=True)
        return [int(word) for word in done.stdout.split()]

    (kept, threads), (given_back, _) = run("kept"), run("given back")
    assert threads == 1
    assert given_back > 10_000
    assert kept < given_back / 100
