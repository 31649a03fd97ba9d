"""Figures as JSON under bench/results, with the machine and its load noted."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("numpy", "torch", "openvino", "qdrant-edge-py", "umap-learn", "rq", "label-studio-sdk")


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile in milliseconds."""
    p50, p95 = np.percentile(seconds, [50, 95]) * 1000
    return {"p50": round(float(p50), 2), "p95": round(float(p95), 2)}


def report(name: str, figures: Mapping[str, Any], out: Path | None = None) -> Path:
    """Write ``figures`` to ``out`` or bench/results/NAME.json and print them; returns the path."""
    path = out or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg() if hasattr(os, "getloadavg") else ()
    body = {
        "benchmark": name,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "load": [round(x, 2) for x in load]},
        "versions": {package: version(package) for package in PACKAGES},
        "figures": dict(figures),
    }
    path.write_text(json.dumps(body, indent=1) + "\n")
    print(json.dumps(body["figures"], indent=1))
    return path


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
