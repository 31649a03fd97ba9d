"""The wheel as people install it: into an environment of its own, far from any checkout.

Its dependencies are resolved by pip for real. Those of ``[worker]`` (6 GB) are borrowed from the environment
that runs the tests, unless ``RUSH_TEST_FULL_WHEEL`` is set: ``make test-wheel`` installs them too.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from ml_backend.adapters.label_studio.client import HttpLabelStudio
from ml_backend.adapters.processes.servers import LocalLabelStudio, free_port
from tests.conftest import ROOT
from tests.readme import commands, for_project
from tests.waiting import until

FULL = bool(os.environ.get("RUSH_TEST_FULL_WHEEL"))
UV = shutil.which("uv") or ROOT / ".cache" / "uv" / "bin" / "uv"

pytestmark = pytest.mark.timeout(2700 if FULL else 900)


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel, and an empty folder to work in."""

    python_env: Path
    wheel: Path
    folder: Path

    def environment(self, **more: str) -> dict[str, str]:
        """What a new terminal has after the environment is activated."""
        ours = ("RUSH_", "LABEL_STUDIO_", "PYTHON", "VIRTUAL_ENV")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        return kept | {"PATH": f"{self.python_env / 'bin'}:{kept['PATH']}", **more}

    def run(self, *words: str | Path, status: int = 0, **environment: str) -> str:
        """What a command says, which ends with this status."""
        done = subprocess.run(
            [self.python_env / "bin" / words[0], *words[1:]],
            cwd=self.folder,
            env=self.environment(COLUMNS="200", **environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == status, f"{words} ended with {done.returncode}.\n{done.stdout}"
        return done.stdout


@pytest.fixture(scope="module")
def installed() -> Iterator[Installed]:
    """The wheel, built of the source distribution, and nothing but what it asks for."""
    with tempfile.TemporaryDirectory(prefix="rush-wheel-") as temporary:
        place = Path(temporary)
        subprocess.run([UV, "build", "--quiet", "--out-dir", place / "dist", ROOT], check=True)
        (wheel,) = (place / "dist").glob("*.whl")
        (place / "work").mkdir()
        subprocess.run([sys.executable, "-m", "venv", place / "env"], check=True)
        found = Installed(place / "env", wheel, place / "work")
        found.run("pip", "install", "--quiet", "--disable-pip-version-check", wheel)
        yield found


@pytest.fixture
def complete(installed: Installed) -> Iterator[Installed]:
    """The wheel with what ``[worker]`` asks for."""
    if FULL:
        installed.run(
            "pip", "install", "--quiet", "--disable-pip-version-check", f"{installed.wheel}[worker]"
        )
        yield installed
        return
    (packages,) = installed.python_env.glob("lib/python*/site-packages")
    borrowed = packages / "borrowed.pth"
    borrowed.write_text(sysconfig.get_paths()["purelib"])
    yield installed
    borrowed.unlink()


@contextmanager
def running(installed: Installed, environment: dict[str, str]) -> Iterator[None]:
    """``rush start`` from when it answers until Ctrl+C."""
    log = installed.folder / "start.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [installed.python_env / "bin" / "rush", "start"],
            cwd=installed.folder,
            env=installed.environment(**environment),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    try:
        assert until(lambda: "Rush answers on" in log.read_text() or process.poll() is not None, 120)
        assert process.poll() is None, log.read_text()
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def test_the_wheel_alone_has_a_command_line_that_works(installed: Installed) -> None:
    assert installed.run("rush", "--version").strip().endswith("0.1.0")
    assert "connect" in installed.run("rush", "--help")
    assert "cluster_chain" in installed.run("rush", "strategies")
    package = Path(
        installed.run("python", "-c", "import ml_backend; print(ml_backend.__file__)").strip()
    ).parent
    assert package.is_relative_to(installed.python_env)
    assert (package / "py.typed").exists()
    assert (package.with_name("strategies") / "py.typed").exists()


def test_a_label_config_that_is_not_there_is_named(installed: Installed) -> None:
    said = installed.run("rush", "connect", "--create", "Cats", "--label-config", "cats.xml", status=2)
    assert "'cats.xml' does not exist" in said


def test_the_demo_of_a_wheel_says_where_it_wants_label_studio(installed: Installed, digits: Path) -> None:
    said = installed.run("rush", "demo", "--data", digits, status=1)
    place = installed.folder / ".rush" / "demo" / "label-studio-env"
    assert f"python3 -m venv {place}" in said.replace("\n", " ")


def test_the_readmes_commands_attach_the_wheel_to_a_label_studio(
    complete: Installed, label_studio: LocalLabelStudio, digits: Path
) -> None:
    with closing(HttpLabelStudio(label_studio.url, label_studio.token)) as studio, ExitStack() as stack:
        empty = {"title": "Made on the page", "label_config": "<View></View>"}
        project = int(studio.call("POST", "/api/projects/", json=empty)["id"])
        known = {"LABEL_STUDIO_URL": label_studio.url, "LABEL_STUDIO_API_KEY": label_studio.token}
        environment = {"RUSH_DATA_DIR": str(complete.folder / "data"), "RUSH_PORT": str(free_port())}
        images = sorted(digits.rglob("*.png"))[:: 10 if FULL else 20]  # from 16 on UMAP compiles for a minute
        for image in images:
            (complete.folder / "photos" / image.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(image, complete.folder / "photos" / image.parent.name)

        said: list[str] = []
        for words in commands():
            match words:
                case ["pip", "install", what]:
                    assert what == "label-studio-rush[worker]"
                case ["export", *assignments]:
                    environment |= {
                        name: known[name] for name in (each.split("=")[0] for each in assignments)
                    }
                case ["rush", "start"]:
                    stack.enter_context(running(complete, environment))
                case ["rush", *_]:
                    said.append(complete.run(*for_project(words, project), **environment))
                case _:
                    pytest.fail(f"The README gives a command that this test does not know: {words}")

        everything = "\n".join(said)
        assert f"Project {project} is connected." in everything
        assert f"{len(images)} images imported" in everything
        assert "All is well." in said[-1]
        assert 'value="7"' in studio.project(project)["label_config"]
        titles = [row["title"] for row in studio.call("GET", "/api/projects/")["results"]]
        assert "My project" in titles
