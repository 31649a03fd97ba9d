"""Record every webhook that a real Label Studio sends, with and without payload, as fixtures.

Run by hand when Label Studio's version changes: python -m tests.record_webhooks FOLDER [LABEL_STUDIO_ENV]
Each file is {method, path, headers, body}, as the others in tests/fixtures.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx

from ml_backend.adapters.processes.servers import LocalLabelStudio
from tests.conftest import TOKEN, _server, _template
from tests.serving import serving

CONFIG = (
    '<View><Image name="image" value="$image"/><Choices name="label" toName="image" choice="single">'
    '<Choice value="cat"/><Choice value="dog"/><Choice value="bird"/></Choices></View>'
)
KEPT = ("Host", "User-Agent", "Accept-Encoding", "Accept", "Connection", "Content-Length", "Content-Type")


def result(label: str) -> list[dict[str, Any]]:
    return [{"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [label]}}]


class Recorder:
    """Does things in Label Studio and keeps what it sends meanwhile."""

    def __init__(
        self,
        api: httpx.Client,
        hook: str,
        received: list[dict[str, Any]],
        folder: Path,
        studio: LocalLabelStudio,
    ) -> None:
        self.api, self.hook, self.received, self.folder = api, hook, received, folder
        self.files, self.database = studio.files_root, studio.folder / "label_studio.sqlite3"
        self.webhooks: list[int] = []

    def call(self, method: str, path: str, **request: Any) -> Any:
        reply = self.api.request(method, path, **request)
        assert reply.is_success, (method, path, reply.status_code, reply.text[:500])
        return reply.json() if reply.content else None

    def project(self, *, payload: bool = True) -> int:
        number = int(self.call("POST", "/api/projects", json={"title": "lab", "label_config": CONFIG})["id"])
        self.listen(project=number, send_payload=payload)
        return number

    def listen(self, **fields: Any) -> None:
        body = {"url": self.hook, "send_for_all_actions": True, **fields}
        self.webhooks.append(int(self.call("POST", "/api/webhooks/", json=body)["id"]))

    def silence(self) -> None:
        for number in self.webhooks:
            with contextlib.suppress(AssertionError):  # went with its project
                self.call("DELETE", f"/api/webhooks/{number}/")
        self.webhooks.clear()

    @contextlib.contextmanager
    def recorded(self, name: str) -> Iterator[None]:
        self.received.clear()
        yield
        print(f"{name}: {[sent['body'].get('action') for sent in self.received]}", flush=True)
        for number, sent in enumerate(self.received):
            file = self.folder / f"{name}__{number}_webhook_{sent['body']['action']}.json"
            file.write_text(json.dumps(sent, indent=1) + "\n")

    def imported(self, project: int, tasks: list[dict[str, Any]]) -> list[int]:
        path = f"/api/projects/{project}/import?return_task_ids=true"
        return list(self.call("POST", path, json=tasks)["task_ids"])

    def submitted(self, project: int, task: int, label: str, **fields: Any) -> int:
        body = {"result": result(label) if label else [], "lead_time": 3.21, **fields}
        path = f"/api/tasks/{task}/annotations/?project={project}"
        return int(self.call("POST", path, json=body)["id"])

    def action(self, project: int, name: str, tasks: list[int], **fields: Any) -> Any:
        chosen = {"selectedItems": {"all": False, "included": tasks}, "project": project, **fields}
        return self.call("POST", f"/api/dm/actions?id={name}&project={project}", json=chosen)


def task(number: int, **fields: Any) -> dict[str, Any]:
    return {"data": {"image": f"http://x/{number}.jpg"}, **fields}


def record(it: Recorder, *, payload: bool) -> None:
    """All that happens in one project; file names end in ``_bare`` where no payload is sent."""
    end = "" if payload else "_bare"
    project = it.project(payload=payload)
    with it.recorded(f"import_three{end}"):
        tasks = it.imported(project, [task(n) for n in range(3)])
    with it.recorded(f"import_answered{end}"):
        answered = [{"result": result("cat"), "lead_time": 2.0}]
        it.imported(project, [task(3, annotations=answered), task(4, annotations=answered)])
    with it.recorded(f"task_post{end}"):
        tasks.append(int(it.call("POST", "/api/tasks/", json={**task(5), "project": project})["id"]))
    with it.recorded(f"bulk_submit{end}"):
        rows = [
            {"task": number, "model_version": "page", "score": 0.9, "result": result("dog")}
            for number in tasks[:3]
        ]
        it.call("POST", f"/api/projects/{project}/import/predictions", json=rows)
        it.action(project, "predictions_to_annotations", tasks[:3], model_version="page")
    with it.recorded(f"submit_one{end}"):
        first = it.submitted(project, tasks[3], "cat")
    with it.recorded(f"update_one{end}"):
        it.call("PATCH", f"/api/annotations/{first}/", json={"result": result("bird")})
    with it.recorded(f"skip_one{end}"):
        it.submitted(project, tasks[3], "", was_cancelled=True)
    with it.recorded(f"delete_one{end}"):
        it.call("DELETE", f"/api/annotations/{first}/")
    with it.recorded(f"delete_many_annotations{end}"):
        it.action(project, "delete_tasks_annotations", tasks[:3])
    with it.recorded(f"delete_many_tasks{end}"):
        it.action(project, "delete_tasks", tasks[:2])
    with it.recorded(f"delete_one_task{end}"):
        it.call("DELETE", f"/api/tasks/{tasks[2]}/")
    with it.recorded(f"project_patch{end}"):
        it.call("PATCH", f"/api/projects/{project}/", json={"label_config": CONFIG.replace("bird", "fish")})
    with it.recorded(f"storage_sync{end}"):
        files = it.files / f"images{end}"
        files.mkdir(parents=True)
        for number in range(2):
            (files / f"{number}.jpg").write_bytes(b"\xff\xd8\xff")
        storage = {"project": project, "path": str(files), "use_blob_urls": True, "regex_filter": ".*jpg"}
        made = it.call("POST", "/api/storages/localfiles", json=storage)["id"]
        it.call("POST", f"/api/storages/localfiles/{made}/sync")
    with it.recorded(f"delete_all_tasks{end}"):
        it.call("DELETE", f"/api/projects/{project}/tasks/")
    it.silence()


def record_label_links(it: Recorder, *, payload: bool) -> None:
    end = "" if payload else "_bare"
    project = it.project(payload=payload)
    # Label Studio 1.23.2 falls over its own LABEL_LINK_CREATED (500): the link is made behind its back.
    with contextlib.closing(sqlite3.connect(it.database)) as database, database:
        now, row = "2026-11-28 00:00:00", database.execute("SELECT id FROM organization").fetchone()
        label = database.execute(
            "INSERT INTO labels_manager_label "
            "(created_at, updated_at, value, title, approved, organization_id, created_by_id) "
            "VALUES (?, ?, ?, ?, 0, ?, 1)",
            (now, now, '["mouse"]', f"mouse{end}", row[0]),
        ).lastrowid
        link = database.execute(
            "INSERT INTO labels_manager_labellink (from_name, label_id, project_id) VALUES ('label', ?, ?)",
            (label, project),
        ).lastrowid
    with it.recorded(f"label_links{end}"):
        it.call("PATCH", f"/api/label_links/{link}/", json={"from_name": "label"})
        it.call("DELETE", f"/api/label_links/{link}/")
    it.silence()


def record_organization(it: Recorder, *, payload: bool) -> None:
    """What only a webhook of the whole organization hears."""
    end = "_organization" if payload else "_organization_bare"
    it.project(payload=payload)
    with (
        contextlib.closing(sqlite3.connect(it.database)) as database,
        database,
    ):  # the API makes none any more
        database.execute("UPDATE webhook SET project_id = NULL")
    with it.recorded(f"project_create{end}"):
        made = it.call("POST", "/api/projects", json={"title": "lab", "label_config": CONFIG})["id"]
    with it.recorded(f"import{end}"):
        it.imported(made, [task(0), task(1)])
    with it.recorded(f"delete_all_tasks{end}"):
        it.call("DELETE", f"/api/projects/{made}/tasks/")
    with it.recorded(f"project_delete{end}"):
        it.call("DELETE", f"/api/projects/{made}/")
    it.silence()


def main(folder: Path, environment: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    received: list[dict[str, Any]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            kept = {name: self.headers[name] for name in KEPT if name in self.headers}
            received.append({"method": "POST", "path": self.path, "headers": kept, "body": body})
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: Any) -> None: ...

    with tempfile.TemporaryDirectory() as place, serving(Receiver) as receiver:
        data = Path(place).resolve() / "data"
        shutil.copytree(_template(environment), data)
        studio = _server(data, environment)
        studio.start(print)
        try:
            headers = {"Authorization": f"Token {TOKEN}"}
            with httpx.Client(base_url=studio.url, headers=headers, timeout=60) as api:
                it = Recorder(api, f"{receiver}/webhook", received, folder, studio)
                for recording in (record, record_label_links, record_organization):
                    recording(it, payload=True)
                    recording(it, payload=False)
        finally:
            studio.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else ".cache/label-studio"))
