"""Who the web process lets in before the first request."""

from typing import Any

import pytest

from ml_backend.domain.errors import BadRequest
from ml_backend.settings import Settings
from ml_backend.web.auth import require_auth_if_public

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
