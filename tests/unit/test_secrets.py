"""Secrets stay where they are: no command, error answer or log line shows one."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from click.testing import CliRunner

from ml_backend.adapters.redis.client import address
from ml_backend.adapters.redis.state import RedisState
from ml_backend.cli.main import main
from ml_backend.services.serving.registry import Projects
from ml_backend.settings import Settings
from ml_backend.web.app import create_app
from tests.fakes import World

SECRETS = {
    "LABEL_STUDIO_API_KEY": "apikey-apikey",
    "RUSH_BASIC_AUTH_PASSWORD": "password-password",
    "RUSH_WEBHOOK_SECRET": "webhook-webhook",
    "RUSH_TOKEN": "token-token",
    "RUSH_QDRANT_API_KEY": "qdrantkey-qdrantkey",
}
NOWHERE = {
    "LABEL_STUDIO_URL": "http://127.0.0.1:9",
    "RUSH_REDIS_URL": "redis://:redisword-redisword@127.0.0.1:9/0",
    "RUSH_BASIC_AUTH_USER": "rush",
    "RUSH_QDRANT_URL": "https://127.0.0.1:9",
    "RUSH_PORT": "9",
}
WORDS = [*SECRETS.values(), "redisword-redisword"]


@pytest.mark.parametrize(
    "command",
    [
        "status",
        "connect --project 1",
        "import --project 1 .",
        "doctor --project 1",
        "sync --project 1",
        "train --project 1",
        "strategy --project 1 margin",
        "audit --project 1",
        "certify --project 1",
        "worker",
    ],
)
def test_no_command_shows_a_secret_when_nothing_answers(
    command: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ml_backend.jobs.warm", _stop)
    for name, value in {**SECRETS, **NOWHERE, "RUSH_DATA_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    with caplog.at_level(logging.DEBUG):
        result = CliRunner().invoke(main, command.split())
    assert result.exit_code != 0
    said = result.output + caplog.text + repr(result.exception)
    assert not [word for word in WORDS if word in said], said


def _stop() -> None:
    raise KeyboardInterrupt


def test_settings_hide_secrets_however_they_are_printed() -> None:
    settings = Settings(
        _env_file=None,
        token="token-token",
        webhook_secret="webhook-webhook",
        LABEL_STUDIO_API_KEY="apikey-apikey",
    )
    assert not [word for word in WORDS if word in f"{settings!r} {settings} {settings.model_dump()}"]


def test_no_error_answer_repeats_what_was_sent_as_a_secret(state: RedisState) -> None:
    settings = Settings(
        _env_file=None,
        basic_auth_user="rush",
        basic_auth_password="password-password",
        token="token-token",
        webhook_secret="webhook-webhook",
    )
    client = create_app(settings, Projects(World(state).ports, "http://studio")).test_client()
    wrong = {"Authorization": "Bearer guess-guess", "X-Rush-Secret": "guess-guess"}
    for path in ("/status", "/webhook", "/predict", "/setup", "/nothing"):
        answer = client.post(path, json={}, headers=wrong)
        assert answer.status_code in (401, 404, 405)
        assert not [word for word in (*WORDS, "guess-guess") if word in answer.text]


@pytest.mark.parametrize(
    "url", ["redis://:top/secret@h:6379/0", "redis://:12/secret@h:6379", "redis://[secret@h"]
)
def test_a_redis_address_with_an_unescaped_password_is_refused_without_showing_it(
    url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUSH_REDIS_URL", url)
    monkeypatch.setenv("LABEL_STUDIO_URL", "http://127.0.0.1:9")
    result = CliRunner().invoke(main, ["train", "--project", "1"])
    assert result.exit_code == 1
    assert "RUSH_REDIS_URL is " in result.output
    assert "no address of a Redis: write redis://:password@host:6379/0" in result.output
    assert "secret" not in result.output + repr(result.exception)
    assert "secret" not in address(url)
