"""The whole product for end-to-end tests."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_backend.adapters.label_studio.client import HttpLabelStudio
from ml_backend.adapters.processes.backend_client import backend_status
from ml_backend.adapters.processes.local_rush import LocalRush
from ml_backend.adapters.processes.servers import LocalLabelStudio
from ml_backend.bootstrap import Container
from ml_backend.controls import parse_label_config
from ml_backend.settings import Settings

CLASSES = tuple("0123456789")


def label_config(choice: str = "single", classes: tuple[str, ...] = CLASSES) -> str:
    rows = "".join(f'<Choice value="{name}" hotkey="{name[0]}"/>' for name in classes)
    return (
        '<View><Image name="image" value="$image"/>'
        f'<Choices name="label" toName="image" choice="{choice}">{rows}</Choices></View>'
    )


def product_settings(label_studio: LocalLabelStudio, folder: Path, **more: Any) -> Settings:
    """Settings of a product in ``folder`` that trains soon and never syncs by itself."""
    return Settings(
        data_dir=folder,
        label_studio_url=label_studio.url,
        label_studio_api_key=label_studio.token,
        local_files_root=str(label_studio.files_root),
        image_size=64,
        train_labels=15,
        train_seconds=1,
        window=40,
        sync_seconds=0,
        **more,
    )


@dataclass
class Product:
    """Everything running for real: Label Studio, Redis, the backend with its Qdrant engine, the workers."""

    server: LocalLabelStudio
    rush: LocalRush
    container: Container
    studio: HttpLabelStudio

    def status(self, project: int) -> dict[str, Any]:
        rows = backend_status(self.container.settings.backend_url)
        return next((row for row in rows if row["project"] == project), {})

    def wait(self, project: int, timeout: float = 90.0, **wanted: Any) -> dict[str, Any]:
        """Wait until the backend's figures are at least these, and its words exactly these."""
        end = time.monotonic() + timeout
        while True:
            status = self.status(project)
            if all(_reached(status.get(name), value) for name, value in wanted.items()):
                return status
            logs = (self.rush.backend.tail(), *(worker.tail() for worker in self.rush.workers.values()))
            assert time.monotonic() < end, "\n".join((f"{wanted} not in {status}", *logs))
            time.sleep(0.2)

    def serve(self, project: int) -> dict[str, Any]:
        task: dict[str, Any] = self.studio.call("GET", f"/api/projects/{project}/next")
        return task

    def submit(self, project: int, task: int, *labels: str, **fields: Any) -> int:
        value = {"choices": list(labels)}
        region = {"from_name": "label", "to_name": "image", "type": "choices", "value": value}
        body = {"result": [region] if labels else [], "lead_time": 1.5, **fields}
        path = f"/api/tasks/{task}/annotations/"
        return int(self.studio.call("POST", path, params={"project": project}, json=body)["id"])

    def classes(self, project: int) -> dict[int, str]:
        """The hidden truth: the folder of each task's image."""
        records = self.studio.records(project)
        return {int(r.task.id): Path(str(r.task.data["image"])).parent.name for r in records}

    def answers(self, project: int) -> dict[int, tuple[str, ...]]:
        """What Label Studio holds."""
        control = parse_label_config(str(self.studio.project(project)["label_config"]))
        found = self.studio.records(project, control)
        return {int(r.task.id): r.annotations[0].labels for r in found if r.annotations}

    def intended(self, project: int) -> set[int]:
        return set(self.status(project)["next"].values())


def _reached(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, int | float) and not isinstance(wanted, bool):
        return isinstance(value, int | float) and value >= wanted
    return bool(value == wanted)
