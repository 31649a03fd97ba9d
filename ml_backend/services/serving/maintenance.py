"""What is done for a project in between, while nobody waits: rank, look ahead, refill, train, sync."""

from __future__ import annotations

import time

from ml_backend.domain.deadline import within
from ml_backend.domain.events import GenerationPublished
from ml_backend.services.serving.project import Project

LOW = 0.75
"""Part of the window that may be empty no more before it is refilled."""
QUIET = 0.7
"""Seconds after a submit in which refilling waits, unless the window is nearly empty."""
RANK_PAUSE = 0.2
TURN_SECONDS = 10.0


class Maintenance:
    """Does for one project what is due, in turns; one thread calls it."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self._ranked_at = self._rank_seconds = 0.0
        self._trained_at, self._trained_labels = 0.0, 0
        self._trained_for = ""
        self._synced_at = time.monotonic()

    def run(self) -> None:
        """One turn, which waits for others TURN_SECONDS at most; a reload takes as long as it takes."""
        self._hear_of_lost_generation()
        self._rank()
        with within(TURN_SECONDS):
            project = self.project
            project.queue.look_ahead(project.pool, project.ports.studio)
            self._refill()
            self._train()
            self._sync()
        self._mend_index()  # last: all else goes on without

    def _mend_index(self) -> None:
        """StoreError while an index that missed something is away; once it is back it is built anew."""
        if self.project.pool.stale:
            self.project.check_index()
            self.project.reload()

    def _hear_of_lost_generation(self) -> None:
        project = self.project
        number = project.ports.artifacts.generation_number(project.ref)
        if number != project.published:  # None where the files are gone
            project.on_event(GenerationPublished(number or 0))

    def _rank(self) -> None:
        queue, pool, began = self.project.queue, self.project.pool, time.monotonic()
        if queue.stale(pool) and began - self._ranked_at > max(RANK_PAUSE, 10 * self._rank_seconds):
            queue.rank(pool)
            self._ranked_at = time.monotonic()
            self._rank_seconds = self._ranked_at - began

    def _refill(self) -> None:
        project, queue = self.project, self.project.queue
        pool, studio = project.pool, project.ports.studio
        filled = len(queue.window.open(pool)) / queue.size
        calm = project.ports.state.seconds_since_submit(project.ref) > QUIET
        if filled < LOW / 3 or (filled < LOW and calm):
            queue.refill(pool, studio)
        elif calm:
            queue.window.resolve(pool, studio)

    def _train(self) -> None:
        project, settings, now = self.project, self.project.ports.settings, time.monotonic()
        generation, labels = project.pool.generation, project.pool.counts()["labelled"]
        if generation is not None:
            self._trained_labels = max(self._trained_labels, int(generation.manifest.get("labels", 0)))
        due = labels - self._trained_labels >= settings.train_labels
        due = due and now - self._trained_at >= settings.train_seconds
        if project.outdated and self._trained_for != project.control.question:  # at once, the first time
            due, self._trained_for = True, project.control.question
        if due:
            project.ports.jobs.enqueue("train", project.ref)
            self._trained_at, self._trained_labels = now, labels

    def _sync(self) -> None:
        project, now = self.project, time.monotonic()
        seconds = project.ports.settings.sync_seconds
        if seconds and now - self._synced_at >= seconds:
            project.ports.jobs.enqueue("sync", project.ref)
            self._synced_at = now
