"""Settings: what can't be read is named in one line, by every command; what does no harm is taken."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from ml_backend.bootstrap import Container
from ml_backend.cli.main import main
from ml_backend.domain.errors import BadRequest
from ml_backend.domain.model import ProjectRef
from ml_backend.domain.shown import shown
from ml_backend.settings import Settings, authorities

WRONG = {
    "RUSH_PORT": "99999999",
    "RUSH_LOG_LEVEL": "NONSENSE",
    "RUSH_WINDOW": "two hundred",
    "RUSH_SYNC_SECONDS": "inf",
    "RUSH_MAX_IMAGE_MB": "nan",
    "RUSH_QDRANT_GRPC": "perhaps",
    "RUSH_COORDINATES": "nowhere",
    "LABEL_STUDIO_URL": "http://127.0.0.1: 8080",
    "RUSH_PUBLIC_URL": "http://rush.example :9090",
    "RUSH_QDRANT_URL": "http://127.0.0.1:port",
    "RUSH_REPLICA_URL": "10.0.0.3:9090",
    "RUSH_REDIS_URL": "redis://127.0.0.1 :6379/0",
}
AUTHORITIES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")
COMMANDS = (
    "status",
    "serve",
    "worker",
    "start",
    "doctor --project 1",
    "sync --project 1",
    "train --project 1",
)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("variable", WRONG)
def test_a_value_that_is_none_is_named_in_one_line(
    variable: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, WRONG[variable])
    result = CliRunner().invoke(main, command.split())
    assert result.exit_code == 1, repr(result.exception)
    assert result.output.splitlines()[0].startswith(f"{variable} is ")
    assert len(result.output.splitlines()) == 2, result.output  # the problem; what to do


@pytest.mark.parametrize("blank", [" ", "\t", "\n"])
def test_blanks_around_a_value_do_no_harm(blank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "LABEL_STUDIO_URL": "http://127.0.0.1:8080",
        "LABEL_STUDIO_API_KEY": "key",
        "RUSH_PUBLIC_URL": "http://rush.example:9090",
        "RUSH_REDIS_URL": "redis://127.0.0.1:6379/0",
        "RUSH_PORT": "9191",
        "RUSH_LOG_LEVEL": "debug",
        "RUSH_COORDINATES": "off",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, f"{blank}{value}{blank}")
    settings = Settings(_env_file=None)
    assert Container(settings).origin == "http://127.0.0.1:8080"
    assert settings.label_studio_api_key.get_secret_value() == "key"
    assert (settings.port, settings.log_level, settings.coordinates) == (9191, "DEBUG", "off")
    assert (settings.redis_url, settings.backend_url) == (given["RUSH_REDIS_URL"], given["RUSH_PUBLIC_URL"])


def test_an_address_that_is_none_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABEL_STUDIO_URL", "http://me:pass/word@host:80 80")
    with pytest.raises(BadRequest) as caught:
        Settings.read()
    assert "pass" not in str(caught.value)


def test_projects_below_different_paths_of_one_host_are_different_projects() -> None:
    origins = [
        "http://h",
        "http://h/team-a",
        "http://h/team-b",
        "http://h/team/a",
        "http://h/team_a",
        "http://h_team-a",
    ]
    assert len({ProjectRef(origin, 1).slug for origin in origins}) == len(origins)
    assert all("/" not in ProjectRef(origin, 1).slug for origin in origins)


def test_projects_of_hosts_without_a_path_keep_their_name() -> None:
    assert ProjectRef("http://127.0.0.1:8080", 3).slug == "http_127.0.0.1_8080_3"
    assert ProjectRef("https://studio.example", 12).slug == "https_studio.example_12"


def test_user_and_password_of_an_address_are_part_of_no_name() -> None:
    container = Container(Settings(_env_file=None, LABEL_STUDIO_URL="https://me:secret@studio.example/"))
    assert container.ref(3) == ProjectRef("https://studio.example", 3)
    assert "secret" not in ProjectRef("https://me:secret@studio.example", 3).slug


@pytest.mark.parametrize("variable", AUTHORITIES)
def test_authorities_that_are_not_there_are_named(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in AUTHORITIES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "missing.pem"))
    with pytest.raises(BadRequest, match=f"{variable} is .*missing.pem"):
        authorities()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://a/b.png?X-Amz-Signature=abc&x=1", "http://a/b.png"),
        ("https://me:word@a/b.png", "https://a/b.png"),
        ("data:image/png;base64,iVBORw0KGgo", "data:image/png;base64,…"),
        ("two\nlines", "two lines"),
        ("http://a/data/local-files/?d=a/b.png", "http://a/data/local-files/?d=a/b.png"),
        ("x" * 500, "x" * 159 + "…"),
        ("'http://a/b?Signature=s' and http://c/d?token=t", "'http://a/b' and http://c/d"),
    ],
)
def test_a_value_in_a_message_is_short_and_without_secrets(text: str, expected: str) -> None:
    assert shown(text) == expected
