"""Draws audits: freezes what the model says of every open task, and puts the tasks in random order."""

from __future__ import annotations

import math
import secrets
from dataclasses import replace
from datetime import UTC, datetime
from typing import cast

import numpy as np

from ml_backend.domain import LabelState, ProjectRef, Suggestion, TaskId
from ml_backend.draw import Draw, Target
from ml_backend.errors import BadRequest, NotReady
from ml_backend.generation import Array
from ml_backend.label_config import parse_label_config
from ml_backend.ports import Artifacts, Features, Index, State
from ml_backend.services.live import LivePool
from ml_backend.services.suggest import suggest
from strategies.certify import MIXTURE, audits_needed

SHARE = 0.5
"""Share of what people are served that are audits."""
LARGEST_RESERVE = 0.5
MARGIN = 1.25
"""How much more than planned people may label before what is left can't be promised any more."""


def frozen(
    ref: ProjectRef, state: State, artifacts: Artifacts, features: Features
) -> tuple[list[tuple[TaskId, Suggestion]], int]:
    """What the model says now of every open task that it can say something about, and its generation.

    Raises NotReady where there is no generation or nothing is suggested.
    """
    generation = artifacts.generation(ref)
    if generation is None:
        raise NotReady(f"Project {ref.id} has no embedded image yet.", "Import images or run rush sync.")
    spec = parse_label_config(state.options(ref).get("label_config", ""))
    pool = LivePool(ref, spec, generation, cast(Index, None))  # in bulk no index is asked
    pool.add(state.tasks(ref), features, None, index=False)
    pool.load_annotations(state.annotations(ref))
    rows = np.flatnonzero(pool.known & (pool.states == LabelState.OPEN)).tolist()
    said = zip(rows, suggest(pool, rows, bulk=True), strict=True)
    found = [(TaskId(int(pool.ids[row])), suggestion) for row, suggestion in said if suggestion.labels]
    if not found:
        raise NotReady(
            f"Project {ref.id} has no open image with a suggestion.", "Label some first, then draw audits."
        )
    return found, generation.number


def plan(confidences: Array, error: float, confidence: float, share: float) -> tuple[int, float]:
    """How many audits to draw, and the share of the frame that people will have labelled by then.

    Planned for the set that the model itself expects to be good enough, but at least half of the frame
    where it says so of less than a tenth. A plan that is wrong costs audits, never the guarantee.
    """
    total = len(confidences)
    falling = np.sort(confidences)[::-1].astype(np.float64)
    expected = np.cumsum(1 - falling) / np.arange(1, total + 1)
    good = int((expected <= error / 2).sum())
    size = good if good >= total / 10 else max(total // 2, 1)
    count, reserve = 0, 0.0
    for _ in range(3):
        needed = audits_needed(error * (1 - reserve), confidence, error / MIXTURE, size)
        count = min(total, math.ceil((needed or size) * total / size))
        reserve = min(LARGEST_RESERVE, MARGIN * count / share / total)
    return count, reserve


def make_draw(
    ref: ProjectRef,
    state: State,
    artifacts: Artifacts,
    features: Features,
    target: Target,
    *,
    count: int | None = None,
    share: float = SHARE,
    hidden: bool = False,
    seed: int | None = None,
) -> Draw:
    """Freeze the open tasks, put them in random order, publish the draw and tell the queue.

    ``count`` audits, or as many as ``plan`` says; ``target.reserve`` is set here. Raises BadRequest for
    numbers that make no sense, NotReady where nothing is suggested yet.
    """
    _check(target, share, count)
    found, generation = frozen(ref, state, artifacts, features)
    confidences = np.array([suggestion.confidence for _, suggestion in found], np.float32)
    planned, reserve = plan(confidences, target.error, target.confidence, share)
    if count is not None:
        planned = min(count, len(found))
        reserve = min(LARGEST_RESERVE, MARGIN * planned / share / len(found))
    seed = secrets.randbits(63) if seed is None else seed
    order = np.random.default_rng(seed).permutation(len(found))
    answers = sorted({suggestion.labels for _, suggestion in found})
    position = {labels: n for n, labels in enumerate(answers)}
    previous = artifacts.draw(ref)
    draw = Draw(
        number=1 if previous is None else previous.number + 1,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=seed,
        generation=generation,
        target=replace(target, reserve=round(reserve, 4)),
        planned=planned,
        count=planned,
        share=share,
        hidden=hidden,
        answers=tuple(answers),
        tasks=np.array([task for task, _ in found], np.int64)[order],
        suggested=np.array([position[suggestion.labels] for _, suggestion in found], np.int32)[order],
        confidences=confidences[order],
    )
    artifacts.publish_draw(ref, draw)
    state.publish(ref, "audits")
    return draw


def ask_more(ref: ProjectRef, state: State, artifacts: Artifacts, more: int) -> Draw:
    """Ask for the next ``more`` audits of the current draw, in its order; NotReady without a draw."""
    draw = artifacts.draw(ref)
    if draw is None:
        raise NotReady(f"Project {ref.id} has no draw of audits.", f"Run: rush audit --project {ref.id}")
    if more < 1:
        raise BadRequest(f"{more} more audits are none.", "Give a number above 0.")
    longer = replace(draw, count=min(len(draw), draw.count + more))
    artifacts.publish_draw(ref, longer)
    state.publish(ref, "audits")
    return longer


def _check(target: Target, share: float, count: int | None) -> None:
    for name, value in (("error", target.error), ("confidence", target.confidence)):
        if not 0 < value < 1:
            raise BadRequest(f"--{name} {value} is outside of (0, 1).", "1 % is 0.01, 95 % is 0.95.")
    if not 0 < share <= 1:
        raise BadRequest(f"--share {share} is outside of (0, 1].", "0.5 makes every second image an audit.")
    if count is not None and count < 1:
        raise BadRequest(f"--count {count} is no number of audits.", "Give a number above 0, or none.")
