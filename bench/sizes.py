"""Small images at several sizes: images per second against the plain loop at 224 px, and 10-NN accuracy.

The plain loop runs in turns with each size, as in ``ingest.py``. Which size Rush takes for small images by
itself (``RUSH_IMAGE_SIZE=auto``) rests on these figures.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.common import report
from bench.data import Labelled, cifar10, mnist
from bench.ingest import NAME, compare, knn_accuracy, plain
from ml_backend.adapters.models.embedders import open_embedder
from ml_backend.ports import Embedder

SIZES = (224, 160, 128, 96)


def figures(pool: Sequence[Labelled], embedder: Embedder, sample: int, blocks: int) -> dict[str, Any]:
    """Speed and 10-NN accuracy of one data set through one embedder."""
    found: list[np.ndarray] = []

    def fast(files: Sequence[bytes]) -> np.ndarray:
        rows = [row for _, row in embedder.embed(("", data) for data in files)]
        assert all(isinstance(row, np.ndarray) for row in rows)
        found.append(np.stack(rows))  # type: ignore[arg-type]
        return found[-1]

    told = compare([data for _, data in pool], fast, plain(), sample, blocks)
    features = np.concatenate(found[1:])  # the first were to warm up
    labels = np.array([label for label, _ in pool])
    return {
        "images_per_second": told["images_per_second"],
        "ratio": told["ratio"],
        "knn10_accuracy": knn_accuracy(features, labels),
    }


def main() -> None:
    """Measure each data set at each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cifar10", type=Path, required=True, help="tar of CLASS/NAME.jpg")
    parser.add_argument("--mnist", type=Path, required=True, help="npz of images and labels")
    parser.add_argument("--images", type=int, default=10_000, help="of each data set, evenly taken")
    parser.add_argument("--sample", type=int, default=200, help="images that the plain loop gets")
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    sets = {"cifar10_32x32": list(cifar10(args.cifar10)), "mnist_28x28": list(mnist(args.mnist))}
    found: dict[str, Any] = {"backbone": f"{NAME}, float32, CPU; the plain loop is at 224 px"}
    with tempfile.TemporaryDirectory() as folder:
        for name, pool in sets.items():
            some = pool[:: max(1, len(pool) // args.images)][: args.images]
            found[name] = {"images": len(some)}
            for size in SIZES:
                embedder = open_embedder(NAME, size, "cpu", Path(folder))
                found[name][f"{size} px"] = figures(some, embedder, args.sample, args.blocks)
                embedder.close()
                print(name, size, found[name][f"{size} px"], flush=True)
    report("sizes", found, args.out)


if __name__ == "__main__":
    main()
