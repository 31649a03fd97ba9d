"""How fast people are, and what their next labels will bring: stop or continue?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ml_backend.domain.generation import Floats
from ml_backend.domain.model import Annotation
from strategies import StrategyError
from strategies.cost import PAGE_SECONDS, Answer, CostModel, busy, labels_per_hour, outlook

RECENT = 500
"""The newest answers say how fast people are now."""
NEXT = 100
LEAST_TIMED = 50
"""Timed answers below which the published prior says more than they do."""


def pace(annotations: Iterable[Annotation], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Labels per annotator hour, and points of accuracy and minutes of the next 100 labels, once known.

    ``manifest`` is that of the current generation. Pauses don't count, Label Studio's page time does.
    """
    timed = [a for a in annotations if a.lead_time is not None and not a.skipped]
    timed = sorted(timed, key=lambda a: (a.created_at, a.id))[-RECENT:]
    seconds = np.array([a.lead_time for a in timed], np.float64)
    seconds = seconds[busy([a.annotator for a in timed], seconds)]
    if not len(seconds):
        return {}
    found: dict[str, Any] = {"labels_per_hour": round(labels_per_hour(seconds))}
    curve = manifest.get("curve", [])
    try:
        next_ = outlook([n for n, _ in curve], [a for _, a in curve], float(seconds.mean()), NEXT)
    except StrategyError:
        return found  # too few rounds
    found[f"next_{NEXT}_labels"] = {
        "points": round(100 * next_.gain, 2),
        "from": round(100 * next_.low, 2),
        "to": round(100 * next_.high, 2),
        "minutes": round(next_.minutes, 1),
    }
    return found


def cost_model(annotations: Iterable[Annotation], right: Mapping[int, float]) -> CostModel | None:
    """Learn what answers cost here; None below 50 timed answers.

    ``right``: task → 1 where a suggestion made without its label was right. Such an answer counts as an
    accepted suggestion, any other as a correction: Label Studio does not say which it was.
    """
    answers, seconds = timed_answers(annotations, right)
    return CostModel().fit(answers, seconds) if len(answers) >= LEAST_TIMED else None


def timed_answers(
    annotations: Iterable[Annotation], right: Mapping[int, float]
) -> tuple[list[Answer], list[float]]:
    """Answers and their lead times in seconds, in the order given; ``right`` as for ``cost_model``."""
    answers: list[Answer] = []
    seconds: list[float] = []
    before: dict[int, tuple[str, ...]] = {}
    for a in sorted(annotations, key=lambda a: (a.created_at, a.id)):
        switch = before.get(a.annotator) != a.labels
        before[a.annotator] = a.labels
        if a.lead_time is None or (not a.skipped and a.task not in right):
            continue
        kind = "skip" if a.skipped else "accept" if right[a.task] >= 0.5 else "correct"
        answers.append(Answer(kind, switch=switch, annotator=a.annotator))
        seconds.append(a.lead_time)
    return answers, seconds


def seconds_per_image(model: CostModel, probabilities: Floats) -> Floats:
    """Expected annotator seconds (n,) of images with these probabilities (n, C), page time included."""
    sure = probabilities.max(axis=1) if probabilities.shape[1] else np.zeros(len(probabilities))
    return np.asarray(PAGE_SECONDS + model.expected(sure), np.float32)


def own_minutes(
    annotations: Iterable[Annotation], page_seconds: float, labels: int
) -> tuple[int, float] | None:
    """How many of people's first ``labels`` answers are timed, and the minutes they took; None for none.

    Pauses don't count, Label Studio's page time does.
    """
    timed = sorted((a for a in annotations if not a.machine), key=lambda a: (a.created_at, a.id))[:labels]
    timed = [a for a in timed if a.lead_time is not None and not a.skipped]
    seconds = np.array([a.lead_time for a in timed], np.float64)
    seconds = seconds[busy([a.annotator for a in timed], seconds)]
    return (len(seconds), float((seconds + page_seconds).sum() / 60)) if len(seconds) else None
