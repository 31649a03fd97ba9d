"""The backend, from here and from Label Studio."""

from __future__ import annotations

from collections.abc import Iterator

from ml_backend.domain.errors import LabelStudioError
from ml_backend.domain.model import MODEL_VERSION
from ml_backend.services.connecting.doctor import web
from ml_backend.services.connecting.doctor.context import CannotCheckError, CheckContext, Fault
from ml_backend.services.connecting.label_studio_setup import basic_auth, blocks

SHORT = {
    "reserved network address": "Label Studio says: reserved network address",
    "Failed to establish a new connection": "nothing answers there",
    "timed out": "no answer in time",
    "resolve": "the name can't be resolved",
}
"""Label Studio's own words are a page long; first match wins."""


def answers(context: CheckContext) -> Iterator[Fault]:
    """The backend runs, and takes the user and password that we would give to Label Studio."""
    url, settings = context.settings.backend_url, context.settings
    reply = web.get(f"{url}/health")
    if reply.status != 200:
        yield Fault(
            f"The backend does not answer at {url}.",
            reply.error or f"status {reply.status}",
            "Start it (rush start), or set RUSH_PUBLIC_URL to its address.",
        )
        return
    headers = {}
    if settings.basic_auth_user:
        headers["Authorization"] = basic_auth(settings)
    if web.get(f"{url}/versions", headers).status == 401:
        yield Fault(
            "The backend refuses this command's user and password.",
            f"RUSH_BASIC_AUTH_USER is {settings.basic_auth_user!r} here",
            "Give backend and command the same RUSH_BASIC_AUTH_USER and RUSH_BASIC_AUTH_PASSWORD.",
        )


def private_backend(context: CheckContext) -> Iterator[Fault]:
    """Label Studio may call a backend at this address."""
    if blocks(context.studio, "ML_BLOCK_LOCAL_IP", context.settings.backend_url):
        yield Fault(
            "Label Studio refuses to call a backend at a private address.",
            context.settings.backend_url,
            "Restart Label Studio with ML_BLOCK_LOCAL_IP=false.",
        )


def private_webhook(context: CheckContext) -> Iterator[Fault]:
    """Label Studio may send events to this address."""
    if blocks(context.studio, "SSRF_PROTECTION_ENABLED", context.settings.backend_url + "/webhook"):
        yield Fault(
            "Label Studio refuses to send webhooks to a private address, so no label ever reaches Rush.",
            context.settings.backend_url + "/webhook",
            "Restart Label Studio with SSRF_PROTECTION_ENABLED=false, then run "
            f"rush connect --project {context.ref.id}",
        )


def row(context: CheckContext) -> Iterator[Fault]:
    """One ML backend row: our title, our address, not interactive."""
    url = context.settings.backend_url
    ours = [r for r in context.backends if r["title"] == MODEL_VERSION or r["url"].rstrip("/") == url]
    if not ours:
        found = ", ".join(f"{r['title']} at {r['url']}" for r in context.backends) or "none"
        yield Fault("The project has no ML backend of Rush.", found, context.connect)
        return
    if len(ours) > 1:
        found = ", ".join(f"{r['title']} at {r['url']}" for r in ours)
        yield Fault("Rush is connected more than once.", found, context.connect)
    mine = context.backend
    if mine["title"] != MODEL_VERSION:
        yield Fault(
            f"The ML backend's name must be {MODEL_VERSION!r}, else its predictions are not used.",
            mine["title"],
            f"Settings → Model → Edit: name {MODEL_VERSION}. {context.connect}",
        )
    if mine["url"].rstrip("/") != url:
        yield Fault(
            "Label Studio calls the backend at another address.",
            mine["url"],
            f"If {url} is right, r{context.connect[1:]}. Else set RUSH_PUBLIC_URL.",
        )
    if mine["is_interactive"]:
        fix = f"Settings → Model → Edit: Interactive preannotations off. {context.connect}"
        yield Fault("Label Studio asks for suggestions interactively.", "is_interactive", fix, warning=True)


def reached(context: CheckContext) -> Iterator[Fault]:
    """Label Studio reaches the backend, and is understood there."""
    mine = context.backend
    if mine["state"] == "ER":
        said = str(mine["error_message"])
        fix = "See the backend's log."
        if "401" in said or "credentials" in said:
            fix = "The row's user or password is wrong. " + context.connect
        yield Fault("The backend answers Label Studio with an error.", said, fix)
    elif mine["state"] == "DI":
        said = _why(context, mine["id"], mine["url"])
        if "reserved network address" in said:
            fix = "Restart Label Studio with ML_BLOCK_LOCAL_IP=false."
        else:
            fix = (
                "Set RUSH_PUBLIC_URL to the backend's address as seen from Label Studio (inside a container, "
                f"localhost is the container itself), then run rush connect --project {context.ref.id}"
            )
        yield Fault(f"Label Studio can't reach the backend at {mine['url']}.", said, fix)
    elif mine["model_version"] not in (MODEL_VERSION, None, ""):
        fix = f"Something else answers at {mine['url']}: stop it, or set RUSH_PORT and run rush connect."
        yield Fault("The backend answers with another model version.", mine["model_version"], fix)


def _why(context: CheckContext, number: int, url: str) -> str:
    """Label Studio's own words: saving an unreachable row unchanged is refused with the reason."""
    try:
        context.studio.call("PATCH", f"/api/ml/{number}", json={"url": url, "project": context.ref.id})
    except LabelStudioError as error:
        return next((short for words, short in SHORT.items() if words in error.message), error.message)
    return "it did not answer a moment ago"


def workers(context: CheckContext) -> Iterator[Fault]:
    """Background workers embed images and train."""
    if context.workers is None:
        raise CannotCheckError("nobody said how to find the workers")
    problem = context.workers()
    if problem:
        yield Fault("No worker does the background work.", problem, "Start one: rush worker (or rush start).")


def given_up(context: CheckContext) -> Iterator[Fault]:
    """No job has gone on killing workers."""
    for job, deaths in sorted(context.state.given_up(context.ref).items()):
        yield Fault(
            f"The job {job} was given up, since its workers died.",
            f"{deaths} deaths within the hour",
            "Give the worker more memory (see its log). The job is begun again after an hour.",
        )


def known(context: CheckContext) -> Iterator[Fault]:
    """Redis answers, and the backend has taken the project in."""
    if not context.state.options(context.ref).get("label_config"):
        yield Fault(
            "The backend does not know this project.",
            f"nothing in {context.settings.redis_url or 'the bundled Redis'} about {context.ref.slug}",
            f"{context.connect} (with the LABEL_STUDIO_URL and RUSH_REDIS_URL of the backend)",
        )
