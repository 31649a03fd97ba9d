"""Between two submits: prepare what follows an accepted suggestion, so that accepting it writes nothing."""

from __future__ import annotations

import time

from ml_backend.domain.model import TaskId
from ml_backend.ports import LabelStudio
from ml_backend.services.queue.order import AnnotatorSession, Queue
from ml_backend.services.queue.pool import ProjectPool
from ml_backend.services.queue.suggest import suggest

SERVED_SECONDS = 0.2
"""How long after a submit Label Studio is still busy serving the next task."""
ALONE_SECONDS = 60.0
"""An annotator who has not submitted for this long doesn't count as one at work."""
BEHIND = 2.0**-10
"""From a place to the one right behind it; places put in front are a whole 1 apart."""


def look_ahead(queue: Queue, pool: ProjectPool, studio: LabelStudio) -> None:
    """Put what would follow an accepted suggestion right behind the task that is being labelled.

    A hint like every place: the submit checks it, and writes where it turns out otherwise. Only where one
    annotator is at work, since what others submit goes in front of it anyway; once for each of their tasks.
    """
    with queue.lock, pool.lock:
        annotator, session = _alone(queue)
        current = session.next
        if current is None or current == session.ahead or not pool.is_open(current):
            return
        session.ahead = current
        places = queue.window.places
        task, front = _after(queue, pool, annotator, session, current), places.get(current)
        place = places.get(task) if task is not None else None
        if task is None or front is None or (place is not None and place.writing):
            return
        suggestion = suggest(pool, [pool.row_of[task]])[0]
        others = [it.score for name, it in queue.window.open(pool).items() if name not in (current, task)]
        behind, score = min(others, default=float("inf")), front.score + BEHIND
        if place is not None and front.score < place.score < behind and place.labels == suggestion.labels:
            return  # it stands there already
        if score >= behind:
            return  # something else is in front, or accepted ones have filled the gap behind it
        queue.window.stage(pool, task, suggestion, score)
    queue.window.write(pool, task, studio)


def _alone(queue: Queue) -> tuple[int, AnnotatorSession]:
    """The only annotator at work, once the task after their last submit is served; else an empty chain."""
    now = time.monotonic()
    at_work = [
        (who, session) for who, session in queue.sessions.items() if now - session.since < ALONE_SECONDS
    ]
    if len(at_work) == 1 and now - at_work[0][1].since > SERVED_SECONDS:
        return at_work[0]
    return 0, AnnotatorSession()


def _after(
    queue: Queue, pool: ProjectPool, annotator: int, session: AnnotatorSession, current: TaskId
) -> TaskId | None:
    """What this annotator would see after accepting the suggestion for the task ``current``."""
    row, available = pool.row_of[current], queue.available(pool, annotator)
    available[row] = False
    answers = pool.answers.copy()
    answers[row] = pool.answer_of(suggest(pool, [row])[0].labels)
    history = [pool.row_of[task] for task in session.history if task in pool.row_of]
    if history and answers[history[0]] != answers[row]:
        history = []
    following = queue.step(pool, available, row, history, answers)
    return queue.top(pool, available) if following is None else TaskId(int(pool.ids[following]))
