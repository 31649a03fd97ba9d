"""Switch between strategies by what the pool shows: explore, follow chains, learn, then verify."""

from __future__ import annotations

from typing import Literal

import numpy as np

from strategies.base import Batch, Chain, QueryStrategy
from strategies.chains import cluster_chain
from strategies.diversity import k_center, typical
from strategies.improvement import LEARNING, rush
from strategies.pool import Mask, Pool, Rows, Step
from strategies.simple import draw, random
from strategies.turns import answered, interleave, turns
from strategies.uncertainty import certain, margin

Phase = Literal["typical", "chain", "uncertain", "verify"]

CONTROL = 0.05
"""Share of random items at all times: an honest sample of the pool, and no blind spot."""
CONTROL_SEED = 0
"""Of the control's order, which stays the same from call to call."""
LEAST = 5
"""Labels per class below which uncertainty says more about the model than about the items."""
LEAST_GAIN = 0.05
"""Labels put right by an average question below which confirming is all that is left."""
LEAST_CONTROL = 20
"""Answers of the control from which on it alone says how good suggestions are."""
UNMEASURED = 0.7
"""Share of right suggestions that is assumed where nobody measured it."""


def phase(pool: Pool) -> Phase:
    """Return what is worth most now, decided by the pool alone.

    typical: a region with open items has no label yet. chain: fewer than 5 labels per class seen. uncertain
    (``rush``): an average question still puts more than 0.05 labels right,

        gain = (1 - a) · (1 + b · N / n) > 0.05

    with N open items, n labels, a the measured share of right suggestions (``rightness``) and b = 0.2 the
    exponent of the learning curve: error ∝ n^-b, so one label puts its own suggestion right and those of
    b · N / n others. verify: suggestions are right, and what is left is to confirm them with one key each.
    """
    labels = int(pool.labelled.sum())
    if not labels:
        return "typical"
    if pool.clusters is not None:
        held = np.bincount(pool.clusters[pool.labelled], minlength=1)
        waiting = np.bincount(pool.clusters[pool.available], minlength=len(held))
        if (waiting[len(held) :] > 0).any() or ((waiting[: len(held)] > 0) & (held == 0)).any():
            return "typical"
    seen = np.bincount(pool.answers[pool.labelled & (pool.answers >= 0)], minlength=1)
    classes = np.count_nonzero(seen)  # or sets of classes, which may be many more
    if labels < LEAST * (min(classes, len(pool.classes)) if pool.classes else classes):
        return "chain"
    gain = (1.0 - rightness(pool)) * (1.0 + LEARNING * int(pool.available.sum()) / labels)
    return "uncertain" if gain > LEAST_GAIN else "verify"


def rightness(pool: Pool) -> float:
    """Return the measured share of right suggestions: on the control where it is large enough, else on all.

    ``pool.agreed`` says it for each labelled item; without it 0.7 is assumed. (right + 1) / (answers + 2), so
    that few answers prove little (Laplace).
    """
    if pool.agreed is None:
        return UNMEASURED
    known = pool.labelled & np.isfinite(pool.agreed)
    control = known & _control(pool)
    sample = control if control.sum() >= LEAST_CONTROL else known
    return float((pool.agreed[sample].sum() + 1) / (sample.sum() + 2)) if sample.any() else UNMEASURED


def _control(pool: Pool) -> Mask:
    """Items in front of every open one in a fixed random order: an unbiased sample of the pool.

    Whoever else asks about some of them takes no influence on which they are.
    """
    numbers = draw(pool, np.random.default_rng(CONTROL_SEED))
    mask: Mask = numbers < numbers[pool.available].min(initial=1.0)
    return mask


def _parts(pool: Pool) -> list[QueryStrategy]:
    """The strategies of the phase: whoever comes first is asked first, the others where it has no more."""
    now = phase(pool)
    first: dict[Phase, list[QueryStrategy]] = {
        "typical": [typical],
        "chain": [cluster_chain],
        "uncertain": [rush, margin],
        "verify": [SURE, cluster_chain],
    }
    return [part for part in (*first[now], typical, k_center) if not pool.missing(part.needs)]


def _choose(pool: Pool, k: int, rng: np.random.Generator) -> Rows:
    orders = [part.order(pool, k, rng) for part in _parts(pool)[:2]]
    control = random.order(pool, k, np.random.default_rng(CONTROL_SEED))
    first = interleave(orders, np.empty(0, np.int64), k)  # one after the other
    return interleave([first, control], turns((1 - CONTROL, CONTROL), answered(pool), k), k)


def _step(pool: Pool, step: Step) -> int | None:
    """Switch by measured gain: typical, then chains, then uncertain, then sure items; 5 % stay random."""
    # The order was made before this answer, so its first item belongs to the turn before.
    if turns((1 - CONTROL, CONTROL), max(answered(pool) - 1, 0), 1)[0] == 1:
        return None
    now = phase(pool)
    if now in ("chain", "verify") and not pool.missing(cluster_chain.needs):
        return cluster_chain.step(pool, step)
    return rush.step(pool, step) if now == "uncertain" else None


SURE = certain()
auto = Chain(
    "auto",
    (),
    _step,
    Batch("auto", (), _choose, ("probabilities", "vectors", "regions")),
    ("probabilities", "vectors", "regions"),
)
"""See ``phase`` for the rule. Time: that of the phase's strategy."""
