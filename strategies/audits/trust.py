"""How far a suggestion may be trusted beyond the model's own confidence: does the item lie with its class?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata

from strategies.pool import Floats, Rows, StrategyError

BLOCK = 8192


def margins(vectors: Floats, labels: Rows) -> Floats:
    """Return how much nearer each item is to the mean of its own class than to that of any other (n,).

    Unit ``vectors`` (n, d) and the classes ``labels`` (n,) that are suggested for them; differences of
    cosines, or the cosine itself where there is one class only. O(n d C).
    """
    classes, own = np.unique(labels, return_inverse=True)
    sums = np.zeros((len(classes), vectors.shape[1]), np.float64)
    np.add.at(sums, own, vectors)
    means = (sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-9)).astype(np.float32)
    found = np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), BLOCK):
        block = slice(start, start + BLOCK)
        near = vectors[block] @ means.T
        rows = np.arange(len(near))
        mine = near[rows, own[block]].copy()
        near[rows, own[block]] = -np.inf
        found[block] = mine - near.max(axis=1) if len(classes) > 1 else mine
    return found


def trusted(confidences: Floats, labels: Rows, spaces: Sequence[Floats]) -> Floats:
    """Return the same confidences (n,) handed out anew: the highest to the items that rank high throughout.

    An item ranks as it does where it ranks worst: by its confidence, and in each space (n, d) by its
    margin to the class means (``margins``). Networks, above all those that have trained on their own
    suggestions, are sure of mistakes too, but these rarely lie in the middle of the class that they are
    mistaken for. After the trust score (Jiang, Kim, Guan & Gupta 2018). Ties keep the order of confidence.
    Raises StrategyError where lengths differ or something is not finite.
    """
    if len(labels) != len(confidences) or any(len(space) != len(confidences) for space in spaces):
        raise StrategyError(f"{len(confidences)} confidences need as many labels and vectors.")
    if not all(np.isfinite(part).all() for part in (confidences, *spaces)):
        raise StrategyError("Confidences and vectors must be finite.")
    ranks = [rankdata(confidences), *(rankdata(margins(space, labels)) for space in spaces)]
    order = np.lexsort((confidences, np.min(ranks, axis=0)))
    found = np.empty_like(confidences)
    found[order] = np.sort(confidences)
    return found
