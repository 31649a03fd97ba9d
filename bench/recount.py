"""What one bulk request for predictions costs by the project's size, with Label Studio as delivered and with
the flag that Rush sets in its environment.

python bench/recount.py [--sizes 10000 100000] [--label-studio .cache/label-studio]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
from common import percentiles, report
from stack import EMAIL, PASSWORD, TOKEN, label_config

from ml_backend.adapters.processes import servers
from ml_backend.adapters.processes.servers import LocalLabelStudio, free_port

IMPORTED_AT_ONCE = 5000
REPEATS = 5


def project_of(api: httpx.Client, size: int) -> list[int]:
    """A new project's id, and then those of its tasks."""
    body = {"title": f"{size} tasks", "label_config": label_config(["a", "b"])}
    number = int(api.post("/api/projects", json=body).raise_for_status().json()["id"])
    tasks: list[int] = []
    for start in range(0, size, IMPORTED_AT_ONCE):
        rows = [{"data": {"image": f"/x/{n}.jpg"}} for n in range(start, min(start + IMPORTED_AT_ONCE, size))]
        reply = api.post(f"/api/projects/{number}/import", params={"return_task_ids": "true"}, json=rows)
        tasks += reply.raise_for_status().json()["task_ids"]
    return [number, *tasks]


def measure(api: httpx.Client, project: int, tasks: list[int]) -> dict[str, Any]:
    """Seconds of bulk requests of several sizes, and of single ones."""
    found: dict[str, Any] = {}
    value = [{"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": ["a"]}}]
    left = iter(tasks)
    for count in (0, 1, 50):
        seconds = []
        for _ in range(REPEATS):
            rows = [
                {"task": next(left), "model_version": "rush", "score": 0.5, "result": value}
                for _ in range(count)
            ]
            began = time.perf_counter()
            api.post(f"/api/projects/{project}/import/predictions", json=rows).raise_for_status()
            seconds.append(time.perf_counter() - began)
        found[f"bulk request with {count}"] = percentiles(seconds)
    seconds = []
    for _ in range(10 * REPEATS):
        row = {"task": next(left), "project": project, "model_version": "rush", "score": 0.5, "result": value}
        began = time.perf_counter()
        api.post("/api/predictions/", json=row).raise_for_status()
        seconds.append(time.perf_counter() - began)
    return found | {"one by one": percentiles(seconds)}


def main() -> None:
    """Measure every size under both, in the same projects."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--label-studio", type=Path, default=Path(".cache/label-studio"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="rush-bench-") as folder:
        projects: dict[int, list[int]] = {}
        for name, flag in (("as delivered", "false"), ("with the flag", "true")):
            studio = LocalLabelStudio(
                Path(folder) / "label_studio",
                free_port(),
                python_env=options.label_studio,
                email=EMAIL,
                password=PASSWORD,
                token=TOKEN,
                files_root=Path(folder) / "files",
            )
            with mock.patch.dict(servers.FASTER, dict.fromkeys(servers.FASTER, flag)):
                studio.start(print)
            headers = {"Authorization": f"Token {TOKEN}", "Connection": "close"}
            try:
                with httpx.Client(base_url=studio.url, headers=headers, timeout=600) as api:
                    for size in options.sizes:
                        made = projects.get(size) or projects.setdefault(size, project_of(api, size))
                        figures[f"{size} tasks, {name}"] = measure(api, made[0], made[1:][::-1])
                        print(size, name, figures[f"{size} tasks, {name}"], flush=True)
            finally:
                studio.stop()
    report("recount", figures, options.out)


if __name__ == "__main__":
    main()
