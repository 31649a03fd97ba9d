"""What Rush thinks of an image: neighbours' labels, the head's probabilities, or both.

Which one speaks was decided by held-out figures of the current generation (``Generation.suggester``).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ml_backend.domain.generation import Floats
from ml_backend.domain.model import EMPTY, LabelState, Suggestion
from ml_backend.numerics import knn
from ml_backend.services.queue.pool import ProjectPool

Rows = Sequence[int] | npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

NEIGHBOURS = 10
BULK = 32
"""From this many images on, one matrix product is faster than one index query each."""


def all_probabilities(pool: ProjectPool, wanted: Mask) -> Floats | None:
    """(n, C) probabilities for ranking, filled in for the embedded rows of ``wanted`` (n,).

    The head's where there is one: at 100,000 images the votes of neighbours take seconds. None where
    nothing is learnt.
    """
    with pool.lock:
        rows = np.flatnonzero(wanted & pool.embedded[: len(wanted)])
        head = _head(pool, rows)
    found = head if head is not None else _votes(pool, rows, "raw", bulk=True)
    if found is None:
        return None
    full = np.zeros((len(wanted), found.shape[1]), np.float32)
    full[rows] = found
    return full


def suggest(pool: ProjectPool, rows: Sequence[int]) -> list[Suggestion]:
    """One suggestion per row, in order; empty where the image is not embedded or nothing is labelled.

    Empty as well for what is hidden.
    """
    if not rows:
        return []
    known = [row for row in rows if pool.embedded[row] and int(pool.ids[row]) not in pool.hidden]
    probabilities, space = _probabilities(pool, known)
    if probabilities is None:
        return [EMPTY] * len(rows)
    ready = dict(zip(known, (_suggestion(pool, p, space) for p in probabilities), strict=True))
    return [ready.get(row, EMPTY) for row in rows]


def _probabilities(pool: ProjectPool, rows: Rows) -> tuple[Floats | None, str]:
    generation = pool.generation
    if generation is None or pool.probabilities is None:
        return _votes(pool, rows, "raw"), "raw"
    space = generation.voting
    votes = None if space is None else _votes(pool, rows, space)
    if space is not None and generation.suggester in ("knn-raw", "knn-head"):
        return votes, space
    head = _head(pool, rows)
    if votes is None or head is None or space is None:
        return head, "head"
    return np.asarray((votes + head) / 2, np.float32), space


def _head(pool: ProjectPool, rows: Rows) -> Floats | None:
    """The head's probabilities (n, C) in the order of the label config; None where there is no head."""
    generation, learnt = pool.generation, pool.probabilities
    if generation is None or learnt is None:
        return None
    head = np.zeros((len(rows), len(pool.control.classes)), np.float32)
    for column, label in enumerate(generation.classes):
        if label in pool.classes:
            head[:, pool.classes[label]] = learnt[rows, column]
    return head


def _votes(pool: ProjectPool, rows: Rows, space: str, *, bulk: bool = False) -> Floats | None:
    """kNN votes of the labelled images; None where there is no label yet."""
    classes, multiple = len(pool.control.classes), pool.control.multiple
    if bulk or len(rows) > BULK:
        with pool.lock:  # only to gather: nobody's submit waits for the product
            vectors, labelled = pool.vectors(space), (pool.states == LabelState.LABELLED) & pool.embedded
            if not multiple:
                labelled &= pool.targets >= 0
            teachers = np.flatnonzero(labelled)
            asked, known, targets = vectors[rows], vectors[teachers], pool.targets[teachers]
        if not len(teachers):
            return None
        return knn.vote_all(asked, known, targets, classes, NEIGHBOURS, multiple=multiple)
    votes = np.zeros((len(rows), classes), np.float32)
    heard = False
    with pool.lock:
        for position, row in enumerate(rows):
            found = pool.neighbours(space, int(row), NEIGHBOURS + 1, LabelState.LABELLED)
            there = [(other, similarity) for other, similarity in found if other != row][:NEIGHBOURS]
            if there:
                heard = True
                others, similarities = zip(*there, strict=True)
                votes[position] = knn.vote(
                    np.array([similarities]), pool.targets[list(others)][None], classes, multiple=multiple
                )[0]
    return votes if heard else None


def _suggestion(pool: ProjectPool, probabilities: Floats, space: str) -> Suggestion:
    order = np.argsort(-probabilities, kind="stable")
    ranked = tuple((pool.control.classes[n], float(probabilities[n])) for n in order if probabilities[n] > 0)
    if not ranked:
        return EMPTY
    if pool.control.multiple:
        chosen = tuple(label for label, probability in ranked if probability >= 0.5)
        confidence = float(np.prod(np.maximum(probabilities, 1 - probabilities)))
        return Suggestion(chosen, confidence, ranked, space)
    return Suggestion((ranked[0][0],), ranked[0][1], ranked, space)
