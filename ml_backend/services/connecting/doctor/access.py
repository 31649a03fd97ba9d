"""Can we talk to Label Studio at all, and is it the one we know?"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from typing import Any

from ml_backend.domain.errors import NotFound, Unauthorized
from ml_backend.services.connecting.doctor.context import CheckContext, Fault

NEW_TOKEN = (
    "Make a personal access token (Label Studio → Account & Settings) and set LABEL_STUDIO_API_KEY to it."  # noqa: S105
)


def token(context: CheckContext) -> Iterator[Fault]:
    """Label Studio accepts the token; both kinds have ways of their own to fail."""
    secret = context.settings.label_studio_api_key.get_secret_value().strip()
    if not secret:
        yield Fault("LABEL_STUDIO_API_KEY is not set.", "", NEW_TOKEN)
        return
    claims = _claims(secret)
    if claims is not None and claims.get("token_type") == "access":
        yield Fault(
            "LABEL_STUDIO_API_KEY is a short-lived access token, not a personal access token.",
            "it lives 5 minutes",
            NEW_TOKEN,
        )
        return
    try:
        context.studio.call("GET", "/api/current-user/whoami")
    except Unauthorized as error:
        yield _refused(error.message, claims)


def _refused(said: str, claims: dict[str, Any] | None) -> Fault:
    if claims is None:
        if "legacy" in said.lower():
            return Fault(
                "Label Studio's organization has switched legacy tokens off.",
                "LABEL_STUDIO_API_KEY is a legacy token",
                f"{NEW_TOKEN} Or allow them: Organization → API Tokens Settings → Legacy Tokens.",
            )
        return Fault("Label Studio does not know this legacy token.", said, NEW_TOKEN)
    expires = claims.get("exp")
    if isinstance(expires, int | float) and expires < time.time():
        ended = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(expires))
        return Fault("The personal access token has expired.", f"on {ended}", NEW_TOKEN)
    if "blacklisted" in said.lower():
        return Fault("The personal access token was revoked.", said, NEW_TOKEN)
    if "/api/token/refresh" in said:
        return Fault("Label Studio does not accept this personal access token.", said, NEW_TOKEN)
    return Fault(
        "Label Studio's organization has switched personal access tokens off.",
        said,
        "Allow them: Organization → API Tokens Settings → Personal Access Tokens.",
    )


def _claims(secret: str) -> dict[str, Any] | None:
    """What a JWT says of itself; None for a legacy token."""
    parts = secret.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except ValueError:
        return {}
    return claims if isinstance(claims, dict) else {}


def version(context: CheckContext) -> Iterator[Fault]:
    """Queue order and webhooks were measured on Label Studio Community 1.23."""
    answer = context.studio.call("GET", "/api/version")
    release, edition = str(answer.get("release")), str(answer.get("edition") or "Community")
    if not release.startswith("1.23."):
        fix = "If the order of tasks is wrong, use label-studio 1.23.x."
        yield Fault("Rush was not tried with this Label Studio.", release, fix, warning=True)
    if edition != "Community":
        fix = "There webhooks may arrive after the next task was chosen: expect the order to lag by one task."
        yield Fault("This is not Label Studio Community.", edition, fix, warning=True)


def project(context: CheckContext) -> Iterator[Fault]:
    """The project is there and the token's user may see it."""
    try:
        _ = context.project
    except NotFound as error:
        yield Fault(
            f"Label Studio shows no project {context.ref.id} to the token's user.",
            error.message,
            "Check the number in the project's address; make one with: rush connect --create TITLE",
        )
