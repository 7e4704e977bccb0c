"""The area under the ROC curve is a chance, and its error is the spread of that chance over pictures."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.operations.roc import area

KINDS = np.array([False, False, True, True])


@pytest.mark.parametrize(
    ("scores", "auc"), [((1, 2, 3, 4), 1), ((3, 4, 1, 2), 0), ((1, 3, 2, 4), 0.75), ((1, 1, 1, 1), 0.5), ((1, 2, 2, 3), 0.875)]
)
def test_it_is_the_chance_that_a_protected_image_scores_higher(scores: tuple[float, ...], auc: float) -> None:
    assert area(np.array(scores, float), KINDS, np.arange(4)).auc == auc


def drawn(seed: int, common: float) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.int64]]:
    """Scores of 60 pictures in both forms, which have a part in common."""
    draws = np.random.default_rng(seed)
    own = common * draws.normal(size=60)
    values = np.concatenate([own + draws.normal(size=60), own + draws.normal(size=60) + 0.7])
    return values, np.arange(120) >= 60, np.tile(np.arange(60), 2)


@pytest.mark.parametrize("common", [0.0, 3.0])
def test_the_error_is_what_repeated_draws_show(common: float) -> None:
    found = [area(*drawn(seed, common)) for seed in range(300)]
    spread = np.std([each.auc for each in found])
    assert np.mean([each.error for each in found]) == pytest.approx(spread, rel=0.15)


def test_both_forms_of_a_picture_count_as_one_draw() -> None:
    scores, protected, pictures = drawn(0, 3.0)
    assert area(scores, protected, pictures).error < 0.5 * area(scores, protected, np.arange(120)).error
