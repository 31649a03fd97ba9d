"""Data sets by path for benchmarks, and their features, computed once and kept in a cache folder."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ml_backend.settings import Settings
from ml_backend.simulation.data import embed_labelled

Labelled = tuple[str, bytes]


def cifar10(path: Path) -> Iterator[Labelled]:
    """(class, file bytes) of a tar of CLASS/NAME.jpg."""
    with tarfile.open(path) as tar:
        for member in tar:
            source = tar.extractfile(member) if member.isfile() else None
            if source is not None and member.name.endswith((".jpg", ".png")):
                yield Path(member.name).parent.name, source.read()


def mnist(path: Path) -> Iterator[Labelled]:
    """(class, PNG bytes) of an npz of ``images`` (n, h, w) and ``labels`` (n,)."""
    with np.load(path) as data:
        for pixels, label in zip(data["images"], data["labels"], strict=True):
            out = io.BytesIO()
            Image.fromarray(pixels).save(out, "PNG")
            yield str(label), out.getvalue()


def features(
    name: str, images: Iterator[Labelled], cache: Path, size: int = 224
) -> tuple[np.ndarray, list[str]]:
    """Features (n, F) float16 and labels of a data set, from ``cache`` where they are there."""
    path = cache / f"{name}-{size}.npz"
    embedded: int | None = None

    def told(done: int) -> None:
        nonlocal embedded
        embedded = done
        if done % 1000 == 0:
            print(f"{name}: {done} images embedded", flush=True)

    if not path.exists():
        named = ((label, str(n), data) for n, (label, data) in enumerate(images))
        embed_labelled(named, path, Settings(data_dir=cache, image_size=size, device="cpu"), told)
    with np.load(path) as data:
        assert embedded in (None, len(data["labels"])), f"{embedded} images, {len(data['labels'])} readable"
        return data["features"], data["labels"].tolist()


def cifar10_features(path: Path, cache: Path, size: int = 224) -> tuple[np.ndarray, list[str]]:
    """CIFAR-10's features and labels."""
    return features("cifar10", cifar10(path), cache, size)


def mnist_features(path: Path, cache: Path, size: int = 224) -> tuple[np.ndarray, list[str]]:
    """MNIST's features and labels."""
    return features("mnist", mnist(path), cache, size)
