"""Label Studio's JSON: real requests parse to what they say, and nothing makes the parsers fall over."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_backend.controls import Choices, parse_label_config
from ml_backend.domain.errors import BadRequest
from ml_backend.domain.events import (
    AnnotationsDeleted,
    AnnotationsSaved,
    Irrelevant,
    ProjectUpdated,
    StudioEvent,
    TasksCreated,
    TasksDeleted,
    TrainingAsked,
)
from ml_backend.domain.model import (
    MODEL_VERSION,
    Annotation,
    PredictionId,
    Suggestion,
    Task,
    TaskId,
)
from ml_backend.domain.provenance import is_marked, mark
from ml_backend.wire import (
    PredictJson,
    SetupJson,
    TaskJson,
    WebhookJson,
    annotation,
    content_key_of,
    coordinates,
    image_of,
    parse,
    place_of,
    prediction,
    project_id,
    score_of,
    webhook,
)

FIXTURES = Path(__file__).parents[1] / "fixtures" / "label_studio_1.23.2"
SPEC = Choices("label", "image", "image", ("cat", "dog", "bird"))
KINDS = {
    "ANNOTATION_CREATED": AnnotationsSaved,
    "ANNOTATION_UPDATED": AnnotationsSaved,
    "ANNOTATIONS_DELETED": AnnotationsDeleted,
    "TASKS_CREATED": TasksCreated,
    "TASKS_DELETED": TasksDeleted,
    "PROJECT_UPDATED": ProjectUpdated,
    "START_TRAINING": TrainingAsked,
}


def event(sent: Any) -> StudioEvent:
    return webhook(sent).event(SPEC)


def saved(name: str) -> tuple[Annotation, ...]:
    found = event(body(name))
    assert isinstance(found, AnnotationsSaved)
    return found.annotations


def body(name: str) -> Any:
    return json.loads((FIXTURES / f"{name}.json").read_text())["body"]


def named(part: str) -> list[str]:
    found = sorted(path.stem for path in FIXTURES.glob(f"*{part}*.json"))
    assert found
    return found


# ---- real requests


def test_a_submit_is_an_annotation() -> None:
    [answer] = saved("submit__0_webhook_ANNOTATION_CREATED")
    assert answer == Annotation(
        id=answer.id,
        task=TaskId(1),
        annotator=1,
        labels=("cat",),
        lead_time=3.21,
        created_at="2026-11-23T00:53:56.126400Z",
        suggested=PredictionId(1),
    )


def test_a_skip_is_an_annotation_without_labels() -> None:
    [answer] = saved("skip__0_webhook_ANNOTATION_CREATED")
    assert (answer.id, answer.task, answer.skipped, answer.labels) == (2, 6, True, ())


@pytest.mark.parametrize(
    "name", ["update__0_webhook_ANNOTATION_UPDATED", "unskip__0_webhook_ANNOTATION_UPDATED"]
)
def test_an_update_is_an_annotation_with_its_new_labels(name: str) -> None:
    [sent] = [body(name)["annotation"]]
    [answer] = saved(name)
    assert (answer.id, answer.task, answer.skipped) == (sent["id"], sent["task"], False)
    assert answer.labels == tuple(sent["result"][0]["value"]["choices"])


def test_deleted_annotations_and_tasks_are_ids() -> None:
    assert event(body("delete__0_webhook_ANNOTATIONS_DELETED")) == AnnotationsDeleted((1,))
    assert event(body("task_delete__0_webhook_TASKS_DELETED")) == TasksDeleted((4001,))


def test_created_tasks_carry_their_data() -> None:
    [task] = (Task(TaskId(4001), {"image": "http://x/y.jpg"}, {}),)
    assert event(body("import1__0_webhook_TASKS_CREATED")) == TasksCreated((task,))


@pytest.mark.parametrize("name", named("webhook"))
def test_every_webhook_names_its_action_project_and_label_config(name: str) -> None:
    hook = webhook(body(name))
    assert hook.action == name.partition("webhook_")[2]
    assert hook.project_id == 1
    assert hook.project is not None
    assert parse_label_config(hook.project.label_config) == SPEC
    assert type(hook.event(SPEC)) is KINDS[hook.action]


def test_an_action_that_is_new_to_us_is_an_event_that_means_nothing() -> None:
    assert event({"action": "SOMETHING_NEW", "project": {"id": 1}}) == Irrelevant("SOMETHING_NEW")


@pytest.mark.parametrize("name", named("_predict"))
def test_every_predict_request_gives_its_tasks_in_order(name: str) -> None:
    sent = body(name)
    request = parse(PredictJson, sent)
    tasks = [parse(TaskJson, task).to_domain() for task in request.tasks]
    assert [task.id for task in tasks] == [task["id"] for task in sent["tasks"]]
    assert all(image_of(task, SPEC) == task.data["image"] for task in tasks)
    assert project_id(request.project) == 1
    assert parse_label_config(request.label_config or "") == SPEC


@pytest.mark.parametrize("name", named("_setup"))
def test_every_setup_request_names_project_config_and_host(name: str) -> None:
    request = parse(SetupJson, body(name))
    assert project_id(request.project) == 1
    assert parse_label_config(request.label_config) == SPEC
    assert request.hostname == "http://127.0.0.1:8085"


# ---- any JSON


def outcome(call: Callable[[], Any]) -> Any:
    """What the call gives, its BadRequest included; any other exception fails the test."""
    try:
        return call()
    except BadRequest as error:
        said = str(error)
    said.encode()
    assert 0 < len(said) < 1000
    return said


texts = st.text(st.characters(exclude_categories=()), max_size=20)  # lone surrogates are JSON, too
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=15,
)
ids = st.integers(-1, 2**64) | json_values
results = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "type": st.just("choices") | json_values,
            "from_name": st.text(max_size=3) | json_values,
            "value": json_values | st.fixed_dictionaries({"choices": json_values}),
        },
    )
    | json_values,
    max_size=3,
)
annotations = json_values | st.fixed_dictionaries(
    {"id": ids, "task": ids},
    optional={
        "completed_by": ids, "result": results | json_values, "was_cancelled": json_values,
        "lead_time": json_values, "created_at": json_values, "parent_prediction": ids,
    },
)  # fmt: skip
tasks = json_values | st.fixed_dictionaries({"id": ids, "data": json_values}, optional={"meta": json_values})
actions = st.sampled_from(
    ["ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_CREATED", "ANNOTATIONS_DELETED",
     "TASKS_CREATED", "TASKS_DELETED", "PROJECT_UPDATED", "START_TRAINING", "SOMETHING_NEW"]
)  # fmt: skip
webhooks = json_values | st.fixed_dictionaries(
    {"action": actions | json_values},
    optional={
        "project": json_values | st.fixed_dictionaries({"id": ids}, optional={"label_config": json_values}),
        "annotation": annotations, "annotations": st.lists(annotations, max_size=3) | json_values,
        "task": tasks, "tasks": st.lists(tasks, max_size=3) | json_values,
    },
)  # fmt: skip


@given(webhooks)
def test_any_webhook_is_an_event_or_a_bad_request(sent: Any) -> None:
    hook = outcome(lambda: webhook(sent))
    if not isinstance(hook, WebhookJson):
        return
    found = outcome(lambda: hook.event(SPEC))
    if not isinstance(found, StudioEvent):
        return
    answers = found.annotations if isinstance(found, AnnotationsSaved) else ()
    created = found.tasks if isinstance(found, AnnotationsSaved | TasksCreated) else ()
    numbers = [n for a in answers for n in (a.id, a.task, a.annotator, a.suggested or 0)]
    numbers += [task.id for task in created]
    numbers += found.annotations if isinstance(found, AnnotationsDeleted) else ()
    numbers += found.tasks if isinstance(found, TasksDeleted) else ()
    numbers.append(hook.project_id or 0)
    assert all(0 <= number < 2**63 for number in numbers), "fits int64 arrays and the database"
    for answer in answers:
        assert not (answer.skipped and answer.labels)
        assert answer.lead_time is None or 0 <= answer.lead_time < float("inf")
        "".join(answer.labels).encode()
    for task in created:
        image_of(task, SPEC).encode()
        content_key_of(task).encode()


@given(
    json_values
    | st.fixed_dictionaries({"tasks": st.lists(tasks, max_size=3)}, optional={"project": json_values})
)
def test_any_predict_or_setup_body_parses_or_is_a_bad_request(sent: Any) -> None:
    for model in (PredictJson, SetupJson):
        request = outcome(lambda model=model: parse(model, sent))
        if isinstance(request, model):
            outcome(lambda request=request: project_id(request.project))
            for task in getattr(request, "tasks", ()):
                outcome(lambda task=task: parse(TaskJson, task).to_domain())


@pytest.mark.parametrize("depth", [10, 500, 20_000])
def test_deeply_nested_values_are_an_event_or_a_bad_request(depth: int) -> None:
    deep: Any = 1
    for _ in range(depth):
        deep = {"result": [deep]}
    for field in ("project", "annotation", "task", "tasks", "annotations"):
        outcome(lambda field=field: event({"action": "ANNOTATION_CREATED", field: deep}))
    picked = {"from_name": "label", "type": "choices", "value": {"choices": [deep]}}
    assert annotation({"id": 1, "task": 1, "result": [picked]}, SPEC).labels == ()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, -0.5, "soon", 10**400])
def test_a_lead_time_that_is_none_is_left_out(value: Any) -> None:
    assert annotation({"id": 1, "task": 2, "lead_time": value}).lead_time is None


@pytest.mark.parametrize(
    ("value", "number"), [("1.1795395114", 1), (7, 7), ("12", 12), (None, None), ("", None)]
)
def test_a_project_is_an_id_or_an_id_and_a_time(value: Any, number: int | None) -> None:
    assert project_id(value) == number


@pytest.mark.parametrize("value", ["x", "-1", "1e9", "²", "9" * 40, -1])
def test_what_is_no_project_is_a_bad_request(value: Any) -> None:
    with pytest.raises(BadRequest, match="project"):
        project_id(value)


# ---- results and scores


@given(
    st.lists(st.text(min_size=1, max_size=10), unique=True, max_size=4),
    st.floats(0, 1),
    st.lists(st.tuples(st.text(max_size=5), st.floats(0, 1)), max_size=8),
)
def test_a_written_result_reads_back_as_its_labels(
    labels: list[str], confidence: float, ranked: list[tuple[str, float]]
) -> None:
    written = SPEC.write(Suggestion(tuple(labels), confidence, tuple(ranked)))
    assert SPEC.read(written) == tuple(labels)
    assert replace(SPEC, from_name="other").read(written) == ()
    assert all(0 <= region["score"] <= 1 for region in written)


@given(st.integers(-(2**40), 2**40), st.integers(-(2**40), 2**40))
def test_scores_keep_the_order_of_places_and_read_back_exactly(one: int, other: int) -> None:
    assert place_of(score_of(one)) == one
    assert (score_of(one) < score_of(other)) == (one < other)
    assert 0 <= score_of(one) <= 1


@given(st.floats(allow_nan=False))
def test_every_score_is_one_that_label_studio_takes(place: float) -> None:
    row = prediction(SPEC, Suggestion(("cat",), 0.5), place)
    assert row["model_version"] == MODEL_VERSION
    assert 0 <= row["score"] <= 1


def test_the_key_that_an_import_left_in_the_meta_is_found() -> None:
    key = "0123456789abcdef" * 2
    rush = coordinates(0.123456, 0.5, 3, 7, key)
    assert rush == {"x": 0.1235, "y": 0.5, "cluster": 3, "generation": 7, "key": key}
    assert content_key_of(Task(TaskId(1), {}, {"rush": rush})) == key
    for other in (
        {},
        {"rush": None},
        {"rush": {"key": 5}},
        {"rush": {"key": "short"}},
        {"rush": {"key": "\ud800" * 32}},
    ):
        assert content_key_of(Task(TaskId(1), {}, other)) == ""


@pytest.mark.parametrize(
    ("value", "address"),
    [("a.png", "a.png"), (["a.png", "b.png"], "a.png"), ([], ""), (None, ""), (5, ""), ({}, "")],
)
def test_the_image_is_a_text_or_the_first_of_a_list(value: Any, address: str) -> None:
    assert image_of(Task(TaskId(1), {"image": value}), SPEC) == address


def marked(labels: tuple[str, ...] = ("cat",)) -> list[dict[str, Any]]:
    return mark(SPEC.write(Suggestion(labels, 0.9)), "3.ab")


def test_what_a_machine_made_says_so_until_a_person_changes_it() -> None:
    body = {"id": 1, "task": 2, "completed_by": 1, "result": marked()}
    found = annotation(body, SPEC)
    assert found.machine
    assert found.labels == ("cat",)
    assert annotation(json.loads(json.dumps(body))).machine
    body["result"][0]["value"] = {"choices": ["dog"]}
    assert not annotation(body).machine
    assert not annotation({**body, "result": SPEC.write(Suggestion(("cat",), 0.9))}).machine
    assert not annotation({**body, "result": marked(), "was_cancelled": True}).machine
    assert not annotation({**body, "result": []}).machine


words = st.sampled_from(["meta", "rush", "certificate", "value", "choices"])
junk = st.recursive(st.none() | st.integers() | st.text(), lambda x: st.dictionaries(words, x), max_leaves=6)


@given(st.lists(junk, max_size=3))
def test_nothing_makes_the_mark_s_reader_fall_over(regions: list[Any]) -> None:
    assert is_marked(regions) in (True, False)
    assert is_marked([*regions, {"type": "choices"}]) is False
