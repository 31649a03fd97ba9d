"""What a project says of its people's speed and of what more labels would bring."""

from ml_backend.domain import Annotation, AnnotationId, TaskId
from ml_backend.services.pace import pace


def answers(*seconds: float | None) -> list[Annotation]:
    return [
        Annotation(AnnotationId(n), TaskId(n), 1, ("a",), lead_time=time, created_at=f"{n:05}")
        for n, time in enumerate(seconds)
    ]


def test_nothing_is_said_before_anybody_was_timed() -> None:
    assert pace(answers(None, None), {}) == {}
    assert pace([], {"curve": [[10, 0.5], [20, 0.6], [40, 0.7]]}) == {}


def test_pauses_don_t_slow_anybody_down() -> None:
    assert pace(answers(*[1.34] * 50), {}) == {"labels_per_hour": 1800}
    assert pace(answers(*[1.34] * 50, 900.0), {}) == {"labels_per_hour": 1800}


def test_the_newest_answers_count() -> None:
    assert pace(answers(*[9.34] * 500, *[1.34] * 500), {}) == {"labels_per_hour": 1800}


def test_the_next_labels_are_worth_what_the_curve_says() -> None:
    curve = [[n, 1 - 2 * n**-0.5] for n in (50, 100, 200, 400)]
    found = pace(answers(*[1.34] * 50), {"curve": curve})["next_100_labels"]
    assert found == {"points": 1.06, "from": 1.06, "to": 1.06, "minutes": 3.3}
