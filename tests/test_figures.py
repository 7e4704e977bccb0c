"""The pictures: what is on them, read back from their pixels."""

from __future__ import annotations

import io
from typing import get_args

import numpy as np
import pytest
from matplotlib.text import Annotation
from PIL import Image

from pipeline import figures
from pipeline.figures import DARK, LIGHT, Theme, Triplet
from pipeline.results import Similarity, pairs
from pipeline.shards import Pixels
from sep.models import NetworkName


def decoded(png: bytes) -> Pixels:
    with Image.open(io.BytesIO(png)) as image:
        return np.array(image.convert("RGB"))


def share(pixels: Pixels, colour: str, tolerance: int = 12) -> float:
    """Share of the pixels that have a colour."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return float((np.abs(pixels.astype(int) - wanted).max(2) <= tolerance).mean())


def rows(accuracy: float, data: str, seeds: int = 2, network: str = "resnet8", countermeasure: str = "none") -> list[dict[str, object]]:
    measured: dict[str, object] = {f"{kind}_accuracy": accuracy for kind in ("last", "peak", "relabelled")}
    measured["other_accuracy"] = None
    return [
        {"network": network, "countermeasure": countermeasure, "data": data, "seed": seed, "accuracy_per_epoch": [20.0, accuracy, accuracy]}
        | measured
        for seed in range(seeds)
    ]


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_accuracy_shows_both_kinds_of_victim_in_the_colours_of_the_page(theme: Theme) -> None:
    picture = decoded(figures.accuracy(pairs(rows(90.0, "clean") + rows(15.0, "protected")), 10.0, theme))
    assert share(picture, theme.paper) > 0.8
    for colour in (theme.clean, theme.protected):
        assert 0.002 < share(picture, colour) < 0.1
    half = len(picture) // 2
    assert share(picture[:half], theme.clean) > share(picture[half:], theme.clean)  # 90 % is drawn above 15 %
    assert share(picture[half:], theme.protected) > share(picture[:half], theme.protected)


def test_every_network_and_countermeasure_has_its_panel() -> None:
    one = rows(90.0, "clean") + rows(15.0, "protected")
    more = [
        row
        for network in ("resnet8", "resnet18")
        for name in ("none", "jpeg-10", "grayscale")
        for data, value in (("clean", 80.0), ("protected", 40.0))
        for row in rows(value, data, 1, network, name)
    ]
    assert len(pairs(more)) == 6
    assert decoded(figures.accuracy(pairs(more), 10.0)).shape[0] > 2 * decoded(figures.accuracy(pairs(one), 10.0)).shape[0]


@pytest.mark.parametrize("ends", [(100.0, 100.0, 100.0), (0.0, 0.5, 1.0), (10.0, 10.4, 98.0), (96.0, 99.0, 100.0)])
def test_labels_at_the_end_of_curves_never_overlap_or_leave_the_axes(ends: tuple[float, ...]) -> None:
    _, (axis,) = figures._figure(3, LIGHT)
    figures._label_ends(axis, 3, [(value, str(i), "black") for i, value in enumerate(ends)])
    heights = sorted(text.xy[1] for text in axis.texts if isinstance(text, Annotation))
    assert len(heights) == len(ends)
    assert min(np.diff(heights)) >= figures.APART - 1e-9
    assert heights[-1] <= 100


def test_samples_shows_the_images_themselves_and_the_difference_amplified_to_the_full_range() -> None:
    clean = np.full((16, 16, 3), (200, 40, 120), np.uint8)
    protected = clean + np.array([8, -8, 0]).astype(np.uint8)  # the whole budget up, down, and nothing
    picture = decoded(figures.samples([Triplet("one", clean, protected), Triplet("a class with a very long name", clean, protected)], 8))
    assert figures.amplification(8) == 15
    for levels in ((200, 40, 120), (208, 32, 120), (248, 8, 128)):
        assert share(picture, "#{:02x}{:02x}{:02x}".format(*levels), 1) > 0.15, levels


def test_enlarging_keeps_every_pixel_and_leaves_large_images_alone() -> None:
    small = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    large = figures._enlarged(small)
    assert large.shape == (192, 192, 3)
    assert (large[::96, ::96] == small).all()
    assert figures._enlarged(np.zeros((224, 200, 3), np.uint8)).shape == (224, 200, 3)


@pytest.mark.parametrize("values", [[33.0], [33.0] * 10, [30.0, 31.0, 40.0]])
def test_psnr_is_drawn_for_any_spread(values: list[float]) -> None:
    assert share(decoded(figures.psnr(values)), "#de643a", 40) > 0.02


@pytest.mark.parametrize("epochs", [1, 2, 30])
def test_surrogate_is_drawn_for_any_number_of_epochs_and_marks_the_ensemble(epochs: int) -> None:
    checkpoints = [{"epoch": e, "metrics": {"loss": 2.0 / (e + 1), "accuracy": 50.0}} for e in range(epochs)]
    marked = decoded(figures.surrogate({"resnet8": checkpoints}, [epochs - 1]))
    plain = decoded(figures.surrogate({"resnet8": checkpoints}, []))
    assert share(marked, LIGHT.protected) > 0 == share(plain, LIGHT.protected)


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_every_network_known_has_a_curve_of_its_own_colour(theme: Theme) -> None:
    names = get_args(NetworkName)
    networks = {
        name: [{"epoch": e, "metrics": {"loss": 2.0 / (e + 1) + k, "accuracy": 10.0 * k + 2 * e}} for e in range(5)]
        for k, name in enumerate(names)
    }
    picture = decoded(figures.surrogate(networks, [4], theme))
    assert len(set(theme.several)) == len(names)
    for colour in theme.several:
        assert share(picture, colour, 3) > 0.0005
    two = decoded(figures.surrogate({name: networks[name] for name in names[:2]}, [], theme))
    assert [share(two, colour, 3) > 0 for colour in theme.several] == [True, True] + [False] * 6


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_similarity_shows_what_is_orthogonal_in_the_colour_of_the_page(theme: Theme) -> None:
    def matrix(value: float) -> Similarity:
        return Similarity("resnet8", list("123"), [[1.0 if i == j else value for j in range(3)] for i in range(3)])

    orthogonal, alike, opposite = (decoded(figures.similarity([matrix(value)], theme)) for value in (0.0, 1.0, -0.5))
    cell = 0.15  # share of the picture, roughly that of two cells
    assert share(alike, theme.clean) > share(orthogonal, theme.clean) + 2 * cell
    assert share(orthogonal, theme.paper) > share(alike, theme.paper) + 2 * cell
    assert share(opposite, theme.paper) < share(orthogonal, theme.paper) - 2 * cell


def test_matrices_are_wrapped_and_only_small_ones_have_room_for_numbers() -> None:
    def shape(count: int) -> tuple[int, ...]:
        return decoded(figures.similarity([Similarity(str(k), ["1", "2"], [[1.0, 0.1], [0.1, 1.0]]) for k in range(count)])).shape

    assert shape(2)[1] == shape(9)[1]
    assert shape(3)[0] > shape(2)[0] * 1.5
    assert shape(9)[0] > shape(7)[0] > shape(5)[0]

    def ink(count: int) -> float:
        cosines = np.full((count, count), 0.0) + np.eye(count)
        picture = decoded(figures.similarity([Similarity("resnet8", [""] * count, cosines.tolist())]))
        return share(picture[60:-200], LIGHT.ink)

    assert ink(figures.FEW) > 5 * ink(figures.FEW + 1)


@pytest.mark.parametrize(("value", "text"), [(-0.004, "0.00"), (0.126, "0.13"), (-0.2, "-0.20")])
def test_hundredths_have_no_negative_zero(value: float, text: str) -> None:
    assert figures._hundredths(value) == text
