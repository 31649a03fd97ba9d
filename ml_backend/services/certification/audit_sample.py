"""Draws audits: freezes what the model says of every open task, and puts the tasks in random order."""

from __future__ import annotations

import math
import secrets
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np

from ml_backend.controls import control_of
from ml_backend.domain.audit_sample import AuditSample
from ml_backend.domain.errors import BadRequest, NotFound, NotReady
from ml_backend.domain.events import AuditSampleChanged
from ml_backend.domain.labels import resolve_labels
from ml_backend.domain.model import LabelState, ProjectRef, Suggestion, TaskId
from ml_backend.ports import Artifacts, Features, State
from ml_backend.services.queue.pool import ProjectPool
from ml_backend.services.queue.suggest import suggest
from strategies.audits.certify import MIXTURE, audits_needed
from strategies.audits.plan import plan, thresholds
from strategies.audits.target import Target, Threshold
from strategies.audits.trust import trusted

SHARE = 0.5
"""Share of what people are served that are audits."""


def frozen(
    ref: ProjectRef, state: State, artifacts: Artifacts, features: Features
) -> tuple[list[tuple[TaskId, Suggestion]], int, int]:
    """What the model says now of every open task that it can say something about, and its generation.

    Surest first; ``strategies.audits.trust`` reassigns the scores where an image has one class. And how many
    labels there will be once everything open is labelled, less those that a machine gave. Raises NotReady
    where there is no generation or nothing is suggested.
    """
    generation = artifacts.generation(ref)
    if generation is None:
        raise NotReady(f"Project {ref.id} has no embedded image yet.", "Import images or run rush sync.")
    control = control_of(state.options(ref))
    pool = ProjectPool(ref, control, generation)
    pool.add(state.tasks(ref), features, None)
    pool.load_annotations(state.annotations(ref))
    rows = np.flatnonzero(pool.embedded & (pool.states == LabelState.OPEN)).tolist()
    said = zip(rows, suggest(pool, rows), strict=True)
    known = [(row, suggestion) for row, suggestion in said if suggestion.labels]
    if not known:
        raise NotReady(
            f"Project {ref.id} has no open image with a suggestion.", "Label some first, then draw audits."
        )
    confidences = np.array([suggestion.confidence for _, suggestion in known], np.float32)
    if not control.multiple:
        there = [row for row, _ in known]
        classes = np.array([pool.classes[suggestion.labels[0]] for _, suggestion in known])
        confidences = trusted(confidences, classes, [pool.raw[there], pool.vectors("head")[there]])
    order = np.argsort(-confidences, kind="stable").tolist()
    found = [
        (TaskId(int(pool.ids[known[n][0]])), replace(known[n][1], confidence=float(confidences[n])))
        for n in order
    ]
    labels = int(np.isin(pool.states, (LabelState.OPEN, LabelState.LABELLED)).sum())
    return found, generation.number, labels


def draw_sample(
    ref: ProjectRef,
    state: State,
    artifacts: Artifacts,
    features: Features,
    target: Target,
    *,
    count: int | None = None,
    surest: float | None = None,
    share: float = SHARE,
    hidden: bool = False,
    of_all: bool = False,
    again: bool = False,
    seed: int | None = None,
) -> AuditSample:
    """Freeze the open tasks, put them in random order, publish the audit sample and tell the queue.

    The frame are the ``surest`` share of the open tasks, ``count`` of them audits; by default what
    ``audit_plan.plan`` says: audits of images that won't be taken over anyway would be lost. ``of_all``: the
    target's errors are a share of all labels that there will be, and no more audits are asked for at first
    than would do if all suggestions were right. ``again``: set a sample with answers aside. Raises BadRequest
    for numbers that make no sense and for answers that would be set aside unasked, NotReady where nothing is
    suggested yet.
    """
    _check(share, count, surest)
    previous = artifacts.audit_sample(ref)
    if previous is not None and not again and (lost := answered(ref, state, previous)):
        raise BadRequest(
            f"is needed: audit sample {previous.number} runs, and {lost} of its {previous.count} audits are "
            "answered. A new sample would set them aside.",
            f"What they prove: rush certify --project {ref.id}. More audits of this sample: "
            f"rush audit --project {ref.id} --more N",
            field="again",
        )
    found, generation, labels = frozen(ref, state, artifacts, features)
    target = replace(target, of=labels) if of_all else target
    confidences = np.array([suggestion.confidence for _, suggestion in found], np.float32)
    if surest is None:
        planned = plan(confidences, target)
        size, audits = planned.size, planned.audits
    else:
        size = math.ceil(surest * len(found))
        audits = audits_needed(target, target.rate(size) / MIXTURE, size) or size
    found, confidences = found[:size], confidences[:size]
    audits = min(audits if count is None else count, size)
    flawless = audits_needed(target, 0.0, size) or size
    seed = secrets.randbits(63) if seed is None else seed
    order = np.random.default_rng(seed).permutation(len(found))
    answers = sorted({suggestion.labels for _, suggestion in found})
    position = {labels: n for n, labels in enumerate(answers)}
    sample = AuditSample(
        number=max(artifacts.audit_sample_numbers(ref), default=0) + 1,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=seed,
        generation=generation,
        target=target,
        planned=audits,
        count=min(audits, flawless) if of_all and count is None else audits,
        share=share,
        hidden=hidden,
        answers=tuple(answers),
        tasks=np.array([task for task, _ in found], np.int64)[order],
        suggested=np.array([position[suggestion.labels] for _, suggestion in found], np.int32)[order],
        confidences=confidences[order],
        thresholds=tuple(thresholds(confidences, target, audits)),
    )
    artifacts.publish_audit_sample(ref, sample)
    state.publish(ref, AuditSampleChanged())
    return sample


def answered(ref: ProjectRef, state: State, sample: AuditSample) -> int:
    """How many audits of the sample people have answered or skipped."""
    states = resolve_labels(state.annotations(ref))
    nobody = (LabelState.OPEN, LabelState.MACHINE)
    return sum(task in states and states[task][0] not in nobody for task in sample.audits)


def thresholds_of(sample: AuditSample) -> tuple[Threshold, ...]:
    """The sets to test, in order: those that were fixed with the sample."""
    return sample.thresholds or tuple(thresholds(sample.confidences, sample.target, sample.planned))


def current_sample(ref: ProjectRef, artifacts: Artifacts) -> AuditSample | None:
    """The audit sample that certificates are about, if there is one.

    One of an older version has no thresholds: they are computed at the first look, and kept from then on.
    """
    sample = artifacts.audit_sample(ref)
    if sample is not None and not sample.thresholds:
        sample = replace(sample, thresholds=thresholds_of(sample))
        artifacts.publish_audit_sample(ref, sample)
    return sample


def resume(ref: ProjectRef, state: State, artifacts: Artifacts, number: int) -> AuditSample:
    """Make an audit sample that was set aside the current one; NotFound lists the numbers that there are."""
    sample = artifacts.audit_sample(ref, number)
    if sample is None:
        known = ", ".join(map(str, artifacts.audit_sample_numbers(ref))) or "none"
        raise NotFound(f"Project {ref.id} has no audit sample {number}.", f"It has: {known}.")
    artifacts.publish_audit_sample(ref, sample)
    state.publish(ref, AuditSampleChanged())
    return sample


def ask_more(ref: ProjectRef, state: State, artifacts: Artifacts, more: int) -> AuditSample:
    """Ask for the next ``more`` audits of the current sample, in its order; NotReady without a sample."""
    sample = artifacts.audit_sample(ref)
    if sample is None:
        raise NotReady(f"Project {ref.id} has no audit sample.", f"Run: rush audit --project {ref.id}")
    if more < 1:
        raise BadRequest(f"{more} more audits are none.", "Give a number above 0.")
    longer = replace(sample, count=min(len(sample), sample.count + more))
    artifacts.publish_audit_sample(ref, longer)
    state.publish(ref, AuditSampleChanged())
    return longer


def _check(share: float, count: int | None, surest: float | None) -> None:
    if surest is not None and not 0 < surest <= 1:
        raise BadRequest(
            f"{surest} is outside of (0, 1].", "0.5 draws from the surer half, 1 from all.", field="surest"
        )
    if not 0 < share <= 1:
        raise BadRequest(
            f"{share} is outside of (0, 1].", "0.5 makes every second image an audit.", field="share"
        )
    if count is not None and count < 1:
        raise BadRequest(f"{count} is no number of audits.", "Give a number above 0, or none.", field="count")
