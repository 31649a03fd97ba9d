"""Forget a project: delete what is kept of it alone. Label Studio keeps what it has."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ml_backend.bootstrap import Container
from ml_backend.domain.errors import BadRequest, NotFound
from ml_backend.domain.events import Retired
from ml_backend.services.retiring.retire import is_gone

LETTING_GO_SECONDS = 1.0
"""A backend that runs hears of it, and lets go of the project."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of a project."""

    tasks: int
    audit_sample: bool


def kept(container: Container, project: int, *, sure: bool = False) -> Kept:
    """What would be deleted; NotFound where nothing is, BadRequest where Label Studio still has the project.

    With ``sure`` Label Studio is not asked.
    """
    ref = container.ref(project)
    folders = [container.settings.data_dir / kind / ref.slug for kind in ("projects", "index")]
    known = ref in container.state.projects() or any(folder.exists() for folder in folders)
    if not known:
        raise NotFound(f"Nothing is kept of a project {project} of {ref.origin}.", "rush status lists them.")
    if not sure and not is_gone(ref, container.studio):
        container.studio.project(project)  # an answer that says nothing is told as what it is
        raise BadRequest(
            f"Project {project} is still in Label Studio.",
            "Delete it there first. Or forget it all the same, with its audit sample: say yes beforehand.",
            field="yes",
        )
    sample = container.artifacts.audit_sample(ref) is not None
    return Kept(len(container.state.tasks(ref)), sample)


def forget(container: Container, project: int) -> list[str]:
    """Delete it, and what nobody needs then; returns what the latter was."""
    ref = container.ref(project)
    container.state.publish(ref, Retired())
    time.sleep(LETTING_GO_SECONDS)
    container.forget(ref)
    return container.prune()
