from __future__ import annotations

import json
from typing import get_args

import pytest

from ml_backend.domain.events import (
    AuditSampleChanged,
    ControlChosen,
    Event,
    GenerationPublished,
    Ingested,
    MapPublished,
    Retired,
    StrategyChosen,
    Synced,
    WebhookPassedOn,
    from_text,
    to_text,
)
from ml_backend.domain.model import TaskId

EVENTS = [
    Ingested((TaskId(1), TaskId(2))),
    GenerationPublished(7),
    MapPublished(),
    Synced(),
    StrategyChosen(),
    AuditSampleChanged(),
    Retired(),
    WebhookPassedOn({"action": "ANNOTATION_CREATED", "annotation": {"id": 1}}),
    ControlChosen(),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_every_event_comes_back_as_it_was_sent(event: Event) -> None:
    name, fields = json.loads(json.dumps(to_text(event)))
    assert from_text(name, fields) == event


def test_no_kind_of_event_is_forgotten() -> None:
    assert {type(event) for event in EVENTS} == set(get_args(Event))
    assert len({to_text(event)[0] for event in EVENTS}) == len(EVENTS)


def test_names_are_those_that_older_processes_know() -> None:
    names = [to_text(event)[0] for event in EVENTS]
    assert names == [
        "ingested",
        "generation",
        "projection",
        "synced",
        "strategy",
        "audits",
        "retired",
        "webhook",
        "control",
    ]


def test_an_unknown_name_is_no_event() -> None:
    assert from_text("of-tomorrow", {"x": 1}) is None
