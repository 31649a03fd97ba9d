"""What the audits of an audit sample certify by now, and what it would take to certify more."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ml_backend.controls import Control
from ml_backend.domain.audit_sample import AuditSample
from ml_backend.domain.labels import resolve_labels
from ml_backend.domain.model import Annotation, LabelState, Suggestion, TaskId
from ml_backend.services.certification.audit_sample import thresholds_of
from strategies.audits.certify import (
    MIXTURE,
    Certificate,
    Tested,
    audits_needed,
    certify,
    overall_error,
)
from strategies.audits.target import Threshold
from strategies.cost import busy

LOOKED_AT = 20
"""Sets among those not certified yet that are looked at for the one to aim at."""


@dataclass(frozen=True, slots=True)
class NextTarget:
    """A set that is not certified yet, its audits so far, and how many ``more`` it probably takes.

    ``more`` are audits of the whole frame, if errors come as they came so far.
    """

    threshold: Threshold
    audited: int
    wrong: int
    more: int


@dataclass(frozen=True, slots=True)
class CertificationStatus:
    """Where an audit sample stands.

    ``accepted``: the largest certified set, None so far where there is none. ``rest``: positions in the audit
    sample of its images that nobody has answered; at most ``wrong`` of their suggestions are wrong, a rate of
    ``bound``. That may lie above the target, which is for the whole set or for all labels, where people have
    answered many of those that were right. ``labels``: how many the project will have once people have
    labelled whatever is not certified; fewer than the target counted on where images were skipped or deleted
    since. ``next_target``: the set that spares people most answers for each audit
    that it takes; None where all are certified or too many audits were wrong. ``refuted``: people have found
    more wrong suggestions in a certified set than it may hold: the promise failed, as it may in a few cases.
    ``overall`` bounds the error of people's ``human`` labels and the rest together; ``earlier`` labels that
    were taken over under other certificates are not in it. ``seconds``: mean time of an answer, 0 where
    unknown.
    """

    sample: AuditSample
    certificate: Certificate
    audited: int
    waiting: int
    human: int
    earlier: int
    labels: int
    accepted: Tested | None
    rest: npt.NDArray[np.int64]
    wrong: int
    bound: float
    next_target: NextTarget | None
    refuted: bool
    overall: float
    seconds: float

    @property
    def expected(self) -> float:
        """The bound for all ``labels`` that the project will have."""
        return self.wrong / max(self.labels, 1)

    def suggestion(self, position: int) -> tuple[TaskId, Suggestion]:
        """The task at this position of the audit sample, and what is certified about it."""
        labels = self.sample.answers[int(self.sample.suggested[position])]
        sure = float(self.sample.confidences[position])
        return TaskId(int(self.sample.tasks[position])), Suggestion(labels, sure)


def certification_status(
    sample: AuditSample, tasks: Iterable[TaskId], annotations: Iterable[Annotation], human_error: float = 0.0
) -> CertificationStatus:
    """Hold the frozen suggestions against what people answered.

    ``tasks``: those that still exist. Only audits count for the certificate, in the order of the audit sample
    up to the first that is not answered. One that was skipped or deleted counts as wrong: whatever is hard
    for people must not be left out of the sample. Elsewhere skips and deletions prove nothing about a
    suggestion, so they leave the errors that may be in the rest as they are.
    """
    annotations, there = list(annotations), set(tasks)
    states = resolve_labels(annotations)
    outcomes = _outcomes(sample, there, states)
    unanswered = np.isnan(outcomes)
    audited = int(unanswered.argmax()) if unanswered.any() else len(sample)
    target = sample.target
    sets = thresholds_of(sample)
    certificate = certify(sets, sample.confidences[:audited], outcomes[:audited] == 0, target)
    alive = np.array([int(task) in there for task in sample.tasks.tolist()], bool)
    by_people = alive & ~unanswered
    skipped = {task for task, (state, _) in states.items() if state is LabelState.SKIPPED}
    corrected = by_people & (outcomes == 0) & ~np.isin(sample.tasks, list(skipped))
    accepted, wrong = None, 0
    rest: npt.NDArray[np.int64] = np.empty(0, np.int64)
    for tested in certificate.tested[: None if certificate.failed is None else -1]:
        inside = sample.confidences >= tested.threshold.confidence
        left = np.flatnonzero(inside & alive & ~by_people)
        most = tested.threshold.tolerated - int((inside & corrected).sum())
        if most >= 0:
            accepted, wrong, rest = tested, min(most, len(left)), left
    frame = set(sample.tasks.tolist())
    human = sum(task in there and state is LabelState.LABELLED for task, (state, _) in states.items())
    earlier = {task for task, (state, _) in states.items() if state is LabelState.MACHINE} - frame
    answers = [a for a in annotations if a.lead_time and not a.machine]
    times = np.array([a.lead_time for a in answers], np.float64)
    times = times[busy([a.annotator for a in answers], times)]
    bound = wrong / len(rest) if len(rest) else 0.0
    return CertificationStatus(
        sample=sample,
        certificate=certificate,
        audited=audited,
        waiting=int(unanswered[: sample.count].sum()),
        human=human,
        earlier=len(earlier),
        labels=len(there - earlier - skipped),
        accepted=accepted,
        rest=rest,
        wrong=wrong,
        bound=bound,
        next_target=_next_target(
            sample, sets[len(certificate.tested) - 1 :], outcomes[:audited] == 0, accepted
        )
        if certificate.failed is not None
        else None,
        refuted=certificate.accepted is not None and accepted is None,
        overall=overall_error(len(rest), bound, human, human_error),
        seconds=float(times.mean()) if len(times) else 0.0,
    )


def _outcomes(
    sample: AuditSample, there: set[TaskId], states: Mapping[TaskId, tuple[LabelState, tuple[str, ...]]]
) -> npt.NDArray[np.float64]:
    """(N,) 1 where people say what was suggested, 0 where not or no more there, nan where nobody answered."""
    outcomes = np.full(len(sample), np.nan)
    for position, task in enumerate(sample.tasks.tolist()):
        state, labels = states.get(TaskId(task), (LabelState.OPEN, ()))
        if task not in there or state is LabelState.SKIPPED:
            outcomes[position] = 0.0
        elif state is LabelState.LABELLED:
            said = sample.answers[int(sample.suggested[position])]
            outcomes[position] = float(Control.agrees(said, labels))
    return outcomes


def _next_target(
    sample: AuditSample, sets: Sequence[Threshold], wrong: npt.NDArray[np.bool_], accepted: Tested | None
) -> NextTarget | None:
    """The set to aim at among ``sets``, those from the first that failed; ``wrong`` (n,) of the audits."""
    confidences, target = sample.confidences[: len(wrong)], sample.target
    found: list[NextTarget] = []
    for threshold in sets[:: math.ceil(len(sets) / LOOKED_AT)]:
        inside = confidences >= threshold.confidence
        audited, errors = int(inside.sum()), int(wrong[inside].sum())
        expected = (errors + 1) / (
            audited + MIXTURE / target.rate(threshold.size)
        )  # a few audits prove nothing
        needed = audits_needed(target, expected, threshold.size, audited=audited, wrong=errors)
        if needed is None:
            break  # and none of those that hold this set
        more = math.ceil((needed - audited) * len(sample) / threshold.size)
        more = max(more, found[-1].more if found else 0)  # those before it have to pass too
        found.append(NextTarget(threshold, audited, errors, more))
    certified = 0 if accepted is None else accepted.threshold.size
    spared = [(next_target.threshold.size - certified) / next_target.more for next_target in found]
    return found[int(np.argmax(spared))] if found else None
