"""How fast people are, and what their next labels will bring: stop or continue?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ml_backend.domain import Annotation
from strategies import StrategyError
from strategies.cost import busy, labels_per_hour, outlook

RECENT = 500
"""The newest answers say how fast people are now."""
NEXT = 100


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
