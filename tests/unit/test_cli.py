"""What a command says where it can't do its work: one line and the next step, no traceback."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from ml_backend.cli import projects
from ml_backend.cli.main import COMMANDS, console, flag, main
from ml_backend.cli.progress import ConsoleNarrator, show_report, show_step
from ml_backend.services.connecting.connect import Step
from ml_backend.services.connecting.doctor import Finding
from ml_backend.services.datasets.importer import ImportReport
from ml_backend.settings import Settings
from tests.serving import serving


@pytest.fixture
def login_page() -> Iterator[str]:
    """The address of something that answers everything with a page."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>Log in</html>")

        def log_message(self, *given: object) -> None: ...

    with serving(Page) as address:
        yield address


def test_status_names_what_is_no_backend(login_page: str) -> None:
    result = CliRunner().invoke(main, ["status"], env={"RUSH_PUBLIC_URL": login_page})
    assert result.exit_code == 1
    assert "is no backend of Rush: '<html>Log" in result.output
    assert "RUSH_PUBLIC_URL" in result.output


def test_a_data_folder_that_can_not_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = CliRunner().invoke(main, ["start"], env={"RUSH_DATA_DIR": str(tmp_path / "file" / "rush")})
    assert result.exit_code == 1
    assert str(tmp_path / "file") in result.output.replace("\n", "")
    assert "RUSH_DATA_DIR must be a folder" in result.output


def test_a_variable_that_can_not_be_read_is_named_with_its_value() -> None:
    result = CliRunner().invoke(main, ["status"], env={"RUSH_PORT": "nine"})
    assert result.exit_code == 1
    assert "RUSH_PORT is 'nine': Input should be a valid integer" in result.output


def test_processes_that_are_started_get_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = Settings(_env_file=None, port=9191, window=40, LABEL_STUDIO_API_KEY="key")
    for name, value in mine.environment().items():
        monkeypatch.setenv(name, value)
    assert Settings(_env_file=None) == mine


def test_the_web_process_starts_without_what_only_workers_install() -> None:
    heavy = {"scipy", "sklearn", "torch", "torchvision", "umap", "numba", "openvino"}
    code = "import sys, ml_backend.cli, ml_backend.web.server; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not heavy & set(loaded.split())


def test_asking_for_the_version_loads_nothing_that_the_answer_does_not_need() -> None:
    code = "import sys; from ml_backend.cli.main import main; main(['--version'], standalone_mode=False)"
    code += "; print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert not loaded & {"numpy", "pydantic", "httpx", "redis", "flask", "torch"}
    assert re.search(r"version \d+\.\d+", done.stdout)


@pytest.mark.parametrize("file", ["missing.xml", "folder", "latin.xml"])
def test_a_label_config_that_can_not_be_read_is_named(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "latin.xml").write_bytes("<View>Käfer</View>".encode("latin-1"))
    result = CliRunner().invoke(main, ["connect", "--project", "1", "--label-config", file])
    assert result.exit_code != 0
    assert file in result.output
    assert "Traceback" not in result.output


def test_connect_needs_no_label_config_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    env = {"LABEL_STUDIO_URL": "http://127.0.0.1:9", "LABEL_STUDIO_API_KEY": "key"}
    result = CliRunner().invoke(main, ["connect", "--project", "1"], env=env)
    assert result.exit_code == 1
    assert "Label Studio can't be reached" in result.output


def test_every_command_is_in_the_module_that_the_table_says() -> None:
    group = main
    for name in COMMANDS:
        command = group.get_command(click.Context(group), name)
        assert command is not None
        assert command.name == name
    assert group.get_command(click.Context(group), "nonsense") is None


NAMES = ["cat [copy].png", "[red]dog[/].png", "[/].png", ":cat: [bold].png", "a\\[b].png"]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_printed_as_they_are_wherever_they_stand(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    show_report(ImportReport(0, 0, [(name, f"There is no file {name}.")], 0.0, [f"1 row: {name}"]), console)
    show_step(Step("project", "done", f"{name!s} is project 1"), console)
    projects._show_finding(Finding(name, False, name, name, name))
    ConsoleNarrator(console).say(name)
    said = capsys.readouterr().err
    assert said.count(name) == 9, said
    assert len(said.splitlines()) == 7


def test_a_skipped_image_takes_one_line_of_200_letters_at_most(capsys: pytest.CaptureFixture[str]) -> None:
    long = "data:image/png;base64," + "A" * 180_000
    skipped = [(f"tasks.json task {n}: {long}", f"can't read {long}\n{'x' * 400}") for n in range(3)]
    show_report(ImportReport(0, 0, skipped, 0.0), console)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert max(map(len, lines)) <= 200
    assert "AAAA" not in lines[0]


def test_an_error_about_a_name_with_brackets_names_it(tmp_path: Path) -> None:
    (tmp_path / "notes [copy].txt").touch()
    given = ["import", "--project", "1", str(tmp_path / "no [copy].csv")]
    assert "no [copy].csv" in CliRunner().invoke(main, given).output
    assert flag("a_b") == "--a-b"
