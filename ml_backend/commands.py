"""What the command line and the demo do with a project: services put together with this machine's parts."""

from __future__ import annotations

from collections.abc import Callable

from ml_backend.bootstrap import Parts
from ml_backend.services import connect as connecting
from ml_backend.services.connect import Step


def connect(
    parts: Parts,
    project: int | None = None,
    title: str = "",
    label_config: str = "",
    progress: Callable[[Step], None] = lambda step: None,
) -> int:
    """Connect a project by id, or by title (made where there is none); returns its id."""
    if project is None:
        project, step = connecting.find_or_create(parts.studio, title, label_config)
        progress(step)
    connecting.connect(
        parts.ref(project),
        parts.studio,
        parts.state,
        parts.settings,
        label_config=label_config,
        progress=progress,
    )
    return project
