"""Which image comes next, and telling Label Studio with one request.

The queue is Label Studio's own: among tasks that hold a prediction the lowest score is served first.
We keep a window of them and, on every submit, put the intended next task in front of all others.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import numpy.typing as npt

import strategies
from ml_backend.domain.generation import Array, Floats, Generation
from ml_backend.domain.lock_order import OrderedLock, Rank
from ml_backend.domain.model import (
    Annotation,
    AnnotationId,
    LabelState,
    Suggestion,
    TaskId,
)
from ml_backend.ports import LabelStudio, State
from ml_backend.services.queue.audit_mix import Mixing
from ml_backend.services.queue.pace import cost_model, seconds_per_image
from ml_backend.services.queue.pool import ProjectPool
from ml_backend.services.queue.suggest import all_probabilities, suggest
from ml_backend.services.queue.view import view
from ml_backend.services.queue.window import Window
from strategies.cost import CostModel

log = logging.getLogger(__name__)

CHUNK = 50
"""Predictions per bulk request: on SQLite each one blocks submits while it is written."""
FRONT = 4
"""Tasks put in front when the order changes: as many annotators can come in fresh before the next submit."""
LOOK = 64
"""Best ranked tasks that a chain may choose from."""
CHAIN = 10
"""Earlier images of a chain that are remembered."""
RESERVED_SECONDS = 600.0
"""How long the task intended for one annotator is kept from the others."""
SERVED_SECONDS = 0.2
"""How long after a submit Label Studio is still busy serving the next task."""
ALONE_SECONDS = 60.0
"""An annotator who has not submitted for this long doesn't count as one at work."""
BEHIND = 2.0**-10
"""From a place to the one right behind it; places put in front are a whole 1 apart."""


@dataclass(slots=True)
class AnnotatorSession:
    """What one annotator labels one after the other, newest first, and what was reserved as the next.

    ``ahead`` is the reserved task whose acceptance was prepared for (see ``look_ahead``); ``audit`` is the
    last task that was put in between: no link of the chain.
    """

    history: list[TaskId] = field(default_factory=list)
    source: AnnotationId | None = None
    next: TaskId | None = None
    since: float = 0.0
    ahead: TaskId | None = None
    audit: TaskId | None = None


@dataclass(frozen=True, slots=True)
class Move:
    """What was decided after an annotation: the intended next task, and whether a write was needed."""

    task: TaskId
    suggestion: Suggestion
    written: bool


class Queue:
    """The order of one project: its window, its annotators' chains, its ranking by the strategy."""

    def __init__(self, state: State, size: int, strategy: str) -> None:
        self.size, self.strategy = size, strategy
        self.window = Window(state)
        self.sessions: dict[int, AnnotatorSession] = {}
        self.mixing = Mixing()
        self.ranking: list[TaskId] = []
        self.fallback: str | None = None
        self.ranked: tuple[str, int] = ("", -1)
        self._costs: tuple[Generation | None, CostModel | None] = (None, None)
        self._filling = OrderedLock(Rank.FILLING)
        self.lock = OrderedLock(Rank.QUEUE)  # outlives the pools, which come and go with generations

    # ---- in the submit path

    def advance(
        self, pool: ProjectPool, annotation: Annotation, studio: LabelStudio, *, again: bool = False
    ) -> Move | None:
        """Choose what this annotator sees next and put it in front; None if nothing is open.

        ``again``: this annotator had answered the task before, so the chain stays where it is.
        """
        with self.lock, pool.lock:
            task = self._choose(pool, annotation, again)
            if task is None:
                return None
            suggestion = suggest(pool, [pool.row_of[task]])[0]
            place = self.window.places.get(task)
            if (
                place is not None
                and not place.writing  # else Label Studio may not show it there yet
                and place.score <= self.window.front(pool)
                and place.labels == suggestion.labels
            ):
                return Move(task, suggestion, written=False)
            self.window.stage(pool, task, suggestion)
        self.window.write(pool, task, studio)
        return Move(task, suggestion, written=True)

    def _choose(self, pool: ProjectPool, annotation: Annotation, again: bool) -> TaskId | None:
        session = self.sessions.setdefault(annotation.annotator, AnnotatorSession())
        again = again or session.source == annotation.id or annotation.task in session.history
        if again and session.next is not None and pool.is_open(session.next):
            return session.next  # the same event once more, or a change of an earlier answer
        available = self._servable(pool, annotation.annotator)
        between = annotation.task == session.audit
        if between:  # the chain goes on from where it was
            history = [pool.row_of[task] for task in session.history if task in pool.row_of]
            row = self.step(pool, available, history[0], history[1:], pool.answers) if history else None
        else:
            row = self._follow(pool, session, annotation, available)
        chosen = TaskId(int(pool.ids[row])) if row is not None else None
        if chosen is None and not between:
            labelled = pool.states[pool.row_of[annotation.task]] == LabelState.LABELLED
            session.history = [annotation.task] if labelled else []
        given = tuple(annotation.labels)
        if (audit := self.mixing.due(pool, available, given)) is not None:
            session.audit = chosen = audit
        elif chosen is None:
            chosen = self.top(pool, available)
        session.source, session.next, session.since = annotation.id, chosen, time.monotonic()
        return chosen

    def _follow(
        self,
        pool: ProjectPool,
        session: AnnotatorSession,
        annotation: Annotation,
        available: npt.NDArray[np.bool_],
    ) -> int | None:
        row = pool.row_of[annotation.task]
        session.history = [
            task for task in session.history if task != annotation.task and task in pool.row_of
        ]
        history = [pool.row_of[task] for task in session.history]
        if pool.states[row] == LabelState.LABELLED:
            same = bool(history) and pool.answers[history[0]] == pool.answers[row]
            session.history = [annotation.task, *(session.history if same else [])][:CHAIN]
            history = history if same else []
        return self.step(pool, available, row, history, pool.answers)

    def step(
        self,
        pool: ProjectPool,
        available: npt.NDArray[np.bool_],
        row: int,
        history: list[int],
        answers: Array,
    ) -> int | None:
        """The row that the strategy's chain goes to; None where it ends, or the strategy has no chains."""
        strategy = strategies.get(self.strategy)
        if not isinstance(strategy, strategies.Chain) or not (pool.embedded[row] or history):
            return None

        def guess(candidate: int) -> tuple[int, float]:
            suggestion = suggest(pool, [candidate])[0]
            return pool.answer_of(suggestion.labels), suggestion.confidence

        try:
            candidates = view(pool, available, answers=answers)
            return strategy.follow(candidates, strategies.Step(row, history, guess, self._ranked(pool)))
        except Exception:  # a strategy of somebody else's must not stop the labelling
            log.exception("project %s: %s can't follow; a new chain starts", pool.ref.id, strategy.name)
            return None

    def _ranked(self, pool: ProjectPool) -> list[int]:
        """The best ranked open rows, best first."""
        return list(islice((pool.row_of[task] for task in self.ranking if pool.is_open(task)), LOOK))

    def top(self, pool: ProjectPool, available: npt.NDArray[np.bool_]) -> TaskId | None:
        """The best ranked open task, else the front of the window, else any open one."""

        def free(task: TaskId) -> bool:
            return task in pool.row_of and bool(available[pool.row_of[task]])

        for task in self.ranking:
            if free(task):
                return task
        waiting = [task for task in self.window.open(pool) if free(task)]
        if waiting:
            return min(waiting, key=lambda task: self.window.places[task].score)
        rest = np.flatnonzero(available)
        return TaskId(int(pool.ids[rest[0]])) if len(rest) else None

    # ---- views; the caller holds the pool's lock or accepts a moment's staleness

    def reserved(self, pool: ProjectPool, annotator: int | None = None) -> list[TaskId]:
        """Open tasks reserved to annotators other than this one."""
        now = time.monotonic()
        return [
            session.next
            for who, session in list(self.sessions.items())
            if who != annotator
            and session.next is not None
            and now - session.since < RESERVED_SECONDS
            and pool.is_open(session.next)
        ]

    def available(self, pool: ProjectPool, annotator: int | None = None) -> npt.NDArray[np.bool_]:
        """(n,) open rows less those reserved to others."""
        mask = pool.open()
        mask[[pool.row_of[task] for task in self.reserved(pool, annotator)]] = False
        return mask

    def _servable(self, pool: ProjectPool, annotator: int) -> npt.NDArray[np.bool_]:
        """(n,) available rows less those that Label Studio on PostgreSQL skips, their rows being written."""
        mask, arriving = self.available(pool, annotator), self.window.arriving
        if not arriving:
            return mask
        served = mask.copy()
        served[[pool.row_of[task] for task in arriving if task in pool.row_of]] = False
        return served if served.any() else mask

    # ---- between two submits

    def look_ahead(self, pool: ProjectPool, studio: LabelStudio) -> None:
        """Put what would follow an accepted suggestion right behind the task that is being labelled.

        A hint like every place: the submit checks it, and writes where it turns out otherwise. Only where
        one annotator is at work, since what others submit goes in front of it anyway; once for each task.
        """
        with self.lock, pool.lock:
            annotator, session = self._alone()
            current = session.next
            if current is None or current == session.ahead or not pool.is_open(current):
                return
            session.ahead = current
            places = self.window.places
            task, front = self._after(pool, annotator, session, current), places.get(current)
            place = places.get(task) if task is not None else None
            if task is None or front is None or (place is not None and place.writing):
                return
            suggestion = suggest(pool, [pool.row_of[task]])[0]
            others = [it.score for name, it in self.window.open(pool).items() if name not in (current, task)]
            behind, score = min(others, default=float("inf")), front.score + BEHIND
            if place is not None and front.score < place.score < behind and place.labels == suggestion.labels:
                return  # it stands there already
            if score >= behind:
                return  # something else is in front, or accepted ones have filled the gap behind it
            self.window.stage(pool, task, suggestion, score)
        self.window.write(pool, task, studio)

    def _alone(self) -> tuple[int, AnnotatorSession]:
        """The only annotator at work, once the task after their last submit is served; else an empty one."""
        now = time.monotonic()
        at_work = [
            (who, session) for who, session in self.sessions.items() if now - session.since < ALONE_SECONDS
        ]
        if len(at_work) == 1 and now - at_work[0][1].since > SERVED_SECONDS:
            return at_work[0]
        return 0, AnnotatorSession()

    def _after(
        self, pool: ProjectPool, annotator: int, session: AnnotatorSession, current: TaskId
    ) -> TaskId | None:
        """What this annotator would see after accepting the suggestion for the task ``current``."""
        row, available = pool.row_of[current], self.available(pool, annotator)
        available[row] = False
        answers = pool.answers.copy()
        answers[row] = pool.answer_of(suggest(pool, [row])[0].labels)
        history = [pool.row_of[task] for task in session.history if task in pool.row_of]
        if history and answers[history[0]] != answers[row]:
            history = []
        following = self.step(pool, available, row, history, answers)
        return self.top(pool, available) if following is None else TaskId(int(pool.ids[following]))

    # ---- in the background

    def stale(self, pool: ProjectPool) -> bool:
        """Whether something changed since the order was computed."""
        return self.ranked != (self.strategy, pool.version)

    def rank(self, pool: ProjectPool) -> None:
        """Recompute the order of open tasks by the project's strategy: up to a second at 100,000 tasks."""
        with pool.lock:
            name, version, ids = self.strategy, pool.version, pool.ids
            pool.know(label for label in pool.classes if label in name)  # max_probability(LABEL), quota
            available = self.available(pool)
        strategy = strategies.get(name)
        reads = "probabilities" in (*strategy.needs, *strategy.uses)
        probabilities = all_probabilities(pool, available) if reads else None
        seconds = self._seconds(pool, probabilities) if probabilities is not None else None
        with pool.lock:
            grown = len(pool.ids) != len(ids)
            candidates = (
                None if grown else view(pool, available, probabilities=probabilities, seconds=seconds)
            )
        if candidates is None:
            return  # tasks came in meanwhile; the next turn ranks them too
        try:
            selection = strategies.select(name, candidates, self.size * 2, seed=pool.ref.id)
        except Exception as error:  # a strategy of somebody else's must not let the window run dry
            log.exception("project %s: %s can't order", pool.ref.id, name)
            rows = strategies.select("random", candidates, self.size * 2, seed=pool.ref.id).rows
            selection = strategies.Selection(rows, f"{name} failed ({error}): random order")
        self.ranking = [TaskId(int(task)) for task in ids[selection.rows]]
        self.fallback, self.ranked = selection.fallback, (name, version)

    def _seconds(self, pool: ProjectPool, probabilities: Floats) -> Floats | None:
        """What each image will cost people, learnt anew with each generation; None before there are times."""
        if pool.generation is None:
            return None
        if self._costs[0] is not pool.generation:
            with pool.lock:
                annotations = list(pool.annotations.values())
            self._costs = (pool.generation, cost_model(annotations, pool.generation.judged()))
        model = self._costs[1]
        return None if model is None else seconds_per_image(model, probabilities)

    def refill(self, pool: ProjectPool, studio: LabelStudio) -> int:
        """Give predictions to a chunk of the best ranked tasks if the window lacks some; returns how many."""
        with self._filling:
            missing = self.size - len(self.window.open(pool))
            tasks = self._unplaced(pool)[: min(CHUNK, missing)] if missing > 0 else []
            if not tasks:
                return 0
            suggestions = suggest(pool, [pool.row_of[task] for task in tasks])
            return self.window.write_all(pool, tasks, suggestions, studio)

    def _unplaced(self, pool: ProjectPool) -> list[TaskId]:
        """Open tasks without a prediction, best ranked first; those without an embedding come last."""
        with pool.lock:
            open_mask = pool.open()
            ranked = [task for task in self.ranking if task in pool.row_of and task not in self.window]
            ranked = [task for task in ranked if open_mask[pool.row_of[task]]]
            if ranked:
                return ranked
            order = np.flatnonzero(open_mask)
            rest = pool.ids[order[np.argsort(~pool.embedded[order], kind="stable")]].tolist()
            return [TaskId(task) for task in rest if task not in self.window][:CHUNK]

    def renew_front(self, pool: ProjectPool, studio: LabelStudio, count: int = FRONT) -> None:
        """Put the best ranked tasks in front, best first, behind only what annotators were reserved."""
        with self.lock, pool.lock:
            available = self.available(pool)
            best = [task for task in self.ranking if task in pool.row_of and available[pool.row_of[task]]]
            front = [*self.reserved(pool), *best[:count]]
            # Reserved at once and written from the front: what was reserved is never behind the others.
            scores = sorted(self.window.state.push_scores(pool.ref, len(front)))
        for task, place in zip(front, scores, strict=True):
            with self.lock, pool.lock:
                now = self.window.places.get(task)
                if not pool.is_open(task) or (now is not None and now.score <= place):
                    continue  # answered, or put in front by a submit meanwhile
                reserved = self.reserved(pool)
                if task not in reserved and any(self.window.score(t) > place for t in reserved):
                    continue  # a submit meanwhile has reserved what stands further behind
                suggestion = suggest(pool, [pool.row_of[task]])[0]
                self.window.stage(pool, task, suggestion, float(place))
            self.window.write(pool, task, studio)
