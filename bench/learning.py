"""What learning costs and what it is worth: heads, maps and suggestions on CIFAR-10 and MNIST.

python bench/learning.py --cifar10 cifar10-test.tar --mnist mnist-test-10k.npz [--cache DIR]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.common import report
from bench.data import cifar10_features, mnist_features
from ml_backend.adapters.files.artifacts import FileArtifacts
from ml_backend.adapters.models.projector_umap import UmapProjector
from ml_backend.adapters.models.trainer_torch import TorchTrainer
from ml_backend.domain.generation import Generation, Pca
from ml_backend.domain.model import ProjectRef
from ml_backend.numerics.figures import correct, figures
from ml_backend.numerics.knn import vote_all
from ml_backend.services.learning.maps import fit_pca, lay_out
from ml_backend.services.learning.train import train

REF = ProjectRef("http://bench", 1)
REPEATS = 3
SEEDS = 2


def timed(work: Callable[[], Any], repeats: int = REPEATS) -> tuple[float, Any]:
    """Median seconds and the last result."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - began)
    return round(float(np.median(seconds)), 3), result


def trustworthiness(rows: np.ndarray, xy: np.ndarray, k: int = 15, sample: int = 2000) -> float:
    """Venna and Kaski 2001, cosine distances in ``rows``, over an even sample of points among all."""
    n, lost = len(rows), 0
    points = np.linspace(0, n - 1, min(n, sample)).astype(int)
    for block in np.array_split(points, 10):
        far = -(rows[block] @ rows.T)
        far[np.arange(len(block)), block] = -np.inf
        ranks = np.empty(far.shape, np.int64)
        np.put_along_axis(ranks, np.argsort(far, axis=1), np.arange(n)[None], axis=1)
        apart = ((xy[block][:, None] - xy[None]) ** 2).sum(axis=2)
        apart[np.arange(len(block)), block] = -1
        near = np.argpartition(apart, k, axis=1)[:, : k + 1]
        lost += np.maximum(np.take_along_axis(ranks, near, axis=1) - k, 0).sum()
    return round(1 - 2 * lost / (len(points) * k * (2 * n - 3 * k - 1)), 4)


def round_of_training(features: np.ndarray, y: np.ndarray, classes: list[str], pca: Pca) -> dict[str, Any]:
    """Head, held-out figures, re-embedding of all images and publishing, with 1,000 labels."""
    rows = np.random.default_rng(0).permutation(len(y))[:1000]
    trainer = TorchTrainer()

    def fit() -> Generation:
        outcome = train(
            features[rows], y[rows], rows.tolist(), classes=classes, multiple=False, pca=pca,
            trainer=trainer, previous=None, number=1,
        )  # fmt: skip
        assert outcome.generation is not None
        return outcome.generation

    def embed(generation: Generation) -> np.ndarray:
        assert generation.head is not None
        return generation.head.probabilities(generation.head.encode(features), multiple=False)

    with tempfile.TemporaryDirectory() as folder:
        artifacts = FileArtifacts(Path(folder))

        def publish(generation: Generation) -> None:
            artifacts.publish_generation(REF, generation)

        def everything() -> None:
            generation = fit()
            embed(generation)
            publish(generation)

        fit()
        one_head = timed(lambda: trainer.fit(features[rows], y[rows], multiple=False, pca=pca.components))[0]
        all_of_it = timed(everything)[0]
        fitted, generation = timed(fit)
        return {
            "labels": 1000,
            "images": len(y),
            "seconds": all_of_it,
            "goal_seconds": 3.0,
            "of which": {
                "train (5 folds, figures, head)": fitted,
                "one head alone": one_head,
                "re-embed": timed(lambda: embed(generation))[0],
                "publish": timed(lambda: publish(generation))[0],
            },
        }


def maps(features: np.ndarray, pca: Pca) -> dict[str, Any]:
    """First map and re-map, with clusters and densities as the worker makes them, and without."""
    raw = pca.encode(features)
    keys = [f"{n:032x}" for n in range(len(raw))]
    projector = UmapProjector()
    warm = timed(projector.warm, 1)[0]
    first_seconds, first = timed(lambda: lay_out(keys, raw, projector, None, 1))
    again_seconds, again = timed(lambda: lay_out(keys, raw, projector, first, 2))
    new = lay_out(keys[: len(raw) * 9 // 10], raw[: len(raw) * 9 // 10], projector, None, 1)
    grown_seconds, grown = timed(lambda: lay_out(keys, raw, projector, new, 2))
    return {
        "images": len(raw),
        "warm-up": warm,
        "pca of features": timed(lambda: fit_pca(features), 3)[0],
        "first": {
            "seconds": first_seconds,
            "goal_seconds": 5.0,
            "trustworthiness": trustworthiness(raw, first.xy),
        },
        "again": {
            "seconds": again_seconds,
            "goal_seconds": 2.5,
            "trustworthiness": trustworthiness(raw, again.xy),
            "mean move": round(float(np.linalg.norm(again.xy - first.xy, axis=1).mean()), 4),
            "same cluster": round(float((again.cluster == first.cluster).mean()), 3),
        },
        "again, a tenth new": {
            "seconds": grown_seconds,
            "trustworthiness": trustworthiness(raw, grown.xy),
            "mean move": round(float(np.linalg.norm(grown.xy[: len(new.xy)] - new.xy, axis=1).mean()), 4),
        },
        "projector alone": {
            "first": timed(lambda: projector.project(raw))[0],
            "again": timed(lambda: projector.project(raw, first.xy))[0],
        },
    }  # fmt: skip


def suggestions(features: np.ndarray, y: np.ndarray, classes: list[str], pca: Pca) -> dict[str, Any]:
    """Accuracy of every way to suggest on unlabelled images, and which one held-out labels chose."""
    raw, table = pca.encode(features), {}
    for labels in (100, 500, 1000):
        runs = [_suggest_run(features, raw, y, classes, pca, labels, seed) for seed in range(SEEDS)]
        numbers = {key: [run[key] for run in runs] for key in runs[0] if not isinstance(runs[0][key], str)}
        table[labels] = {key: round(float(np.mean(values)), 4) for key, values in numbers.items()}
        table[labels] |= {key: [run[key] for run in runs] for key in ("suggester", "space")}
    return table


def _suggest_run(
    features: np.ndarray, raw: np.ndarray, y: np.ndarray, classes: list[str], pca: Pca, labels: int, seed: int
) -> dict[str, Any]:
    order = np.random.default_rng(seed).permutation(len(y))
    known, unknown = order[:labels], order[labels:]
    generation = train(
        features[known], y[known], known.tolist(), classes=classes, multiple=False, pca=pca,
        trainer=TorchTrainer(), previous=None, number=1, seed=seed,
    ).generation  # fmt: skip
    assert generation is not None
    assert generation.head is not None
    spaces = {"raw": raw, "head": generation.head.encode(features)}
    votes = {
        space: vote_all(rows[unknown], rows[known], y[known], len(classes), 10, multiple=False)
        for space, rows in spaces.items()
    }
    head = np.zeros_like(votes["raw"])
    columns = [classes.index(label) for label in generation.classes]
    head[:, columns] = generation.head.probabilities(spaces["head"][unknown], multiple=False)
    ways = {
        "knn-raw": votes["raw"],
        "knn-head": votes["head"],
        "head": head,
        "blend": (votes[generation.space] + head) / 2,
    }
    truth = y[unknown]
    row: dict[str, Any] = {
        way: float(correct(said, truth, multiple=False).mean()) for way, said in ways.items()
    }
    row["chosen"] = row[generation.suggester]
    row["chosen ece"] = figures(ways[generation.suggester], truth, multiple=False)["ece"]
    row["chosen held out"] = generation.manifest["held_out"][generation.suggester]["accuracy"]
    for space, rows in spaces.items():
        row[f"purity {space}"], row[f"10-NN unlabelled {space}"] = _neighbourhoods(rows[unknown], truth)
    return row | {"suggester": generation.suggester, "space": generation.space}


def _neighbourhoods(rows: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Share of the 10 nearest with the same label, and accuracy of their majority, leave one out."""
    same, right = [], []
    for start in range(0, len(rows), 1000):
        near = rows[start : start + 1000] @ rows.T
        near[np.arange(len(near)), np.arange(start, start + len(near))] = -np.inf
        found = y[np.argpartition(-near, 10, axis=1)[:, :10]]
        mine = y[start : start + 1000]
        same.append((found == mine[:, None]).mean(axis=1))
        counts = np.stack([(found == label).sum(axis=1) for label in range(y.max() + 1)], axis=1)
        right.append(counts.argmax(axis=1) == mine)
    return float(np.concatenate(same).mean()), float(np.concatenate(right).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cifar10", type=Path, required=True, help="tar of CLASS/NAME.jpg")
    parser.add_argument("--mnist", type=Path, required=True, help="npz of images and labels")
    parser.add_argument("--cache", type=Path, help="folder that keeps the features for the next run")
    parser.add_argument("--out", type=Path, help="result file instead of bench/results/learning.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        cache = arguments.cache or Path(temporary)
        sets = {
            "CIFAR-10": cifar10_features(arguments.cifar10, cache),
            "MNIST": mnist_features(arguments.mnist, cache),
        }
    results: dict[str, Any] = {"suggestions": {}}
    for name, (features, labels) in sets.items():
        found, y = np.unique(labels, return_inverse=True)
        classes, pca = [str(label) for label in found], fit_pca(features)
        if name == "CIFAR-10":
            print("training and maps …", flush=True)
            results["training"] = round_of_training(features, y, classes, pca)
            results["map"] = maps(features, pca)
        print(f"suggestions on {name} …", flush=True)
        results["suggestions"][name] = suggestions(features, y, classes, pca)
    report("learning", results, arguments.out)


if __name__ == "__main__":
    main()
