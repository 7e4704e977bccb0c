"""Randomness that depends on its purpose alone, not on workers, order or earlier draws."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive(*purpose: int | str) -> int:
    """Return a seed of 63 bits for a purpose such as `(run seed, "surrogate", epoch)`."""
    digest = hashlib.blake2b("/".join(map(str, purpose)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*purpose: int | str) -> torch.Generator:
    """Return a fresh generator on the CPU for a purpose."""
    import torch  # imported late: the command line loads no torch

    return torch.Generator().manual_seed(derive(*purpose))
