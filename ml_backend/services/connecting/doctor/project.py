"""The project's own settings."""

from __future__ import annotations

from collections.abc import Iterator

from ml_backend.controls import described
from ml_backend.controls.lost_answers import lost_answers
from ml_backend.domain.errors import UnusableConfig
from ml_backend.domain.model import MODEL_VERSION
from ml_backend.services.connecting.doctor.context import CheckContext, Fault, Note
from ml_backend.services.connecting.label_studio_setup import SAMPLING


def label_config(context: CheckContext) -> Iterator[Fault | Note]:
    """There is something to predict: which control, by which key, and what is left alone."""
    try:
        yield Note(described(context.control))
    except UnusableConfig as error:
        fix = error.hint or "Settings → Labeling Interface: one Choices control on one Image."
        yield Fault("The label config has nothing that Rush can predict.", error.message, fix)


def lost_classes(context: CheckContext) -> Iterator[Fault]:
    """Answers have classes of the label config: others teach nothing."""
    lost = lost_answers(context.control, context.state.annotations(context.ref))
    if lost.count:
        name = next(iter(lost.names))
        fix = f"Where a class was renamed: rush connect --project {context.ref.id} --rename '{name}=NEW NAME'"
        yield Fault(f"{lost}.", "", f"{fix}. Else change the answers in Label Studio.", warning=True)


def sampling(context: CheckContext) -> Iterator[Fault]:
    """Tasks are served by prediction score."""
    now = context.project["sampling"]
    if now != SAMPLING:
        fix = f"Settings → General → Task Sampling: {SAMPLING}. {context.connect}"
        yield Fault("Tasks are not served in Rush's order.", now, fix)


def maximum_annotations(context: CheckContext) -> Iterator[Fault]:
    """One annotation per task: more starts a random breadth-first pass before the queue."""
    now = context.project["maximum_annotations"]
    if now != 1:
        fix = f"Set maximum_annotations to 1. {context.connect}"
        yield Fault("More than one annotation per task makes the order random.", str(now), fix)


def shown_predictions(context: CheckContext) -> Iterator[Fault]:
    """Annotators see suggestions."""
    if not context.project["show_collab_predictions"]:
        fix = f"Settings → Annotation → Use predictions to prelabel tasks: on. {context.connect}"
        yield Fault("Suggestions are hidden.", "show_collab_predictions is false", fix)


def model_version(context: CheckContext) -> Iterator[Fault]:
    """The project uses the predictions that Rush writes."""
    now = context.project["model_version"]
    if now != MODEL_VERSION:
        fix = f"Settings → Annotation → prelabel with: {MODEL_VERSION}. {context.connect}"
        yield Fault("The project does not use Rush's predictions.", f"model_version is {now!r}", fix)
