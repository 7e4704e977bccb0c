"""The pictures of images and their changes, read back from their pixels."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.pages import image_figures
from pipeline.pages.canvas import DARK, LIGHT, Theme
from pipeline.results.samples import ImagePair
from pipeline.results.spectrum import Spectrum, magnitude
from tests.fixtures.drawn import decoded, share


def test_samples_shows_the_images_themselves_and_the_difference_amplified_to_the_full_range() -> None:
    clean = np.full((16, 16, 3), (200, 40, 120), np.uint8)
    protected = clean + np.array([8, -8, 0]).astype(np.uint8)  # the whole budget up, down, and nothing
    shown = [ImagePair("one", clean, protected), ImagePair("a class with a very long name", clean, protected)]
    picture = decoded(image_figures.samples(shown, 8))
    assert image_figures.amplification(8) == 15
    for levels in ((200, 40, 120), (208, 32, 120), (248, 8, 128)):
        assert share(picture, "#{:02x}{:02x}{:02x}".format(*levels), 1) > 0.2, levels


def test_enlarging_keeps_every_pixel_and_leaves_large_images_alone() -> None:
    small = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    large = image_figures._enlarged(small)
    assert large.shape == (192, 192, 3)
    assert (large[::96, ::96] == small).all()
    assert image_figures._enlarged(np.zeros((224, 200, 3), np.uint8)).shape == (224, 200, 3)


@pytest.mark.parametrize("values", [[33.0], [33.0] * 10, [30.0, 31.0, 40.0], [0.9, 0.95, 0.97] * 50])
@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_a_distribution_is_drawn_for_any_spread(values: list[float], theme: Theme) -> None:
    picture = decoded(image_figures.imperceptibility({"psnr_db": np.array(values)}, theme))
    assert 1 - share(picture, theme.paper) > 0.03


def test_every_measure_that_was_taken_has_its_panel() -> None:
    taken = {"psnr_db": [30.0, 31.0], "ssim": [0.9, 0.95], "linf_levels": [8.0, 8.0], "changed_percent": [98.0, 100.0]}
    measured = {name: np.array(values) for name, values in taken.items()}
    whole = decoded(image_figures.imperceptibility(measured))
    earlier = decoded(image_figures.imperceptibility(measured | {"ssim": np.empty(0), "changed_percent": np.empty(0)}))
    assert whole.shape[0] > 1.7 * earlier.shape[0]
    bars = [share(quarter, "#de643a", 40) for half in np.array_split(whole, 2) for quarter in np.array_split(half, 2, axis=1)]
    assert min(bars) > 0.02


@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 40), (7, 9)])
def test_the_spectrum_of_a_wave_is_at_its_frequency_and_nowhere_else(height: int, width: int) -> None:
    wave = 8 * np.cos(2 * np.pi * 3 * np.arange(width) / width)[None, :, None] * np.ones((height, 1, 3))
    found = magnitude(wave)
    middle = height // 2, width // 2
    assert found[middle[0], middle[1] + 3] == found.max() == pytest.approx(8 * height * width / 2)
    assert found[middle[0], middle[1] - 3] == pytest.approx(found.max())
    assert np.sort(found.ravel())[-3] < 1e-9 * found.max()
    cycles, values = image_figures.by_frequency(found)
    assert cycles[values.argmax()] == 3


def test_the_spectrum_of_noise_is_flat_and_that_of_the_images_falls() -> None:
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:32, :32]
    clean = [np.repeat((128 + 60 * np.sin(x / 9 + k) * np.cos(y / 7))[..., None], 3, 2).astype(np.uint8) for k in range(40)]
    protected = [image + generator.integers(0, 9, image.shape, np.uint8) for image in clean]
    found = Spectrum()
    for before, after in zip(clean, protected, strict=True):
        found.add(before, after)
    change, image = (image_figures.by_frequency(total / found.count)[1] for total in (found.changes, found.images))
    assert change.max() < 1.3 * change.min()
    assert image[0] > 20 * image[-1]
    picture = decoded(image_figures.spectrum(found))
    for colour in (LIGHT.clean, LIGHT.protected):
        assert share(picture, colour) > 0.002


def test_a_wrapped_name_is_no_formula() -> None:
    image = np.full((16, 16, 3), 128, np.uint8)
    assert decoded(image_figures.samples([ImagePair(r"$\frac{$", image, image)], 8)).size
