"""``rush demo``: everything started on this machine, real images imported, ready to label."""

from __future__ import annotations

import json
import os
import secrets
import signal
import time
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

from pydantic import SecretStr

from ml_backend import bootstrap
from ml_backend.bootstrap import Container
from ml_backend.domain.errors import BadRequest, NotFound, ServerError
from ml_backend.domain.label_config import choices_config
from ml_backend.operations.default_config import default_label_config
from ml_backend.operations.narrator import Narrator
from ml_backend.operations.projects import connect, import_images
from ml_backend.settings import Settings

EMAIL, PASSWORD = "rush@example.com", "rush-demo"
ROOT = Path(__file__).parents[2]
PORT, BACKEND_PORT = 8080, 9090
TITLE_LENGTH = 50
"""Characters that Label Studio allows."""


def demo(data: Path | None, folder: Path, narrator: Narrator, port: int = PORT) -> None:
    """Start Redis, Label Studio, backend and worker, import images, connect, and run until Ctrl+C.

    ``data`` is a folder of images (sub-folder names become the classes), by default handwritten digits.
    Everything is kept in ``folder``: a second run goes on where the first one stopped.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, _interrupt_once)
    note = folder / "demo.json"
    kept: dict[str, Any] = json.loads(note.read_text()) if note.exists() else {}
    kept.setdefault("token", secrets.token_hex(20))
    port = _free(port if port != PORT else int(kept.get("port", port)), narrator, "Label Studio")
    images = _images(data, folder, narrator)
    studio = bootstrap.local_label_studio(
        folder / "label_studio",
        port,
        python_env=_label_studio_environment(folder),
        email=EMAIL,
        password=PASSWORD,
        token=kept["token"],
        files_root=images.parent,
    )
    backend_port = _free(int(kept.get("backend_port", BACKEND_PORT)), narrator, "the backend")
    note.write_text(json.dumps(kept))  # Label Studio's first start gives its user this token, for good
    settings = Settings(
        label_studio_url=studio.url,
        label_studio_api_key=SecretStr(kept["token"]),
        local_files_root=str(images.parent),
        data_dir=folder / "rush",
        redis_url="",
        port=backend_port,
    )
    with ExitStack() as running:
        running.callback(studio.stop)
        try:
            studio.start(narrator.say)
            rush = running.enter_context(bootstrap.local_rush(settings, narrator.say))
            container = Container(rush.settings.model_copy(update={"redis_url": rush.redis_url}))
            kept |= {"port": port, "backend_port": backend_port}
            project = _project(container, images, data, kept, narrator)
            note.write_text(json.dumps(kept))  # before the import: cut off, it goes on in the same project
            _fill(container, project, images, narrator)
            narrator.ready(f"{studio.url}/projects/{project}/data", EMAIL, PASSWORD)
            while True:
                time.sleep(0.5)
                rush.check()
                if not studio.running:
                    raise ServerError("Label Studio has ended.", f"Its log is {studio.log}.")
        except KeyboardInterrupt:
            narrator.say(
                f"\nStopping. Labels and everything learnt stay in {folder}; make demo goes on there."
            )


def attach(container: Container, folder: Path, narrator: Narrator) -> int:
    """Connect a project of handwritten digits in a Label Studio that runs; returns its id.

    The pictures are written to ``folder`` where it is empty. Run again it finds all of it there.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        bootstrap.write_digits(folder)
    title = _title("handwritten digits", ())
    config = _label_config(folder)
    project = connect(container, None, title, config, narrator.step)
    _fill(container, project, folder, narrator)
    return project


def _interrupt_once(*_: object) -> NoReturn:
    """Stop; an impatient second Ctrl+C would cut that short and leave servers behind."""
    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, signal.SIG_IGN)
    raise KeyboardInterrupt


def _project(
    container: Container, images: Path, data: Path | None, kept: dict[str, Any], narrator: Narrator
) -> int:
    """The project of this folder of images: the one of the last run, or a new one, connected."""
    projects: dict[str, dict[str, Any]] = kept.setdefault("projects", {})
    mine = projects.get(str(images))
    if mine is not None and _exists(container, mine["id"]):
        return connect(container, mine["id"], progress=narrator.step)
    others = {row["title"] for folder, row in projects.items() if folder != str(images)}
    title = _title(data.resolve().name if data else "handwritten digits", others)
    if data and len(_classes(images)) < 2:
        narrator.say(
            f"{images} has no sub-folders that name classes: the project starts with those of "
            "label_config.xml. Set your own under Settings → Labeling Interface."
        )
    number = connect(container, None, title, _label_config(images if data else None), narrator.step)
    projects[str(images)] = {"id": number, "title": title}
    return number


def _fill(container: Container, project: int, images: Path, narrator: Narrator) -> None:
    """Import what is new, and wait until the queue has something to serve."""
    with narrator.stages() as progress:
        report = import_images(container, project, images, progress)
    narrator.imported(report)
    ref = container.ref(project)
    open_tasks = len(container.state.tasks(ref)) - len({row.task for row in container.state.annotations(ref)})
    end = time.monotonic() + 60
    with narrator.waiting("Filling the queue …"):
        while len(container.state.window(ref)) < min(5, open_tasks) and time.monotonic() < end:
            time.sleep(0.3)


def _title(name: str, taken: Collection[str]) -> str:
    """A project title that no other folder's project has: folders may share their name."""
    for suffix in ("", *(f" ({n})" for n in range(2, 1000))):
        title = f"Rush: {name}"[: TITLE_LENGTH - len(suffix)].rstrip() + suffix
        if title not in taken:
            return title
    raise BadRequest(f"There are 1000 projects called {name!r}.", "Choose another folder: --dir FOLDER")


def _exists(container: Container, project: int) -> bool:
    try:
        container.studio.project(project)
    except NotFound:
        return False
    return True


def _images(data: Path | None, folder: Path, narrator: Narrator) -> Path:
    if data is not None:
        if not data.is_dir():
            raise BadRequest(f"{data} is no folder.", "Give a folder of images: make demo DATA=folder")
        if not any(path.is_file() for path in data.rglob("*")):
            raise BadRequest(f"{data} has no files.", "Give a folder of images: make demo DATA=folder")
        return data.resolve()
    with narrator.waiting("Writing 1,797 handwritten digits as pictures …"):
        bootstrap.write_digits(folder / "files" / "digits")
    return folder / "files" / "digits"


def _classes(images: Path) -> list[str]:
    return sorted(path.name for path in images.iterdir() if path.is_dir() and not path.name.startswith("."))


def _label_config(images: Path | None) -> str:
    """The names of sub-folders as classes; without a folder, or with less than two of them, the default."""
    classes = _classes(images) if images else []
    if len(classes) < 2:
        return default_label_config()
    return choices_config(classes)


def _label_studio_environment(folder: Path, environ: Mapping[str, str] = os.environ) -> Path:
    """The one that is named, else a checkout's, else, where Rush is installed, one in the demo's folder."""
    if named := environ.get("RUSH_LABEL_STUDIO_ENV"):
        return Path(named)
    if (ROOT / "pyproject.toml").exists():
        return ROOT / ".cache" / "label-studio"
    return folder / "label-studio-env"


def _free(port: int, narrator: Narrator, what: str) -> int:
    """The port, or the next one that is free; it is kept, so that addresses stay the same."""
    if (other := bootstrap.port_near(port)) != port:
        narrator.say(f"Port {port} is taken: {what} uses {other}.")
    return other
