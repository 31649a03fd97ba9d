"""Which image comes next, and telling Label Studio with one request.

The queue is Label Studio's own: among tasks that hold a prediction the lowest score is served first.
We keep a window of them and, on every submit, put the intended next task in front of all others.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import numpy.typing as npt

import strategies
from ml_backend.domain.generation import Array, Floats, Generation
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
from ml_backend.services.queue.pool import LivePool
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
PROMISED_SECONDS = 600.0
"""How long the task intended for one annotator is kept from the others."""


@dataclass(slots=True)
class ChainOf:
    """What one annotator labels one after the other, newest first, and what was promised as the next.

    ``ahead`` is the promised task whose acceptance was prepared for (see ``look_ahead``); ``audit`` is the
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
        self.chains: dict[int, ChainOf] = {}
        self.mixing = Mixing()
        self.ranking: list[TaskId] = []
        self.fallback: str | None = None
        self.ranked: tuple[str, int] = ("", -1)
        self._costs: tuple[Generation | None, CostModel | None] = (None, None)
        self._filling = threading.Lock()
        self.lock = threading.RLock()  # outlives the pools, which come and go with generations

    # ---- in the submit path

    def advance(
        self, live: LivePool, annotation: Annotation, studio: LabelStudio, *, again: bool = False
    ) -> Move | None:
        """Choose what this annotator sees next and put it in front; None if nothing is open.

        ``again``: this annotator had answered the task before, so the chain stays where it is.
        """
        with self.lock, live.lock:
            task = self._choose(live, annotation, again)
            if task is None:
                return None
            suggestion = suggest(live, [live.row_of[task]])[0]
            place = self.window.places.get(task)
            if (
                place is not None
                and not place.writing  # else Label Studio may not show it there yet
                and place.score <= self.window.front(live)
                and place.labels == suggestion.labels
            ):
                return Move(task, suggestion, written=False)
            self.window.stage(live, task, suggestion)
        self.window.write(live, task, studio)
        return Move(task, suggestion, written=True)

    def _choose(self, live: LivePool, annotation: Annotation, again: bool) -> TaskId | None:
        chain = self.chains.setdefault(annotation.annotator, ChainOf())
        again = again or chain.source == annotation.id or annotation.task in chain.history
        if again and chain.next is not None and live.is_open(chain.next):
            return chain.next  # the same event once more, or a change of an earlier answer
        available = self._servable(live, annotation.annotator)
        between = annotation.task == chain.audit
        if between:  # the chain goes on from where it was
            history = [live.row_of[task] for task in chain.history if task in live.row_of]
            row = self.step(live, available, history[0], history[1:], live.answers) if history else None
        else:
            row = self._follow(live, chain, annotation, available)
        chosen = TaskId(int(live.ids[row])) if row is not None else None
        if chosen is None and not between:
            labelled = live.states[live.row_of[annotation.task]] == LabelState.LABELLED
            chain.history = [annotation.task] if labelled else []
        given = tuple(annotation.labels)
        if (audit := self.mixing.due(live, available, given)) is not None:
            chain.audit = chosen = audit
        elif chosen is None:
            chosen = self.top(live, available)
        chain.source, chain.next, chain.since = annotation.id, chosen, time.monotonic()
        return chosen

    def _follow(
        self, live: LivePool, chain: ChainOf, annotation: Annotation, available: npt.NDArray[np.bool_]
    ) -> int | None:
        row = live.row_of[annotation.task]
        chain.history = [task for task in chain.history if task != annotation.task and task in live.row_of]
        history = [live.row_of[task] for task in chain.history]
        if live.states[row] == LabelState.LABELLED:
            same = bool(history) and live.answers[history[0]] == live.answers[row]
            chain.history = [annotation.task, *(chain.history if same else [])][:CHAIN]
            history = history if same else []
        return self.step(live, available, row, history, live.answers)

    def step(
        self, live: LivePool, available: npt.NDArray[np.bool_], row: int, history: list[int], answers: Array
    ) -> int | None:
        """The row that the strategy's chain goes to; None where it ends, or the strategy has no chains."""
        strategy = strategies.get(self.strategy)
        if not isinstance(strategy, strategies.Chain) or not (live.known[row] or history):
            return None

        def guess(candidate: int) -> tuple[int, float]:
            suggestion = suggest(live, [candidate])[0]
            return live.answer_of(suggestion.labels), suggestion.confidence

        try:
            pool = view(live, available, answers=answers)
            return strategy.follow(pool, strategies.Step(row, history, guess, self._ranked(live)))
        except Exception:  # a strategy of somebody else's must not stop the labelling
            log.exception("project %s: %s can't follow; a new chain starts", live.ref.id, strategy.name)
            return None

    def _ranked(self, live: LivePool) -> list[int]:
        """The best ranked open rows, best first."""
        return list(islice((live.row_of[task] for task in self.ranking if live.is_open(task)), LOOK))

    def top(self, live: LivePool, available: npt.NDArray[np.bool_]) -> TaskId | None:
        """The best ranked open task, else the front of the window, else any open one."""

        def free(task: TaskId) -> bool:
            return task in live.row_of and bool(available[live.row_of[task]])

        for task in self.ranking:
            if free(task):
                return task
        waiting = [task for task in self.window.open(live) if free(task)]
        if waiting:
            return min(waiting, key=lambda task: self.window.places[task].score)
        rest = np.flatnonzero(available)
        return TaskId(int(live.ids[rest[0]])) if len(rest) else None

    # ---- views; the caller holds the pool's lock or accepts a moment's staleness

    def promised(self, live: LivePool, annotator: int | None = None) -> list[TaskId]:
        """Open tasks promised to annotators other than this one."""
        now = time.monotonic()
        return [
            chain.next
            for who, chain in list(self.chains.items())
            if who != annotator
            and chain.next is not None
            and now - chain.since < PROMISED_SECONDS
            and live.is_open(chain.next)
        ]

    def available(self, live: LivePool, annotator: int | None = None) -> npt.NDArray[np.bool_]:
        """(n,) open rows less those promised to others."""
        mask = live.open()
        mask[[live.row_of[task] for task in self.promised(live, annotator)]] = False
        return mask

    def _servable(self, live: LivePool, annotator: int) -> npt.NDArray[np.bool_]:
        """(n,) available rows less those that Label Studio on PostgreSQL skips, their rows being written."""
        mask, arriving = self.available(live, annotator), self.window.arriving
        if not arriving:
            return mask
        served = mask.copy()
        served[[live.row_of[task] for task in arriving if task in live.row_of]] = False
        return served if served.any() else mask

    # ---- in the background

    def stale(self, live: LivePool) -> bool:
        """Whether something changed since the order was computed."""
        return self.ranked != (self.strategy, live.version)

    def rank(self, live: LivePool) -> None:
        """Recompute the order of open tasks by the project's strategy: up to a second at 100,000 tasks."""
        with live.lock:
            name, version, ids = self.strategy, live.version, live.ids
            available = self.available(live)
        strategy = strategies.get(name)
        reads = "probabilities" in (*strategy.needs, *strategy.uses)
        probabilities = all_probabilities(live, available) if reads else None
        seconds = self._seconds(live, probabilities) if probabilities is not None else None
        with live.lock:
            grown = len(live.ids) != len(ids)
            pool = None if grown else view(live, available, probabilities=probabilities, seconds=seconds)
        if pool is None:
            return  # tasks came in meanwhile; the next turn ranks them too
        try:
            selection = strategies.select(name, pool, self.size * 2, seed=live.ref.id)
        except Exception as error:  # a strategy of somebody else's must not let the window run dry
            log.exception("project %s: %s can't order", live.ref.id, name)
            rows = strategies.select("random", pool, self.size * 2, seed=live.ref.id).rows
            selection = strategies.Selection(rows, f"{name} failed ({error}): random order")
        self.ranking = [TaskId(int(task)) for task in ids[selection.rows]]
        self.fallback, self.ranked = selection.fallback, (name, version)

    def _seconds(self, live: LivePool, probabilities: Floats) -> Floats | None:
        """What each image will cost people, learnt anew with each generation; None before there are times."""
        if live.generation is None:
            return None
        if self._costs[0] is not live.generation:
            with live.lock:
                annotations = list(live.annotations.values())
            self._costs = (live.generation, cost_model(annotations, live.generation.judged()))
        model = self._costs[1]
        return None if model is None else seconds_per_image(model, probabilities)

    def refill(self, live: LivePool, studio: LabelStudio) -> int:
        """Give predictions to a chunk of the best ranked tasks if the window lacks some; returns how many."""
        with self._filling:
            missing = self.size - len(self.window.open(live))
            tasks = self._unplaced(live)[: min(CHUNK, missing)] if missing > 0 else []
            if not tasks:
                return 0
            suggestions = suggest(live, [live.row_of[task] for task in tasks])
            return self.window.write_all(live, tasks, suggestions, studio)

    def _unplaced(self, live: LivePool) -> list[TaskId]:
        """Open tasks without a prediction, best ranked first; those without an embedding come last."""
        with live.lock:
            open_mask = live.open()
            ranked = [task for task in self.ranking if task in live.row_of and task not in self.window]
            ranked = [task for task in ranked if open_mask[live.row_of[task]]]
            if ranked:
                return ranked
            order = np.flatnonzero(open_mask)
            rest = live.ids[order[np.argsort(~live.known[order], kind="stable")]].tolist()
            return [TaskId(task) for task in rest if task not in self.window][:CHUNK]

    def renew_front(self, live: LivePool, studio: LabelStudio, count: int = FRONT) -> None:
        """Put the best ranked tasks in front, best first, behind only what annotators were promised."""
        with self.lock, live.lock:
            available = self.available(live)
            best = [task for task in self.ranking if task in live.row_of and available[live.row_of[task]]]
            front = [*self.promised(live), *best[:count]]
            # Reserved at once and written from the front: what was promised is never behind the others.
            scores = sorted(self.window.state.push_scores(live.ref, len(front)))
        for task, place in zip(front, scores, strict=True):
            with self.lock, live.lock:
                now = self.window.places.get(task)
                if not live.is_open(task) or (now is not None and now.score <= place):
                    continue  # answered, or put in front by a submit meanwhile
                promised = self.promised(live)
                if task not in promised and any(self.window.score(t) > place for t in promised):
                    continue  # a submit meanwhile has promised what stands further behind
                suggestion = suggest(live, [live.row_of[task]])[0]
                self.window.stage(live, task, suggestion, float(place))
            self.window.write(live, task, studio)
