"""What Rush thinks of an image: neighbours' labels, the head's probabilities, or both.

Which one speaks was decided by held-out figures of the current generation (``Generation.suggester``).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ml_backend.domain import EMPTY, LabelState, Suggestion
from ml_backend.generation import Floats
from ml_backend.services import knn
from ml_backend.services.live import LivePool

NEIGHBOURS = 10
BULK = 32
"""From this many images on, one matrix product is faster than one index query each."""


def all_probabilities(pool: LivePool, rows: Sequence[int]) -> Floats | None:
    """(n, C) probabilities of all rows of the pool, filled in for ``rows``; None where nothing is learnt."""
    with pool.lock:
        found, _ = _probabilities(pool, rows)
    if found is None:
        return None
    full = np.zeros((len(pool.ids), found.shape[1]), np.float32)
    full[rows] = found
    return full


def suggest(pool: LivePool, rows: Sequence[int]) -> list[Suggestion]:
    """One suggestion per row, in order; empty where the image is not embedded or nothing is labelled."""
    if not rows:
        return []
    with pool.lock:
        known = [row for row in rows if pool.known[row]]
        probabilities, space = _probabilities(pool, known)
    if probabilities is None:
        return [EMPTY] * len(rows)
    ready = dict(zip(known, (_suggestion(pool, p, space) for p in probabilities), strict=True))
    return [ready.get(row, EMPTY) for row in rows]


def _probabilities(pool: LivePool, rows: Sequence[int]) -> tuple[Floats | None, str]:
    generation = pool.generation
    if generation is None or pool.probabilities is None:
        return _votes(pool, rows, "raw"), "raw"
    how = generation.suggester
    space = "head" if how == "knn-head" or (how == "blend" and pool.space == "head") else "raw"
    votes = None if how == "head" else _votes(pool, rows, space)
    if how in ("knn-raw", "knn-head"):
        return votes, space
    head = np.zeros((len(rows), len(pool.spec.classes)), np.float32)
    for column, label in enumerate(generation.classes):
        if label in pool.classes:
            head[:, pool.classes[label]] = pool.probabilities[rows, column]
    if votes is None:
        return head, "head"
    return np.asarray((votes + head) / 2, np.float32), space


def _votes(pool: LivePool, rows: Sequence[int], space: str) -> Floats | None:
    """kNN votes of the labelled images; None where there is no label yet."""
    vectors, classes, multiple = pool.vectors(space), len(pool.spec.classes), pool.spec.multiple
    if len(rows) > BULK:
        labelled = (pool.states == LabelState.LABELLED) & pool.known
        if not multiple:
            labelled &= pool.targets >= 0
        teachers = np.flatnonzero(labelled)
        if not len(teachers):
            return None
        return knn.vote_all(
            vectors[rows], vectors[teachers], pool.targets[teachers], classes, NEIGHBOURS, multiple=multiple
        )
    votes = np.zeros((len(rows), classes), np.float32)
    heard = False
    for position, row in enumerate(rows):
        tasks, similarities = pool.index.neighbours(space, vectors[row], NEIGHBOURS + 1, LabelState.LABELLED)
        others = tasks != pool.ids[row]
        tasks, similarities = tasks[others][:NEIGHBOURS], similarities[others][:NEIGHBOURS]
        if len(tasks):
            heard = True
            targets = pool.targets[[pool.row_of[task] for task in tasks]]
            votes[position] = knn.vote(similarities[None], targets[None], classes, multiple=multiple)[0]
    return votes if heard else None


def _suggestion(pool: LivePool, probabilities: Floats, space: str) -> Suggestion:
    order = np.argsort(-probabilities, kind="stable")
    ranked = tuple((pool.spec.classes[n], float(probabilities[n])) for n in order if probabilities[n] > 0)
    if not ranked:
        return EMPTY
    if pool.spec.multiple:
        chosen = tuple(label for label, probability in ranked if probability >= 0.5)
        confidence = float(np.prod(np.maximum(probabilities, 1 - probabilities)))
        return Suggestion(chosen, confidence, ranked, space)
    return Suggestion((ranked[0][0],), ranked[0][1], ranked, space)
