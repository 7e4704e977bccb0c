"""The pictures of what was done to the images: examples, how visible the change is, and which frequencies it consists of."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pipeline.pages.canvas import LIGHT, SMALL, WIDTH, Theme, bare, drawing, png, shades, shortened
from pipeline.results.samples import ImagePair
from pipeline.results.spectrum import Spectrum
from pipeline.shards.pixels import Pixels

READABLE = 192  # pixels a side; smaller images are enlarged to at least this
MOST_BINS = 40
LINE = 14  # characters of a class name beside an image
PANELS = {  # measures of an image: label and number format
    "psnr_db": ("PSNR, dB", ".1f"),
    "ssim": ("SSIM", ".3f"),
    "linf_levels": ("largest change, grey levels", ".1f"),
    "changed_percent": ("changed pixels, percent", ".1f"),
}


def amplification(largest: int) -> int:
    """Return the factor by which differences are multiplied so that the largest change spans black to white."""
    return max(1, 127 // max(1, largest))


def samples(images: Sequence[ImagePair], largest: int, theme: Theme = LIGHT, notes: Sequence[str] = ()) -> bytes:
    """Draw rows of clean image, protected image and amplified difference (grey means no change), enlarged pixel by pixel.

    Args:
        images: a row each.
        largest: change of all, in levels, which decides the amplification.
        theme: the colours.
        notes: for each row, in the place of the name of its class.
    """
    factor = amplification(largest)
    height, width, _ = images[0].clean.shape
    side = (WIDTH - 0.35) / 3
    figure, axes = drawing(len(images) * (side * height / width + 0.05) + 0.3, theme, len(images), 3)
    for row, image in enumerate(images):
        change = image.protected.astype(np.int16) - image.clean
        difference = (128 + factor * change).clip(0, 255).astype(np.uint8)
        labels = ("clean", "protected", f"difference × {factor}")
        for column, (pixels, label) in enumerate(zip((image.clean, image.protected, difference), labels, strict=True)):
            axis = axes[row * 3 + column]
            bare(axis)
            axis.imshow(_enlarged(pixels), interpolation="none")
            axis.set(xticks=[], yticks=[])
            if row == 0:
                axis.set_title(label, color=theme.ink, fontsize=SMALL)
            if column == 0:
                axis.set_ylabel(notes[row] if notes else _wrapped(image.class_name), fontsize=SMALL)
    return png(figure)


def _enlarged(pixels: Pixels) -> Pixels:
    """Enlarge each pixel to a square, so that the image is readable: no blur that would hide the perturbation."""
    times = max(1, -(-READABLE // pixels.shape[0]))
    return pixels.repeat(times, 0).repeat(times, 1)


def _wrapped(name: str) -> str:
    """Wrap a class name into at most two short lines."""
    return "\n".join(textwrap.wrap(shortened(name.replace("_", " "), 2 * LINE - 2), LINE))


def imperceptibility(measured: Mapping[str, NDArray[np.floating]], theme: Theme = LIGHT) -> bytes:
    """Draw how similar the protected images are to the clean ones: the distribution over the images of each measure, and its mean.

    Args:
        measured: one value per image, by the names in `PANELS`; measures may be missing or empty.
        theme: the colours.
    """
    names = [name for name in PANELS if name in measured and measured[name].size]
    columns = min(len(names), 2)
    rows = -(-len(names) // columns)
    figure, axes = drawing(0.3 + 2.2 * rows, theme, rows, columns)
    for axis, name in zip(axes, names, strict=False):
        label, form = PANELS[name]
        _distribution(axis, measured[name], form, theme, whole=name == "linf_levels")
        axis.set_xlabel(label)
    for axis in axes[len(names) :]:
        axis.remove()
    figure.supylabel("images", color=theme.ink)
    return png(figure)


def _distribution(axis: Axes, values: NDArray[np.floating], form: str, theme: Theme, *, whole: bool) -> None:
    mean, low, high = float(values.mean(dtype=float)), float(values.min()), float(values.max())
    if whole:
        edges = np.arange(min(low, 0) - 0.5, high + 1)  # from no change at all
    elif high > low:
        edges = np.histogram_bin_edges(values, min(MOST_BINS, max(8, len(values) // 10)))
    else:
        edges = mean + np.array([-0.05, 0.05])
    axis.hist(values, edges.tolist(), color=theme.protected, alpha=0.85, rwidth=0.94)
    axis.axvline(mean, color=theme.ink, linewidth=1.2, linestyle=(0, (2, 3)))
    axis.set_title(f"mean {mean:{form}}", loc="left", color=theme.ink, fontsize=SMALL)
    middle, half = (edges[0] + edges[-1]) / 2, max(edges[-1] - edges[0], 0.02 * abs(mean)) / 2
    axis.set_xlim(middle - 1.05 * half, middle + 1.05 * half)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=whole))
    axis.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))


def spectrum(found: Spectrum, theme: Theme = LIGHT) -> bytes:
    """Draw which frequencies the changes consist of: the logarithm of the mean magnitude of their Fourier transform.

    On the left by direction, with the lowest frequency in the middle; on the right by frequency alone, beside the images themselves.
    """
    change, image = found.changes / found.count, found.images / found.count
    figure, (left, right) = drawing(3.0, theme, 1, 2)
    bare(left)
    left.imshow(np.log10(change + 1e-9), cmap=shades(theme), vmin=np.log10(max(change.min(), 1e-2)), interpolation="none")
    left.set(xticks=[], yticks=[])
    left.set_title("of the changes", color=theme.ink, fontsize=SMALL, loc="left")
    for values, name, colour in ((image, "images", theme.clean), (change, "changes", theme.protected)):
        right.semilogy(*by_frequency(values), color=colour, linewidth=2, label=name)
    right.legend(frameon=False, labelcolor=theme.ink, fontsize=SMALL)
    right.minorticks_off()
    right.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")  # the usual one writes formulas
    right.set_xlabel("cycles per image")
    right.set_ylabel("mean |FFT|")
    return png(figure)


def by_frequency(spectrum: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the cycles per image, from 1 to the most that every direction has, and the mean of a spectrum `(H, W)` at each."""
    height, width = spectrum.shape
    y, x = np.arange(height) - height // 2, np.arange(width) - width // 2
    cycles = np.rint(np.hypot(y[:, None], x[None, :])).astype(np.int64)
    shown = np.arange(1, max(2, min(height, width) // 2 + 1))
    sums, counts = np.bincount(cycles.ravel(), spectrum.ravel()), np.bincount(cycles.ravel())
    return shown, sums[shown] / counts[shown]
