"""``rush simulate``: the product's own queue, suggestions and training, replayed with people of numbers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

import strategies
from ml_backend.bootstrap import fetched_data
from ml_backend.domain.simulated_run import Options, Run, Runner
from ml_backend.numerics.copies import groups_of
from ml_backend.services.learning.maps import fit_pca
from ml_backend.simulation.project import MemoryProject
from strategies.cost import Answer, CostModel
from strategies.simulate import (
    CostOf,
    Person,
    constant,
    csv_of,
    learnt,
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
    chosen = rng.permutation(len(truth))[: int(options.held_out * len(truth))]
    # Copies of an image go where its first one goes: nobody may label what is held out.
    held_out = np.flatnonzero(np.isin(groups_of(fit_pca(features).encode(features), truth), chosen))
    confusion = noisy(len(classes), options.error) if options.error else None
    people = [Person(confusion, options.dont_know) for _ in range(options.people)]
    steps = replay(
        MemoryProject(features, [str(name) for name in classes], held_out, strategy, options),
        truth,
        held_out,
        people,
        cost_of(options.cost),
        labels=min(options.labels, len(truth) - len(held_out)),
        every=options.every,
        page_seconds=options.page_seconds,
        until=options.until,
        seed=seed,
    )
    return {"data": data.stem, "strategy": strategy, "seed": seed, "options": asdict(options), "steps": steps}


def simulate_stored(
    digest: str, name: str, strategy: str, seed: int, options: dict[str, Any]
) -> dict[str, Any]:
    """One run on a worker, on data that ``simulate --redis`` put into Redis; see ``simulate_run``."""
    return simulate_run(fetched_data(digest, name), strategy, seed, Options(**options))


def cost_of(cost: str) -> CostOf:
    """``published``, a number of seconds, or learnt from the answers of ``simulate_data.fitted_cost``."""
    if cost == "published":
        return published
    return learnt(fitted(cost)) if cost.startswith("{") else constant(float(cost))


def fitted(cost: str) -> CostModel:
    """The cost model of such answers."""
    body = json.loads(cost)
    return CostModel().fit([Answer(**answer) for answer in body["answers"]], body["seconds"])


def simulate(
    data: Sequence[Path],
    names: Sequence[str],
    seeds: int,
    options: Options,
    out: Path,
    runner: Runner,
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
        Run(path, name, seed, options)
        for path in data
        for name in dict.fromkeys((*names, "random"))
        for seed in range(seeds)
    ]
    files = {run: folder / f"{run.name}.json" for run in wanted}
    missing = [run for run, file in files.items() if not file.exists()]
    done = len(wanted) - len(missing)
    progress("Runs", done, len(wanted))
    for run, result in runner(missing):
        part = files[run].with_suffix(".part")
        part.write_text(json.dumps(result))
        part.replace(files[run])
        done += 1
        progress("Runs", done, len(wanted))
    return [json.loads(files[run].read_text()) for run in wanted]


def on_processes(count: int) -> Runner:
    """Runs on this machine, one process each; Ctrl+C stops them."""

    def run_all(runs: Sequence[Run]) -> Iterator[tuple[Run, dict[str, Any]]]:
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ.setdefault(name, "1")  # processes share the cores; each run keeps to one
        with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
            started = {
                pool.submit(simulate_run, run.data, run.strategy, run.seed, run.options): run for run in runs
            }
            try:
                for future in as_completed(started):
                    yield started[future], future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in list((getattr(pool, "_processes", None) or {}).values()):
                    process.terminate()
                raise

    return run_all


def minutes_for(runs: Sequence[Mapping[str, Any]], data: str, answers: int) -> dict[str, float]:
    """Simulated minutes of each strategy on a data set for so many answers, as far as its runs go."""
    found: dict[str, list[float]] = {}
    for run in runs:
        labels = [0, *(step["labels"] for step in run["steps"])]
        seconds = [0.0, *(step["seconds"] for step in run["steps"])]
        if run["data"] == data and labels[-1] >= answers:
            found.setdefault(run["strategy"], []).append(float(np.interp(answers, labels, seconds)) / 60)
    return {name: float(np.mean(minutes)) for name, minutes in found.items()}


def write_report(runs: Sequence[dict[str, Any]], out: Path, left_out: Sequence[str] = ()) -> str:
    """Write all figures and, where matplotlib is installed, pictures to ``out``; returns the table."""
    rows = summarise(runs)
    table = markdown_of(rows)
    (out / "runs.json").write_text(json.dumps(list(runs), indent=1))
    (out / "summary.csv").write_text(csv_of(rows))
    note = f"\n{len(left_out)} images were left out: left_out.txt.\n" if left_out else ""
    (out / "summary.md").write_text(f"{table}\n{note}")
    (out / "left_out.txt").write_text("".join(f"{line}\n" for line in left_out))
    if find_spec("matplotlib"):
        plot(runs, out)
    return table
