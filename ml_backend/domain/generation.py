"""A generation: the immutable result of one training round, and the numpy that applies it.

Nothing here needs torch: the web process encodes new images with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]


KEPT = ("images", "labels", "tuned_on")
"""What a manifest says of a project whatever is asked."""


def untuned(backbone: str) -> str:
    """The backbone (or feature set) that a fine-tuned one, ``NAME~HASH``, started from."""
    return re.sub(r"~[0-9a-f]+", "", backbone)


def normalise(rows: Array) -> Floats:
    """Return ``rows`` (n, d) as float32 of unit length; all-zero rows stay zero."""
    out = np.asarray(rows, dtype=np.float32)
    norms = np.linalg.norm(out, axis=1, keepdims=True)
    return np.asarray(out / np.maximum(norms, 1e-12), np.float32)


@dataclass(frozen=True, slots=True)
class Pca:
    """Raw space: centred, projected and normalised backbone features."""

    mean: Floats  # (F,)
    components: Floats  # (SPACE_DIM, F); rows beyond the data's rank are zero

    def encode(self, features: Array) -> Floats:
        """(n, F) features → (n, SPACE_DIM) unit vectors."""
        return normalise((np.asarray(features, np.float32) - self.mean) @ self.components.T)


@dataclass(frozen=True, slots=True)
class Head:
    """Head space and classifier: cosine logits against one prototype per class.

    Single choice: softmax(scale · cos / temperature); multiple: sigmoid((scale · cos + bias) / temperature).
    """

    mean: Floats  # (F,)
    weight: Floats  # (SPACE_DIM, F)
    prototypes: Floats  # (C, SPACE_DIM), unit rows, in the order of Generation.classes
    bias: Floats  # (C,)
    scale: float
    temperature: float

    def encode(self, features: Array) -> Floats:
        """(n, F) features → (n, SPACE_DIM) unit vectors."""
        return normalise((np.asarray(features, np.float32) - self.mean) @ self.weight.T)

    def probabilities(self, embeddings: Array, *, multiple: bool) -> Floats:
        """(n, SPACE_DIM) head embeddings → (n, C) calibrated probabilities."""
        logits = (self.scale * (embeddings @ self.prototypes.T) + self.bias) / self.temperature
        if multiple:
            return np.asarray(1.0 / (1.0 + np.exp(-np.clip(logits, -30, 30))), np.float32)
        logits -= logits.max(axis=1, keepdims=True)
        exp = np.exp(logits)
        return np.asarray(exp / exp.sum(axis=1, keepdims=True), np.float32)


@dataclass(frozen=True, slots=True)
class Generation:
    """One published training round; number 0 has no head (nothing was labelled yet).

    ``space`` ("raw" | "head") serves chains, diversity and neighbours; ``suggester``
    ("knn-raw" | "knn-head" | "head" | "blend") serves suggestions: both chosen by held-out figures,
    which ``manifest`` records.
    """

    number: int
    backbone: str
    pca: Pca
    head: Head | None = None
    classes: tuple[str, ...] = ()
    multiple: bool = False
    space: str = "raw"
    suggester: str = "knn-raw"
    manifest: Mapping[str, Any] = field(default_factory=dict)
    control: str = ""
    question: str = ""
    """What was asked: the name of the control, and a digest of all of it (``Choices.question``)."""

    def answering(self, control: str, *, multiple: bool) -> Generation:
        """What may be said to this question: nothing by a head that was trained for another one."""
        if self.multiple == multiple and self.control in ("", control):
            return self
        manifest = {name: self.manifest[name] for name in KEPT if name in self.manifest}
        return replace(self, head=None, space="raw", suggester="knn-raw", manifest=manifest)

    @property
    def voting(self) -> str | None:
        """The space whose neighbours vote on suggestions; None where the head alone makes them."""
        if self.head is None or self.suggester == "knn-raw":
            return "raw"
        if self.suggester == "head":
            return None
        return "head" if self.suggester == "knn-head" else self.space

    @property
    def searched(self) -> frozenset[str]:
        """The spaces that neighbours are looked for in: mostly one, so an index need not hold both."""
        serving = self.space if self.head is not None else "raw"
        return frozenset({serving, self.voting or serving})

    def judged(self) -> dict[int, float]:
        """How right (0 to 1) the head was on each labelled task, by task id, when it was held out from it."""
        return judged(self.manifest)


def judged(manifest: Mapping[str, Any], what: str = "right") -> dict[int, float]:
    """``Generation.judged`` by the manifest, also of a round not published; or the ``loss`` in nats."""
    record = manifest.get("trained_on", {})
    return dict(zip(record.get("judged", ()), record.get(what, ()), strict=True))


@dataclass(frozen=True, slots=True)
class Projection:
    """The 2-D map of one generation, with the clusters that the cold-start order walks.

    ``density`` is the mean cosine similarity to the 15 nearest images in the raw space (typicality).
    """

    generation: int
    keys: Array  # (n,) str content keys ("U32"), unique
    xy: Floats  # (n, 2), scaled to [0, 1]
    cluster: npt.NDArray[np.int32]  # (n,)
    density: Floats  # (n,)
    centroids: Floats  # (K, SPACE_DIM), unit rows in the raw space
