"""What a newcomer runs: ``rush demo``, stopped and started again."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ml_backend.adapters.files.digits import write_digits
from ml_backend.adapters.label_studio.client import HttpLabelStudio
from ml_backend.adapters.processes.servers import LocalRedis, port_is_free
from tests.conftest import TOKEN, _label_studio_environment, _template
from tests.ports import free_port

pytestmark = [pytest.mark.label_studio, pytest.mark.timeout(900)]


@dataclass
class Demo:
    process: subprocess.Popen[bytes]
    log: Path
    url: str
    project: int

    @property
    def said(self) -> str:
        return self.log.read_text()

    def stop(self) -> int:
        """Ctrl+C, pressed twice as impatient people do."""
        self.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)


@contextmanager
def running(folder: Path, log: Path, *arguments: object) -> Iterator[Demo]:
    """``rush demo`` once it invites to label."""
    ours = ("RUSH_", "LABEL_STUDIO_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environment["RUSH_LABEL_STUDIO_ENV"] = str(_label_studio_environment())
    command = [sys.executable, "-m", "ml_backend.cli", "demo", "--dir", folder, *arguments]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [str(part) for part in command], env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )
    try:
        end = time.monotonic() + 300
        while not (found := re.search(r"(http://[\d.:]+)/projects/(\d+)/data", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        yield Demo(process, log, found[1], int(found[2]))
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(60)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    everything, folder = tmp_path_factory.mktemp("all"), tmp_path_factory.mktemp("some") / "photos"
    write_digits(everything)
    for name, digit in (("cat", "3"), ("dog", "8")):
        (folder / name).mkdir(parents=True)
        for path in sorted((everything / digit).iterdir())[:10]:
            shutil.copy(path, folder / name)
    return folder


def test_the_second_run_keeps_everything(images: Path, tmp_path: Path) -> None:
    folder, port = tmp_path / "demo", free_port()
    shutil.copytree(_template(_label_studio_environment()), folder / "label_studio")
    (folder / "demo.json").write_text(json.dumps({"token": TOKEN, "backend_port": free_port()}))

    with running(folder, tmp_path / "first.log", "--data", images, "--port", port) as first:
        assert "20 images imported, 0 there already, 0 skipped" in first.said
        assert first.url.endswith(f":{port}")
        studio = HttpLabelStudio(first.url, TOKEN)
        config = studio.project(first.project)["label_config"]
        assert '<Choice value="cat" hotkey="1"/>' in config
        assert '<Choice value="dog" hotkey="2"/>' in config
        task = _label_one(studio, first.project)
        studio.close()
        assert first.stop() == 0
    assert "Stopping. Labels and everything learnt stay in" in first.said
    assert port_is_free(port)
    assert LocalRedis.url_of(folder / "rush" / "redis") is None, "no server is left behind"

    with running(folder, tmp_path / "second.log", "--data", images) as second:
        assert (second.url, second.project) == (first.url, first.project)
        assert "0 images imported, 20 there already, 0 skipped" in second.said
        studio = HttpLabelStudio(second.url, TOKEN)
        answers = {int(row.task.id): row.annotations for row in studio.records(second.project)}
        studio.close()
        assert len(answers) == 20
        assert [id for id, annotations in answers.items() if annotations] == [task]
        assert second.stop() == 0


def _label_one(studio: HttpLabelStudio, project: int) -> int:
    task = int(studio.call("GET", f"/api/projects/{project}/next")["id"])
    region: dict[str, Any] = {"from_name": "label", "to_name": "image", "type": "choices"}
    body = {"result": [region | {"value": {"choices": ["cat"]}}], "lead_time": 1.0}
    studio.call("POST", f"/api/tasks/{task}/annotations/", params={"project": project}, json=body)
    return task
