"""Events from Label Studio."""

from __future__ import annotations

from collections.abc import Iterator

from ml_backend.services.connecting.doctor.context import CannotCheckError, CheckContext, Fault
from ml_backend.services.connecting.label_studio_setup import (
    ACTIONS,
    SECRET_HEADER,
    WEBHOOK_SECONDS,
    event_arrives,
    webhook_faults,
    webhook_headers,
    webhook_url,
)


def row(context: CheckContext) -> Iterator[Fault]:
    """One active webhook to our address with payload, every action and the secret."""
    url, mine = webhook_url(context.settings.backend_url), context.webhook
    if mine is None:
        others = [hook["url"] for hook in context.webhooks]
        problem = "The webhook goes to another address." if others else "There is no webhook to the backend."
        yield Fault(problem, ", ".join(others) or "none", context.connect)
        return
    wrong = webhook_faults(mine, context.settings)
    if "is_active" in wrong:
        yield Fault("The webhook is switched off.", url, f"Settings → Webhooks: active. {context.connect}")
    if "send_payload" in wrong:
        fix = f"Settings → Webhooks → Edit: Send payload on. {context.connect}"
        yield Fault("The webhook sends no payload.", url, fix)
    if "send_for_all_actions" in wrong:
        missing = ", ".join(sorted(ACTIONS - set(mine["actions"])))
        fix = f"Settings → Webhooks → Edit: Send for all actions. {context.connect}"
        yield Fault("The webhook does not send every event that Rush needs.", f"missing: {missing}", fix)
    if "headers" in wrong:
        header = next(iter(webhook_headers(context.settings)))
        setting = "RUSH_WEBHOOK_SECRET" if header == SECRET_HEADER else "RUSH_BASIC_AUTH_USER"
        problem = f"The webhook carries no or another {header} header, so the backend refuses its events."
        yield Fault(problem, f"{setting} is set", context.connect)
    same = [hook for hook in context.webhooks if hook["url"].rstrip("/") == url]
    if len(same) > 1:
        fix = context.connect
        yield Fault(
            "Every event is sent more than once.", f"{len(same)} webhooks to {url}", fix, warning=True
        )


def event(context: CheckContext) -> Iterator[Fault]:
    """An event is provoked (the description is saved as it is) and must arrive."""
    if context.webhook is None or not context.webhook["is_active"]:
        raise CannotCheckError("there is no active webhook to the backend")
    if not event_arrives(context.studio, context.state, context.ref):
        yield Fault(
            "A provoked event did not arrive at the backend.",
            f"{context.webhook['url']}, {WEBHOOK_SECONDS:g} s",
            "Start Label Studio with SSRF_PROTECTION_ENABLED=false and ML_BLOCK_LOCAL_IP=false, see that the "
            "address can be reached from Label Studio's machine, and give backend and command the same "
            "RUSH_WEBHOOK_SECRET and RUSH_REDIS_URL.",
        )
