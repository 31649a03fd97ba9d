"""Whether a project that somebody names is there, asked before anything is written or queued about it."""

from __future__ import annotations

from ml_backend.bootstrap import Container
from ml_backend.domain.errors import NotFound
from ml_backend.domain.model import ProjectRef


def existing(container: Container, project: int) -> ProjectRef:
    """The name of a project that Label Studio has; NotFound for any other number."""
    try:
        container.studio.project(project)
    except NotFound:
        raise NotFound(
            f"Label Studio at {container.origin} shows no project {project} to the token's user.",
            "The number is in the project's address; make one with: rush connect --create TITLE",
        ) from None
    return container.ref(project)
