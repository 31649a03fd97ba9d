"""Each way of breaking a project, on a real Label Studio: doctor names it, connect repairs what it can."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from ml_backend.adapters.label_studio.client import HttpLabelStudio
from ml_backend.adapters.processes.servers import LocalLabelStudio
from ml_backend.domain.errors import LabelStudioError
from ml_backend.domain.model import ProjectRef, TaskId
from ml_backend.services.connecting import hotkeys
from ml_backend.services.connecting.doctor import CHECKS, Finding, doctor
from tests.contract.conftest import CONFIG, Rush
from tests.ports import free_port
from tests.serving import serving

RED = b"\x89PNG\r\n\x1a\n some bytes are enough here"


def examine(rush: Rush, ref: ProjectRef, **options: Any) -> list[Finding]:
    chosen: dict[str, Any] = {"workers": lambda: "", "ask": False}
    return doctor(ref, rush.studio, rush.state, rush.settings, **chosen | options)


def broken(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings if finding.ok is False}


def text(finding: Finding) -> str:
    return f"{finding.problem} {finding.value} {finding.fix}"


@pytest.fixture
def ref(rush: Rush) -> ProjectRef:
    ref = rush.project()
    rush.connect(ref)
    hotkeys.set_accept_key(rush.studio)
    return ref


@contextmanager
def image_host(**headers: str) -> Iterator[str]:
    """An origin of its own that serves one image."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path.endswith(".png") else 404)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(RED)

        def log_message(self, *arguments: Any) -> None: ...

    with serving(Handler) as address:
        yield address


def test_a_connected_project_is_well(rush: Rush, ref: ProjectRef) -> None:
    uploaded = upload(rush, ref)
    rush.fill(ref, [3.0, 1.0, 2.0], [uploaded] * 3)
    seen: list[Finding] = []
    findings = examine(rush, ref, ask=True, progress=seen.append)
    assert seen == findings
    assert [finding.check for finding in findings] == [name for name, _ in CHECKS]
    assert [finding for finding in findings if finding.ok is not True] == []


def upload(rush: Rush, ref: ProjectRef) -> str:
    """The address of an image that Label Studio itself serves."""
    path = f"/api/projects/{ref.id}/import"
    rush.studio.call("POST", path, files={"image": ("red.png", RED, "image/png")})
    tasks = rush.studio.call("GET", "/api/tasks/", params={"project": ref.id, "fields": "all"})["tasks"]
    rush.studio.call("DELETE", f"/api/tasks/{tasks[0]['id']}/")
    return str(next(iter(tasks[0]["data"].values())))


SETTINGS: dict[str, tuple[dict[str, Any], str, str]] = {
    "sampling": ({"sampling": "Sequential sampling"}, "sampling", "Uncertainty sampling"),
    "many": ({"maximum_annotations": 2}, "annotations per task", "maximum_annotations"),
    "hidden": ({"show_collab_predictions": False}, "shown predictions", "prelabel"),
    "version": ({"model_version": ""}, "model version", "rush"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_a_wrong_project_setting_is_named_and_repaired(rush: Rush, ref: ProjectRef, case: str) -> None:
    fields, check, word = SETTINGS[case]
    rush.studio.update_project(ref.id, **fields)
    found = broken(examine(rush, ref))
    assert word in found[check].fix
    assert f"rush connect --project {ref.id}" in found[check].fix
    rush.connect(ref)
    assert broken(examine(rush, ref)) == {}


def test_a_label_config_with_nothing_to_predict_is_named(rush: Rush, ref: ProjectRef) -> None:
    text_only = '<View><Text name="t" value="$text"/><TextArea name="a" toName="t"/></View>'
    rush.studio.update_project(ref.id, label_config=text_only)
    assert broken(examine(rush, ref))["label config"].fix


def test_a_missing_project_stops_the_rest(rush: Rush) -> None:
    findings = examine(rush, ProjectRef(rush.container.origin, 999_999))
    assert set(broken(findings)) == {"project"}
    assert all(f.ok is None for f in findings if f.check not in ("token", "project"))


# ---- tokens


def with_token(rush: Rush, token: str) -> Rush:
    settings = rush.settings.model_copy(update={"label_studio_api_key": SecretStr(token)})
    return Rush(settings, rush.container, HttpLabelStudio(rush.container.origin, token))


def jwt(**claims: Any) -> str:
    def part(value: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    return f"{part({'alg': 'HS256'})}.{part(claims)}.c2ln"


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("", "is not set"),
        ("f" * 40, "does not know this legacy token"),
        (jwt(token_type="access", exp=2**33), "short-lived access token"),
        (jwt(token_type="refresh", exp=1_600_000_000), "expired. on 2020"),
        (jwt(token_type="refresh", exp=2**33), "does not accept this personal access token"),
    ],
)
def test_every_kind_of_wrong_token_is_told_apart(rush: Rush, ref: ProjectRef, token: str, words: str) -> None:
    other = with_token(rush, token)
    findings = examine(other, ref)
    other.studio.close()
    assert set(broken(findings)) == {"token"}
    assert words in text(findings[0])
    assert all(finding.ok is None for finding in findings[1:])
    assert not token or token not in text(findings[0])


def test_switched_off_kinds_of_tokens_and_revoked_ones_are_named(rush: Rush, ref: ProjectRef) -> None:
    call = rush.studio.call
    personal = with_token(rush, call("POST", "/api/token/")["token"])
    assert broken(examine(personal, ref)) == {}
    allowed = {"api_tokens_enabled": True, "legacy_api_tokens_enabled": True}
    call("POST", "/api/jwt/settings", json=allowed | {"api_tokens_enabled": False})
    assert "switched personal access tokens off" in text(broken(examine(personal, ref))["token"])
    call("POST", "/api/jwt/settings", json=allowed | {"legacy_api_tokens_enabled": False})
    try:
        assert "switched legacy tokens off" in text(broken(examine(rush, ref))["token"])
    finally:
        personal.studio.call("POST", "/api/jwt/settings", json=allowed)
    secret = personal.settings.label_studio_api_key.get_secret_value()
    call("POST", "/api/token/blacklist/", json={"refresh": secret})
    revoked = with_token(rush, secret)
    assert "was revoked" in text(broken(examine(revoked, ref))["token"])
    for each in (personal, revoked):
        each.studio.close()


# ---- backend and webhook


def test_a_dead_backend_is_named(rush: Rush, ref: ProjectRef) -> None:
    port = free_port()
    lost = Rush(rush.settings.model_copy(update={"port": port}), rush.container, rush.studio)
    found = broken(examine(lost, ref))
    assert str(port) in found["backend"].problem
    assert "another address" in found["ML backend"].problem
    assert "another address" in found["webhook"].problem


def test_a_backend_that_only_label_studio_cannot_reach_is_named(
    rush: Rush, ref: ProjectRef, label_studio: LocalLabelStudio
) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    with closing(sqlite3.connect(label_studio.folder / "label_studio.sqlite3")) as database, database:
        database.execute("UPDATE ml_mlbackend SET url = ? WHERE project_id = ?", (dead, ref.id))
    lost = Rush(rush.settings.model_copy(update={"public_url": dead}), rush.container, rush.studio)
    found = broken(examine(lost, ref))["ML backend state"]
    assert found.value == "nothing answers there"
    assert "RUSH_PUBLIC_URL" in found.fix
    assert "another address" in broken(examine(rush, ref))["ML backend"].problem
    rush.connect(ref)
    assert broken(examine(rush, ref)) == {}


def test_a_wrong_title_and_a_missing_row_are_named_and_repaired(rush: Rush, ref: ProjectRef) -> None:
    number, url = rush.backend(ref)["id"], rush.settings.backend_url
    rush.studio.call("PATCH", f"/api/ml/{number}", json={"title": "mine", "url": url, "project": ref.id})
    assert "name must be 'rush'" in broken(examine(rush, ref))["ML backend"].problem
    rush.connect(ref)
    assert broken(examine(rush, ref)) == {}
    rush.studio.call("DELETE", f"/api/ml/{number}")
    found = broken(examine(rush, ref))
    assert found["ML backend"].value == "none"
    assert "model version" in found
    rush.connect(ref)
    assert broken(examine(rush, ref)) == {}


def test_wrong_credentials_are_named_and_repaired(start_rush: Callable[..., Rush]) -> None:
    guarded = start_rush(basic_auth_user="ls", basic_auth_password="right", webhook_secret="secret")
    ref = guarded.project()
    guarded.connect(ref)
    assert broken(examine(guarded, ref)) == {}
    hook = guarded.webhook(ref)
    patch = {"url": hook["url"], "headers": {"X-Rush-Secret": "old"}}
    guarded.studio.call("PATCH", f"/api/webhooks/{hook['id']}/", json=patch)
    found = broken(examine(guarded, ref))
    assert "X-Rush-Secret" in found["webhook"].problem
    assert "did not arrive" in found["webhook event"].problem
    guarded.connect(ref)
    assert broken(examine(guarded, ref)) == {}
    stranger = guarded.settings.model_copy(update={"basic_auth_password": SecretStr("wrong")})
    found = broken(doctor(ref, guarded.studio, guarded.state, stranger, ask=False))
    assert "RUSH_BASIC_AUTH_PASSWORD" in found["backend"].fix


WEBHOOKS: dict[str, tuple[dict[str, Any], str]] = {
    "inactive": ({"is_active": False}, "switched off"),
    "no payload": ({"send_payload": False}, "no payload"),
    "few actions": ({"send_for_all_actions": False, "actions": ["TASKS_CREATED"]}, "ANNOTATION_CREATED"),
}


@pytest.mark.parametrize("case", WEBHOOKS)
def test_a_wrong_webhook_is_named_and_repaired(rush: Rush, ref: ProjectRef, case: str) -> None:
    change, words = WEBHOOKS[case]
    hook = rush.webhook(ref)
    rush.studio.call("PATCH", f"/api/webhooks/{hook['id']}/", json={"url": hook["url"], **change})
    assert words in text(broken(examine(rush, ref))["webhook"])
    rush.connect(ref)
    assert broken(examine(rush, ref)) == {}


def test_a_missing_and_a_doubled_webhook_are_named_and_repaired(rush: Rush, ref: ProjectRef) -> None:
    hook = rush.webhook(ref)
    rush.studio.call("POST", "/api/webhooks/", json={"project": ref.id, "url": hook["url"]})
    assert "more than once" in broken(examine(rush, ref))["webhook"].problem
    rush.connect(ref)
    assert broken(examine(rush, ref)) == {}
    rush.studio.call("DELETE", f"/api/webhooks/{rush.webhook(ref)['id']}/")
    assert "no webhook" in broken(examine(rush, ref))["webhook"].problem
    rush.connect(ref)
    assert broken(examine(rush, ref)) == {}


def test_absent_workers_and_an_unknown_project_are_named(rush: Rush) -> None:
    ref = rush.project()
    found = broken(examine(rush, ref, workers=lambda: "no worker listens"))
    assert found["workers"].value == "no worker listens"
    assert f"rush connect --project {ref.id}" in found["project state"].fix
    not_run = {finding.check: finding for finding in examine(rush, ref, workers=None)}["workers"]
    assert not_run.ok is None
    assert not_run.problem


# ---- queue


def test_an_empty_window_is_named(rush: Rush, ref: ProjectRef) -> None:
    rush.studio.import_tasks(ref.id, [{"data": {"image": "/data/upload/1.png"}}] * 2)
    found = broken(examine(rush, ref))["queue"]
    assert found.value.startswith("2 tasks")
    assert f"rush sync --project {ref.id}" in found.fix


def test_several_rows_and_scores_unknown_to_rush_are_named(rush: Rush, ref: ProjectRef) -> None:
    tasks = rush.fill(ref, [1.0, 2.0])
    rush.studio.create_prediction(ref.id, tasks[1], -5.0, [])
    found = broken(examine(rush, ref))
    assert str(tasks[1]) in found["predictions per task"].value
    assert found["queue in step"].warning


def test_clusters_and_empty_scores_are_named(rush: Rush, ref: ProjectRef) -> None:
    task = rush.fill(ref, [1.0])[0]
    row = {"project": ref.id, "task": task, "result": [], "model_version": "rush"}
    rush.studio.call("POST", "/api/predictions/", json={**row, "score": 0.5, "cluster": 3})
    rush.studio.call("POST", "/api/predictions/", json={**row, "score": None})
    found = broken(examine(rush, ref))
    assert "1 predictions" in found["prediction clusters"].value
    assert "prediction scores" in found


def test_project_members_that_make_the_order_random_are_named(
    rush: Rush, ref: ProjectRef, label_studio: LocalLabelStudio
) -> None:
    rush.fill(ref, [float(number) for number in range(40)])
    assert "next task" not in broken(examine(rush, ref, ask=True))
    with closing(sqlite3.connect(label_studio.folder / "label_studio.sqlite3")) as database, database:
        columns = "enabled, created_at, updated_at, project_id, user_id"
        insert = f"INSERT INTO projects_projectmember ({columns}) VALUES (1, 'now', 'now', ?, ?)"
        database.execute(insert, (ref.id, 1))
        database.execute(insert, (ref.id, other_user(database)))
    # random order serves the front by chance, too: once in forty
    found = itertools.chain.from_iterable(examine(rush, ref, ask=True) for _ in range(3))
    finding = broken(list(found))["next task"]
    assert "number" in finding.value
    assert f"ProjectMember.objects.filter(project_id={ref.id}).delete()" in finding.fix


def other_user(database: sqlite3.Connection) -> int:
    database.row_factory = sqlite3.Row
    row = dict(database.execute("SELECT * FROM htx_user WHERE id = 1").fetchone())
    row |= {"id": 77, "email": "other@example.com", "username": "other"}
    names = ", ".join(row)
    marks = ", ".join("?" * len(row))
    database.execute(f"INSERT OR IGNORE INTO htx_user ({names}) VALUES ({marks})", list(row.values()))
    return 77


def test_a_task_that_the_user_has_open_is_no_fault(rush: Rush, ref: ProjectRef) -> None:
    tasks = rush.fill(ref, [1.0, 2.0])
    assert rush.studio.next_task(ref.id) == tasks[0]
    finding = next(f for f in examine(rush, ref, ask=True) if f.check == "next task")
    assert finding.ok is None
    assert str(tasks[0]) in finding.problem


def test_the_accept_key_is_a_warning(rush: Rush, ref: ProjectRef) -> None:
    rush.studio.call("PATCH", "/api/current-user/hotkeys/", json={"custom_hotkeys": {}})
    assert broken(examine(rush, ref))["accept key"].warning


# ---- images


def images(rush: Rush, ref: ProjectRef, *urls: str) -> list[TaskId]:
    return rush.fill(ref, [float(number) for number in range(len(urls))], list(urls))


def test_images_that_the_backend_cannot_read_are_named(rush: Rush, ref: ProjectRef) -> None:
    with image_host(Access_Control_Allow_Origin="*") as host:
        tasks = images(rush, ref, f"{host}/1.png", "/data/upload/gone.png")
        problems = [text(f) for f in examine(rush, ref) if f.check == "images"]
    assert len(problems) == 2
    assert "RUSH_ALLOWED_HOSTS" in problems[0]
    assert f"task {tasks[1]}" in problems[1]


def test_a_task_without_the_image_key_is_named(rush: Rush, ref: ProjectRef) -> None:
    rush.studio.update_project(ref.id, label_config="<View></View>")
    rush.studio.import_tasks(ref.id, [{"data": {"picture": "/data/upload/1.png"}}])
    rush.studio.update_project(ref.id, label_config=CONFIG.replace("$image", "$picture"))
    rush.studio.import_tasks(ref.id, [{"data": {"picture": ""}}])
    assert any("has no image" in f.problem for f in examine(rush, ref) if f.check == "images")


@pytest.mark.parametrize("allowed", ["*", "own", "other", None])
def test_missing_cors_headers_are_named(rush: Rush, ref: ProjectRef, allowed: str | None) -> None:
    value = {"own": rush.container.origin, "other": "http://elsewhere.example"}.get(allowed or "", allowed)
    with image_host(**({"Access_Control_Allow_Origin": value} if value else {})) as host:
        images(rush, ref, f"{host}/1.png")
        found = broken(examine(rush, ref)).get("images in the browser")
    if allowed in ("*", "own"):
        assert found is None
    else:
        assert found is not None
        assert f"Access-Control-Allow-Origin: {rush.container.origin}" in found.fix


# ---- a Label Studio that protects private addresses


class Protected(LocalLabelStudio):
    switches: dict[str, str]

    def _environment(self) -> dict[str, str]:
        return super()._environment() | self.switches


@pytest.mark.parametrize(
    ("switches", "named", "silent"),
    [
        ({"SSRF_PROTECTION_ENABLED": "true"}, "SSRF_PROTECTION_ENABLED", "ML_BLOCK_LOCAL_IP"),
        ({"ML_BLOCK_LOCAL_IP": "true"}, "ML_BLOCK_LOCAL_IP", "SSRF_PROTECTION_ENABLED"),
    ],
)
def test_the_two_switches_are_told_apart(
    rush: Rush,
    label_studio: LocalLabelStudio,
    tmp_path: Path,
    switches: dict[str, str],
    named: str,
    silent: str,
) -> None:
    folder = tmp_path / "label-studio"
    shutil.copytree(label_studio.folder, folder, ignore=shutil.ignore_patterns("lock", "*.log"))
    server = Protected(
        folder,
        free_port(),
        python_env=label_studio.executable.parents[1],
        email=label_studio.email,
        password=label_studio.password,
        token=label_studio.token,
        files_root=tmp_path / "files",
    )
    server.switches = switches
    server.start(print)
    settings = rush.settings.model_copy(update={"label_studio_url": server.url})
    studio = HttpLabelStudio(server.url, server.token)
    try:
        made = studio.call("POST", "/api/projects/", json={"title": "Guarded", "label_config": CONFIG})
        other = Rush(settings, rush.container, studio)
        ref = ProjectRef(server.url, made["id"])
        found = broken(examine(other, ref))
        assert f"{named}=false" in found[named].fix
        assert silent not in found
        with pytest.raises(LabelStudioError, match=f"{named}=false"):
            other.connect(ref)
    finally:
        studio.close()
        server.stop()


def test_the_page_about_connecting_lists_every_check_in_order() -> None:
    page = (Path(__file__).parents[2] / "docs" / "connect.md").read_text(encoding="utf-8")
    table = page.partition("| check |")[2].split("\n\n")[0]
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == [name for name, _ in CHECKS]


def test_a_label_studio_that_recounts_the_project_for_each_bulk_request_is_told_the_flag(
    rush: Rush, ref: ProjectRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = rush.studio.call

    def recounting(method: str, path: str, **request: Any) -> Any:
        if path.endswith("/import/predictions"):
            time.sleep(1.0)
        return call(method, path, **request)

    monkeypatch.setattr(rush.studio, "call", recounting)
    found = broken(examine(rush, ref))["bulk requests"]
    assert found.warning
    assert "fflag_fix_back_4620_memory_efficient_predictions_import_08012025_short=true" in text(found)
