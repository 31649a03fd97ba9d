"""What Label Studio sends of tasks may be odd: an odd item costs itself, and nothing around it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from ml_backend.adapters.label_studio.client import HttpLabelStudio
from ml_backend.adapters.redis.state import RedisState
from ml_backend.controls import parse_label_config
from ml_backend.domain.model import ProjectRef, TaskRecord
from ml_backend.services.syncing.sync import sync
from tests.fakes import CONFIG
from tests.serving import serving

GOOD: dict[str, Any] = {"id": 1, "data": {"image": "/data/1.png"}, "meta": {}, "annotations": []}
ANSWER = {
    "id": 5,
    "completed_by": 1,
    "result": [
        {"type": "choices", "from_name": "label", "to_name": "image", "value": {"choices": ["a"]}},
    ],
}


@pytest.fixture
def tasks() -> list[Any]:
    return [GOOD]


@pytest.fixture
def predictions() -> list[Any]:
    return []


@pytest.fixture
def studio(tasks: list[Any], predictions: list[Any]) -> Iterator[HttpLabelStudio]:
    class Odd(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
            body: Any = {"id": 1, "label_config": CONFIG}
            if path == "/api/tasks/":
                after = json.loads(query["query"][0])["filters"]["items"][0]["value"]
                ids = [task.get("id") if isinstance(task, dict) else None for task in tasks]
                rest = [
                    task
                    for task, number in zip(tasks, ids, strict=True)
                    if not isinstance(number, int) or number > after
                ]
                body = {"tasks": rest}
            if path == "/api/predictions/":
                body = predictions
            data = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *given: object) -> None: ...

    with serving(Odd) as origin, closing(HttpLabelStudio(origin, "none")) as found:
        yield found


def read(studio: HttpLabelStudio) -> list[TaskRecord]:
    return list(studio.records(1, parse_label_config(CONFIG)))


@pytest.mark.parametrize(
    "odd",
    [
        {"data": ["a", "list"]},
        {"data": "text"},
        {"data": None, "meta": None},
        {"meta": ["a", "list"]},
        {"meta": "text"},
        {"meta": {"rush": ["a", "list"]}},
        {"annotations": {"id": 5}},
        {"annotations": "text"},
        {"annotations": 7},
        {"data": {"image": {"nested": [1]}}},
        {"data": {"image": 7}},
    ],
    ids=str,
)
def test_an_odd_field_of_a_task_costs_no_other_task(
    studio: HttpLabelStudio, tasks: list[Any], state: RedisState, odd: dict[str, Any]
) -> None:
    tasks[:] = [GOOD, {**GOOD, "id": 2, **odd}, {**GOOD, "id": 3, "annotations": [ANSWER]}]
    assert [record.task.id for record in read(studio)] == [1, 2, 3]
    ref = ProjectRef(studio.origin, 1)
    report = sync(ref, studio, state, parse_label_config(CONFIG))
    assert (report.tasks, report.annotations) == (3, 1)
    assert {1, 3} <= {task.id for task in report.to_embed}


@pytest.mark.parametrize("odd", [None, 7, "text", [], {}, {"id": None}, {"id": "x"}], ids=str)
def test_a_row_that_is_no_task_is_left_out(studio: HttpLabelStudio, tasks: list[Any], odd: Any) -> None:
    tasks[:] = [odd, GOOD, odd, {**GOOD, "id": 2}, odd]
    assert [record.task.id for record in read(studio)] == [1, 2]
    tasks[:] = [*[odd] * 500, {**GOOD, "id": 9}]
    assert read(studio)[0].task.id == 9


@pytest.mark.parametrize(
    "odd", [None, 7, {}, {"id": None}, {"id": 6, "completed_by": []}, {"id": -1}, {"id": 2**70}], ids=str
)
def test_an_annotation_that_cannot_be_read_is_named_and_left_out(
    studio: HttpLabelStudio, tasks: list[Any], odd: Any, caplog: pytest.LogCaptureFixture
) -> None:
    tasks[:] = [{**GOOD, "annotations": [odd, ANSWER]}]
    with caplog.at_level(logging.WARNING):
        (record,) = read(studio)
    assert [(a.id, a.labels) for a in record.annotations] == [(5, ("a",))]
    assert "task 1: an annotation is left out" in caplog.text


@pytest.mark.parametrize(
    "odd", [None, 7, "text", [], {"type": "choices", "value": ["a"]}, {"value": None}], ids=str
)
def test_an_odd_region_costs_no_other_region(studio: HttpLabelStudio, tasks: list[Any], odd: Any) -> None:
    tasks[:] = [{**GOOD, "annotations": [{**ANSWER, "result": [odd, *ANSWER["result"]]}]}]  # type: ignore[misc]
    (record,) = read(studio)
    assert [a.labels for a in record.annotations] == [("a",)]


@pytest.mark.parametrize("result", [None, "text", 7, {"type": "choices"}], ids=str)
def test_a_result_that_is_no_list_is_an_answer_without_labels(
    studio: HttpLabelStudio, tasks: list[Any], result: Any
) -> None:
    tasks[:] = [{**GOOD, "annotations": [{**ANSWER, "result": result}]}]
    (record,) = read(studio)
    assert [a.labels for a in record.annotations] == [()]


@pytest.mark.parametrize(
    "odd",
    [
        None,
        7,
        {},
        {"project": 1},
        {"id": 1, "task": 1, "project": 1, "score": "high", "model_version": "rush"},
    ],
    ids=str,
)
def test_an_odd_prediction_costs_no_other(studio: HttpLabelStudio, predictions: list[Any], odd: Any) -> None:
    good = {"id": 8, "task": 1, "project": 1, "score": 0.5, "model_version": "rush"}
    predictions[:] = [odd, good]
    (record,) = read(studio)
    assert [row.id for row in record.predictions] == [8]
