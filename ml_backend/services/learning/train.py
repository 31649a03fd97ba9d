"""One training round: held-out figures for every way to suggest, the choice among them, and a head.

Every figure is out of fold: no image is judged by a head or by neighbours that saw its label, be it as a
copy of it in another task.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ml_backend.domain.generation import Array, Floats, Generation, Head, Pca
from ml_backend.numerics.copies import groups_of
from ml_backend.numerics.figures import accuracy, agreement, correct, figures, fit_temperature, losses
from ml_backend.numerics.knn import vote_all
from ml_backend.ports import Trainer

LEAST_LABELS = 10
LEAST_CLASSES = 2
NEIGHBOURS = 10
ROUNDS = 200
"""Rounds whose labels and held-out accuracy are remembered: the learning curve."""
LEAST_PAIRED = 20
"""Fewer images than this, judged by both heads, can't show that the new one is worse."""


@dataclass(frozen=True, slots=True)
class TrainOutcome:
    """What a round came to: a generation to publish, or None where its head is worse than the last one."""

    generation: Generation | None
    manifest: dict[str, Any]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Out-of-fold answers for the images ``rows`` that were held out, in the order of ``rows``."""

    rows: npt.NDArray[np.int64]
    votes: dict[str, Floats]  # space → (m, C)
    logits: Floats  # (m, C); -inf for a class that the fold's head never saw
    same: dict[str, Floats]  # space → (m,) agreement with held-out neighbours

    def only(self, mask: npt.NDArray[np.bool_]) -> HeldOut:
        """The answers for some of the rows (m,)."""
        return HeldOut(
            self.rows[mask],
            {space: votes[mask] for space, votes in self.votes.items()},
            self.logits[mask],
            {space: same[mask] for space, same in self.same.items()},
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What held-out answers say; ``ways`` to suggest are probabilities (m, C), ``right`` is of the head."""

    temperature: float
    space: str
    suggester: str
    ways: dict[str, Floats]
    right: Floats  # (m,)


def train(
    features: Array,
    targets: Array,
    ids: Sequence[int],
    *,
    classes: Sequence[str],
    multiple: bool,
    pca: Pca,
    trainer: Trainer,
    previous: Generation | None,
    number: int,
    backbone: str = "",
    tuned_on: Collection[int] = (),
    seed: int = 0,
) -> TrainOutcome:
    """Fit, calibrate and judge a head on labelled features (n, F); decide what it may serve.

    ``targets`` are class indices (n,), or 0/1 (n, C) where ``multiple``; ``ids`` (n,) are their tasks.
    Below 10 labels or two classes there is a generation without a head. ``Generation.classes`` are those
    with a label. A head that is worse than that of ``previous`` is not published (see ``_worse``).
    Tasks that the backbone itself was trained on (``tuned_on``) judge nothing, where others are enough.
    """
    backbone = backbone or (previous.backbone if previous is not None else "")
    seen = np.flatnonzero(targets.sum(axis=0)) if multiple else np.unique(targets)
    names = tuple(classes[int(n)] for n in seen)
    y = targets[:, seen] if multiple else np.searchsorted(seen, targets)
    manifest: dict[str, Any] = {
        "images": previous.manifest.get("images", 0) if previous is not None else 0,
        "labels": len(features),
    }
    base = Generation(number, backbone, pca, classes=names, multiple=multiple, manifest=manifest)
    if len(features) < LEAST_LABELS or len(names) < (1 if multiple else LEAST_CLASSES):
        manifest["why"] = f"{len(features)} labels of {len(names)} classes are too few for a head"
        return TrainOutcome(base, manifest)

    groups = groups_of(pca.encode(features), kinds_of(y, multiple=multiple))
    held = _hold_out(features, y, len(names), multiple, pca, trainer, groups, seed)
    if tuned_on:
        held = _new_to_the_backbone(held, ids, groups, tuned_on, manifest)
    verdict = _judge(held, y[held.rows], multiple)
    manifest |= _record(verdict, held, y, ids, previous, multiple)
    manifest["images_labelled"] = len(np.unique(groups))
    worse = _worse(previous, base, features, y, ids, groups, held.rows, verdict.right)
    if worse is not None:
        manifest["why"] = worse
        return TrainOutcome(None, manifest)
    head = trainer.fit(features, y, multiple=multiple, pca=pca.components, seed=seed)
    head = replace(head, temperature=verdict.temperature)
    fresh = replace(base, head=head, space=verdict.space, suggester=verdict.suggester)
    return TrainOutcome(fresh, manifest)


def _new_to_the_backbone(
    held: HeldOut, ids: Sequence[int], groups: Array, tuned_on: Collection[int], manifest: dict[str, Any]
) -> HeldOut:
    """Only what the backbone was not trained on, where that is enough; noted in the manifest."""
    manifest["tuned_on"] = sorted(tuned_on)
    seen = groups[[int(task) in tuned_on for task in ids]]
    fair = ~np.isin(groups[held.rows], seen)
    if fair.sum() >= LEAST_PAIRED:
        return held.only(fair)
    manifest["optimistic"] = f"only {int(fair.sum())} labels are new to the fine-tuned backbone"
    return held


def _judge(held: HeldOut, truth: Array, multiple: bool) -> Verdict:
    """Calibrate the head, and choose the space and the suggester that serve."""
    temperature = fit_temperature(held.logits, truth, multiple=multiple)
    head_says = _probabilities(held.logits / temperature, multiple)
    space = _space(held)
    ways: dict[str, Floats] = {
        "knn-raw": held.votes["raw"],
        "knn-head": held.votes["head"],
        "head": head_says,
        "blend": np.asarray((held.votes[space] + head_says) / 2, np.float32),
    }
    return Verdict(
        temperature=temperature,
        space=space,
        suggester=_suggester(ways, truth, multiple),
        ways=ways,
        right=correct(head_says, truth, multiple=multiple),
    )


def _record(
    verdict: Verdict,
    held: HeldOut,
    y: Array,
    ids: Sequence[int],
    previous: Generation | None,
    multiple: bool,
) -> dict[str, Any]:
    """What the manifest keeps of a round: figures, choices, the learning curve, and who was judged how."""
    truth = y[held.rows]
    best = accuracy(correct(verdict.ways[verdict.suggester], truth, multiple=multiple))
    curve = previous.manifest.get("curve", []) if previous is not None else []
    return {
        "curve": [*curve, [len(y), round(best, 4)]][-ROUNDS:],
        "held_out": {way: figures(said, truth, multiple=multiple) for way, said in verdict.ways.items()},
        "purity": {name: float(same.mean()) for name, same in held.same.items()},
        "space": verdict.space,
        "suggester": verdict.suggester,
        "temperature": verdict.temperature,
        "trained_on": {
            "ids": [int(i) for i in ids],
            "targets": y.tolist(),
            "judged": [int(ids[row]) for row in held.rows],
            "right": [round(float(r), 4) for r in verdict.right],
            "loss": [round(float(x), 4) for x in losses(verdict.ways["head"], truth, multiple=multiple)],
        },
    }


def _hold_out(
    features: Array,
    y: Array,
    classes: int,
    multiple: bool,
    pca: Pca,
    trainer: Trainer,
    groups: Array,
    seed: int,
) -> HeldOut:
    raw = pca.encode(features)
    rows: list[npt.NDArray[np.int64]] = []
    votes: dict[str, list[Floats]] = {"raw": [], "head": []}
    same: dict[str, list[Floats]] = {"raw": [], "head": []}
    logits: list[Floats] = []
    for out in folds(y, groups, multiple=multiple, seed=seed):
        inside = np.setdiff1d(np.arange(len(features)), out)
        # A fold may lack a class: its head knows the others only.
        seen = np.arange(classes) if multiple else np.unique(y[inside])
        target = y[inside] if multiple else np.searchsorted(seen, y[inside])
        head = trainer.fit(features[inside], target, multiple=multiple, pca=pca.components, seed=seed)
        embeddings = {"raw": raw, "head": head.encode(features)}
        for space, vectors in embeddings.items():
            votes[space].append(
                vote_all(vectors[out], vectors[inside], y[inside], classes, NEIGHBOURS, multiple=multiple)
            )
            once, own = np.unique(groups[out], return_inverse=True)
            same[space].append(agreement(vectors[once], y[once], multiple=multiple)[own])
        found = np.full((len(out), classes), -np.inf, np.float32)
        found[:, seen] = _logits(head, embeddings["head"][out])
        logits.append(found)
        rows.append(out)
    return HeldOut(
        np.concatenate(rows),
        {space: np.concatenate(parts) for space, parts in votes.items()},
        np.concatenate(logits),
        {space: np.concatenate(parts) for space, parts in same.items()},
    )


def kinds_of(y: Array, *, multiple: bool) -> npt.NDArray[np.int64]:
    """Return a number (n,) for each answer: the class, or where ``multiple`` the whole set of labels."""
    return np.unique(y, axis=0, return_inverse=True)[1].reshape(-1) if multiple else np.asarray(y, np.int64)


def folds(
    y: Array, groups: Array | None = None, *, multiple: bool, seed: int = 0
) -> list[npt.NDArray[np.int64]]:
    """Return disjoint sets of rows to hold out, each class spread evenly over them.

    Rows of the same image (``groups``, see ``groups_of``) stay together. Five folds of up to 2,000 images,
    which judge every one; above, one fifth judges well enough. Where ``multiple``, images are spread by their
    whole set of labels.
    """
    # sklearn's StratifiedKFold is as even, but refuses labels of which no class has five members, and warns
    # where one has fewer: in 180 of 300 random sets of 10 to 400 labels.
    random = np.random.default_rng(seed)
    groups = np.arange(len(y)) if groups is None else groups
    once = np.unique(groups)
    kinds = kinds_of(y, multiple=multiple)[once]
    shuffled = random.permutation(len(once))
    order = shuffled[np.argsort(kinds[shuffled], kind="stable")]
    parts = [np.flatnonzero(np.isin(groups, once[order[start::5]])) for start in range(5)]
    return parts if len(once) <= 2000 else parts[:1]


def _logits(head: Head, embeddings: Floats) -> Floats:
    return np.asarray(head.scale * (embeddings @ head.prototypes.T) + head.bias, np.float32)


def _probabilities(logits: Floats, multiple: bool) -> Floats:
    if multiple:
        return np.asarray(1 / (1 + np.exp(-np.clip(logits, -30, 30))), np.float32)
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exp / exp.sum(axis=1, keepdims=True), np.float32)


def _space(held: HeldOut) -> str:
    """The head's space where its neighbourhoods are purer than the raw one's by two standard errors."""
    gain = held.same["head"] - held.same["raw"]
    return "head" if gain.mean() > 2 * standard_error(gain) and gain.mean() > 0 else "raw"


def _suggester(ways: dict[str, Floats], truth: Array, multiple: bool) -> str:
    """Of the ways that are within a standard error of the most accurate one, that of the least log-loss.

    With few labels accuracies are mostly noise; the log-loss of the same answers tells more apart.
    """
    right = {way: correct(said, truth, multiple=multiple) for way, said in ways.items()}
    best = max(ways, key=lambda way: accuracy(right[way]))
    losses = {
        way: figures(said, truth, multiple=multiple)["log_loss"]
        for way, said in ways.items()
        if (right[best] - right[way]).mean() <= standard_error(right[best] - right[way])
    }
    return min(losses, key=lambda way: losses[way])


def _worse(
    previous: Generation | None,
    new: Generation,
    features: Array,
    y: Array,
    ids: Sequence[int],
    groups: Array,
    rows: npt.NDArray[np.int64],
    right: Floats,
) -> str | None:
    """Why the new head is worse than the previous one; None where it is not, or can't be compared.

    Both are judged on the same images, neither on one that it was trained on: the new recipe out of fold,
    the old head directly on labels that came after it, and by its own out-of-fold answers on labels that
    it was trained on. So images that got harder (the queue asks for hard ones) blame nobody. Labels that
    were changed since are left out. Worse is: by two standard errors of the paired difference.
    """
    if (
        previous is None
        or previous.head is None
        or previous.classes != new.classes
        or previous.multiple != new.multiple
        or previous.backbone != new.backbone
    ):
        return None
    record = previous.manifest.get("trained_on", {})
    known = dict(zip(record.get("ids", ()), record.get("targets", ()), strict=True))
    judged = previous.judged()
    # A copy of what the old head was trained on is nothing new to it, and what it said of images with copies
    # before these were kept together was no better than knowing the answer.
    taught = set(groups[[int(task) in known for task in ids]].tolist())
    apart = "images_labelled" in previous.manifest
    single = np.bincount(groups, minlength=len(groups))[groups] == 1
    fresh = [n for n, row in enumerate(rows) if int(groups[row]) not in taught]
    again = [
        n
        for n, row in enumerate(rows)
        if (apart or single[row]) and int(ids[row]) in judged and known[int(ids[row])] == y[row].tolist()
    ]
    head = previous.head
    said = head.probabilities(head.encode(features[rows[fresh]]), multiple=new.multiple)
    old = np.concatenate(
        [
            correct(said, y[rows[fresh]], multiple=new.multiple),
            np.array([judged[int(ids[rows[n]])] for n in again], np.float32),
        ]
    )
    gain = right[fresh + again] - old
    if len(gain) < LEAST_PAIRED or gain.mean() >= -2 * standard_error(gain):
        return None
    return (
        f"the new head is worse than generation {previous.number}: {right[fresh + again].mean():.3f} "
        f"against {old.mean():.3f} right on {len(gain)} images that neither was trained on"
    )


def standard_error(differences: Array) -> float:
    """Standard error of the mean of paired differences."""
    return float(np.std(differences) / np.sqrt(max(len(differences), 1)))
