"""What held-out answers are worth: accuracy, log-loss, calibration, purity; and the temperature."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ml_backend.domain.generation import Array, Floats
from ml_backend.numerics.exact_knn import nearest

FLOOR = 1e-3
"""Least probability that log-loss counts: one sure error must not outweigh a thousand answers."""
BINS = 10


def correct(probabilities: Floats, truth: Array, *, multiple: bool) -> Floats:
    """Return how right each answer (n,) is: 0 or 1, or where ``multiple`` the share of right classes."""
    if multiple:
        return np.asarray(((probabilities >= 0.5) == (truth > 0)).mean(axis=1), np.float32)
    return np.asarray(probabilities.argmax(axis=1) == truth, np.float32)


def accuracy(right: Floats) -> float:
    """Return the mean of ``correct``."""
    return float(right.mean()) if len(right) else 0.0


def losses(probabilities: Floats, truth: Array, *, multiple: bool) -> Floats:
    """Return the log-loss (n,) of each answer in nats; where ``multiple`` the mean over classes."""
    # sklearn's log_loss gives one mean, of classes that exclude each other, without a floor.
    if multiple:
        likelihood = np.where(truth > 0, probabilities, 1 - probabilities)
        return np.asarray(-np.log(np.maximum(likelihood, FLOOR)).mean(axis=1), np.float32)
    likelihood = probabilities[np.arange(len(truth)), truth]
    return np.asarray(-np.log(np.maximum(likelihood, FLOOR)), np.float32)


def figures(probabilities: Floats, truth: Array, *, multiple: bool) -> dict[str, float]:
    """Return accuracy, log_loss (nats per answer) and ece (expected calibration error, Guo et al. 2017)."""
    if multiple:
        confidence = np.maximum(probabilities, 1 - probabilities).ravel()
        hit = ((probabilities >= 0.5) == (truth > 0)).ravel()
    else:
        confidence = probabilities.max(axis=1)
        hit = probabilities.argmax(axis=1) == truth
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [abs(float((hit[bins == n] - confidence[bins == n]).sum())) for n in range(BINS)]
    return {
        "accuracy": accuracy(correct(probabilities, truth, multiple=multiple)),
        "log_loss": float(losses(probabilities, truth, multiple=multiple).mean()),
        "ece": sum(gaps) / max(len(confidence), 1),
    }


def agreement(vectors: Floats, truth: Array, *, multiple: bool, k: int = 10) -> Floats:
    """Return each row's mean agreement (n,) with its k nearest other rows; unit vectors.

    Same class, or where ``multiple`` the Jaccard overlap of the two sets of labels. ``k`` shrinks to half
    the rows per kind of answer, so that few rows can be pure at all.
    """
    n = len(vectors)
    kinds = len(np.unique(truth, axis=0))
    k = int(np.clip(n // (2 * max(kinds, 1)), 1, k))
    if n <= k:
        return np.zeros(n, np.float32)
    near = nearest(vectors, vectors, k + 1, np.arange(n))[0][:, 1:]
    if not multiple:
        return np.asarray((truth[near] == truth[:, None]).mean(axis=1), np.float32)
    both = (truth[near] * truth[:, None]).sum(axis=2)
    either = np.maximum(truth[near], truth[:, None]).sum(axis=2)
    return np.asarray(np.where(either > 0, both / np.maximum(either, 1), 1.0).mean(axis=1), np.float32)


def fit_temperature(logits: Floats, truth: Array, *, multiple: bool) -> float:
    """Return the temperature of least log-loss on held-out logits (n, C) (Guo et al. 2017), 0.05 to 20.

    The targets are Platt's (1999): n right ones prove a probability of (n + 1) / (n + 2), not of one, which
    would make all suggestions alike in how sure they are. Images of a class that the fold's head never saw
    (-inf) say nothing about it and are left out.
    """
    # sklearn's method="temperature" knows neither: 30 labels of CIFAR-10, one class unseen, made it 22,000.
    if multiple:
        signed = np.where(truth > 0, logits, -logits).astype(np.float64)
        doubt = signed / (len(signed) + 2)
        return _least(lambda t: float((np.logaddexp(0, -signed / t) + doubt / t).mean()))
    own = logits[np.arange(len(truth)), truth].astype(np.float64)
    fair = np.isfinite(own)
    if not fair.any():
        return 1.0
    margins = logits[fair].astype(np.float64) - own[fair, None]
    others = np.isfinite(margins)
    others[np.arange(len(margins)), truth[fair]] = False
    total = np.where(others, margins, 0).sum(axis=1) / np.maximum(others.sum(axis=1), 1)
    doubt = total / (len(margins) + 2)
    return _least(lambda t: float((np.logaddexp.reduce(margins / t, axis=1) - doubt / t).mean()))


def _least(loss: Callable[[float], float]) -> float:
    """The temperature at the only minimum of a loss."""
    from scipy.optimize import minimize_scalar  # workers have it; connect and demo must start without

    found = minimize_scalar(lambda log: loss(np.exp(log)), bounds=np.log([0.05, 20]), options={"xatol": 1e-3})
    return float(np.exp(found.x))
