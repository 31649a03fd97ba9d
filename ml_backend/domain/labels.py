"""What a task's annotations say together."""

from __future__ import annotations

from collections.abc import Iterable

from ml_backend.domain.model import Annotation, LabelState, TaskId


def resolve_label(annotations: Iterable[Annotation]) -> tuple[LabelState, tuple[str, ...]]:
    """One task's state and labels: people's newest answer counts, then the machine's, then a skip.

    What the machine answered is no label: nothing may learn from it.
    """
    found = list(annotations)
    answered = [annotation for annotation in found if not annotation.skipped and not annotation.machine]
    if answered:
        return LabelState.LABELLED, max(answered, key=lambda a: (a.created_at, a.id)).labels
    if any(annotation.machine for annotation in found):
        return LabelState.MACHINE, ()
    return (LabelState.SKIPPED if found else LabelState.OPEN), ()


def resolve_labels(annotations: Iterable[Annotation]) -> dict[TaskId, tuple[LabelState, tuple[str, ...]]]:
    """State and labels of every task that has an annotation."""
    by_task: dict[TaskId, list[Annotation]] = {}
    for annotation in annotations:
        by_task.setdefault(annotation.task, []).append(annotation)
    return {task: resolve_label(found) for task, found in by_task.items()}
