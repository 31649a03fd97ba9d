"""What a project says of its people's speed and of what more labels would bring."""

import numpy as np
import pytest

from ml_backend.domain.model import Annotation, AnnotationId, TaskId
from ml_backend.services.queue.pace import cost_model, pace, seconds_per_image


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


def test_images_cost_what_confirming_and_correcting_took_here() -> None:
    right = {n: float(n % 2) for n in range(200)}
    model = cost_model(answers(*[1.0 if n % 2 else 5.0 for n in range(200)]), right)
    assert model is not None
    sure, unsure = seconds_per_image(model, np.array([[1.0, 0.0], [0.5, 0.5]]))
    assert sure == pytest.approx(1.0 + 0.66, rel=0.2)
    assert unsure == pytest.approx(3.0 + 0.66, rel=0.25)


def test_a_few_times_are_no_model() -> None:
    assert cost_model(answers(*[1.0] * 49), dict.fromkeys(range(49), 1.0)) is None
    assert cost_model(answers(*[1.0] * 200), {}) is None  # nobody knows what was suggested
