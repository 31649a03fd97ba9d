"""A project that Label Studio does not have: every command says so and leaves no trace of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import redis
from click.testing import CliRunner

from ml_backend.adapters.redis.state import RedisState
from ml_backend.cli.main import COMMANDS, main
from ml_backend.domain.model import ProjectRef
from tests.fakes import CONFIG
from tests.serving import serving


@pytest.fixture
def studio() -> Iterator[str]:
    """A Label Studio with project 1 only."""

    class Studio(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            there = self.path.startswith("/api/projects/1")
            body = {"id": 1, "label_config": CONFIG} if there else {"detail": "Not found."}
            self.send_response(200 if there else 404)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *given: object) -> None: ...

    with serving(Studio) as address:
        yield address


def environment(studio: str, redis_url: str, folder: Path) -> dict[str, str]:
    return {
        "LABEL_STUDIO_URL": studio,
        "LABEL_STUDIO_API_KEY": "key",
        "RUSH_REDIS_URL": redis_url,
        "RUSH_DATA_DIR": str(folder / "data"),
    }


WORDS: dict[str, list[list[str]]] = {
    "audit": [[], ["--more", "3"], ["--again"], ["--resume", "1"]],
    "certify": [[], ["--accept"], ["--accept", "--as", "annotations"], ["--revert"]],
    "connect": [[]],
    "import": [["FOLDER"]],
    "simulate": [["--out", "FOLDER/out"]],
    "strategy": [["margin"], []],
    "sync": [[]],
    "train": [[], ["--full"]],
}
CASES = [[name, *rest] for name, several in WORDS.items() for rest in several]
ELSEWHERE = {"doctor", "forget"}
"""doctor has a finding for it; what is gone in Label Studio must be possible to forget."""


def test_every_command_about_a_project_is_tried_here() -> None:
    about = {
        name
        for name in COMMANDS
        if any(each.name == "project" for each in main.get_command(None, name).params)  # type: ignore[arg-type, union-attr]
    }
    assert about - ELSEWHERE == set(WORDS)


@pytest.mark.parametrize("words", CASES, ids=" ".join)
def test_a_project_that_is_not_there_is_refused_and_leaves_no_trace(
    words: list[str], studio: str, state: RedisState, redis_url: str, tmp_path: Path
) -> None:
    (tmp_path / "a.png").touch()
    name, *rest = [word.replace("FOLDER", str(tmp_path)) for word in words]
    env = environment(studio, redis_url, tmp_path)
    result = CliRunner().invoke(main, [name, "--project", "999", *rest], env=env)
    said = " ".join(result.output.split())
    assert result.exit_code == 1
    assert "shows no project 999" in said
    assert "rush connect --create" in said
    assert "Traceback" not in said
    with redis.Redis.from_url(redis_url) as client:
        assert client.keys() == []
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "data").rglob("*9*"))


def test_a_project_that_is_there_takes_a_strategy(
    studio: str, state: RedisState, redis_url: str, tmp_path: Path
) -> None:
    env = environment(studio, redis_url, tmp_path)
    assert CliRunner().invoke(main, ["strategy", "--project", "1", "margin"], env=env).exit_code == 0
    assert CliRunner().invoke(main, ["strategy", "--project", "1"], env=env).output.strip() == "margin"
    assert state.options(ProjectRef(studio, 1))["strategy"] == "margin"


def test_training_that_no_worker_will_do_is_said(
    studio: str, state: RedisState, redis_url: str, tmp_path: Path
) -> None:
    env = environment(studio, redis_url, tmp_path)
    result = CliRunner().invoke(main, ["train", "--project", "1"], env=env)
    assert result.exit_code == 0
    assert "no worker serves" in result.output
    assert "rush worker" in result.output
