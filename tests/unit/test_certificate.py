"""Where a draw stands, by what people answered; and the promise while a strategy picks what people see."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from ml_backend.cli.certificate_text import duration, percent
from ml_backend.domain.audit_sample import AuditSample
from ml_backend.domain.model import Annotation, AnnotationId, TaskId
from ml_backend.services.certification.certificate import CertificationStatus, certification_status
from strategies.audits.certify import binomial_upper
from strategies.audits.target import Target

LABELS = (("a",), ("b",))


def make(
    count: int,
    *,
    error: float = 0.1,
    confidence: float = 0.9,
    planned: int = 100,
    seed: int = 0,
) -> AuditSample:
    """Tasks 1 … count in random order, all suggested to be "a", the surer the lower their number."""
    order = np.random.default_rng(seed).permutation(count)
    return AuditSample(
        number=1,
        made="2026-01-01",
        seed=seed,
        generation=2,
        target=Target(error, confidence),
        planned=planned,
        count=planned,
        share=0.5,
        hidden=False,
        answers=LABELS,
        tasks=order + 1,
        suggested=np.zeros(count, np.int32),
        confidences=(1 - order / count).astype(np.float32),
    )


def answer(task: int, label: str = "a", *, number: int | None = None, **fields: object) -> Annotation:
    return Annotation(AnnotationId(number or task), TaskId(task), 1, (label,), **{"lead_time": 3.0, **fields})  # type: ignore[arg-type]


def stand(sample: AuditSample, answers: list[Annotation], **more: float) -> CertificationStatus:
    return certification_status(sample, [TaskId(n + 1) for n in range(len(sample))], answers, **more)


def test_right_audits_certify_and_the_rest_is_what_nobody_answered() -> None:
    sample = make(1000)
    found = stand(sample, [answer(task) for task in sample.audits])
    assert found.accepted is not None
    assert found.certificate.failed is None
    assert (found.audited, found.waiting, found.human) == (100, 0, 100)
    assert {found.suggestion(int(n))[0] for n in found.rest} == set(sample.tasks.tolist()) - set(
        sample.audits
    )
    assert found.suggestion(int(found.rest[0]))[1].labels == ("a",)
    assert found.bound == found.wrong / 900
    assert found.wrong == found.accepted.threshold.tolerated == 100
    assert found.overall == pytest.approx(found.wrong / 1000)
    assert found.seconds == 3.0
    assert stand(sample, [answer(t) for t in sample.audits], human_error=0.5).overall > found.overall


def test_no_audit_certifies_nothing_and_says_what_it_takes() -> None:
    sample = make(1000)
    found = stand(sample, [])
    assert (found.accepted, len(found.rest), found.audited, found.waiting) == (None, 0, 0, 100)
    assert found.next_target is not None
    assert 20 <= found.next_target.more <= 300


def test_as_many_audits_as_announced_certify_the_next_set_when_errors_come_as_before() -> None:
    sample = make(1000)
    found = stand(sample, [])
    assert found.next_target is not None
    answers = [answer(task) for task in sample.tasks.tolist()[: found.next_target.more + 10]]
    again = stand(sample, answers)
    assert again.accepted is not None
    assert again.accepted.threshold.size >= found.next_target.threshold.size


def test_what_a_strategy_asked_about_is_no_audit() -> None:
    sample = make(1000)
    chosen = [answer(task) for task in range(1, 1001) if task != sample.audits[0]]
    found = stand(sample, chosen)
    assert (found.audited, found.accepted) == (0, None)


def test_only_the_answered_beginning_of_the_draw_counts() -> None:
    sample = make(1000)
    answers = [answer(task) for task in sample.audits if task != sample.audits[30]]
    assert stand(sample, answers).audited == 30
    assert stand(sample, [*answers, answer(sample.audits[30])]).audited == 100


@pytest.mark.parametrize("how", ["skipped", "deleted", "wrong"])
def test_audits_that_were_skipped_or_deleted_count_as_wrong(how: str) -> None:
    sample = make(1000)
    gone = sample.audits[5:9]
    answers = [answer(task) for task in sample.audits if task not in gone]
    answers += {
        "skipped": [answer(task, skipped=True) for task in gone],
        "deleted": [],
        "wrong": [answer(task, "b") for task in gone],
    }[how]
    there = [TaskId(n + 1) for n in range(1000) if how != "deleted" or n + 1 not in gone]
    even = np.full(1000, 0.5, np.float32)  # one set: the whole draw
    found = certification_status(replace(sample, confidences=even), there, answers)
    (tested,) = found.certificate.tested
    assert (tested.audited, tested.wrong) == (100, 4)


def test_machine_made_annotations_are_no_answers_and_stay_taken_over() -> None:
    sample = make(1000)
    answers = [answer(task) for task in sample.audits]
    before = stand(sample, answers)
    taken = [
        answer(int(before.suggestion(int(n))[0]), number=5000 + int(n), machine=True) for n in before.rest
    ]
    after = stand(sample, [*answers, *taken])
    assert after.rest.tolist() == before.rest.tolist()
    assert (after.human, after.seconds) == (100, 3.0)


def test_labels_of_earlier_certificates_are_told_apart() -> None:
    sample = make(1000)
    tasks = [TaskId(n + 1) for n in range(1100)]
    taken = [answer(1000 + n, machine=True) for n in range(1, 41)]
    found = certification_status(sample, tasks, [*taken, *(answer(task) for task in sample.audits)])
    assert found.earlier == 40
    assert (len(found.rest), found.human) == (900, 100)


def test_a_few_wrong_audits_at_the_beginning_prove_nothing_yet() -> None:
    sample = make(10_000, error=0.01)
    first, *others = sample.audits[:10]
    assert stand(sample, [answer(first, "b"), *map(answer, others)]).next_target is not None


def test_errors_that_people_found_are_no_longer_in_the_rest() -> None:
    sample = make(1000)
    answers = [answer(task) for task in sample.audits]
    before = stand(sample, answers)
    found = [answer(int(before.suggestion(int(n))[0]), "b") for n in before.rest[:10]]
    after = stand(sample, [*answers, *found])
    assert after.wrong == before.wrong - 10
    assert len(after.rest) == len(before.rest) - 10


def test_more_errors_than_tolerated_in_people_s_labels_end_the_certificate() -> None:
    sample = make(1000)
    answers = [answer(task) for task in sample.audits]
    found = [answer(task, "b") for task in range(1, 1001) if task not in sample.audits][:150]
    after = stand(sample, [*answers, *found])
    assert after.accepted is None
    assert after.refuted


def test_where_people_took_the_right_ones_the_rest_s_own_bound_says_so() -> None:
    sample = make(1000)
    found = stand(sample, [answer(task) for task in (*range(1, 701), *sample.audits)])
    assert found.accepted is not None
    assert found.bound == found.wrong / len(found.rest) > sample.target.error
    assert found.wrong == found.accepted.threshold.tolerated


def test_hopeless_suggestions_say_so() -> None:
    sample = make(1000)
    found = stand(sample, [answer(task, "b") for task in sample.audits])
    assert (found.accepted, found.next_target) == (None, None)


def project(random, *, threshold_errors: tuple[float, float], picks: str, delta: float):
    """One project: a strategy picks what it likes beside the audits, and somebody looks all the time.

    Returns whether a certificate was ever given, and whether one was violated for what would be taken over.
    """
    total, planned = 1200, 150
    confidences = random.random(total).astype(np.float32)
    wrong = random.random(total) < np.where(confidences > 0.5, *threshold_errors)
    order = random.permutation(total)
    sample = replace(
        make(total, error=0.06, confidence=1 - delta, planned=planned),
        tasks=order + 1,
        confidences=confidences[order],
    )
    # What people answer beside the audits: easy ones first, hard ones first, or even right ones only.
    liked = {"easy": -confidences, "hard": confidences, "right": wrong - confidences}[picks]
    others = np.argsort(liked)
    answers: dict[int, Annotation] = {}
    given = broken = False
    for audits in range(100, 301, 100):
        for item in [*order[:audits], *others[:audits]]:
            answers[item + 1] = answer(int(item + 1), "b" if wrong[item] else "a")
        found = stand(sample, list(answers.values()))
        if found.accepted is not None and len(found.rest):
            given = True
            really = wrong[sample.tasks[found.rest] - 1]
            broken |= really.sum() > found.wrong
    return given, broken


@pytest.mark.slow
@pytest.mark.parametrize("picks", ["easy", "hard", "right"])
@pytest.mark.parametrize("errors", [(0.02, 0.09), (0.055, 0.055)], ids=str)
def test_the_promise_holds_while_a_strategy_picks_and_people_stop_when_it_suits_them(picks, errors) -> None:
    random, delta, runs = np.random.default_rng(11), 0.2, 40
    outcomes = [project(random, threshold_errors=errors, picks=picks, delta=delta) for _ in range(runs)]
    given, broken = (sum(each) for each in zip(*outcomes, strict=True))
    assert broken <= delta * runs + 3 * math.sqrt(delta * (1 - delta) * runs)
    assert given > 0.4 * runs or errors[0] > 0.05 or picks == "right"


def reduced(random, *, leaves: str, how: str, delta: float):
    """One project with a target of all labels, in which ``leaves`` of the rest go once it is certified.

    Returns whether the bound of all labels was given, and whether it was broken.
    """
    total, planned = 1200, 200
    confidences = random.random(total).astype(np.float32)
    wrong = random.random(total) < np.where(confidences > 0.5, 0.03, 0.12)
    order = random.permutation(total)
    sample = replace(
        make(total, confidence=1 - delta, planned=planned),
        target=Target(0.06, 1 - delta, of=total),
        tasks=order + 1,
        confidences=confidences[order],
    )
    answers = [answer(int(item + 1), "b" if wrong[item] else "a") for item in order[:planned]]
    others = order[planned:]
    liked = {"right": wrong[others], "sure": -confidences[others], "any": random.random(len(others))}[leaves]
    gone = {int(item + 1) for item in others[np.argsort(liked)][: total // 2]}
    tasks = [TaskId(n + 1) for n in range(total) if how == "skipped" or n + 1 not in gone]
    if how == "skipped":
        answers += [answer(task, skipped=True) for task in gone]
    found = certification_status(sample, tasks, answers)
    if found.accepted is None:
        return False, False
    assert found.labels == total - len(gone)
    left = wrong[sample.tasks[found.rest] - 1].sum()
    return True, bool(left > found.wrong or left / found.labels > found.expected)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["skipped", "deleted"])
@pytest.mark.parametrize("leaves", ["right", "sure", "any"])
def test_the_bound_of_all_labels_holds_where_half_of_them_never_come(leaves: str, how: str) -> None:
    random, delta, runs = np.random.default_rng(5), 0.2, 60
    outcomes = [reduced(random, leaves=leaves, how=how, delta=delta) for _ in range(runs)]
    given, broken = (sum(each) for each in zip(*outcomes, strict=True))
    assert broken <= delta * runs + 3 * math.sqrt(delta * (1 - delta) * runs)
    assert given > 0.4 * runs


@pytest.mark.parametrize("how", ["skipped", "deleted"])
def test_skips_and_deletions_are_no_errors_that_people_found(how: str) -> None:
    sample = make(1000)
    answers = [answer(task) for task in sample.audits]
    before = stand(sample, answers)
    gone = [int(before.suggestion(int(n))[0]) for n in before.rest[:850]]
    if how == "skipped":
        after = stand(sample, [*answers, *(answer(task, skipped=True) for task in gone)])
    else:
        there = [TaskId(n + 1) for n in range(1000) if n + 1 not in gone]
        after = certification_status(sample, there, answers)
    assert not after.refuted
    assert (len(after.rest), after.wrong, after.bound) == (50, 50, 1.0)
    assert after.labels == 150


def test_the_share_of_wrong_audits_would_promise_too_much_where_a_strategy_took_the_right_ones() -> None:
    """Why what people answer is taken from both sides of the bound, not just left out of it."""
    random = np.random.default_rng(2)
    sample = replace(make(1000, error=0.1, planned=200), confidences=np.full(1000, 0.5, np.float32))
    wrong = set(random.permutation(1000)[:50].tolist())
    answers = {task: answer(task, "b" if task in wrong else "a") for task in sample.audits}
    answers |= {task: answer(task) for task in range(1, 801) if task not in wrong}
    left = [task for task in range(1, 1001) if task not in answers]
    audited_wrong = sum(task in wrong for task in sample.audits)
    assert binomial_upper(audited_wrong, 200, 0.9) < 0.1 < np.mean([task in wrong for task in left])
    found = stand(sample, list(answers.values()))
    assert found.accepted is not None
    assert found.bound >= np.mean([task in wrong for task in left])


def test_words_for_numbers() -> None:
    assert [percent(x) for x in (0.01, 0.0125, 0.5)] == ["1 %", "1.25 %", "50 %"]
    assert [duration(x) for x in (5, 60, 61, 3000, 7200)] == [
        "1 minute", "1 minute", "2 minutes", "50 minutes", "2.0 hours",
    ]  # fmt: skip
