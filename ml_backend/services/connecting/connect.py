"""Attach a Label Studio project to Rush, step by step, and prove that it works; repeatable at any time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ml_backend.controls import control_of, described, parse_label_config
from ml_backend.domain.errors import BadRequest, LabelStudioError, NotFound, UnusableConfig
from ml_backend.domain.model import MODEL_VERSION, ProjectRef
from ml_backend.ports import LabelStudio, State
from ml_backend.services.connecting import hotkeys, label_studio_setup, question
from ml_backend.settings import Settings

Outcome = Literal["done", "changed", "kept", "open"]
SHORTEST_TITLE = 3
SWITCHES = (
    "Start Label Studio with SSRF_PROTECTION_ENABLED=false and ML_BLOCK_LOCAL_IP=false (both are needed "
    "for a backend on a private address)"
)


@dataclass(frozen=True, slots=True)
class Step:
    """One step: newly ``done``, ``changed``, ``kept`` as it was, or left ``open``; ``detail`` says why."""

    name: str
    outcome: Outcome
    detail: str = ""


Progress = Callable[[Step], None]


def find_or_create(studio: LabelStudio, title: str, label_config: str) -> tuple[int, Step]:
    """The project of that title, made with this label config where there is none."""
    title = title.strip()
    if len(title) < SHORTEST_TITLE:
        raise BadRequest(
            f"The title {title!r} is too short.", f"Label Studio wants at least {SHORTEST_TITLE} characters."
        )
    same = [row["id"] for row in _projects(studio) if row["title"] == title]
    if len(same) > 1:
        raise BadRequest(
            f"There are {len(same)} projects called {title!r}: {', '.join(map(str, same))}.",
            f"Choose one: rush connect --project {same[0]}",
        )
    if same:
        return same[0], Step("project", "kept", f"{title!r} is project {same[0]}")
    parse_label_config(label_config)
    made = studio.call("POST", "/api/projects/", json={"title": title, "label_config": label_config})
    return int(made["id"]), Step("project", "done", f"{title!r} is project {made['id']}")


def connect(
    ref: ProjectRef,
    studio: LabelStudio,
    state: State,
    settings: Settings,
    *,
    label_config: str = "",
    control: str | None = None,
    renames: Sequence[str] = (),
    ask: bool = True,
    progress: Progress = lambda step: None,
) -> list[Step]:
    """Set project, ML backend, webhook and accept key, then provoke an event and ask for the next task.

    ``label_config`` is given to a project that has none yet; ``control`` and ``renames`` are as for
    ``question.ask``. ``ask=False`` leaves out asking for the next task. A step that fails raises with the
    next thing to do; run it again afterwards.
    """
    steps: list[Step] = []
    for step in _steps(ref, studio, state, settings, label_config, control, renames, ask):
        steps.append(step)
        progress(step)
    return steps


def _steps(
    ref: ProjectRef,
    studio: LabelStudio,
    state: State,
    settings: Settings,
    label_config: str,
    control: str | None,
    renames: Sequence[str],
    ask: bool,
) -> Iterator[Step]:
    yield label_step(ref, studio, label_config)
    yield question_step(ref, studio, state, control, renames)
    yield settings_step(ref, studio)
    yield backend_step(ref, studio, settings)
    yield version_step(ref, studio)
    yield webhook_step(ref, studio, settings)
    yield event_step(ref, studio, state, settings)
    yield hotkey_step(studio)
    if ask:
        yield queue_step(ref, studio, state)


def label_step(ref: ProjectRef, studio: LabelStudio, label_config: str) -> Step:
    """Make sure that there is something to predict; a label config that people made is never replaced."""
    xml = studio.project(ref.id)["label_config"]
    try:
        parse_label_config(xml)
    except UnusableConfig:
        blank = "".join(xml.split()) in ("", "<View></View>", "<View/>")
        if not (blank and label_config):
            raise
        parse_label_config(label_config)
        studio.update_project(ref.id, label_config=label_config)
        return Step("label config", "changed", "the project had none")
    return Step("label config", "kept")


def question_step(
    ref: ProjectRef, studio: LabelStudio, state: State, control: str | None, renames: Sequence[str]
) -> Step:
    """Say which question is predicted; another one, or classes' new names, where that is asked for."""
    xml = str(studio.project(ref.id)["label_config"])
    if control is None and not renames:
        return Step("question", "kept", described(control_of(state.options(ref), xml)))
    return Step("question", "changed", described(question.ask(ref, state, xml, control, renames)))


def settings_step(ref: ProjectRef, studio: LabelStudio) -> Step:
    """Sampling, annotations per task, shown predictions."""
    now = studio.project(ref.id)
    change = {name: value for name, value in label_studio_setup.WANTED.items() if now.get(name) != value}
    if not change:
        return Step("project settings", "kept")
    studio.update_project(ref.id, **change)
    changes = [f"{name}: {now.get(name)!r} → {value!r}" for name, value in change.items()]
    return Step("project settings", "changed", ", ".join(changes))


def backend_step(ref: ProjectRef, studio: LabelStudio, settings: Settings) -> Step:
    """Exactly one ML backend row of ours, that Label Studio can reach."""
    wanted = label_studio_setup.backend_body(settings, ref.id)
    ours = _our_backends(ref, studio, wanted["url"])
    row = ours.pop() if ours else None
    for other in ours:
        studio.call("DELETE", f"/api/ml/{other['id']}")
    removed = f"; removed: {', '.join(str(other['url']) for other in ours)}" if ours else ""
    if row is None:
        _save_backend(studio, "POST", "/api/ml/", wanted)
        # Label Studio on SQLite repeats a request that met a locked database, row written or not.
        for twin in _our_backends(ref, studio, wanted["url"])[:-1]:
            studio.call("DELETE", f"/api/ml/{twin['id']}")
        return Step("ML backend", "done", wanted["url"])
    shown = {name: value for name, value in wanted.items() if name != "basic_auth_pass"}
    if row["state"] == "CO" and all((row.get(name) or "") == (value or "") for name, value in shown.items()):
        return Step("ML backend", "changed" if ours else "kept", wanted["url"] + removed)
    _save_backend(studio, "PATCH", f"/api/ml/{row['id']}", wanted)
    was = str(row["url"])
    moved = f"{was} → " if was.rstrip("/") != wanted["url"] else ""
    return Step("ML backend", "changed", moved + wanted["url"] + removed)


def _our_backends(ref: ProjectRef, studio: LabelStudio, url: str) -> list[dict[str, Any]]:
    """The ML backend rows with our title or address, the one to keep last."""
    rows = label_studio_setup.backends(studio, ref.id)
    ours = [row for row in rows if row["title"] == MODEL_VERSION or row["url"].rstrip("/") == url]
    return sorted(ours, key=lambda row: (row["url"].rstrip("/") == url, row["title"] == MODEL_VERSION))


def _save_backend(studio: LabelStudio, method: str, path: str, body: dict[str, Any]) -> None:
    url = body["url"]
    try:
        try:
            row = studio.call(method, path, json=body)
        except LabelStudioError as error:
            if "Read timed out" not in error.message:
                raise
            # Label Studio gives /setup three seconds; a busy backend that was loading the project has it now.
            row = studio.call(method, path, json=body)
    except NotFound:
        raise
    except LabelStudioError as error:
        hint = f"Check that the backend runs and that {url} is its address as seen from Label Studio "
        hint += "(RUSH_PUBLIC_URL)."
        if "reserved network address" in error.message:
            hint = f"{SWITCHES}, then run this again."
        elif "authentication parameters" in error.message or "401 Client Error" in error.message:
            hint = "Give backend and command the same RUSH_BASIC_AUTH_USER and RUSH_BASIC_AUTH_PASSWORD."
        raise LabelStudioError(f"Label Studio can't use the backend {url}: {error.message}", hint) from None
    if row["state"] != "CO":
        raise LabelStudioError(
            f"Label Studio reaches {url}, which then answers with an error: {row.get('error_message')}",
            "See the backend's log; where it says 401, RUSH_BASIC_AUTH_USER and RUSH_BASIC_AUTH_PASSWORD "
            "differ between this command and the backend.",
        )


def version_step(ref: ProjectRef, studio: LabelStudio) -> Step:
    """The model version whose predictions are shown and ordered; Label Studio wants the backend row first."""
    now = studio.project(ref.id)["model_version"]
    if now == MODEL_VERSION:
        return Step("model version", "kept", MODEL_VERSION)
    studio.update_project(ref.id, model_version=MODEL_VERSION)
    return Step("model version", "changed", f"{now!r} → {MODEL_VERSION!r}")


def webhook_step(ref: ProjectRef, studio: LabelStudio, settings: Settings) -> Step:
    """Exactly one active webhook to this backend, with all that it needs."""
    url = label_studio_setup.webhook_url(settings.backend_url)
    rows = [row for row in label_studio_setup.webhooks(studio, ref.id) if row["url"].rstrip("/") == url]
    for extra in rows[1:]:
        studio.call("DELETE", f"/api/webhooks/{extra['id']}/")
    removed = f", {len(rows) - 1} more removed" if len(rows) > 1 else ""
    if rows:
        change = label_studio_setup.webhook_faults(rows[0], settings)
        if change:  # the whole row: Label Studio empties the list of actions where it isn't sent
            kept = {name: rows[0][name] for name in ("url", "actions", "headers", "send_for_all_actions")}
            studio.call("PATCH", f"/api/webhooks/{rows[0]['id']}/", json=kept | change)
            return Step("webhook", "changed", f"{url}: {', '.join(change)}{removed}")
        return Step("webhook", "changed" if removed else "kept", url + removed)
    headers = label_studio_setup.webhook_headers(settings)
    body = {"project": ref.id, "url": url, "send_payload": True, "send_for_all_actions": True}
    try:
        studio.call("POST", "/api/webhooks/", json={**body, "headers": headers, "is_active": True})
    except LabelStudioError as error:
        hint = error.hint
        if "reserved network" in error.message:
            hint = f"{SWITCHES}, then run this again."
        elif "valid URL" in error.message:
            hint = "It takes localhost, an address or a name with a dot and no underscore: RUSH_PUBLIC_URL."
        raise LabelStudioError(f"Label Studio refuses the webhook {url}: {error.message}", hint) from None
    return Step("webhook", "done", url)


def event_step(ref: ProjectRef, studio: LabelStudio, state: State, settings: Settings) -> Step:
    """Proof: an event is provoked, and the backend notes it."""
    if label_studio_setup.event_arrives(studio, state, ref):
        return Step("webhook event", "done", "provoked, and seen to arrive")
    url = label_studio_setup.webhook_url(settings.backend_url)
    raise LabelStudioError(
        f"Label Studio's webhook {url} is set, but a provoked event did not arrive within "
        f"{label_studio_setup.WEBHOOK_SECONDS:g} s.",
        f"{SWITCHES}; check that {url} can be reached from Label Studio's machine, and that this command "
        "uses the backend's RUSH_REDIS_URL and RUSH_WEBHOOK_SECRET.",
    )


def hotkey_step(studio: LabelStudio) -> Step:
    """One key that accepts; a key that the user chose is theirs."""
    key = hotkeys.accept_key(studio)
    if key == hotkeys.KEY:
        return Step("accept key", "kept", key)
    if key is not None:
        return Step("accept key", "kept", f"{key} (your own)")
    hotkeys.set_accept_key(studio)
    return Step("accept key", "done", f"{hotkeys.KEY} submits; reload Label Studio's page")


def queue_step(ref: ProjectRef, studio: LabelStudio, state: State) -> Step:
    """Proof: the next task that Label Studio serves is the one in front of our queue."""
    if not state.window(ref):
        return Step("queue", "open", "no task has a prediction yet; rush doctor checks the order later")
    served = label_studio_setup.ask_next(studio, state, ref)
    if served is None:
        return Step("queue", "open", "no task is left to label")
    if served.held:
        return Step("queue", "open", f"task {served.task} is open in the browser of the token's user")
    if served.place == 0:
        return Step("queue", "done", f"asked for the next task: {served.task}, the first of {served.waiting}")
    return Step(
        "queue",
        "open",
        f"asked for the next task: {served.task}, not the first of {served.waiting}; run rush doctor",
    )


def _projects(studio: LabelStudio) -> Iterator[dict[str, Any]]:
    page = 1
    while True:
        reply = studio.call("GET", "/api/projects/", params={"page": page, "page_size": 100})
        yield from reply["results"]
        if not reply.get("next"):
            return
        page += 1
