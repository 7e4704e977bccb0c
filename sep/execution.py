"""Compute on the hardware at hand: the same mathematics in several precisions, by other kernels, in pieces that fit memory.

Legend: B images, C channels, H W pixels.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from typing import Literal, TypeVar

import torch
from torch import Tensor

from sep.choices import Kernels, Precision

Result = TypeVar("Result")
SHARED = 0.9  # of a GPU's memory, for all processes together; CUDA itself needs the rest
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # the numbers of these options in `mallopt`
KEPT = 2**30  # free bytes at the end of the heap, for the next tensors
STORED_PIXELS = 2**22  # of the pictures in a micro-batch, if they have their own size and it has more than one
CPU_PIXELS = 2**16  # of a micro-batch: 64 images of 32 x 32; larger ones are no faster and take more memory


# Messages of libraries below torch, in errors that are not torch.OutOfMemoryError.
NO_MEMORY = ("DefaultCPUAllocator", "STATUS_ALLOC_FAILED", "unable to find an engine", "CUDA error: out of memory")


def resolve(precision: Precision, device: torch.device) -> Precision:
    """Return the precision that `auto` stands for on a device, and any other as it is.

    It is float32 on a CPU, where bf16 is slow without instructions for it; on a GPU bf16, or tf32 where the GPU has no bf16 of its own.
    """
    if precision != "auto":
        return precision
    if device.type != "cuda":
        return "float32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "tf32"


@contextmanager
def backends(precision: Precision) -> Iterator[None]:
    """Set torch's switches for computing on a GPU, and put them back: rounding by the precision, cuDNN's algorithms by one rule for all.

    Whatever autocast leaves alone may round to tf32, unless float32 was asked for: torch by itself lets convolutions do so even then.

    cuDNN takes deterministic algorithms, and takes them by its own rules, not by timing (`benchmark`), whose choice differs from start
    to start. So a training that is repeated or resumed on the same hardware ends at the same weights, and a clean and a protected victim
    of one seed differ by their images alone. That is worth more here than the time that a faster algorithm would save.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark
    matmul.allow_tf32 = cudnn.allow_tf32 = precision != "float32"
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark = before


def autocast(device: torch.device, precision: Precision, *, cache: bool = True) -> torch.autocast:
    """Return the context in which products and convolutions round to bf16, if that is the precision.

    Args:
        device: to compute on.
        precision: not auto.
        cache: whether to hold the rounded copy of each weight that needs a gradient until the context ends.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=cache)


@contextmanager
def arithmetic(device: torch.device, precision: Precision) -> Iterator[None]:
    """Compute gradients of images in a precision, which rounds products and convolutions, not images or sums over checkpoints."""
    precision = resolve(precision, device)
    with backends(precision), autocast(device, precision, cache=False):  # the networks are frozen
        yield


@dataclass
class MicroBatch:
    """The number of images that are computed at once; it shrinks for good when memory runs out.

    Attributes:
        size: the number.
        even: whether parts are as large as each other, with which kernels are compiled once, instead of a small one at the end.
    """

    size: int
    even: bool = False

    @classmethod
    def fitting(
        cls, shape: Sequence[int], device: torch.device, asked: int | Literal["auto"] = "auto", kernels: Kernels = "fused"
    ) -> MicroBatch:
        """Return the size to begin with, for images of shape `(C, H, W)`.

        It is the one that was asked for, or no limit on a GPU, and on a CPU no more than are faster together.
        """
        most = sys.maxsize if device.type == "cuda" else max(1, CPU_PIXELS // (shape[-1] * shape[-2]))
        return cls(most if asked == "auto" else asked, even=kernels == "compiled")

    def run(self, function: Callable[[slice], Result], count: int, pixels: Sequence[int] = ()) -> Iterator[Result]:
        """Yield `function(part)` for consecutive parts of `range(count)`; a part that does not fit in memory is halved and tried again.

        Args:
            function: of a part.
            count: number of images.
            pixels: of each image, if they have their own size. Images of a part have no more than a large image alone.

        Raises:
            RuntimeError: not even one image fits (torch.OutOfMemoryError on a GPU), or `function` raised it for another reason.
        """
        start = 0
        while start < count:
            left = count - start
            stop = start + (ceil(left / ceil(left / self.size)) if self.even else min(self.size, left))
            while pixels and stop - start > 1 and sum(pixels[start:stop]) > STORED_PIXELS:
                stop -= 1
            try:
                result = function(slice(start, stop))
            except RuntimeError as error:
                if stop - start == 1 or not _out_of_memory(error):
                    raise
                self.size = (stop - start) // 2
            else:
                yield result
                start = stop
                continue
            gc.collect()  # the tensors of the failed attempt are freed only here, where its exception is gone
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in NO_MEMORY)


def share_memory(device: torch.device, processes: int) -> None:
    """Limit this process to its share of a GPU's memory. Beyond that, memory has run out, and micro-batches are halved."""
    if device.type == "cuda" and processes > 1:
        torch.cuda.set_per_process_memory_fraction(SHARED / processes, device.index)  # without an index: the current one


def use_cpu(threads: int) -> None:
    """Set the number of threads of this process, and let it reuse freed memory for later tensors.

    By default glibc returns freed memory to the kernel again and again, which clears every page anew: with a small network this takes a
    sixth of a gradient's time. Memory of tensors beyond 128 MiB is still returned. Other C libraries are left alone.
    """
    torch.set_num_threads(threads)
    torch.get_num_threads()  # from its first use a thread keeps its number, whatever others set for theirs
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    # Older versions accept at most 32 MiB. Either option without the other would give every large tensor its own mapping.
    if mallopt is not None and (mallopt(MMAP_THRESHOLD, 2**27) or mallopt(MMAP_THRESHOLD, 2**25)):
        mallopt(TRIM_THRESHOLD, KEPT)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; to a GPU from pinned memory, because the host would wait for any other copy."""
    if device.type == "cuda" and not tensor.is_cuda:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def to_device(images: Tensor, like: Tensor, kernels: Kernels) -> Tensor:
    """Return images `(B, C, H, W)` uint8 as floats of the type and on the device of `like`, in the memory layout of the kernels.

    Levels of pictures that lie one after the other, `(sum CHW,)`, have no layout.
    """
    layout = torch.contiguous_format if kernels == "plain" or images.dim() != 4 else torch.channels_last
    return moved(images, like.device).to(like.dtype, memory_format=layout)
