"""Attaching a project to Rush, on a real Label Studio with a real web host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ml_backend.domain.errors import BadRequest, LabelStudioError, UnusableConfig
from ml_backend.services.connecting import hotkeys
from ml_backend.services.connecting.connect import Step, find_or_create
from tests.contract.conftest import CONFIG, Rush


def outcomes(steps: list[Step]) -> dict[str, str]:
    return {step.name: step.outcome for step in steps}


def test_connect_sets_everything_and_keeps_it_the_second_time(rush: Rush) -> None:
    ref = rush.project(maximum_annotations=3, sampling="Sequential sampling", show_collab_predictions=False)
    seen: list[Step] = []
    first = rush.connect(ref, progress=seen.append)
    assert seen == first
    now = rush.studio.project(ref.id)
    assert now["sampling"] == "Uncertainty sampling"
    assert (now["maximum_annotations"], now["show_collab_predictions"]) == (1, True)
    assert now["model_version"] == "rush"
    assert rush.backend(ref)["title"] == "rush"
    assert rush.backend(ref)["state"] == "CO"
    assert rush.webhook(ref)["is_active"]

    again = outcomes(rush.connect(ref))
    assert {again[name] for name in ("label config", "project settings", "ML backend")} == {"kept"}
    assert {again[name] for name in ("model version", "webhook", "accept key")} == {"kept"}
    assert len(rush.studio.call("GET", "/api/ml/", params={"project": ref.id})) == 1
    assert len(rush.studio.call("GET", "/api/webhooks/", params={"project": ref.id})) == 1


def test_the_event_really_arrives_and_the_description_stays(rush: Rush) -> None:
    ref = rush.project(description="What we label here")
    rush.connect(ref)
    seen = float(rush.state.options(ref)["webhook_seen"])
    assert seen > 0
    assert rush.studio.project(ref.id)["description"] == "What we label here"


def test_rows_of_an_earlier_address_are_taken_over(rush: Rush) -> None:
    ref = rush.project()
    url = rush.settings.backend_url
    for title, address in (("rush", url + "/"), ("old", url)):
        rush.studio.call("POST", "/api/ml/", json={"project": ref.id, "title": title, "url": address})
    steps = outcomes(rush.connect(ref))
    rows = rush.studio.call("GET", "/api/ml/", params={"project": ref.id})
    assert [(row["title"], row["url"]) for row in rows] == [("rush", url)]
    assert rush.studio.project(ref.id)["model_version"] == "rush"
    assert steps["ML backend"] == "changed"


def test_a_row_that_label_studio_wrote_twice_is_kept_once(
    rush: Rush, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = rush.project()
    call = rush.studio.call

    def repeated(method: str, path: str, **request: Any) -> Any:
        if (method, path) == ("POST", "/api/ml/"):
            call(method, path, **request)
        return call(method, path, **request)

    monkeypatch.setattr(rush.studio, "call", repeated)
    assert outcomes(rush.connect(ref))["ML backend"] == "done"
    assert len(call("GET", "/api/ml/", params={"project": ref.id})) == 1
    assert outcomes(rush.connect(ref))["ML backend"] == "kept"


def test_a_broken_webhook_is_repaired_and_foreign_ones_stay(rush: Rush) -> None:
    ref = rush.project()
    rush.connect(ref)
    hook = rush.webhook(ref)
    other = {"project": ref.id, "url": "http://127.0.0.1:1/other", "is_active": False}
    rush.studio.call("POST", "/api/webhooks/", json=other)
    copy = {"project": ref.id, "url": hook["url"]}
    rush.studio.call("POST", "/api/webhooks/", json=copy)
    change = {"is_active": False, "send_payload": False, "send_for_all_actions": False, "actions": []}
    rush.studio.call("PATCH", f"/api/webhooks/{hook['id']}/", json=change)
    assert outcomes(rush.connect(ref))["webhook"] == "changed"
    rows = rush.studio.call("GET", "/api/webhooks/", params={"project": ref.id})
    assert sorted(row["url"] for row in rows) == sorted([hook["url"], other["url"]])
    mended = rush.webhook(ref)
    assert mended["is_active"]
    assert mended["send_payload"]
    assert mended["send_for_all_actions"]


def test_password_and_secret_are_set_and_work(start_rush: Callable[..., Rush]) -> None:
    guarded = start_rush(basic_auth_user="ls", basic_auth_password="pass", webhook_secret="s3cret")
    ref = guarded.project()
    assert outcomes(guarded.connect(ref))["webhook event"] == "done"
    assert guarded.webhook(ref)["headers"] == {"X-Rush-Secret": "s3cret"}
    assert guarded.backend(ref)["basic_auth_user"] == "ls"
    assert guarded.backend(ref)["state"] == "CO"
    assert outcomes(guarded.connect(ref))["ML backend"] == "kept"


def test_a_wrong_password_is_named(start_rush: Callable[..., Rush]) -> None:
    guarded = start_rush(basic_auth_user="ls", basic_auth_password="pass")
    ref = guarded.project()
    wrong = guarded.settings.model_copy(update={"basic_auth_user": ""})
    guarded.settings, right = wrong, guarded.settings
    with pytest.raises(LabelStudioError, match="RUSH_BASIC_AUTH"):
        guarded.connect(ref)
    guarded.settings = right
    guarded.connect(ref)


def test_a_backend_that_is_not_there_is_named(rush: Rush) -> None:
    ref = rush.project()
    lost = Rush(rush.settings.model_copy(update={"port": 1}), rush.container, rush.studio)
    with pytest.raises(LabelStudioError, match="RUSH_PUBLIC_URL"):
        lost.connect(ref)


def test_an_event_that_does_not_arrive_names_both_switches(
    rush: Rush, start_rush: Callable[..., Rush], monkeypatch: pytest.MonkeyPatch
) -> None:
    guarded = start_rush(webhook_secret="right")
    ref = guarded.project()
    monkeypatch.setattr("ml_backend.services.connecting.label_studio_setup.WEBHOOK_SECONDS", 0.5)
    guarded.settings = guarded.settings.model_copy(update={"webhook_secret": rush.settings.webhook_secret})
    with pytest.raises(LabelStudioError, match=r"SSRF_PROTECTION_ENABLED=false.*ML_BLOCK_LOCAL_IP=false"):
        guarded.connect(ref)


@pytest.mark.parametrize("keys", [{}, {"regions:region:focus": {"key": "alt+f", "active": True}}])
def test_the_accept_key_is_set_beside_the_users_own_keys(rush: Rush, keys: dict[str, Any]) -> None:
    rush.studio.call("PATCH", "/api/current-user/hotkeys/", json={"custom_hotkeys": keys})
    ref = rush.project()
    assert outcomes(rush.connect(ref))["accept key"] == "done"
    now = rush.studio.call("GET", "/api/current-user/hotkeys/")["custom_hotkeys"]
    assert now[hotkeys.ACTION]["key"] == hotkeys.KEY
    assert {name: key for name, key in now.items() if name != hotkeys.ACTION} == keys


def test_an_accept_key_of_the_users_own_is_kept(rush: Rush) -> None:
    mine = {hotkeys.ACTION: {"key": "s", "active": True}}
    rush.studio.call("PATCH", "/api/current-user/hotkeys/", json={"custom_hotkeys": mine})
    step = next(step for step in rush.connect(rush.project()) if step.name == "accept key")
    assert step.outcome == "kept"
    assert "s (your own)" in step.detail
    assert rush.studio.call("GET", "/api/current-user/hotkeys/")["custom_hotkeys"] == mine


def test_the_queue_is_proved_by_asking_and_the_task_is_handed_back(rush: Rush) -> None:
    ref = rush.project()
    assert outcomes(rush.connect(ref))["queue"] == "open"
    tasks = rush.fill(ref, [3.0, -7.0, 1.0])
    step = next(step for step in rush.connect(ref) if step.name == "queue")
    assert (step.outcome, step.detail.split(": ")[1]) == ("done", f"{tasks[1]}, the first of 3")
    first = rush.studio.call("GET", f"/api/tasks/{tasks[1]}/")
    assert not first["annotations"]
    assert not first["is_labeled"]
    assert (
        outcomes(rush.connect(ref))["queue"] == "done"
    )  # nothing is left behind that spoils the second time


def test_a_project_is_created_once(rush: Rush) -> None:
    title = f"Created {rush.settings.port}"
    number, made = find_or_create(rush.studio, title, CONFIG)
    assert made.outcome == "done"
    assert rush.studio.project(number)["label_config"] == CONFIG
    assert find_or_create(rush.studio, f" {title} ", CONFIG)[0] == number
    rush.project(title=title)
    with pytest.raises(BadRequest, match="2 projects"):
        find_or_create(rush.studio, title, CONFIG)


def test_a_short_title_or_an_unusable_config_creates_nothing(rush: Rush) -> None:
    with pytest.raises(BadRequest, match="3 characters"):
        find_or_create(rush.studio, "ab ", CONFIG)
    before = rush.studio.call("GET", "/api/projects/")["count"]
    with pytest.raises(UnusableConfig):
        find_or_create(rush.studio, "No labels at all", "<View/>")
    assert rush.studio.call("GET", "/api/projects/")["count"] == before


def test_a_label_config_is_given_to_a_project_without_one_only(rush: Rush) -> None:
    blank = rush.project(label_config="<View></View>")
    with pytest.raises(UnusableConfig):
        rush.connect(blank)
    assert outcomes(rush.connect(blank, label_config=CONFIG))["label config"] == "changed"
    assert rush.studio.project(blank.id)["label_config"] == CONFIG
    boxes = '<View><Image name="i" value="$image"/><RectangleLabels name="b" toName="i">'
    boxes += '<Label value="cat"/></RectangleLabels></View>'
    made = rush.project(label_config=boxes)
    with pytest.raises(UnusableConfig):
        rush.connect(made, label_config=CONFIG)
    assert rush.studio.project(made.id)["label_config"] == boxes


TWO = """<View><Image name="image" value="$image"/>
<View visibleWhen="choice-selected" whenTagName="kind" whenChoiceValue="b">
<Choices name="why" toName="image"><Choice value="x"/><Choice value="y"/></Choices></View>
<Choices name="kind" toName="image"><Choice value="a"/><Choice value="b"/></Choices>
<Choices name="ground" toName="image" choice="multiple"><Choice value="sand"/><Choice value="snow"/></Choices>
</View>"""


def test_connect_says_what_is_predicted_and_takes_another_control_and_new_names(rush: Rush) -> None:
    ref = rush.project(label_config=TWO)

    def said(**options: Any) -> tuple[str, str]:
        step = next(step for step in rush.connect(ref, ask=False, **options) if step.name == "question")
        return step.outcome, step.detail

    assert said() == ("kept", "predicts kind (one of 2) from data.image; left alone: why, ground")
    changed = "predicts ground (several of 2) from data.image; left alone: why, kind"
    assert said(control="ground") == ("changed", changed)
    assert said() == ("kept", changed)
    assert "renamed: ice=snow" in said(renames=["ice=snow"])[1]
    assert "renamed" not in said(renames=["ice="])[1]
    with pytest.raises(BadRequest, match="'grund'"):
        said(control="grund")
    assert said(control="")[1].startswith("predicts kind")
