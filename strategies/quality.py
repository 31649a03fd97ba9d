"""Ask again about labels that look wrong."""

from __future__ import annotations

import numpy as np

from strategies.base import acquisition
from strategies.pool import Pool, Scores, probabilities_of


@acquisition("mislabel", needs=("probabilities", "labels"), asks="labelled")
def mislabel(pool: Pool) -> Scores:
    """Ask about labelled items that the model, not having seen their label, holds for another class.

    Confident learning (Northcutt et al. 2021): a suspect is an item whose likeliest class among those with
    p(c) ≥ t(c) is not its label, t(c) being the mean p(c) of items labelled c; ranked by max p - p(label).
    Needs out-of-sample probabilities of labelled rows (cross-validation). Asks about nothing else. O(n C).
    """
    p = probabilities_of(pool)
    count = p.shape[1]
    rows = np.flatnonzero(pool.available & pool.labelled & (pool.answers >= 0) & (pool.answers < count))
    given, own = pool.answers[rows], p[rows].astype(np.float64)
    said = own[np.arange(len(rows)), given]
    held = np.bincount(given, minlength=count)
    mean = np.bincount(given, weights=said, minlength=count) / np.maximum(held, 1)
    # A class without a label has no threshold, so nobody can be confident of it.
    confident = np.where((own >= mean - 1e-9) & (held > 0), own, -1.0)
    likeliest = confident.argmax(axis=1)
    suspect = (confident.max(axis=1) >= 0) & (likeliest != given)
    scores = np.full(len(pool), -np.inf)
    scores[rows] = np.where(suspect, confident.max(axis=1) - said, -np.inf)
    return scores
