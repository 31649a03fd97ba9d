"""The window: the tasks that hold a prediction in Label Studio, which is all that it serves.

Among them the lowest score comes first, so the window is a stack: pushed in front, appended behind.
"""

from __future__ import annotations

import heapq
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ml_backend.domain.errors import NotFound, RushError
from ml_backend.domain.lock_order import OrderedLock, Rank
from ml_backend.domain.model import (
    MODEL_VERSION,
    PredictionId,
    PredictionRow,
    ProjectRef,
    Suggestion,
    TaskId,
)
from ml_backend.ports import LabelStudio, State
from ml_backend.services.queue.pool import ProjectPool
from ml_backend.wire import prediction

log = logging.getLogger(__name__)

RESOLVED_AT_ONCE = 200
"""Prediction ids that are looked up in one go."""
ARRIVAL_SECONDS = 30.0
"""How long Label Studio may take to store a prediction that it was handed in an answer or an import."""
SINGLY = 10
"""Predictions written one by one in a turn: other work of the project waits for them."""
SINGLE_SECONDS = 0.05
"""What one takes, until it was measured."""
BULK_AGAIN_SECONDS = 1800.0
"""After which a slow bulk request is tried once more: Label Studio may have been restarted."""


@dataclass(slots=True)
class Place:
    """A task's prediction row in Label Studio: its id (0: not known), its score, and the labels it shows.

    ``unsent``: what it is to show, until Label Studio knows of it and of the score. While writes of it are
    under way (``writing`` of them) it is newer than the shared state.
    """

    prediction: PredictionId
    score: float
    labels: tuple[str, ...] | None = None
    unsent: Suggestion | None = None
    writing: int = 0


class Window:
    """The predictions of one project as far as we know; every change is told to Label Studio and State.

    ``arriving``: tasks whose predictions Label Studio is storing in bulk just now.
    """

    def __init__(self, state: State) -> None:
        self.state = state
        self.places: dict[TaskId, Place] = {}
        self.arriving: frozenset[TaskId] = frozenset()
        self._pending: dict[TaskId, float] = {}
        self._heap: list[tuple[float, TaskId]] = []
        self._lock = OrderedLock(Rank.WINDOW)
        self._writers = [OrderedLock(Rank.WRITER) for _ in range(64)]
        self._single_seconds = SINGLE_SECONDS
        self._bulk_seconds, self._bulk_at = 0.0, 0.0

    def __contains__(self, task: TaskId) -> bool:
        return task in self.places

    def open(self, pool: ProjectPool) -> dict[TaskId, Place]:
        """Places whose task is still to be labelled."""
        return {task: place for task, place in list(self.places.items()) if pool.is_open(task)}

    def front(self, pool: ProjectPool) -> float:
        """The lowest score of an open place, which Label Studio serves next; infinite without one."""
        with self._lock:
            while self._heap:
                score, task = self._heap[0]
                place = self.places.get(task)
                if place is not None and place.score == score and pool.is_open(task):
                    return score
                heapq.heappop(self._heap)  # moved, labelled or gone; ``reopen`` brings it back
        return float("inf")

    def score(self, task: TaskId) -> float:
        """Where the task stands; infinitely far behind without a place."""
        place = self.places.get(task)
        return place.score if place is not None else float("inf")

    def reopen(self, tasks: Iterable[TaskId]) -> None:
        """Tasks that are to be labelled once more, where their predictions still stand."""
        with self._lock:
            for task in tasks:
                if (place := self.places.get(task)) is not None:
                    heapq.heappush(self._heap, (place.score, task))

    def forget(self, tasks: Iterable[TaskId]) -> None:
        """Tasks that were deleted in Label Studio, predictions and all."""
        with self._lock:
            for task in tasks:
                self.places.pop(task, None)
                self._pending.pop(task, None)

    def load(self, ref: ProjectRef) -> None:
        """Take the window from the shared state, keeping the labels shown and what is being written."""
        with self._lock:
            rows = self.state.window(ref)
            for task in [t for t, place in self.places.items() if t not in rows and not place.writing]:
                del self.places[task]
            for task, (number, score) in rows.items():
                place = self.places.get(task)
                if place is None:
                    self.places[task] = Place(number, score)
                elif not place.writing:
                    place.labels = place.labels if place.score == score else None
                    place.prediction, place.score = number, score
            now = time.monotonic()
            unsure = [t for t, p in self.places.items() if not p.prediction or t in self._pending]
            self._pending = {task: self._pending.get(task, now) for task in unsure}
            self._heap = [(place.score, task) for task, place in self.places.items()]
            heapq.heapify(self._heap)

    def stage(
        self, pool: ProjectPool, task: TaskId, suggestion: Suggestion, score: float | None = None
    ) -> None:
        """Give the task a place, in front of everything or at ``score``; ``write`` must follow."""
        with self._lock:
            if score is None:
                score = float(self.state.push_scores(pool.ref, 1)[0])
            place = self.places.setdefault(task, Place(PredictionId(0), score))
            place.score, place.labels, place.unsent = score, suggestion.labels, suggestion
            place.writing += 1
            heapq.heappush(self._heap, (score, task))

    def write(self, pool: ProjectPool, task: TaskId, studio: LabelStudio) -> None:
        """Tell Label Studio the place that was staged last, if nobody has; it knows when this returns.

        One prediction request: PATCH where the task holds one, else create; a lost row is made anew.
        """
        place = self.places.get(task)
        if place is None:
            return
        try:
            with self._writers[task % len(self._writers)]:
                self._tell(pool, task, place, studio)
        except RushError as error:
            self._pending.setdefault(task, time.monotonic())  # it may have arrived all the same
            place.labels = None
            log.warning("project %s: task %s not put in front: %s", pool.ref.id, task, error)
        finally:
            with self._lock:
                place.writing -= 1

    def _tell(self, pool: ProjectPool, task: TaskId, place: Place, studio: LabelStudio) -> None:
        with self._lock:
            suggestion, score, number = place.unsent, place.score, place.prediction
        if suggestion is None:
            return
        shown = pool.control.write(suggestion)
        awaited = not number and task in self._pending
        if awaited:
            number = next((p.id for p in _ours(studio, pool, [task])), number)
        if number:
            try:
                studio.update_prediction(number, score, shown)
            except NotFound:
                number = PredictionId(0)
        if not number:
            number = studio.create_prediction(pool.ref.id, task, score, shown)
        elif awaited:
            self._pending.pop(task, None)
        with self._lock:
            place.prediction = number
            if place.score == score:  # else it was staged anew meanwhile
                place.unsent = None
            self.state.set_window(pool.ref, {task: (number, score)})

    def append(
        self, pool: ProjectPool, tasks: Sequence[TaskId], suggestions: Iterable[Suggestion]
    ) -> list[float]:
        """Give tasks places behind everything; whoever writes them is followed by ``resolve``."""
        with self._lock:
            scores = [float(score) for score in self.state.append_scores(pool.ref, len(tasks))]
            for task, score, suggestion in zip(tasks, scores, suggestions, strict=True):
                self.places[task] = Place(PredictionId(0), score, suggestion.labels)
                self._pending[task] = time.monotonic()
                heapq.heappush(self._heap, (score, task))
            rows = {task: (PredictionId(0), score) for task, score in zip(tasks, scores, strict=True)}
            self.state.set_window(pool.ref, rows)
        return scores

    def write_all(
        self,
        pool: ProjectPool,
        tasks: Sequence[TaskId],
        suggestions: Sequence[Suggestion],
        studio: LabelStudio,
    ) -> int:
        """Append predictions for those tasks that have none; returns how many.

        Label Studio is asked first: an import that is just ending may have brought some along. All go in one
        request, or the first few one by one where Label Studio recounts a large project for each bulk
        request and that takes longer.
        """
        there = _ours(studio, pool, tasks) if tasks else []
        with self._lock:
            self._take_in(pool, there)
            lacking = [(t, s) for t, s in zip(tasks, suggestions, strict=True) if t not in self.places]
            singly = self._bulk_is_slow(len(lacking))
            lacking = lacking[:SINGLY] if singly else lacking
            scores = self.append(pool, [task for task, _ in lacking], [shown for _, shown in lacking])
        if not lacking:
            return 0
        self.arriving = frozenset(task for task, _ in lacking)
        try:
            if singly:
                for task, suggestion in lacking:
                    self._write_one(pool, task, suggestion, studio)
            else:
                self._write_in_bulk(pool, lacking, scores, studio)
        finally:
            self.arriving = frozenset()
            self.resolve(pool, studio)
        return len(lacking)

    def _write_in_bulk(
        self,
        pool: ProjectPool,
        rows: Sequence[tuple[TaskId, Suggestion]],
        scores: Sequence[float],
        studio: LabelStudio,
    ) -> None:
        body = [
            {"task": task, **prediction(pool.control, suggestion, score)}
            for (task, suggestion), score in zip(rows, scores, strict=True)
        ]
        began = time.monotonic()
        try:
            studio.import_predictions(pool.ref.id, body)
        finally:
            self._bulk_at = time.monotonic()
            self._bulk_seconds = self._bulk_at - began

    def _bulk_is_slow(self, count: int) -> bool:
        """Whether the last bulk request took longer than so many single ones would."""
        recent = time.monotonic() - self._bulk_at < BULK_AGAIN_SECONDS
        return recent and self._bulk_seconds > count * self._single_seconds

    def _write_one(
        self, pool: ProjectPool, task: TaskId, suggestion: Suggestion, studio: LabelStudio
    ) -> None:
        with self._writers[task % len(self._writers)]:
            place = self.places.get(task)
            if place is None or place.prediction or place.writing:
                return  # a submit was faster
            began, score = time.monotonic(), place.score
            try:
                number = studio.create_prediction(pool.ref.id, task, score, pool.control.write(suggestion))
            except NotFound:
                return  # deleted meanwhile: ``resolve`` forgets it
            self._single_seconds += 0.2 * (time.monotonic() - began - self._single_seconds)
            with self._lock:
                place.prediction = number
                self._pending.pop(task, None)
                self.state.set_window(pool.ref, {task: (number, score)})

    def _take_in(self, pool: ProjectPool, rows: Iterable[PredictionRow]) -> None:
        """Give tasks that hold a prediction without our knowing the place that it stands for."""
        fresh = {
            row.task: (row.id, row.score)
            for row in rows
            if row.score is not None and row.task not in self.places
        }
        for task, (number, score) in fresh.items():
            self.places[task] = Place(number, score)
            heapq.heappush(self._heap, (score, task))
        if fresh:
            self.state.set_window(pool.ref, fresh)

    def resolve(self, pool: ProjectPool, studio: LabelStudio) -> None:
        """Find out the prediction ids of rows that Label Studio numbered.

        Places that it has not stored after a while are forgotten, second rows of a task are deleted.
        """
        tasks = list(self._pending)[:RESOLVED_AT_ONCE]
        if not tasks:
            return
        late = time.monotonic() - ARRIVAL_SECONDS
        found: dict[TaskId, list[PredictionId]] = {}
        for row in _ours(studio, pool, tasks):
            found.setdefault(row.task, []).append(row.id)
        rows: dict[TaskId, tuple[PredictionId, float]] = {}
        lost: list[TaskId] = []
        surplus: list[PredictionId] = []
        with self._lock:
            for task in tasks:
                place, numbers = self.places.get(task), found.get(task, [])
                if place is not None and place.writing:
                    continue  # whoever writes it may be making a row just now
                if place is not None and numbers:
                    place.prediction = place.prediction or numbers[-1]
                    surplus += [number for number in numbers if number != place.prediction]
                    rows[task] = (place.prediction, place.score)
                    self._pending.pop(task, None)
                elif place is None or self._pending.get(task, 0.0) < late:
                    self.places.pop(task, None)
                    self._pending.pop(task, None)
                    lost.append(task)
            self.state.set_window(pool.ref, rows)
            self.state.drop_window(pool.ref, lost)
        for number in surplus:
            studio.delete_prediction(number)


def _ours(studio: LabelStudio, pool: ProjectPool, tasks: Sequence[TaskId]) -> list[PredictionRow]:
    """The queue's rows of these tasks; those of other versions, certified suggestions too, are none."""
    rows = studio.predictions(pool.ref.id, tasks)
    return [row for row in rows if row.model_version == MODEL_VERSION]
