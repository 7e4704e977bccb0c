"""Visibility of a change: structural similarity, and the share of an image that changed.

Legend: B images, C channels, H W pixels; images are grey levels 0..255. The largest change and PSNR are in `sep.budget`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

WINDOW, SIGMA = 11, 1.5  # pixels a side of the Gaussian window, and its standard deviation
STABILISERS = (0.01 * 255) ** 2, (0.03 * 255) ** 2
STRIP_PIXELS = 2**21  # of an image whose similarity is measured at once; larger than any benchmark's
IMAGES_AT_ONCE = 16  # bounds the memory, about ten times that of the images as doubles


def ssim(protected: Tensor, clean: Tensor) -> Tensor:
    """Return the structural similarity of each image, `(B,)`, at most 1, of uint8 images of equal shape `(B, C, H, W)`.

    It is a mean over channels, and over the windows that lie within the image. If an image is smaller than the window, the window is the
    largest odd square that fits. (Wang et al. 2004, "Image Quality Assessment: From Error Visibility to Structural Similarity")
    """
    assert protected.dtype == clean.dtype == torch.uint8
    side = min(WINDOW, (min(clean.shape[-2:]) - 1) // 2 * 2 + 1)
    pairs = zip(torch.split(protected, IMAGES_AT_ONCE), torch.split(clean, IMAGES_AT_ONCE), strict=True)
    return torch.cat([_in_strips(*pair, side) for pair in pairs])


def _in_strips(protected: Tensor, clean: Tensor, side: int) -> Tensor:
    """Return the similarity, of large images from strips that overlap by all but one row of the window: doubles take much memory."""
    windows = clean.shape[2] - side + 1
    each = max(1, STRIP_PIXELS // clean.shape[3]) if clean.shape[2] * clean.shape[3] > STRIP_PIXELS else windows
    parts = [slice(start, min(start + each, windows) + side - 1) for start in range(0, windows, each)]
    shares = [(_ssim(protected[:, :, part], clean[:, :, part], side), part.stop - part.start - side + 1) for part in parts]
    return shares[0][0] if len(shares) == 1 else torch.stack([mean * count for mean, count in shares]).sum(0) / windows


def _ssim(protected: Tensor, clean: Tensor, side: int) -> Tensor:
    x, y = (images.double().flatten(0, 1)[:, None] for images in (protected, clean))  # each channel as a separate image
    window = torch.exp(-(torch.arange(side, dtype=torch.double, device=x.device) - side // 2).square() / (2 * SIGMA**2))
    window /= window.sum()

    def blurred(planes: Tensor) -> Tensor:
        return functional.conv2d(functional.conv2d(planes, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))

    mean_x, mean_y = blurred(x), blurred(y)
    product = mean_x * mean_y
    squares = mean_x.square() + mean_y.square()
    covariance = blurred(x * y) - product
    variances = blurred(x.square() + y.square()) - squares
    first, second = STABILISERS
    alike = (2 * product + first) * (2 * covariance + second) / ((squares + first) * (variances + second))
    return alike.reshape(len(clean), -1).mean(1)


def changed_percent(protected: Tensor, clean: Tensor) -> Tensor:
    """Return the percentage of pixels of each image that differ in any channel, `(B,)`, of images of equal shape `(B, C, H, W)`."""
    return 100 * (protected != clean).any(1).flatten(1).double().mean(1)
