"""``rush demo``: everything started on this machine, real images imported, ready to label."""

from __future__ import annotations

import json
import os
import secrets
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from pydantic import SecretStr
from rich.console import Console
from rich.panel import Panel

from ml_backend.adapters.child import ServerError, free_port, port_is_free
from ml_backend.adapters.servers import LocalLabelStudio
from ml_backend.bootstrap import Parts
from ml_backend.commands import connect, import_images
from ml_backend.errors import BadRequest, RushError
from ml_backend.local import LocalRush
from ml_backend.progress import show_report, show_step, stages
from ml_backend.services.hotkeys import KEY
from ml_backend.settings import Settings

EMAIL, PASSWORD = "rush@example.com", "rush-demo"
ROOT = Path(__file__).parents[1]
BACKEND_PORT = 9090


def demo(data: Path | None, folder: Path, console: Console, port: int = 8080) -> None:
    """Start Redis, Label Studio, backend and worker, import images, connect, and run until Ctrl+C.

    ``data`` is a folder of images (sub-folder names become the classes), by default handwritten digits.
    Everything is kept in ``folder``: a second run goes on where the first one stopped.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    note = folder / "demo.json"
    kept: dict[str, Any] = json.loads(note.read_text()) if note.exists() else {}
    kept.setdefault("token", secrets.token_hex(20))
    port = _free(int(kept.get("port", port)), console, "Label Studio")
    images = _images(data, folder, console)
    studio = LocalLabelStudio(
        folder / "label_studio",
        port,
        python_env=_label_studio_environment(),
        email=EMAIL,
        password=PASSWORD,
        token=kept["token"],
        files_root=images.parent,
    )
    backend_port = _free(int(kept.get("backend_port", BACKEND_PORT)), console, "the backend")
    kept |= {"port": port, "backend_port": backend_port}
    note.write_text(json.dumps(kept))
    settings = Settings(
        label_studio_url=studio.url,
        label_studio_api_key=SecretStr(kept["token"]),
        local_files_root=str(images.parent),
        data_dir=folder / "rush",
        redis_url="",
        port=backend_port,
    )
    try:
        studio.start(console.print)
        with LocalRush(settings, console.print) as rush:
            parts = Parts(rush.settings.model_copy(update={"redis_url": rush.redis_url}))
            project = _project(parts, images, data, kept, console)
            note.write_text(json.dumps(kept))
            console.print(_invitation(studio.url, project))
            while True:
                time.sleep(1)
                rush.check()
                if not studio.running:
                    raise ServerError("Label Studio has ended.", f"Its log is {studio.log}.")
    except KeyboardInterrupt:
        console.print(f"\nStopping. Labels and everything learnt stay in {folder}; make demo goes on there.")
    finally:
        studio.stop()


def _project(parts: Parts, images: Path, data: Path | None, kept: dict[str, Any], console: Console) -> int:
    titles: dict[str, int] = kept.setdefault("projects", {})
    title = f"Rush: {data.resolve().name}" if data else "Rush: handwritten digits"
    config = _label_config(images)
    number = titles.get(title)
    if number is not None and not _exists(parts, number):
        number = None
    number = connect(parts, number, title, config, lambda step: show_step(step, console))
    with stages(console) as progress:
        report = import_images(parts, number, images, progress)
    show_report(report, console)
    if report.imported or number not in titles.values():
        titles[title] = number
    end = time.monotonic() + 60
    with console.status("Filling the queue …"):
        while len(parts.state.window(parts.ref(number))) < 5 and time.monotonic() < end:
            time.sleep(0.3)
    return number


def _exists(parts: Parts, project: int) -> bool:
    try:
        parts.studio.project(project)
    except RushError:
        return False
    return True


def _images(data: Path | None, folder: Path, console: Console) -> Path:
    if data is not None:
        if not data.is_dir():
            raise BadRequest(f"{data} is no folder.", "Give a folder of images: make demo DATA=folder")
        return data.resolve()
    from ml_backend.adapters.digits import write_digits

    with console.status("Writing 1,797 handwritten digits as pictures …"):
        write_digits(folder / "files" / "digits")
    return folder / "files" / "digits"


def _label_config(images: Path) -> str:
    """The default label config, with the names of sub-folders as classes where there are any."""
    classes = sorted(
        path.name for path in images.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    if not classes:
        return (ROOT / "label_config.xml").read_text()
    keys = {name: str((n + 1) % 10) for n, name in enumerate(classes[:10])}
    if set(classes) <= set("0123456789"):
        keys = {name: name for name in classes}
    rows = "".join(
        f"<Choice value={quoteattr(name)}" + (f' hotkey="{keys[name]}"' if name in keys else "") + "/>"
        for name in classes
    )
    return (
        '<View><Image name="image" value="$image" zoom="true"/>'
        f'<Choices name="label" toName="image" choice="single" showInline="true">{rows}</Choices></View>'
    )


def _label_studio_environment(environ: Mapping[str, str] = os.environ) -> Path:
    return Path(environ.get("RUSH_LABEL_STUDIO_ENV") or ROOT / ".cache" / "label-studio")


def _free(port: int, console: Console, what: str) -> int:
    if port_is_free(port):
        return port
    other = free_port()
    console.print(f"Port {port} is taken: {what} uses {other} this time.")
    return other


def _invitation(url: str, project: int) -> Panel:
    lines = (
        f"[bold]{url}/projects/{project}/data[/]",
        f"Log in as {EMAIL} with password {PASSWORD}, then press [bold]Label All Tasks[/]",
        "",
        f"[bold]{KEY}[/] accepts the suggestion · a digit key corrects it, then [bold]{KEY}[/] submits",
        "After the first few answers suggestions appear; the queue follows what you label.",
        "Ctrl+C here stops everything and keeps your labels.",
    )
    return Panel("\n".join(lines), title="Ready to label", expand=False)
