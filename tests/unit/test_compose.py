"""The compose file, its example and the settings agree; the rest is ``make test-compose``."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from ml_backend.settings import Settings

ROOT = Path(__file__).parents[2]
COMPOSE = (ROOT / "docker-compose.yml").read_text()
EXAMPLE = dict(
    line.split("=", 1)
    for line in (ROOT / ".env.example").read_text().splitlines()
    if line and not line.startswith("#")
)
USED = dict(re.findall(r"\$\{(\w+)(:?[-?][^}]*)?\}", COMPOSE))


def test_every_variable_of_ours_is_a_setting() -> None:
    known = {f"RUSH_{name.upper()}" for name in Settings.model_fields}
    given = set(re.findall(r"^\s+(RUSH_\w+):", COMPOSE, re.MULTILINE))
    assert given
    assert given <= known


def test_every_setting_reaches_backend_and_workers_but_those_that_the_container_decides() -> None:
    decided = {"DATA_DIR", "HOST", "PORT", "REPLICA_URL"}
    block = COMPOSE.partition("x-rush-environment:")[2].partition("\nservices:")[0]
    passed = dict(re.findall(r"^  (\w+):(.*)$", block, re.MULTILINE))
    for name, field in Settings.model_fields.items():
        variable = str(field.validation_alias or f"RUSH_{name.upper()}")
        assert variable in passed or name.upper() in decided, variable
    assert "${RUSH_ALLOWED_HOSTS" in passed["RUSH_ALLOWED_HOSTS"]
    assert COMPOSE.count("environment: *rush-environment") == 3  # backend, worker, demo
    assert COMPOSE.count("<<: *rush-environment") == 1  # the worker with a GPU


def test_a_setting_that_is_passed_on_empty_has_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.setenv(f"RUSH_{name.upper()}", " ")
    assert Settings(_env_file=None).model_dump() == Settings.model_construct().model_dump()


def test_the_example_sets_what_the_compose_file_reads_and_all_that_it_demands() -> None:
    assert set(EXAMPLE) <= set(USED)
    demanded = {name for name, default in USED.items() if default.startswith(":?")}
    assert demanded <= set(EXAMPLE)
    assert all(EXAMPLE[name] for name in demanded)


def test_every_image_is_pinned_and_no_secret_has_a_default() -> None:
    images = re.findall(r"image: \$\{\w+:-(\S+)\}", COMPOSE)
    assert len(images) == COMPOSE.count("image:")
    assert all(re.search(r":v?\d+\.\d+", image) for image in images), images
    secrets = [default for name, default in USED.items() if "PASSWORD" in name or "SECRET" in name]
    assert all(default.startswith(":?") for default in secrets)


def test_the_token_of_the_example_has_the_form_that_label_studio_takes() -> None:
    assert re.fullmatch(r"[0-9a-f]{40}", EXAMPLE["LABEL_STUDIO_API_KEY"])


def test_the_backend_has_a_name_that_label_studio_takes_for_a_webhook() -> None:
    host = re.search(r"RUSH_PUBLIC_URL:-http://([^:}]+)", COMPOSE)
    assert host is not None
    assert "_" not in host[1]
    assert "." in host[1]
    assert f"aliases: [{host[1]}]" in COMPOSE


def test_everything_that_the_wheel_is_built_of_goes_into_the_images() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    needed |= {*wheel["packages"], *wheel["force-include"]}
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    assert needed <= let_through
    for name in ("web", "worker"):
        lines = re.findall(
            r"^COPY ((?!--from).*) \S+$", (ROOT / f"docker/Dockerfile.{name}").read_text(), re.MULTILINE
        )
        assert needed <= {word for line in lines for word in line.split()}, name
