"""Our query strategies beside those of scikit-activeml and modAL: accuracy in one loop, seconds per query.

Runs in an environment of its own, as theirs may want other versions than ours:

    python -m venv peers && peers/bin/pip install scikit-activeml modAL-python
    PYTHONPATH=. peers/bin/python bench/peers.py FEATURES.npz … (features (n, F) and labels (n,), as
    ``rush simulate`` leaves them in its folder ``features``)

The same loop for all: 20 random labels, then batches of 20 up to 200, a logistic regression on 64 principal
components after each, accuracy on a held-out fifth. Fitting the classifier counts in nobody's seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from modAL.uncertainty import entropy_sampling, margin_sampling
from scipy.stats import t
from skactiveml.classifier import SklearnClassifier
from skactiveml.pool import CoreSet, RandomSampling, TypiClust, UncertaintySampling
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

import strategies

START, BATCH, LABELS, SEEDS = 20, 20, 200, 5
TIMED_BATCH = 100
Query = Callable[[np.ndarray, np.ndarray, np.ndarray, Any, int, int], np.ndarray]
"""(vectors (n, d), labels (n,) with nan for none, probabilities (n, C), classifier, k, seed) → rows."""


def ours(name: str) -> Query:
    """One of our strategies."""

    def query(x: np.ndarray, y: np.ndarray, p: np.ndarray, model: Any, k: int, seed: int) -> np.ndarray:
        open_ = np.isnan(y)
        answers = np.where(open_, -1, np.nan_to_num(y, nan=-1)).astype(np.int64)
        pool = strategies.Pool(vectors=x, available=open_, labelled=~open_, answers=answers, probabilities=p)
        return strategies.select(name, pool, k, seed).rows

    return query


def activeml(make: Callable[[int], Any], *, model_needed: bool = False) -> Query:
    """One of scikit-activeml's."""

    def query(x: np.ndarray, y: np.ndarray, p: np.ndarray, model: Any, k: int, seed: int) -> np.ndarray:
        more = {"clf": model, "fit_clf": False} if model_needed else {}
        return np.asarray(make(seed).query(X=x, y=y, batch_size=k, **more))

    return query


def modal(measure: Callable[..., Any]) -> Query:
    """One of modAL's."""

    def query(x: np.ndarray, y: np.ndarray, p: np.ndarray, model: Any, k: int, seed: int) -> np.ndarray:
        rows = np.flatnonzero(np.isnan(y))
        found = measure(model, x[rows], n_instances=k)
        return rows[np.asarray(found[0] if isinstance(found, tuple) else found)]

    return query


def uncertainty(method: str) -> Query:
    """scikit-activeml's uncertainty sampling."""
    return activeml(lambda seed: UncertaintySampling(method=method, random_state=seed), model_needed=True)


PEERS: dict[str, dict[str, Query]] = {
    "random": {"Rush": ours("random"), "scikit-activeml": activeml(lambda s: RandomSampling(random_state=s))},
    "entropy": {
        "Rush": ours("uncertainty"),
        "scikit-activeml": uncertainty("entropy"),
        "modAL": modal(entropy_sampling),
    },
    "margin": {
        "Rush": ours("margin"),
        "scikit-activeml": uncertainty("margin_sampling"),
        "modAL": modal(margin_sampling),
    },
    "k-center": {
        "Rush": ours("diversity"),
        "scikit-activeml CoreSet": activeml(lambda s: CoreSet(random_state=s)),
    },
    "typiclust": {
        "Rush": ours("typiclust"),
        "scikit-activeml": activeml(lambda s: TypiClust(random_state=s)),
    },
}


def classifier(classes: int) -> Any:
    """The classifier of every loop, as both sides take it."""
    return SklearnClassifier(LogisticRegression(max_iter=300), classes=list(range(classes)))


def loop(query: Query, x: np.ndarray, truth: np.ndarray, seed: int) -> list[float]:
    """Held-out accuracy after each batch."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(x))
    held, pool = order[: len(x) // 5], order[len(x) // 5 :]
    vectors, own = x[pool], truth[pool]
    y = np.full(len(pool), np.nan)
    y[:START] = own[:START]
    accuracy = []
    while True:
        labelled = ~np.isnan(y)
        model = classifier(int(truth.max()) + 1).fit(vectors[labelled], y[labelled])
        accuracy.append(float((model.predict(x[held]) == truth[held]).mean()))
        if labelled.sum() >= LABELS:
            return accuracy
        rows = query(vectors, y, model.predict_proba(vectors).astype(np.float32), model, BATCH, seed)
        y[rows] = own[rows]


def seconds(query: Query, x: np.ndarray, classes: int, limit: float) -> float | None:
    """Median seconds of a query of 100 with 1,000 labels; None where one took longer than ``limit``."""
    rng = np.random.default_rng(0)
    y = np.full(len(x), np.nan)
    y[:1000] = rng.integers(0, classes, 1000)
    model = classifier(classes).fit(x[:1000], y[:1000])
    p = model.predict_proba(x).astype(np.float32)
    took = []
    for repeat in range(3):
        began = time.perf_counter()
        query(x, y, p, model, TIMED_BATCH, repeat)
        took.append(time.perf_counter() - began)
        if took[-1] > limit:
            break
    return round(float(np.median(took)), 4)


def main() -> None:
    """Compare all and write bench/results/peers.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("features", type=Path, nargs="+")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--limit", type=float, default=30.0, help="a query slower than this is timed once")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "peers.json")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    figures: dict[str, Any] = {"accuracy": {}, "seconds per query of 100": {}}
    for path in options.features:
        with np.load(path) as data:
            x, names = data["features"].astype(np.float32), data["labels"]
        truth = np.unique(names, return_inverse=True)[1]
        x = PCA(64, random_state=0).fit_transform(x)
        x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
        for family, peers in PEERS.items():
            for peer, query in peers.items():
                runs = np.array([loop(query, x, truth, seed) for seed in range(options.seeds)])
                area, last = 100 * runs.mean(axis=1), 100 * runs[:, -1]
                half = t.ppf(0.975, len(runs) - 1) / np.sqrt(len(runs)) if len(runs) > 1 else np.nan
                figures["accuracy"].setdefault(path.stem, {}).setdefault(family, {})[peer] = {
                    "at 200 labels": [round(float(last.mean()), 2), round(float(half * last.std(ddof=1)), 2)],
                    "mean of 20 to 200": [
                        round(float(area.mean()), 2),
                        round(float(half * area.std(ddof=1)), 2),
                    ],
                }
                print(path.stem, family, peer, figures["accuracy"][path.stem][family][peer], flush=True)
    rng = np.random.default_rng(0)
    for size in options.sizes:
        x = rng.standard_normal((size, 64)).astype(np.float32)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        for family, peers in PEERS.items():
            for peer, query in peers.items():
                took = seconds(query, x, 10, options.limit)
                figures["seconds per query of 100"].setdefault(str(size), {}).setdefault(family, {})[peer] = (
                    took
                )
                print(size, family, peer, took, flush=True)
    body = {
        "benchmark": "peers",
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()},
        "versions": {p: version(p) for p in ("scikit-activeml", "modAL-python", "scikit-learn", "numpy")},
        "figures": figures,
    }
    options.out.write_text(json.dumps(body, indent=1) + "\n")


if __name__ == "__main__":
    main()
