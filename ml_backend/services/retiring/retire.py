"""A project that was deleted in Label Studio is tended no more, until Label Studio speaks of it again."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from ml_backend.domain.errors import NotFound, RushError
from ml_backend.domain.events import Retired
from ml_backend.domain.model import ProjectRef
from ml_backend.ports import Jobs, LabelStudio, State

log = logging.getLogger(__name__)

GONE = "gone"
"""The option that says since when Label Studio has no such project; empty where it has."""


def is_gone(ref: ProjectRef, studio: LabelStudio) -> bool:
    """Whether Label Studio answers, and says itself that it has no such project."""
    try:
        studio.project(ref.id)
    except NotFound:
        return True
    except RushError:  # no answer, or not to this token: it may well be there
        return False
    return False


def retired(ref: ProjectRef, state: State) -> bool:
    """Whether the project is tended no more."""
    return bool(state.options(ref).get(GONE))


def retire_if_gone(ref: ProjectRef, studio: LabelStudio, state: State) -> bool:
    """After a 404: tend the project no more where Label Studio has none; False where it has."""
    if not is_gone(ref, studio):
        return False
    if state.options(ref) and not retired(ref, state):
        state.set_options(ref, **{GONE: datetime.now(UTC).isoformat(timespec="seconds")})
        log.warning(
            "project %s is not in Label Studio any more and is tended no more. What is kept of it goes with: "
            "rush forget --project %s",
            ref.id,
            ref.id,
        )
    state.publish(ref, Retired())
    return True


def revive(ref: ProjectRef, state: State, jobs: Jobs) -> None:
    """Label Studio speaks of the project: it is tended again, and what was missed is fetched."""
    if retired(ref, state):
        state.set_options(ref, **{GONE: ""})
        jobs.enqueue("sync", ref)
        log.info("project %s is there again.", ref.id)
