"""What a simulation runs on: labelled images of an .npz, a folder, an export or a project, as features."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from ml_backend import wire
from ml_backend.bootstrap import Container
from ml_backend.controls import Control, control_of
from ml_backend.domain.errors import BadRequest, NotReady, RushError
from ml_backend.domain.generation import Array
from ml_backend.domain.labels import resolve_label, resolve_labels
from ml_backend.domain.model import Annotation, LabelState
from ml_backend.services.datasets.sources import SourceItem, read_source
from ml_backend.services.embedding.image_size import SAMPLE
from ml_backend.services.queue.pace import LEAST_TIMED, timed_answers
from ml_backend.settings import Settings

Progress = Callable[[str, int, int], None]
MOST_TIMED = 1000
LABEL_KEYS = ("label", "choice")
"""Where a row without annotations, as in Label Studio's JSON-MIN, may say its class."""


@dataclass(slots=True)
class Prepared:
    """Features and labels in an .npz, and what was left out: a line for each."""

    path: Path
    left_out: list[str] = field(default_factory=list)


def prepare(source: Path, out: Path, container: Container, progress: Progress) -> Prepared:
    """Embed a data set with the product's own network; kept in ``out`` and not computed again.

    ``source``: an npz with ``features`` or ``images``, and ``labels``; a folder with a sub-folder per class;
    or an export of Label Studio (JSON, JSON-MIN). BadRequest names what is missing.
    """
    path = out / "features" / f"{source.stem}-{_digest(source, container.settings)}.npz"
    if source.suffix == ".npz":
        with np.load(source) as found:
            if {"features", "labels"} <= set(found.files):
                return Prepared(source)
            if not {"images", "labels"} <= set(found.files):
                raise BadRequest(
                    f"{source.name} holds {', '.join(found.files)}.", "Name the arrays images and labels."
                )
            pairs = list(zip(found["labels"].tolist(), found["images"], strict=True))
        files = ((str(label), str(n), _png(pixels)) for n, (label, pixels) in enumerate(pairs))
        return _embedded(files, len(pairs), path, container.settings, progress)
    if source.is_dir():
        paths = [file for file in sorted(source.glob("*/*")) if file.is_file()]
        left_out: list[str] = []
        named = ((file.parent.name, str(file.relative_to(source)), file.read_bytes) for file in paths)
        return _embedded(_read(named, left_out), len(paths), path, container.settings, progress, left_out)
    if source.suffix == ".json":
        left_out = []
        rows = list(_export(source, container, left_out))
        return _embedded(_read(rows, left_out), len(rows), path, container.settings, progress, left_out)
    raise BadRequest(
        f"Can't simulate on {source}.", "Give an .npz, a folder with one per class, or an export (.json)."
    )


def of_project(project: int, out: Path, container: Container) -> tuple[Prepared, list[Annotation]]:
    """The labels of a live project and the features that Rush has of its images; nothing is written to it."""
    ref = container.ref(project)
    control = control_of(container.state.options(ref), str(container.studio.project(project)["label_config"]))
    if control.multiple:
        raise BadRequest(f"Project {project} is multiple choice.", "Simulations need one class per image.")
    keys = container.state.tasks(ref)
    # A fine-tuned network has seen the labels that judge it here.
    untuned = container.untuned_feature_set(ref, container.artifacts.generation(ref))
    features = container.features(untuned)
    annotations = [a for record in container.studio.records(project, control) for a in record.annotations]
    left_out: list[str] = []
    labels, wanted = [], []
    for task, (state, said) in sorted(resolve_labels(annotations).items()):
        key = keys.get(task)
        if state is not LabelState.LABELLED or not control.teaches(said):
            left_out.append(f"task {task}: {state.name.lower()}, {', '.join(said) or 'no label'}")
        elif not key or key not in features:
            left_out.append(f"task {task}: its image is not embedded; rush sync --project {project}")
        else:
            labels.append(said[0])
            wanted.append(key)
    if len(set(labels)) < 2:
        raise BadRequest(
            f"Project {project} has {len(labels)} labelled, embedded images of {len(set(labels))} classes.",
            "Label at least two classes first, or run rush sync.",
        )
    digest = hashlib.sha256(json.dumps([wanted, labels]).encode()).hexdigest()[:10]
    path = out / "features" / f"project-{project}-{digest}.npz"
    if not path.exists():  # else its runs would be done again
        _save(path, features.get(wanted), labels)
    return Prepared(path, left_out), annotations


def fitted_cost(project: int, container: Container) -> str:
    """The newest timed answers of a project, as ``Options.cost`` takes them; NotReady for too few."""
    ref = container.ref(project)
    generation = container.artifacts.generation(ref)
    control = control_of(container.state.options(ref), str(container.studio.project(project)["label_config"]))
    annotations = [a for record in container.studio.records(project, control) for a in record.annotations]
    answers, seconds = timed_answers(annotations, {} if generation is None else generation.judged())
    if len(answers) < LEAST_TIMED:
        timed = sum(a.lead_time is not None for a in annotations)
        raise NotReady(
            f"Project {project} has {timed} timed answers, {len(answers)} of them to images whose suggestion "
            "a training round has judged: too few to learn what they cost.",
            f"At least {LEAST_TIMED} are needed; rush train --project {project} judges those that there are.",
        )
    rows = [asdict(answer) for answer in answers[-MOST_TIMED:]]
    return json.dumps({"answers": rows, "seconds": seconds[-MOST_TIMED:]})


def embed_labelled(
    files: Iterable[tuple[str, str, bytes]], path: Path, settings: Settings, progress: Callable[[int], None]
) -> list[str]:
    """Write features (n, F) float16 and labels (n,) of (label, name, file bytes) to ``path``, an npz.

    Returns a line for each image that can't be read; BadRequest where none is left. ``progress`` hears the
    count done.
    """
    container = Container(settings)
    files = iter(files)
    first = list(islice(files, SAMPLE))
    embedder = container.embedder(container.feature_set_for(data for _, _, data in first))
    given: list[str] = []

    def noted() -> Iterator[tuple[str, bytes]]:
        for label, name, data in chain(first, files):
            given.append(label)
            yield name, data

    rows, labels, left_out = [], [], []
    for n, (name, found) in enumerate(embedder.embed(noted())):
        if isinstance(found, Exception):
            left_out.append(f"{name}: {found}")
        else:
            rows.append(found.astype(np.float16))
            labels.append(given[n])
        progress(n + 1)
    embedder.close()
    if not rows:
        raise BadRequest(
            f"There is no image to simulate with; {len(left_out)} can't be read.",
            "Give a folder with one sub-folder per class, an .npz or an export.",
        )
    _save(path, np.stack(rows), labels)
    return left_out


def _embedded(
    files: Iterable[tuple[str, str, bytes]],
    total: int,
    path: Path,
    settings: Settings,
    progress: Progress,
    before: Sequence[str] = (),
) -> Prepared:
    """``before``: what is left out already, read once the files are."""
    note = path.with_suffix(".left_out.json")
    if not path.exists():
        left_out = embed_labelled(files, path, settings, lambda done: progress("Embedding", done, total))
        note.write_text(json.dumps([*before, *left_out]))
    return Prepared(path, json.loads(note.read_text()) if note.exists() else [])


def _digest(source: Path, settings: Settings) -> str:
    """What the features depend on: which files, their sizes and times, and the network."""
    files = [source] if source.is_file() else sorted(source.glob("*/*"))
    facts = [(str(file), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]
    text = json.dumps([str(source.resolve()), facts, settings.backbone, settings.image_size])
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _export(
    source: Path, container: Container, left_out: list[str]
) -> Iterator[tuple[str, str, Callable[[], bytes]]]:
    """(class, name, reader) of the tasks of an export that people gave one label."""
    items = list(read_source(source))
    control = _asked(items)
    for item in items:
        label = _label(item.task, control)
        if item.problem or not label:
            left_out.append(f"{item.name}: {item.problem or 'people gave it no single label'}")
        else:
            yield label, item.name, partial(_bytes_of, item, container)


def _bytes_of(item: SourceItem, container: Container) -> bytes:
    return item.path.read_bytes() if item.path else container.studio.download(item.address)


def _label(task: Any, control: Control) -> str:
    annotations = task.get("annotations")
    if annotations is None:
        data = {**task, **(task.get("data") or {})}
        return next((str(data[key]) for key in LABEL_KEYS if isinstance(data.get(key), str | int)), "")
    bodies = [{"id": n, "task": 0, **body} for n, body in enumerate(annotations) if isinstance(body, dict)]
    state, labels = resolve_label(wire.annotation(body, control) for body in bodies)
    return labels[0] if state is LabelState.LABELLED and len(labels) == 1 else ""


def _asked(items: Iterable[SourceItem]) -> Control:
    """The Choices that most tasks answer, the first of these: an export doesn't say which control counts."""
    answered: Counter[str] = Counter()
    for item in items:
        bodies = [body for body in item.task.get("annotations") or () if isinstance(body, dict)]
        regions = [
            region for body in bodies for region in body.get("result") or () if isinstance(region, dict)
        ]
        names = {str(region.get("from_name")): 1 for region in regions if region.get("type") == "choices"}
        answered.update(names)
    return Control(max(answered, key=lambda name: answered[name], default=""), "", "", ())


def _read(
    rows: Iterable[tuple[str, str, Callable[[], bytes]]], left_out: list[str]
) -> Iterator[tuple[str, str, bytes]]:
    for label, name, reader in rows:
        try:
            data = reader()
        except (RushError, OSError) as error:
            left_out.append(f"{name}: {error}")
        else:
            yield label, name, data


def _save(path: Path, features: Array, labels: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.npz")
    np.savez(part, features=features, labels=np.array(labels))
    part.replace(path)


def _png(pixels: Array) -> bytes:
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()
