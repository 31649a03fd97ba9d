"""The whole product for benchmarks: a real Label Studio, Redis, backend and worker in one folder."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from pydantic import SecretStr

from ml_backend.adapters.files.features import FileFeatures
from ml_backend.adapters.processes.local_rush import LocalRush
from ml_backend.adapters.processes.servers import LocalLabelStudio, free_port
from ml_backend.bootstrap import Container
from ml_backend.domain.model import ContentKey
from ml_backend.settings import Settings

TOKEN = "0123456789abcdef0123456789abcdef01234567"
EMAIL, PASSWORD = "bench@example.com", "rush-bench-1"


@dataclass
class Stack:
    """Running servers, and clients of them."""

    studio: LocalLabelStudio
    rush: LocalRush
    container: Container
    api: httpx.Client

    def call(self, method: str, path: str, **request: Any) -> Any:
        """One request to Label Studio; raises for an error status."""
        reply = self.api.request(method, path, **request)
        reply.raise_for_status()
        return reply.json() if reply.content else None

    def status(self, project: int) -> dict[str, Any]:
        """What the backend says of a project."""
        url = f"{self.container.settings.backend_url}/status"
        rows: list[dict[str, Any]] = httpx.get(url, timeout=10).json()["projects"]
        return next((row for row in rows if row["project"] == project), {})

    def wait(self, project: int, timeout: float = 120.0, **wanted: Any) -> dict[str, Any]:
        """Wait until the status of the backend has these values (numbers: at least)."""
        end = time.monotonic() + timeout
        while True:
            status = self.status(project)
            if all(_reached(status.get(name), value) for name, value in wanted.items()):
                return status
            assert time.monotonic() < end, (
                wanted,
                status,
                self.rush.backend.tail(),
                self.rush.workers["slow"].tail(),
            )
            time.sleep(0.2)


def _reached(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, int | float) and not isinstance(wanted, bool):
        return isinstance(value, int | float) and value >= wanted
    return bool(value == wanted)


@contextmanager
def stack(folder: Path, studio_env: Path, progress: Any = print, **options: Any) -> Iterator[Stack]:
    """Start Label Studio and Rush in ``folder``; everything is stopped at the end."""
    studio = LocalLabelStudio(
        folder / "label_studio",
        free_port(),
        python_env=studio_env,
        email=EMAIL,
        password=PASSWORD,
        token=TOKEN,
        files_root=folder / "files",
    )
    studio.start(progress)
    try:
        settings = Settings(
            label_studio_url=studio.url,
            label_studio_api_key=SecretStr(TOKEN),
            local_files_root=str(studio.files_root),
            data_dir=folder / "rush",
            port=free_port(),
            **options,
        )
        with (
            LocalRush(settings, progress) as rush,
            httpx.Client(
                base_url=studio.url, headers={"Authorization": f"Token {TOKEN}"}, timeout=300
            ) as api,
        ):
            container = Container(settings.model_copy(update={"redis_url": rush.redis_url}))
            yield Stack(studio, rush, container, api)
    finally:
        studio.stop()


def label_config(classes: Sequence[str], choice: str = "single") -> str:
    """A Choices project's label config."""
    rows = "".join(
        f'<Choice value="{name}"' + (f' hotkey="{name}"' if name.isdigit() else "") + "/>" for name in classes
    )
    return (
        '<View><Image name="image" value="$image"/>'
        f'<Choices name="label" toName="image" choice="{choice}">{rows}</Choices></View>'
    )


def answer(label: str, **fields: Any) -> dict[str, Any]:
    """An annotation as the page submits it."""
    value = {"choices": [label]}
    region = {"from_name": "label", "to_name": "image", "type": "choices", "value": value}
    return {"result": [region], "lead_time": 1.0, **fields}


def store_features(container: Container, keys: Sequence[ContentKey], features: np.ndarray) -> FileFeatures:
    """Put ready-made features where worker and backend find them."""
    store = container.features(container.feature_set_for([]))
    assert isinstance(store, FileFeatures)
    for start in range(0, len(keys), 1000):
        store.append(keys[start : start + 1000], features[start : start + 1000])
    return store
