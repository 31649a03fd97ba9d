"""The window: the tasks that hold a prediction in Label Studio, which is all that it serves.

Among them the lowest score comes first, so the window is a stack: pushed in front, appended behind.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ml_backend.domain import LabelState, PredictionId, Suggestion, TaskId
from ml_backend.errors import NotFound, RushError
from ml_backend.ports import LabelStudio, State
from ml_backend.services.live import LivePool
from ml_backend.wire import prediction, result

log = logging.getLogger(__name__)

RESOLVED_AT_ONCE = 200
"""Prediction ids that are looked up in one go."""


@dataclass(slots=True)
class Place:
    """A task's prediction row in Label Studio: its id (0: not known), its score, and the labels it shows."""

    prediction: PredictionId
    score: float
    labels: tuple[str, ...] | None = None


class Window:
    """The predictions of one project as far as we know; every change is told to Label Studio and State."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.places: dict[TaskId, Place] = {}
        self._pending: set[TaskId] = set()

    def __contains__(self, task: TaskId) -> bool:
        return task in self.places

    def open(self, live: LivePool) -> dict[TaskId, Place]:
        """Places whose task is still to be labelled."""
        return {
            task: place
            for task, place in list(self.places.items())
            if (row := live.row_of.get(task)) is not None and live.states[row] == LabelState.OPEN
        }

    def load(self, rows: Mapping[TaskId, tuple[PredictionId, float]]) -> None:
        """Take the window from the shared state, keeping what is known of the labels shown."""
        known = self.places
        self.places = {
            task: Place(
                number, score, known[task].labels if task in known and known[task].score == score else None
            )
            for task, (number, score) in rows.items()
        }
        self._pending = {task for task, (number, _) in rows.items() if not number}

    def stage(self, live: LivePool, task: TaskId, suggestion: Suggestion) -> float:
        """Give the task a place in front of everything; ``write`` tells Label Studio."""
        score = float(self.state.push_scores(live.ref, 1)[0])
        place = self.places.get(task)
        number = PredictionId(0) if place is None else place.prediction
        self.places[task] = Place(number, score, suggestion.labels)
        return score

    def write(
        self, live: LivePool, task: TaskId, score: float, suggestion: Suggestion, studio: LabelStudio
    ) -> None:
        """One prediction request: PATCH where the task holds one, else create; a lost row is made anew."""
        place = self.places.get(task)
        if place is None:
            return
        shown = result(live.spec, suggestion)
        number = place.prediction
        try:
            if not number and task in self._pending:
                number = next((p.id for p in studio.predictions(live.ref.id, [task])), number)
            if number:
                try:
                    studio.update_prediction(number, score, shown)
                except NotFound:
                    number = PredictionId(0)
            if not number:
                number = studio.create_prediction(live.ref.id, task, score, shown)
        except RushError as error:
            self._pending.add(task)  # it may have arrived all the same
            place.labels = None
            log.warning("project %s: task %s not put in front: %s", live.ref.id, task, error)
            return
        self._pending.discard(task)
        place.prediction = number
        self.state.set_window(live.ref, {task: (number, place.score)})

    def append(
        self, live: LivePool, tasks: Sequence[TaskId], suggestions: Iterable[Suggestion]
    ) -> list[float]:
        """Give tasks places behind everything; whoever writes them is followed by ``resolve``."""
        scores = [float(score) for score in self.state.append_scores(live.ref, len(tasks))]
        for task, score, suggestion in zip(tasks, scores, suggestions, strict=True):
            self.places[task] = Place(PredictionId(0), score, suggestion.labels)
            self._pending.add(task)
        return scores

    def write_all(
        self, live: LivePool, tasks: Sequence[TaskId], suggestions: Sequence[Suggestion], studio: LabelStudio
    ) -> None:
        """Append predictions for tasks that have none, in one request."""
        scores = self.append(live, tasks, suggestions)
        body = [
            {"task": task, **prediction(live.spec, suggestion, score)}
            for task, suggestion, score in zip(tasks, suggestions, scores, strict=True)
        ]
        try:
            studio.import_predictions(live.ref.id, body)
        finally:
            self.resolve(live, studio)

    def resolve(self, live: LivePool, studio: LabelStudio) -> None:
        """Find out the prediction ids of rows that Label Studio numbered; forget places that it has not."""
        tasks = list(self._pending)[:RESOLVED_AT_ONCE]
        if not tasks:
            return
        found = {row.task: row for row in studio.predictions(live.ref.id, tasks)}
        with live.lock:
            for task in tasks:
                place, row = self.places.get(task), found.get(task)
                if place is not None and row is not None:
                    place.prediction = place.prediction or row.id
                elif place is not None and not place.prediction:
                    del self.places[task]
            self._pending.difference_update(tasks)
            rows = {task: (p.prediction, p.score) for task in tasks if (p := self.places.get(task))}
        self.state.set_window(live.ref, rows)
        self.state.drop_window(live.ref, [task for task in tasks if task not in rows])
