"""Which frequencies images and their changes consist of, image by image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.shards.pixels import Pixels

LARGEST = 512  # pixels a side, of pictures of many sizes


def magnitude(image: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the magnitude of the Fourier transform of an image `(H, W, C)`, mean over channels: `(H, W)`, frequency 0 in the middle."""
    return np.asarray(np.fft.fftshift(np.abs(np.fft.fft2(image, axes=(0, 1))).mean(2)), np.float64)


class Spectrum:
    """Magnitudes of images and of their changes, `(H, W)`, summed image by image: a hundred large images are never in memory at once."""

    def __init__(self, shortest: int | None = None) -> None:
        """Start with no image. Of pictures of many sizes, whose shortest side is given, the centre is taken."""
        self.count, self.images, self.changes = 0, np.zeros(()), np.zeros(())
        self.side = None if shortest is None else min(shortest, LARGEST)

    def add(self, before: Pixels, after: Pixels) -> None:
        """Add one image, `(H, W, 3)` levels before and after protection."""
        clean, protected = self._centre(before).astype(np.float64), self._centre(after)
        self.count, self.images = self.count + 1, self.images + magnitude(clean)
        self.changes = self.changes + magnitude(protected - clean)

    def _centre(self, pixels: Pixels) -> Pixels:
        if self.side is None:
            return pixels
        top, left = ((whole - self.side) // 2 for whole in pixels.shape[:2])
        return pixels[top : top + self.side, left : left + self.side]
