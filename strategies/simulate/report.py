"""What runs come to: means over seeds with confidence intervals, as a table and as pictures."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

FIGURES = ("held_out", "pool")
COLOURED = 6
"""Strategies in colour: more lines can't be told apart."""


@dataclass(frozen=True, slots=True)
class Summary:
    """One strategy on one data set over all seeds; each figure with the half width of its 95 % interval.

    ``held_out`` and ``pool`` are accuracies at the end; ``area``: mean held-out accuracy over the seconds up
    to where the fastest strategy ended, so all are compared over the same time.
    """

    data: str
    strategy: str
    seeds: int
    labels: float
    minutes: float
    minutes_ci: float
    held_out: float
    held_out_ci: float
    pool: float
    pool_ci: float
    area: float
    area_ci: float
    accepted: float
    chain: float
    pure: float


def summarise(runs: Sequence[Mapping[str, Any]]) -> list[Summary]:
    """Return one line per data set and strategy; a run holds ``data``, ``strategy``, ``seed``, ``steps``."""
    found: list[Summary] = []
    for data in sorted({str(run["data"]) for run in runs}):
        mine = [run for run in runs if run["data"] == data and run["steps"]]
        end = min((run["steps"][-1]["seconds"] for run in mine), default=0.0)
        for name in sorted({str(run["strategy"]) for run in mine}):
            some = [run for run in mine if run["strategy"] == name]
            last = [run["steps"][-1] for run in some]
            minutes, minutes_ci = _interval([step["seconds"] / 60 for step in last])
            held_out, held_out_ci = _interval([step["held_out"] for step in last])
            pool, pool_ci = _interval([step["pool"] for step in last])
            area, area_ci = _interval([area_under(run["steps"], end) for run in some])
            found.append(
                Summary(
                    data,
                    name,
                    len(some),
                    float(np.mean([step["labels"] for step in last])),
                    minutes,
                    minutes_ci,
                    held_out,
                    held_out_ci,
                    pool,
                    pool_ci,
                    area,
                    area_ci,
                    float(np.mean([np.mean([s["accepted"] for s in run["steps"]]) for run in some])),
                    float(np.mean([step["chain"] for step in last])),
                    float(np.mean([step["pure"] for step in last])),
                )
            )
    return sorted(found, key=lambda row: (row.data, -row.area))


def area_under(steps: Sequence[Mapping[str, Any]], end: float) -> float:
    """Mean held-out accuracy over seconds 0 to ``end``, straight lines between steps, nothing known at 0."""
    seconds = np.array([0.0, *(step["seconds"] for step in steps)])
    accuracy = np.array([0.0, *(step["held_out"] for step in steps)])
    if end <= 0:
        return 0.0
    inside = seconds < end
    x = np.append(seconds[inside], end)
    y = np.append(accuracy[inside], np.interp(end, seconds, accuracy))
    return float(np.trapezoid(y, x) / end)


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % interval (Student's t); no width from a single value."""
    from scipy.stats import t

    n = len(values)
    if n < 2:
        return float(np.mean(values)) if n else float("nan"), float("nan")
    return float(np.mean(values)), float(t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n))


def markdown_of(rows: Sequence[Summary]) -> str:
    """Return a table for people."""
    lines = [
        "| data | strategy | labels | minutes | held-out | whole pool right | accuracy over time "
        "| accepted | run of a class |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.data} | {row.strategy} | {row.labels:.0f} | {_with(row.minutes, row.minutes_ci)} | "
            f"{_with(100 * row.held_out, 100 * row.held_out_ci)} % | "
            f"{_with(100 * row.pool, 100 * row.pool_ci)} % | "
            f"{_with(100 * row.area, 100 * row.area_ci)} % | {100 * row.accepted:.0f} % | {row.chain:.1f} |"
        )
    return "\n".join(lines)


def _with(value: float, width: float) -> str:
    return f"{value:.1f}" if np.isnan(width) else f"{value:.1f} ± {width:.1f}"


def csv_of(rows: Sequence[Summary]) -> str:
    """Return the same for machines, a header first."""
    out = io.StringIO()
    writer = csv.DictWriter(out, [field.name for field in fields(Summary)])
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return out.getvalue()


def plot(runs: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Draw accuracy against minutes and against labels, a PNG and an SVG per data set; needs matplotlib.

    In colour are the six strategies of the best accuracy over time and random; the others are grey.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    made: list[Path] = []
    for data in sorted({str(run["data"]) for run in runs}):
        figure, axes = plt.subplots(2, 2, figsize=(11, 8), sharey="row", layout="constrained")
        ranking = [row.strategy for row in summarise(runs) if row.data == data]
        named = {*ranking[:COLOURED], "random"}
        for name in sorted(ranking, key=lambda name: (name not in named, ranking.index(name))):
            style: dict[str, Any] = {"label": name, "lw": 1.5, "zorder": 2}
            if name not in named:
                style = {"color": "0.8", "lw": 0.8, "zorder": 1}
            some = [run["steps"] for run in runs if (run["data"], run["strategy"]) == (data, name)]
            for row, figure_name in enumerate(FIGURES):
                for column, (axis, per) in enumerate((("seconds", 60.0), ("labels", 1.0))):
                    end = min(steps[-1][axis] for steps in some if steps) if any(some) else 0
                    begin = max((steps[0][axis] for steps in some if steps), default=0)
                    x = np.linspace(min(begin, end), end, 100)
                    lines = [
                        np.interp(x, [s[axis] for s in steps], [s[figure_name] for s in steps])
                        for steps in some
                        if steps
                    ]
                    if lines:
                        axes[row, column].plot(x / per, np.mean(lines, axis=0), **style)
        for row, title in enumerate(("held-out accuracy", "share of the pool that is right")):
            axes[row, 0].set(xlabel="annotator minutes", ylabel=title)
            axes[row, 1].set(xlabel="labels")
            for axis in axes[row]:
                axis.grid(alpha=0.3)
        axes[0, 0].legend(fontsize=8)
        figure.suptitle(data)
        for suffix in ("png", "svg"):
            made.append(folder / f"{data}.{suffix}")
            figure.savefig(made[-1], dpi=120)
        plt.close(figure)
    return made
