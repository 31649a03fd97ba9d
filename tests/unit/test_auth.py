"""Who the web process lets in before the first request."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from ml_backend.domain.errors import BadRequest
from ml_backend.settings import Settings
from ml_backend.web.auth import require_auth_if_public
from tests.fakes import CONFIG, World

SECRETS: dict[str, Any] = {"basic_auth_user": "rush", "basic_auth_password": "p", "webhook_secret": "s"}


def settings(**given: Any) -> Settings:
    return Settings(_env_file=None, **given)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_on_this_machine_no_password_is_needed(host: str) -> None:
    require_auth_if_public(settings(host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "rush.example"])
@pytest.mark.parametrize("lacking", sorted(SECRETS))
def test_beyond_this_machine_every_lacking_secret_is_named(host: str, lacking: str) -> None:
    given = {name: value for name, value in SECRETS.items() if name != lacking}
    with pytest.raises(BadRequest) as caught:
        require_auth_if_public(settings(host=host, **given))
    assert f"RUSH_{lacking.upper()}" in caught.value.hint
    assert host in caught.value.message


def test_with_all_secrets_it_listens_anywhere() -> None:
    require_auth_if_public(settings(host="0.0.0.0", **SECRETS))


# ---- web pages of other sites

BODIES: dict[str, dict[str, Any]] = {
    "/webhook": {"action": "START_TRAINING", "project": {"id": 1}},
    "/setup": {"project": "1.5", "schema": CONFIG.replace('"c"', '"d"')},
    "/train": {"project": 1},
    "/predict": {"project": "1.5", "tasks": []},
}
JSON = "application/json"
FIXTURES = Path(__file__).parents[1] / "fixtures" / "label_studio_1.23.2"


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "text/plain;charset=UTF-8"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "multipart/form-data; boundary=x"}, 415),
        ({"Content-Type": "text/plain", "Origin": "http://evil.example"}, 403),
        ({"Content-Type": JSON, "Origin": "http://evil.example"}, 403),
        ({"Content-Type": JSON, "Origin": "null"}, 403),
        ({"Content-Type": JSON, "Origin": ""}, 403),
        ({"Content-Type": JSON, "Origin": "http://[evil"}, 403),
        ({"Content-Type": JSON, "Origin": "http://localhost:8080"}, 403),  # Label Studio's own page
        ({"Origin": "http://evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Content-Type": JSON, "Sec-Fetch-Site": "same-site"}, 403),
        ({"Content-Type": JSON, "Host": "evil.example"}, 403),
        ({"Content-Type": JSON, "Host": "evil.example:9090", "Origin": "http://evil.example:9090"}, 403),
        ({"Content-Type": JSON, "Host": "localhost.evil.example:9090"}, 403),
        ({"Content-Type": JSON, "Host": "[::"}, 403),
    ],
)
def test_what_a_page_of_another_site_sends_is_refused_and_changes_nothing(
    world: World,
    client_of: Callable[..., FlaskClient],
    path: str,
    headers: dict[str, str],
    status: int,
) -> None:
    answer = client_of().post(path, data=json.dumps(BODIES[path]), headers=headers)
    assert answer.status_code == status
    assert answer.json["error"].endswith(".")
    assert answer.json["hint"]
    assert world.jobs.asked == []
    assert world.state.options(world.ref)["label_config"] == CONFIG


@pytest.mark.parametrize("path", ["/", "/status", "/versions", "/metrics"])
def test_a_name_that_leads_here_by_somebody_s_trick_is_told_nothing(
    client_of: Callable[..., FlaskClient], path: str
) -> None:
    assert client_of().get(path, headers={"Host": "evil.example:9090"}).status_code == 403
    assert client_of().get("/health", headers={"Host": "evil.example:9090"}).status_code == 200


@pytest.mark.parametrize("host", ["localhost", "localhost:9090", "127.0.0.1:9090", "[::1]:9090", "127.8.9.1"])
def test_this_machine_is_called_by_its_names(client_of: Callable[..., FlaskClient], host: str) -> None:
    assert client_of().post("/train", json={"project": 1}, headers={"Host": host}).status_code == 201


@pytest.mark.parametrize("name", ["public_url", "replica_url"])
def test_the_names_that_the_settings_give_are_ours(client_of: Callable[..., FlaskClient], name: str) -> None:
    client = client_of(**{name: "http://Rush.internal:9090"})
    headers = {"Host": "rush.internal:9090"}
    assert client.get("/status", headers=headers).status_code == 200
    assert client.get("/status", headers={"Host": "evil.example"}).status_code == 403


def test_beyond_this_machine_any_name_will_do_and_other_sites_may_not_post(
    client_of: Callable[..., FlaskClient],
) -> None:
    client = client_of(host="0.0.0.0", **SECRETS)
    names = {"Host": "backend:9090"}
    assert client.get("/status", headers=names, auth=("rush", "p")).status_code == 200
    for headers in ({"Origin": "http://evil.example"}, {"Content-Type": "text/plain"}):
        answer = client.post("/train", data=b"{}", headers=names | headers, auth=("rush", "p"))
        assert answer.status_code in (403, 415)


@pytest.mark.parametrize("origin", ["http://localhost", "https://rush.example"])
def test_our_own_page_may_post(client_of: Callable[..., FlaskClient], origin: str) -> None:
    client = client_of(public_url="https://rush.example")
    headers = {"Origin": origin, "Sec-Fetch-Site": "same-origin"}
    assert client.post("/train", json={"project": 1}, headers=headers).status_code == 201


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.json")), ids=lambda path: path.stem)
def test_label_studio_s_requests_come_in_with_the_headers_that_it_sends(
    client_of: Callable[..., FlaskClient], path: Path
) -> None:
    recorded = json.loads(path.read_text())
    kept = {name: value for name, value in recorded["headers"].items() if name != "Content-Length"}
    data = None if recorded["body"] is None else json.dumps(recorded["body"])
    answer = client_of().open(recorded["path"], method=recorded["method"], data=data, headers=kept)
    assert answer.status_code == 200, answer.json
