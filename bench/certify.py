"""Annotator seconds until a whole data set is labelled, right and certified, against labelling it by hand.

PYTHONPATH=. python bench/certify.py --mnist mnist-test-10k.npz --cifar10 cifar10-test.tar --cache DIR

With the machine: people label in the order of the strategy, and after the numbers given the backbone is
fine-tuned (``rush train --full``) and published if it is better (on CIFAR-10 at 64 px it was not, so there
are only heads); audits are drawn and answered until a set is certified (``rush audit --of-all``,
``rush certify``); that set is taken over, and people answer what is left. All by the product's own code, on
people who are never wrong and cost what QuickSort/Rush publishes. Each set of labels is asked for by the
strategy with the images in another order (the first as they are), and has a network of its own.
By hand: people answer every image, in random order with and without suggestions, and along chains.
Runs are kept in the cache folder, so a second call goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count, product
from pathlib import Path
from typing import Any, cast

import numpy as np
from common import report
from data import Labelled, cifar10, features, mnist

from ml_backend.adapters.files.features import made_with
from ml_backend.adapters.memory import MemoryFeatures
from ml_backend.adapters.models.embedders import open_embedder
from ml_backend.adapters.models.finetuner import TorchFinetuner
from ml_backend.domain.audit_sample import AuditSample
from ml_backend.domain.events import AuditSampleChanged, GenerationPublished
from ml_backend.domain.model import Annotation, AnnotationId, Task, TaskId, TaskRecord
from ml_backend.domain.simulated_run import Options
from ml_backend.ports import Features, LabelStudio
from ml_backend.services.certification.audit_sample import ask_more, draw_sample
from ml_backend.services.certification.certificate import (
    CertificationStatus,
    NextTarget,
    certification_status,
)
from ml_backend.services.learning.finetune import FinetuningRun
from ml_backend.services.queue.suggest import suggest
from ml_backend.simulation.project import REF, MemoryProject
from strategies.audits.certify import Tested
from strategies.audits.target import Target
from strategies.cost import CORRECT_SECONDS, PAGE_SECONDS
from strategies.simulate import Person, Session, published

CONFIDENCE = 0.95
BACKBONE = "efficientnet-lite0"
AUDIT_SECONDS, REST_SECONDS = 1.4, 1.8
"""Of one audit, class by class, and of one image that is left, as measured here."""
LAST = (100, 200, 300, 500, 1000, 2000, 5000)


class Pictures:
    """The part of Label Studio that a fine-tuning run asks: which images there are, and their bytes."""

    def __init__(self, images: list[bytes]) -> None:
        self.images = images

    def records(self, project: int, control: object = None) -> Iterator[TaskRecord]:
        """Every task with its address."""
        for row in range(len(self.images)):
            yield TaskRecord(Task(TaskId(row + 1), {"image": f"/{row}"}))

    def download(self, url: str, project: int | None = None) -> bytes:
        """The bytes at an address."""
        return self.images[int(url[1:])]


def told(stage: str, done: int, total: int) -> None:
    """Print some of the progress."""
    if done % 100 == 0:
        print(f"{done} of {total} {stage}", flush=True)


def full_round(project: MemoryProject, images: list[bytes], size: int, folder: Path, epochs: int) -> str:
    """Fine-tune, embed all images anew and publish if better; returns the verdict."""
    keys = project.state.tasks(REF)

    def embed(feature_set: str, addresses: object) -> None:
        name, side = made_with(feature_set)
        embedder = open_embedder(name, side, "cpu", folder)
        found = embedder.embed((key, images[task - 1]) for task, key in keys.items())
        rows = np.stack([row for _, row in found if not isinstance(row, Exception)])
        embedder.close()
        stored = MemoryFeatures(list(keys.values()), rows.astype(np.float16))
        project.features[feature_set] = cast(Features, stored)

    outcome = FinetuningRun(
        project.learner,
        project.learner_on,
        embed,
        TorchFinetuner(BACKBONE, size, "cpu", folder, epochs=epochs),
        cast(LabelStudio, Pictures(images)),
        told,
    ).run(REF)
    if outcome.generation is not None:
        project.learner = project.learner_on(outcome.generation.backbone)
        project.project.on_event(GenerationPublished(outcome.generation.number))
    return str(outcome.manifest["full"])


def stands(project: MemoryProject) -> CertificationStatus:
    """What the audits certify by now."""
    sample = project.artifacts.audit_sample(REF)
    assert sample is not None
    return certification_status(sample, project.state.tasks(REF), project.state.annotations(REF))


def wrong_in_order(project: MemoryProject, sample: AuditSample, truth: np.ndarray) -> dict[str, list[int]]:
    """Wrong suggestions among all but the last so many, by confidence alone and by trust score."""
    pool = project.project.pool
    said = suggest(pool, [pool.row_of[TaskId(task)] for task in sample.tasks.tolist()])
    wrong = np.array([int(one.labels[0]) for one in said]) != truth[sample.tasks - 1]
    alone = np.array([one.confidence for one in said])
    found = {}
    for last in (0, *LAST):
        sure = [
            np.argsort(-order, kind="stable")[: len(sample) - last] for order in (alone, sample.confidences)
        ]
        found[str(last)] = [int(wrong[rows].sum()) for rows in sure]
    return found


def worth_more(next_target: NextTarget, accepted: Tested | None) -> bool:
    """Whether more audits probably take people less time than labelling the images that they spare them."""
    spared = next_target.threshold.size - (0 if accepted is None else accepted.threshold.size)
    return next_target.more * AUDIT_SECONDS < spared * REST_SECONDS


def audited(project: MemoryProject, session: Session) -> CertificationStatus:
    """Audits until the whole frame is certified, or more are not worth it: decided where none is waiting."""
    while True:
        while len(project.project.queue.mixing) and session.turn():
            pass
        said = stands(project)
        sure = said.accepted.threshold.size if said.accepted else 0
        print(f"{said.audited} audits of {len(said.sample)}, a set of {sure} certified", flush=True)
        if said.next_target is None or not worth_more(said.next_target, said.accepted):
            return said
        ask_more(REF, project.state, project.artifacts, said.next_target.more)
        project.project.on_event(AuditSampleChanged())


def accept(project: MemoryProject, session: Session, said: CertificationStatus) -> int:
    """Take the certified set over, as ``rush certify --accept`` does with annotations; returns its size."""
    numbers = count(10**9)
    for position in said.rest.tolist():
        task, suggestion = said.suggestion(position)
        made = Annotation(AnnotationId(next(numbers)), task, 0, suggestion.labels, machine=True)
        project.project.annotated(made)
        project.studio.close_task(task)
        session.given[task - 1] = int(suggestion.labels[0])
    return len(said.rest)


def certified(
    name: str,
    stored: np.ndarray,
    truth: np.ndarray,
    images: list[bytes],
    options: argparse.Namespace,
    label_set: int,
    seed: int,
) -> dict[str, Any]:
    """One run with the machine, on this set of labels and with this audit sample of audits; see above."""
    began, size, error, folder = (
        time.time(),
        options.size[name],
        options.error[name],
        options.cache / "networks",
    )
    if label_set:
        order = np.random.default_rng(label_set).permutation(len(truth))
        stored, truth, images = stored[order], truth[order], [images[row] for row in order]
    classes = [str(number) for number in range(int(truth.max()) + 1)]
    project = MemoryProject(stored, classes, np.empty(0, np.int64), options.strategy, Options())
    session = Session(project, truth, [Person()], published, seed=seed)
    marks: dict[str, list[float]] = {}

    def mark(stage: str) -> None:
        marks[stage] = [session.turns, round(session.seconds, 1)]
        print(
            f"{name} {options.strategy} {label_set} {seed}: {stage} {marks[stage]}"
            f" {time.time() - began:.0f} s",
            flush=True,
        )

    verdicts: list[str] = []
    while session.turns < options.labels[name] and session.turn():
        if session.turns in options.tuned[name]:
            verdicts.append(full_round(project, images, size, folder, options.self_epochs))
            print(session.turns, verdicts[-1], flush=True)
    mark("labels")
    project.options = replace(project.options, train_labels=200, rank_every=20)  # for the simulation's speed
    features, target = project.learner.features, Target(error, CONFIDENCE)
    sample = draw_sample(
        REF, project.state, project.artifacts, features, target, share=1.0, seed=seed, of_all=True
    )
    wrong = wrong_in_order(project, sample, truth)
    project.project.on_event(AuditSampleChanged())
    said = audited(project, session)
    taken = 0 if said.accepted is None else accept(project, session, said)
    mark("audits")
    print(f"{said.audited} audits, {taken} taken over", flush=True)
    while session.turn():
        pass
    mark("rest")
    right = float((session.given == truth).mean())
    return {
        "data": name,
        "strategy": options.strategy,
        "set": label_set,
        "seed": seed,
        "tuned": options.tuned[name],
        "verdicts": verdicts,
        "order": wrong,
        "marks": marks,
        "audits": said.audited,
        "accepted": taken,
        "right": right,
        "minutes": session.seconds / 60,
        "certified_error": said.wrong / len(truth),
    }


def by_hand(stored: np.ndarray, truth: np.ndarray, strategy: str, seed: int, train: int) -> dict[str, Any]:
    """Every image answered by a person who sees suggestions."""
    classes = [str(number) for number in range(int(truth.max()) + 1)]
    rounds = Options(train_labels=train, rank_every=train)
    project = MemoryProject(stored, classes, np.empty(0, np.int64), strategy, rounds)
    session = Session(project, truth, [Person()], published, seed=seed)
    while session.turn():
        if session.turns % 1000 == 0:
            print(f"{strategy} by hand: {session.turns}, {session.seconds / 60:.1f} minutes", flush=True)
    return {
        "strategy": strategy,
        "minutes": session.seconds / 60,
        "accepted": session.hits / session.turns,
        "run": session.turns / max(session.runs, 1),
    }


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What is in the file, else what ``make`` returns, which is kept there."""
    if not path.exists():
        found = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))
    return cast(dict[str, Any], json.loads(path.read_text()))


def main() -> None:
    """Run all and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cifar10", type=Path)
    parser.add_argument("--mnist", type=Path)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--sets", type=int, default=2, help="sets of labels")
    parser.add_argument("--seeds", type=int, default=5, help="audit samples for each")
    parser.add_argument("--self-epochs", type=int, default=6, help="as RUSH_SELF_EPOCHS")
    parser.add_argument("--strategies", nargs="+", default=["rush"])
    for name, labels, tuned in (("mnist", 100, [100]), ("cifar10", 600, [])):
        parser.add_argument(f"--{name}-labels", type=int, default=labels)
        parser.add_argument(f"--{name}-tuned", type=int, nargs="*", default=tuned)
    parser.add_argument("--hand", action="store_true", help="also every image by hand, which takes long")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.labels = {"mnist": options.mnist_labels, "cifar10": options.cifar10_labels}
    options.tuned = {"mnist": options.mnist_tuned, "cifar10": options.cifar10_tuned}
    options.size, options.error = {"mnist": 64, "cifar10": 64}, {"mnist": 0.01, "cifar10": 0.1}
    runs, hand = [], []
    for name, path, read in (("mnist", options.mnist, mnist), ("cifar10", options.cifar10, cifar10)):
        if path is None:
            continue
        found: list[Labelled] = list(read(path))
        stored, labels = features(name, iter(found), options.cache)
        truth = np.unique(labels, return_inverse=True)[1]
        images = [data for _, data in found]
        at = options.cache / "certify"
        tuned = "+".join(map(str, options.tuned[name]))
        for number, seed, strategy in product(range(options.sets), range(options.seeds), options.strategies):
            options.strategy = strategy
            last = f"{options.labels[name]}-{tuned}-{options.self_epochs}"
            file = at / f"{name}-{strategy}-{last}-{number}-{seed}.json"
            runs.append(kept(file, lambda: certified(name, stored, truth, images, options, number, seed)))  # noqa: B023
        if options.hand:
            for strategy in ("random", "cluster_chain"):
                file = at / f"{name}-{strategy}-hand.json"
                hand.append({"data": name} | kept(file, lambda: by_hand(stored, truth, strategy, 0, 200)))  # noqa: B023
        alone = len(truth) * (PAGE_SECONDS + CORRECT_SECONDS) / 60
        hand.append({"data": name, "strategy": "random", "suggestions": False, "minutes": alone})
    report("certify", {"runs": runs, "by_hand": hand}, options.out)


if __name__ == "__main__":
    main()
