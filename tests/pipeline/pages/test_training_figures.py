"""The pictures of trainings, read back from their pixels."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Annotation

from pipeline.pages import canvas, training_figures
from pipeline.pages.canvas import DARK, LIGHT, Theme
from pipeline.results.similarity import Similarity
from pipeline.results.victims import pairs
from sep.choices import NetworkName
from sep.countermeasures.registry import COUNTERMEASURES, plan
from tests.fixtures.drawn import decoded, share

NAMES = [name for name in COUNTERMEASURES if not plan(name).clean_percent]


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
    picture = decoded(training_figures.accuracy(pairs(rows(90.0, "clean") + rows(15.0, "protected")), 10.0, theme))
    assert share(picture, theme.paper) > 0.8
    for colour in (theme.clean, theme.protected):
        assert 0.002 < share(picture, colour) < 0.1
    half = len(picture) // 2
    assert share(picture[:half], theme.clean) > share(picture[half:], theme.clean)  # 90 % is drawn above 15 %
    assert share(picture[half:], theme.protected) > share(picture[:half], theme.protected)


def test_every_network_and_countermeasure_has_its_panel() -> None:
    def height(countermeasures: int) -> int:
        return len(decoded(training_figures.accuracy(pairs(matrix_of(1, countermeasures)), 10.0)))

    assert height(6) == height(5)
    assert height(9) - height(6) == pytest.approx(height(12) - height(9), abs=2)
    assert height(9) > 1.2 * height(6)


def matrix_of(networks: int, countermeasures: int) -> list[Any]:
    """Return rows of that many networks and countermeasures: all learn 90 % from clean and 10 % from protected images."""
    return [
        row
        for network in range(networks)
        for name in NAMES[:countermeasures]
        for data, value in (("clean", 90.0), ("protected", 10.0))
        for row in rows(value, data, 3, f"network-{network}", name)
    ]


def test_seeds_are_a_band_from_the_lowest_to_the_highest() -> None:
    def painted(*accuracies: float) -> float:
        """Return the share of the picture in the colour of the protected band, mixed with that of the paper."""
        seeds = [{**rows(value, "protected", 1)[0], "seed": seed} for seed, value in enumerate(accuracies)]
        clean = [{**row, "accuracy_per_epoch": [99.0] * 3} for row in rows(99.0, "clean", len(accuracies))]
        picture = decoded(training_figures.accuracy(pairs(clean + seeds), 1.0))
        shades = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in (LIGHT.protected, LIGHT.paper)])
        return share(picture, to_hex(tuple((0.22 * shades[0] + 0.78 * shades[1]) / 255)), 6)

    assert painted(40.0) < 0.002
    assert painted(30.0, 40.0, 50.0) > 0.02
    assert painted(20.0, 40.0, 60.0) > 1.5 * painted(30.0, 40.0, 50.0)


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_matrix_is_dark_where_much_was_learned_with_clean_beside_protected(theme: Theme) -> None:
    picture = decoded(training_figures.matrix(pairs(matrix_of(1, 4)), theme))
    much, little = (to_hex(canvas.shades(theme)(value / 100)) for value in (90.0, 10.0))
    assert share(picture, much, 4) == pytest.approx(share(picture, little, 4), rel=0.25)
    assert share(picture, much, 4) > 0.15
    columns = [np.flatnonzero(close(picture, colour).mean(0) > 0.2).mean() for colour in (much, little)]
    assert columns[0] < columns[1]


def close(picture: Any, colour: str) -> Any:
    """Return the pixels of a colour, as a mask."""
    return np.abs(picture.astype(int) - [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).max(2) <= 4


def test_a_cell_that_was_not_measured_stays_empty() -> None:
    some = [row for row in matrix_of(2, 2) if (row["network"], row["countermeasure"]) != ("network-1", NAMES[1])]
    much = to_hex(canvas.shades(LIGHT)(0.9))
    whole, part = (share(decoded(training_figures.matrix(pairs(measured))), much, 4) for measured in (matrix_of(2, 2), some))
    assert part == pytest.approx(0.75 * whole, rel=0.1)


def test_twenty_countermeasures_and_five_networks_fit() -> None:
    measured = pairs(matrix_of(5, 20))
    assert len(measured) == 100
    picture = decoded(training_figures.matrix(measured))
    assert picture.shape[1] == round(canvas.WIDTH * canvas.DPI)
    assert picture.shape[0] < 1.8 * picture.shape[1]
    for edge in (picture[:3], picture[-3:], picture[:, :3], picture[:, -3:]):  # nothing is cut off
        assert share(edge, LIGHT.paper) == 1
    curves = decoded(training_figures.accuracy(measured[:20], 10.0))
    assert curves.shape[0] < 3 * curves.shape[1]


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_numbers_are_readable_on_every_shade(theme: Theme) -> None:
    shades = [canvas.shades(theme)(value / 100) for value in range(101)]
    inks = [canvas.ink_on(shade) for shade in shades]
    assert min(canvas.contrast(ink, shade[:3]) for ink, shade in zip(inks, shades, strict=True)) >= 4.5
    assert inks == sorted(inks, key=(inks[0], *{*inks} - {inks[0]}).index)  # changes at most once


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_every_colour_of_text_can_be_read(theme: Theme) -> None:
    assert min(canvas.contrast(colour, theme.paper) for colour in (theme.ink, theme.clean, theme.protected, *theme.several)) >= 4.5


def test_names_lose_their_middle() -> None:
    assert canvas.shortened("black_and_tan_coonhound", 12) == "black_…hound"
    assert canvas.shortened("cat", 12) == "cat"


@pytest.mark.parametrize("ends", [(100.0, 100.0, 100.0), (0.0, 0.5, 1.0), (10.0, 10.4, 98.0), (96.0, 99.0, 100.0)])
def test_labels_at_the_end_of_curves_never_overlap_or_leave_the_axes(ends: tuple[float, ...]) -> None:
    _, (axis,) = canvas.drawing(3, LIGHT)
    canvas.label_ends(axis, 3, [(value, str(i), "black") for i, value in enumerate(ends)])
    heights = sorted(text.xy[1] for text in axis.texts if isinstance(text, Annotation))
    assert len(heights) == len(ends)
    assert min(np.diff(heights)) >= canvas.APART - 1e-9
    assert heights[-1] <= 100


@pytest.mark.parametrize("epochs", [1, 2, 30])
def test_surrogate_is_drawn_for_any_number_of_epochs_and_marks_the_ensemble(epochs: int) -> None:
    checkpoints = [{"epoch": e, "metrics": {"loss": 2.0 / (e + 1), "accuracy": 50.0}} for e in range(epochs)]
    marked = decoded(training_figures.surrogate({"resnet8": checkpoints}, [epochs - 1]))
    plain = decoded(training_figures.surrogate({"resnet8": checkpoints}, []))
    assert share(marked, LIGHT.protected) > 0 == share(plain, LIGHT.protected)


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_every_network_known_has_a_curve_of_its_own_colour(theme: Theme) -> None:
    names = get_args(NetworkName)
    networks = {
        name: [{"epoch": e, "metrics": {"loss": 2.0 / (e + 1) + k, "accuracy": 10.0 * k + 2 * e}} for e in range(5)]
        for k, name in enumerate(names)
    }
    picture = decoded(training_figures.surrogate(networks, [4], theme))
    assert len(set(theme.several)) == len(names)
    for colour in theme.several:
        assert share(picture, colour, 3) > 0.0005
    two = decoded(training_figures.surrogate({name: networks[name] for name in names[:2]}, [], theme))
    assert [share(two, colour, 3) > 0 for colour in theme.several] == [True, True] + [False] * 6


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_similarity_shows_what_is_orthogonal_in_the_colour_of_the_page(theme: Theme) -> None:
    def matrix(value: float) -> Similarity:
        return Similarity("resnet8", list("123"), [[1.0 if i == j else value for j in range(3)] for i in range(3)])

    orthogonal, alike, opposite = (decoded(training_figures.similarity([matrix(value)], theme)) for value in (0.0, 1.0, -0.5))
    cell = 0.15  # share of the picture, roughly that of two cells
    assert share(alike, theme.clean) > share(orthogonal, theme.clean) + 2 * cell
    assert share(orthogonal, theme.paper) > share(alike, theme.paper) + 2 * cell
    assert share(opposite, theme.paper) < share(orthogonal, theme.paper) - 2 * cell


def test_matrices_are_wrapped_and_only_small_ones_have_room_for_numbers() -> None:
    def shape(count: int) -> tuple[int, ...]:
        return decoded(training_figures.similarity([Similarity(str(k), ["1", "2"], [[1.0, 0.1], [0.1, 1.0]]) for k in range(count)])).shape

    assert shape(2)[1] == shape(9)[1]
    assert shape(3)[0] > shape(2)[0] * 1.5
    assert shape(9)[0] > shape(7)[0] > shape(5)[0]

    def ink(count: int) -> float:
        cosines = np.full((count, count), 0.0) + np.eye(count)
        picture = decoded(training_figures.similarity([Similarity("resnet8", [""] * count, cosines.tolist())]))
        return share(picture[60:-200], "#000000")

    assert ink(training_figures.FEW) > 5 * ink(training_figures.FEW + 1)


@pytest.mark.parametrize(("value", "text"), [(-0.004, "0.00"), (0.126, "0.13"), (-0.2, "-0.20")])
def test_hundredths_have_no_negative_zero(value: float, text: str) -> None:
    assert training_figures._hundredths(value) == text


def test_panels_share_the_epochs_of_the_longest_training() -> None:
    def curves(countermeasures: tuple[str, ...]) -> Any:
        long = [40.0, *[90.0] * 9]
        return [
            {**row, "accuracy_per_epoch": long[:2] if name == "early-stop" else long}
            for name in countermeasures
            for data in ("clean", "protected")
            for row in rows(90.0, data, 1, countermeasure=name)
        ]

    def painted(*countermeasures: str) -> float:
        return share(decoded(training_figures.accuracy(pairs(curves(countermeasures)), 10.0)), LIGHT.protected)

    assert painted("none", "early-stop", "cutout") == pytest.approx(painted("none", "cutout", "early-stop"), rel=0.05)
