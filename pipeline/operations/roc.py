"""The area under the ROC curve, and its error over pictures.

Legend: N judged images, m of them protected and n clean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

DECIMALS = 6  # beyond which sums of the same shares differ
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Area:
    """The chance that a detector gives a protected image a higher score than a clean one.

    Attributes:
        auc: 1 for a detector that tells all of them apart, 0.5 for one that guesses.
        error: its standard error; 0 where no image is on the wrong side.
        protected: m.
        clean: n.
    """

    auc: float
    error: float
    protected: int
    clean: int


def area(scores: Floats, protected: NDArray[np.bool_], pictures: NDArray[np.int64]) -> Area:
    """Return the area and its error, which counts both forms of a picture as one draw.

    The area is the statistic of Mann and Whitney, in which equal scores count half. The error follows from the share of images of the
    other kind that each image is told from (DeLong et al. 1988), summed over the images of a picture (Obuchowski 1997, "Nonparametric
    Analysis of Clustered ROC Curve Data").

    Args:
        scores: `(N,)`.
        protected: `(N,)`, of either kind at least one.
        pictures: `(N,)`, numbers from 0.
    """
    m, n = int(protected.sum()), int((~protected).sum())
    told = rankdata(scores)
    for kind in (protected, ~protected):
        told[kind] -= rankdata(scores[kind])
    told[protected] /= n
    told[~protected] = 1 - told[~protected] / m
    auc = float(told[protected].mean())
    parts = np.bincount(pictures, (told - auc) / np.where(protected, m, n))
    count = np.unique(pictures).size
    error = math.sqrt(float(np.square(parts).sum()) * count / max(1, count - 1))
    return Area(round(auc, DECIMALS), round(error, DECIMALS), m, n)
