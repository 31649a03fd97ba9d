"""Generations, maps and audit samples as files: published whole or not at all.

Each is a folder of one JSON manifest and one .npz without pickles. A pointer file names the current folder
and is replaced in one step after the folder is on disk, so that a writer that dies at any moment leaves
the old one in place.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from ml_backend.domain.audit_sample import AuditSample
from ml_backend.domain.errors import StoreError
from ml_backend.domain.generation import Array, Generation, Head, Pca, Projection
from ml_backend.domain.model import ProjectRef

KEPT = 3
SAMPLE = "draw"
HEAD = ("mean", "weight", "prototypes", "bias")
MAP = ("keys", "xy", "cluster", "density", "centroids")
DAMAGED = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile)

log = logging.getLogger(__name__)


class FileArtifacts:
    """``ports.Artifacts`` in ``data_dir/projects/<slug>``; safe for many processes, publishers take turns.

    The last three of each kind are kept, and every audit sample as it was last: people answered it. Where the
    current one is damaged, the newest sound one before it is read and the log says so. Raises StoreError
    where a folder can't be written.
    """

    def __init__(self, data_dir: Path) -> None:
        self._root = data_dir / "projects"

    def generation(self, project: ProjectRef) -> Generation | None:
        """Return the current generation, None before the first."""
        found = self._read(project, "generation")
        if found is None:
            return None
        facts, arrays = found
        head = None
        if facts["head"] is not None:
            mean, weight, prototypes, bias = (arrays[f"head_{name}"] for name in HEAD)
            head = Head(mean, weight, prototypes, bias, facts["head"]["scale"], facts["head"]["temperature"])
        return Generation(
            number=facts["number"],
            backbone=facts["backbone"],
            pca=Pca(arrays["pca_mean"], arrays["pca_components"]),
            head=head,
            classes=tuple(facts["classes"]),
            multiple=facts["multiple"],
            space=facts["space"],
            suggester=facts["suggester"],
            manifest=facts["manifest"],
            control=facts.get("control", ""),
            question=facts.get("question", ""),
        )

    def publish_generation(self, project: ProjectRef, generation: Generation) -> None:
        """Make this the current generation; on return it is on disk."""
        arrays = {"pca_mean": generation.pca.mean, "pca_components": generation.pca.components}
        head = generation.head
        if head is not None:
            for name in HEAD:
                arrays[f"head_{name}"] = getattr(head, name)
        facts = {
            "number": generation.number,
            "backbone": generation.backbone,
            "classes": list(generation.classes),
            "multiple": generation.multiple,
            "space": generation.space,
            "suggester": generation.suggester,
            "head": None if head is None else {"scale": head.scale, "temperature": head.temperature},
            "manifest": dict(generation.manifest),
            "control": generation.control,
            "question": generation.question,
        }
        self._publish(project, "generation", facts, arrays)

    def generation_number(self, project: ProjectRef) -> int | None:
        """Return the number of the current generation without reading it, None before the first."""
        pointed = self._pointed(self._folder(project, "generation"))
        return None if pointed is None else _number(pointed)

    def projection(self, project: ProjectRef) -> Projection | None:
        """Return the current projection, None before the first."""
        found = self._read(project, "projection")
        if found is None:
            return None
        facts, arrays = found
        return Projection(generation=facts["number"], **{name: arrays[name] for name in MAP})

    def publish_projection(self, project: ProjectRef, projection: Projection) -> None:
        """Make this the current projection; on return it is on disk."""
        arrays = {name: np.asarray(getattr(projection, name)) for name in MAP}
        self._publish(project, "projection", {"number": projection.generation}, arrays)

    def audit_sample(self, project: ProjectRef, number: int | None = None) -> AuditSample | None:
        """Return the current audit sample, or the one of that number; None where there is none."""
        if number is None:
            found = self._read(project, SAMPLE)
            return None if found is None else AuditSample.of(*found)
        folder = self._folder(project, SAMPLE)
        name = _last_of_each_number(_published(folder)).get(number)
        if name is None:
            return None
        try:
            return AuditSample.of(*_load(folder / name))
        except DAMAGED as error:
            raise StoreError(
                f"Audit sample {number} in {folder / name} is damaged: {error}.",
                f"Put it back from a copy of that folder, or run: rush audit --project {project.id}",
            ) from error

    def audit_sample_numbers(self, project: ProjectRef) -> list[int]:
        """Return the numbers of all audit samples, ascending."""
        return sorted(_last_of_each_number(_published(self._folder(project, SAMPLE))))

    def publish_audit_sample(self, project: ProjectRef, audit_sample: AuditSample) -> None:
        """Make this the current audit sample; on return it is on disk."""
        self._publish(project, SAMPLE, audit_sample.facts(), audit_sample.arrays())

    def _folder(self, project: ProjectRef, kind: str) -> Path:
        return self._root / project.slug / kind

    def _pointed(self, folder: Path) -> str | None:
        try:
            name = (folder / "current").read_text().strip()
        except FileNotFoundError:
            return None
        return name if _sequence(name) else None

    def _read(self, project: ProjectRef, kind: str) -> tuple[dict[str, Any], dict[str, Array]] | None:
        folder = self._folder(project, kind)
        current = self._pointed(folder)
        while current is not None:
            try:
                return _load(folder / current)
            except DAMAGED as error:
                # Published over and pruned while we read? Then there is a newer one to read.
                pointed = self._pointed(folder)
                if pointed == current:
                    log.warning("The %s in %s is damaged: %s", kind, folder / current, error)
                    break
                current = pointed
        # Only what was pointed to once has been complete, and only that is named without a leading dot.
        for name in reversed(_published(folder)):
            if current is None or _sequence(name) < _sequence(current):
                try:
                    return _load(folder / name)
                except DAMAGED as error:
                    log.warning("The %s in %s is damaged: %s", kind, folder / name, error)
        return None

    def _publish(
        self, project: ProjectRef, kind: str, facts: Mapping[str, Any], arrays: Mapping[str, Array]
    ) -> None:
        folder = self._folder(project, kind)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / "lock", fallback_to_soft=False):
                for leftover in folder.glob(".new-*"):
                    shutil.rmtree(leftover, ignore_errors=True)
                published = _published(folder)
                sequence = (_sequence(published[-1]) if published else 0) + 1
                name = f"{sequence:08d}-{facts['number']}"
                fresh = folder / f".new-{name}"
                fresh.mkdir()
                _write(fresh / "manifest.json", json.dumps(facts, ensure_ascii=False).encode())
                with (fresh / "arrays.npz").open("wb") as file:
                    np.savez(file, allow_pickle=False, **arrays)
                    file.flush()
                    os.fsync(file.fileno())
                _sync_folder(fresh)
                os.replace(fresh, folder / name)
                _write(folder / ".new-current", name.encode())
                os.replace(folder / ".new-current", folder / "current")
                _sync_folder(folder)
                published = _published(folder)
                kept = set(published[-KEPT:])
                if kind == SAMPLE:
                    kept.update(_last_of_each_number(published).values())
                for old in published:
                    if old not in kept:
                        shutil.rmtree(folder / old, ignore_errors=True)
        except OSError as error:
            raise StoreError(
                f"The {kind} of project {project.id} can't be written to {folder}: {error}.",
                "Check the free space and the owner of that folder (RUSH_DATA_DIR).",
            ) from error


def _load(folder: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    facts = json.loads((folder / "manifest.json").read_bytes())
    # numpy leaves a file that it opened itself open where the archive is damaged.
    with (folder / "arrays.npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return facts, {name: arrays[name] for name in arrays.files}


def _published(folder: Path) -> list[str]:
    """Names of finished folders, oldest first."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted((name for name in names if _sequence(name)), key=_sequence)


def _sequence(name: str) -> int:
    """The position of a finished folder; 0 for any other name."""
    first, _, number = name.partition("-")
    return int(first) if first.isdigit() and number.lstrip("-").isdigit() else 0


def _number(name: str) -> int:
    """The number of the generation or audit sample in a finished folder."""
    return int(name.partition("-")[2])


def _last_of_each_number(published: Sequence[str]) -> dict[int, str]:
    return {_number(name): name for name in published}


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
