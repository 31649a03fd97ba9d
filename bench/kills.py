"""SIGKILL for every part while people label: what is lost, is the state Label Studio's, how soon is it back.

python bench/kills.py [--seconds 120] [--people 1] [--label-studio .cache/label-studio]

A real Label Studio; backend, workers and Redis run as ``rush start`` runs them, and each kill is heard of by
the same ``check``. People label without a break. At the end the states are compared until they are equal,
without a ``rush sync``.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from common import report
from stack import Stack, answer, label_config, stack, store_features

from ml_backend.adapters.processes.child import Child
from ml_backend.adapters.processes.servers import LocalRedis
from ml_backend.domain.content_hash import content_key
from ml_backend.operations.projects import connect

CLASSES = ("a", "b", "c")
CHECK_SECONDS = 0.5
"""How often ``rush start`` looks whether its parts live."""


class Labelling(threading.Thread):
    """One person who asks for the next task and answers it, whatever else happens."""

    def __init__(self, studio: Stack, project: int, truth: dict[int, str]) -> None:
        super().__init__(name="person", daemon=True)
        self.studio, self.project, self.truth, self.over = studio, project, truth, threading.Event()
        self.answers: dict[int, int] = {}
        self.seconds: list[float] = []
        self.refused = 0

    def run(self) -> None:
        """Label until told to stop."""
        client = httpx.Client(
            base_url=self.studio.api.base_url, headers=self.studio.api.headers, timeout=60, trust_env=False
        )
        with client:
            while not self.over.is_set():
                began = time.monotonic()
                try:
                    task = client.get(f"/api/projects/{self.project}/next").raise_for_status().json()["id"]
                    body = answer(self.truth[task])
                    made = client.post(f"/api/tasks/{task}/annotations/", json=body).raise_for_status().json()
                except httpx.HTTPError:
                    self.refused += 1
                    time.sleep(0.2)
                    continue
                self.answers[int(made["id"])] = int(task)
                self.seconds.append(time.monotonic() - began)


def kill(studio: Stack, name: str, part: Child | LocalRedis) -> dict[str, Any]:
    """SIGKILL; seconds until /health answers, and until the backend says that it serves the project."""
    began, number = time.monotonic(), part.pid
    os.kill(number, signal.SIGKILL)
    while part.pid == number:
        time.sleep(0.01)
    back: dict[str, float] = {}
    while len(back) < 2 and time.monotonic() - began < 60:
        for path in ("/health", "/status"):
            with suppress(httpx.HTTPError):
                url = f"{studio.container.settings.backend_url}{path}"
                reply = httpx.get(url, timeout=2, trust_env=False)
                if reply.status_code == 200 and (path == "/health" or reply.json()["projects"]):
                    back.setdefault(path, round(time.monotonic() - began, 2))
        time.sleep(0.05)
    return {"part": name, "back_after_s": back.get("/health"), "serving_after_s": back.get("/status")}


def compare(studio: Stack, project: int, people: list[Labelling]) -> dict[str, Any]:
    """Hold Rush's state against Label Studio's until it has caught up by itself."""
    ref, container = studio.container.ref(project), studio.container
    began = time.monotonic()
    there: dict[int, int] = {}
    mine: dict[int, int] = {}
    while time.monotonic() - began < 120:
        export = studio.call("GET", f"/api/projects/{project}/export", params={"exportType": "JSON"})
        there = {a["id"]: row["id"] for row in export for a in row["annotations"]}
        mine = {int(it.id): int(it.task) for it in container.state.annotations(ref)}
        if mine == there:
            break
        time.sleep(0.5)
    said = {number: task for person in people for number, task in person.answers.items()}
    rows = studio.call("GET", "/api/predictions/", params={"project": project})
    ours = [row["task"] for row in (rows if isinstance(rows, list) else rows["results"])]
    return {
        "answers": len(said),
        "answers_lost_in_label_studio": len(said.keys() - there.keys()),
        "answers_lost_in_rush": len(there.keys() - mine.keys()),
        "state_equals_label_studios": mine == there,
        "seconds_to_equal": round(time.monotonic() - began, 2),
        "tasks_answered_twice": len(there) - len(set(there.values())),
        "tasks_with_two_predictions": len(ours) - len(set(ours)),
    }


def main() -> None:
    """Label and kill."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--people", type=int, default=1, help="They share one user, and so their tasks.")
    parser.add_argument("--tasks", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--label-studio", type=Path, default=Path(".cache/label-studio"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    choose = random.Random(options.seed)
    with (
        tempfile.TemporaryDirectory(prefix="rk") as folder,
        stack(Path(folder), options.label_studio, train_labels=100, coordinates="off") as studio,
    ):
        body = {"title": "killed", "label_config": label_config(CLASSES)}
        project = int(studio.call("POST", "/api/projects", json=body)["id"])
        connect(studio.container, project)
        keys = [content_key(str(n).encode()) for n in range(options.tasks)]
        rng = np.random.default_rng(options.seed)
        middles = rng.standard_normal((len(CLASSES), 1280))[np.arange(options.tasks) % len(CLASSES)]
        noise = 2 * rng.standard_normal(middles.shape)
        store_features(studio.container, keys, (middles + noise).astype(np.float32))
        tasks = [
            {"data": {"image": f"/x/{n}.jpg"}, "meta": {"rush": {"key": key}}} for n, key in enumerate(keys)
        ]
        path = f"/api/projects/{project}/import?return_task_ids=true"
        made = studio.call("POST", path, json=tasks)["task_ids"]
        truth = {int(task): CLASSES[n % len(CLASSES)] for n, task in enumerate(made)}
        studio.wait(project, tasks=options.tasks, window=150)
        over = threading.Event()

        def watch() -> None:
            while not over.wait(CHECK_SECONDS):
                studio.rush.check()

        watching = threading.Thread(target=watch, daemon=True)
        people = [Labelling(studio, project, truth) for _ in range(options.people)]
        for thread in (watching, *people):
            thread.start()
        assert studio.rush.redis is not None
        parts: dict[str, Child | LocalRedis] = {"backend": studio.rush.backend, "redis": studio.rush.redis}
        parts |= {worker.name: worker for worker in studio.rush.workers.values()}
        kills: list[dict[str, Any]] = []
        end = time.monotonic() + options.seconds
        while time.monotonic() < end:
            time.sleep(choose.uniform(3, 12))
            name = choose.choice(list(parts))
            kills.append(kill(studio, name, parts[name]))
            print(kills[-1], sum(len(person.answers) for person in people), "answers", flush=True)
        for person in people:
            person.over.set()
            person.join()
        figures = compare(studio, project, people)
        seconds = sorted(second for person in people for second in person.seconds)
        figures |= {
            "submit_and_next_s": {"p50": seconds[len(seconds) // 2], "longest": seconds[-1]},
            "requests_refused_by_label_studio": sum(person.refused for person in people),
            "kills": kills,
            "web_process_back_s": {
                "longest": max((it["back_after_s"] for it in kills if it["part"] == "backend"), default=None)
            },
        }
        over.set()
        watching.join()
    report("kills", figures, options.out)


if __name__ == "__main__":
    main()
