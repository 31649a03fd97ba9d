"""``rush simulate``: the product's own queue, suggestions and training, replayed with people of numbers."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

import strategies
from ml_backend.errors import BadRequest
from ml_backend.generation import Array
from ml_backend.memory_project import MemoryProject, Options
from ml_backend.settings import Settings
from strategies.simulate import (
    CostOf,
    Person,
    constant,
    csv_of,
    markdown_of,
    plot,
    published,
    replay,
    summarise,
)
from strategies.simulate.people import noisy


def simulate_run(data: Path, strategy: str, seed: int, options: Options) -> dict[str, Any]:
    """One run, as a dict that can be kept as JSON; ``data`` is an npz of features (n, F) and labels (n,)."""
    with np.load(data) as found:
        features, names = found["features"], found["labels"]
    classes, truth = np.unique(names, return_inverse=True)
    rng = np.random.default_rng(seed)
    held_out = np.sort(rng.permutation(len(truth))[: int(options.held_out * len(truth))])
    confusion = noisy(len(classes), options.error) if options.error else None
    people = [Person(confusion, options.dont_know) for _ in range(options.people)]
    cost: CostOf = published if options.seconds is None else constant(options.seconds)
    steps = replay(
        MemoryProject(features, [str(name) for name in classes], held_out, strategy, options),
        truth,
        held_out,
        people,
        cost,
        labels=min(options.labels, len(truth) - len(held_out)),
        every=options.every,
        page_seconds=options.page_seconds,
        until=options.until,
        seed=seed,
    )
    return {"data": data.stem, "strategy": strategy, "seed": seed, "options": asdict(options), "steps": steps}


def simulate(
    data: Sequence[Path],
    names: Sequence[str],
    seeds: int,
    options: Options,
    out: Path,
    processes: int,
    progress: Callable[[str, int, int], None],
) -> list[dict[str, Any]]:
    """Run every strategy on every data set ``seeds`` times, always with random; what is in ``out`` is kept.

    Raises UnknownStrategy at once, before anything is computed.
    """
    for name in names:
        strategies.get(name)
    folder = out / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [
        (folder / f"{_name(path, name, seed, options)}.json", path, name, seed)
        for path in data
        for name in dict.fromkeys((*names, "random"))
        for seed in range(seeds)
    ]
    missing = [run for run in wanted if not run[0].exists()]
    done = len(wanted) - len(missing)
    progress("Runs", done, len(wanted))
    with _workers(processes) as pool:
        started = {
            pool.submit(simulate_run, path, name, seed, options): at for at, path, name, seed in missing
        }
        try:
            for future in as_completed(started):
                part = started[future].with_suffix(".part")
                part.write_text(json.dumps(future.result()))
                part.replace(started[future])
                done += 1
                progress("Runs", done, len(wanted))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list((getattr(pool, "_processes", None) or {}).values()):
                process.terminate()
            raise
    return [json.loads(at.read_text()) for at, *_ in wanted]


def _workers(processes: int) -> ProcessPoolExecutor:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")  # processes share the cores; each run keeps to one
    return ProcessPoolExecutor(processes, mp_context=get_context("spawn"))


def _name(data: Path, strategy: str, seed: int, options: Options) -> str:
    facts = json.dumps([str(data.resolve()), data.stat().st_mtime_ns, strategy, seed, asdict(options)])
    label = "".join(c if c.isalnum() else "-" for c in strategy)
    return f"{data.stem}-{label}-{seed}-{hashlib.sha256(facts.encode()).hexdigest()[:10]}"


def write_report(runs: Sequence[dict[str, Any]], out: Path) -> str:
    """Write all figures and, where matplotlib is installed, pictures to ``out``; returns the table."""
    rows = summarise(runs)
    table = markdown_of(rows)
    (out / "runs.json").write_text(json.dumps(list(runs), indent=1))
    (out / "summary.csv").write_text(csv_of(rows))
    (out / "summary.md").write_text(table + "\n")
    if find_spec("matplotlib"):
        plot(runs, out)
    return table


def prepare(source: Path, out: Path, settings: Settings, progress: Callable[[str, int, int], None]) -> Path:
    """Return an npz of features and labels for a data set, embedded with the product's own network.

    ``source``: an npz with ``features`` or ``images``, and ``labels``; or a folder with a sub-folder per
    class. Features are kept in ``out`` and not computed again. BadRequest names what is missing.
    """
    if source.suffix == ".npz":
        with np.load(source) as found:
            if {"features", "labels"} <= set(found.files):
                return source
            if not {"images", "labels"} <= set(found.files):
                raise BadRequest(
                    f"{source.name} holds {', '.join(found.files)}.", "Name the arrays images and labels."
                )
            pairs = list(zip(found["labels"].tolist(), found["images"], strict=True))
        files = ((str(label), _png(pixels)) for label, pixels in pairs)
        total = len(pairs)
    elif source.is_dir():
        paths = [path for path in sorted(source.glob("*/*")) if path.is_file()]
        files = ((path.parent.name, path.read_bytes()) for path in paths)
        total = len(paths)
    else:
        raise BadRequest(f"Can't simulate on {source}.", "Give an .npz file or a folder with one per class.")
    path = out / "features" / f"{source.stem}.npz"
    if not path.exists():
        embed_labelled(files, path, settings, lambda done: progress("Embedding", done, total))
    return path


def embed_labelled(
    files: Iterable[tuple[str, bytes]], path: Path, settings: Settings, progress: Callable[[int], None]
) -> None:
    """Write features (n, F) float16 and labels (n,) of (label, file bytes) to ``path``, an npz.

    Images that can't be read are left out; BadRequest where none is left. ``progress`` hears the count done.
    """
    from ml_backend.adapters.embedders import open_embedder

    embedder = open_embedder(
        settings.backbone, settings.image_size, settings.device, settings.data_dir / "networks"
    )
    rows, labels = [], []
    for n, (label, found) in enumerate(embedder.embed(files), 1):
        if not isinstance(found, Exception):
            rows.append(found.astype(np.float16))
            labels.append(label)
        progress(n)
    embedder.close()
    if not rows:
        raise BadRequest(
            "There is no image to simulate with.", "Give a folder with one sub-folder per class."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.npz")
    np.savez(part, features=np.stack(rows), labels=np.array(labels))
    part.replace(path)


def _png(pixels: Array) -> bytes:
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()
