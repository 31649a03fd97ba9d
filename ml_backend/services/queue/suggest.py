"""What Rush thinks of an image: neighbours' labels, the head's probabilities, or both.

Which one speaks was decided by held-out figures of the current generation (``Generation.suggester``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ml_backend.domain.generation import Array, Floats
from ml_backend.domain.model import EMPTY, LabelState, Suggestion
from ml_backend.numerics import knn
from ml_backend.services.queue.pool import ProjectPool

Rows = Sequence[int] | npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

NEIGHBOURS = 10
RANKED = 128
"""Classes that a suggestion ranks at most."""
BULK = 32
"""From this many images on, one matrix product is faster than one index query each."""


@dataclass(frozen=True, slots=True)
class Beliefs:
    """What is thought of some images.

    ``known`` (n, K) are probabilities of the pool's columns; ``lost`` (n,) is how much speaks for a class
    that the label config no longer has, be it by neighbours or by the head. Nothing is suggested against it.
    """

    known: Floats
    lost: Floats


def all_probabilities(pool: ProjectPool, wanted: Mask) -> Floats | None:
    """(n, K) probabilities for ranking, filled in for the embedded rows of ``wanted`` (n,).

    K are the columns of the pool. The head's where there is one: at 100,000 images the votes of neighbours
    take seconds. None where nothing is learnt.
    """
    with pool.lock:
        rows = np.flatnonzero(wanted & pool.embedded[: len(wanted)])
        found = _head(pool, rows)
    found = found if found is not None else _votes(pool, rows, "raw", bulk=True)
    if found is None or not found.known.shape[1]:
        return None
    full = np.zeros((len(wanted), found.known.shape[1]), np.float32)
    full[rows] = found.known
    return full


def suggest(pool: ProjectPool, rows: Sequence[int]) -> list[Suggestion]:
    """One suggestion per row, in order; empty where the image is not embedded or nothing is labelled.

    Empty as well for what is hidden, and where a class that is gone from the label config is likelier than
    those that are there.
    """
    if not rows:
        return []
    asked = [row for row in rows if pool.embedded[row] and int(pool.ids[row]) not in pool.hidden]
    beliefs, space = _beliefs(pool, asked)
    if beliefs is None:
        return [EMPTY] * len(rows)
    names = tuple(pool.columns.names[: beliefs.known.shape[1]])
    said = (
        _suggestion(names, known, float(lost), space, multiple=pool.control.multiple)
        for known, lost in zip(beliefs.known, beliefs.lost, strict=True)
    )
    ready = dict(zip(asked, said, strict=True))
    return [ready.get(row, EMPTY) for row in rows]


def _beliefs(pool: ProjectPool, rows: Rows) -> tuple[Beliefs | None, str]:
    generation = pool.generation
    if generation is None or pool.probabilities is None:
        return _votes(pool, rows, "raw"), "raw"
    space = generation.voting
    votes = None if space is None and not pool.lost.any() else _votes(pool, rows, space or pool.space)
    if space is not None and generation.suggester in ("knn-raw", "knn-head"):
        return votes, space
    head = _head(pool, rows)
    if head is not None and votes is not None:
        # A head that was trained since knows nothing of answers under lost names: neighbours do.
        width, left = votes.known.shape[1], np.asarray(1 - votes.lost, np.float32)
        known = head.known[:, :width] * left[:, None]
        head = Beliefs(known, np.asarray(votes.lost + left * head.lost, np.float32))
    if votes is None or head is None or space is None:
        return head, "head"
    both = np.asarray((votes.known[:, : head.known.shape[1]] + head.known) / 2, np.float32)
    return Beliefs(both, np.asarray((votes.lost + head.lost) / 2, np.float32)), space


def _head(pool: ProjectPool, rows: Rows) -> Beliefs | None:
    """What the head says; None where there is no head.

    A class under its new name keeps its probability, one that is gone is lost.
    """
    generation, learnt = pool.generation, pool.probabilities
    if generation is None or learnt is None:
        return None
    head = Beliefs(np.zeros((len(rows), len(pool.columns)), np.float32), np.zeros(len(rows), np.float32))
    for column, label in enumerate(pool.control.current([name])[0] for name in generation.classes):
        at = pool.columns.number.get(label)
        into = head.lost if at is None else head.known[:, at]
        if pool.control.multiple:  # each on its own
            np.maximum(into, learnt[rows, column], out=into)
        else:
            into += learnt[rows, column]
    return head


def _votes(pool: ProjectPool, rows: Rows, space: str, *, bulk: bool = False) -> Beliefs | None:
    """kNN votes of the labelled images; None where there is no label yet."""
    multiple, among = pool.control.multiple, len(pool.control.classes)
    if bulk or len(rows) > BULK:
        with pool.lock:  # only to gather: nobody's submit waits for the product
            vectors, labelled = pool.vectors(space), (pool.states == LabelState.LABELLED) & pool.embedded
            if not multiple:
                labelled &= (pool.targets >= 0) | pool.lost
            teachers = np.flatnonzero(labelled)
            asked, known = vectors[rows], vectors[teachers]
            targets, width = _targets(pool, teachers), len(pool.columns)
            all_of = width + int(pool.lost.any())
        if not len(teachers):
            return None
        votes = knn.vote_all(asked, known, targets, all_of, NEIGHBOURS, multiple=multiple, among=among)
        return _parted(votes, width)
    heard = False
    with pool.lock:
        width, all_of = len(pool.columns), len(pool.columns) + int(pool.lost.any())
        votes = np.zeros((len(rows), all_of), np.float32)
        for position, row in enumerate(rows):
            found = pool.neighbours(space, int(row), NEIGHBOURS + 1, LabelState.LABELLED)
            there = [(other, similarity) for other, similarity in found if other != row][:NEIGHBOURS]
            if there:
                heard = True
                others, similarities = zip(*there, strict=True)
                targets = _targets(pool, np.array(others))[None]
                votes[position] = knn.vote(
                    np.array([similarities]), targets, all_of, multiple=multiple, among=among
                )[0]
    return _parted(votes, width) if heard else None


def _targets(pool: ProjectPool, rows: Array) -> Array:
    """What these labelled rows vote for: columns, and one behind them where any answer is lost."""
    lost = pool.lost[rows]
    if not pool.lost.any():
        return pool.targets[rows]
    if pool.control.multiple:
        return np.concatenate([pool.targets[rows], lost[:, None]], axis=1)
    return np.where(lost, len(pool.columns), pool.targets[rows])


def _parted(votes: Floats, width: int) -> Beliefs:
    """Votes for classes, and those for what is lost."""
    lost = votes[:, width] if votes.shape[1] > width else np.zeros(len(votes), np.float32)
    return Beliefs(votes[:, :width], lost)


def _suggestion(
    names: Sequence[str], known: Floats, lost: float, space: str, *, multiple: bool
) -> Suggestion:
    order = np.argsort(-known, kind="stable")[:RANKED]
    ranked = tuple((names[n], float(known[n])) for n in order if known[n] > 0)
    if not ranked or lost >= (0.5 if multiple else ranked[0][1]):
        return EMPTY
    if multiple:
        chosen = tuple(label for label, probability in ranked if probability >= 0.5)
        confidence = float(np.prod(np.maximum(known, 1 - known))) * (1 - lost)
        return Suggestion(chosen, confidence, ranked, space)
    return Suggestion((ranked[0][0],), ranked[0][1], ranked, space)
