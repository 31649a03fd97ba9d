"""The heavy round: fine-tune the backbone itself, embed every image anew, publish only what is better.

The head-only round on the same labels and the same folds is what it has to beat, on images that neither
was trained on. Until then nothing of the old generation is touched; what a killed run had finished
(weights, features) is not done again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

import strategies
from ml_backend.domain.content_hash import content_key
from ml_backend.domain.errors import BadImage, NotReady
from ml_backend.domain.generation import Array, Floats, Generation, judged
from ml_backend.domain.model import ContentKey, ProjectRef, TaskId
from ml_backend.numerics.copies import groups_of
from ml_backend.ports import Finetuner, LabelStudio
from ml_backend.services.embedding.ingest import THREADS, images
from ml_backend.services.learning.maps import fit_pca
from ml_backend.services.learning.rounds import Learner
from ml_backend.services.learning.train import TrainOutcome, folds, kinds_of, standard_error
from ml_backend.wire import image_of
from strategies.pool import Rows

log = logging.getLogger(__name__)

LEAST_LABELS = 50
"""Fewer can't tell whether the new backbone is better."""

UNLABELLED = 20_000
"""Images without a label that are trained on at most; their pixels take 3 GB of disk at 224 × 224."""

Progress = Callable[[str, int, int], None]
"""Hears the stage's name, how much of it is done, and all of it."""


@dataclass(frozen=True, slots=True)
class FinetuningRun:
    """What a round needs: ``learner`` works on the current features, ``learner_on`` on those of a set.

    ``embed`` gives tasks at addresses features of a set, skipping those that have them.
    """

    learner: Learner
    learner_on: Callable[[str], Learner]
    embed: Callable[[str, Mapping[TaskId, str]], object]
    finetuner: Finetuner
    studio: LabelStudio
    progress: Progress

    def run(self, ref: ProjectRef) -> TrainOutcome:
        """Fine-tune and publish if better; NotReady where there are too few labels."""
        current, labelled = self.learner.raw_space(ref), self.learner.labelled(ref)
        multiple = labelled.control.multiple
        kinds = len(np.unique(labelled.targets, axis=0))
        if len(labelled.keys) < LEAST_LABELS or kinds < 2:
            raise NotReady(
                f"{len(labelled.keys)} labels of {kinds} kinds are too few to fine-tune a backbone.",
                f"Label at least {LEAST_LABELS} images of two classes first.",
            )
        plain = self.learner.fit(
            ref, labelled, replace(current, head=None), current.manifest.get("tuned_on", ())
        )
        tasks = [
            (record.task.id, image_of(record.task, labelled.control))
            for record in self.studio.records(ref.id, labelled.control)
        ]
        addresses = {task: address for task, address in tasks if address}

        vectors = current.pca.encode(self.learner.features.get(labelled.keys))
        groups = groups_of(vectors, kinds_of(labelled.targets, multiple=multiple))
        rows, judging = np.arange(len(groups)), folds(labelled.targets, groups, multiple=multiple)
        tuned_on = groups[np.isin(labelled.tasks, current.manifest.get("tuned_on", ()))]
        fair = np.isin(rows, np.concatenate(judging)) & ~np.isin(groups, tuned_on)
        once = np.unique(groups)  # copies of an image go where it goes
        held_out, validating = (
            np.flatnonzero(np.isin(groups, once[chosen]))
            for chosen in split_holdout(
                vectors[once],
                np.zeros(len(once), np.int64) if multiple else labelled.targets[once],
                fair[once],
            )
        )
        shown = np.setdiff1d(rows, held_out)
        validation = np.isin(shown, validating)
        taught = [labelled.tasks[row] for row in shown.tolist()]
        keys_of = self.learner.state.tasks(ref)
        known = set(labelled.keys)
        more = sorted((key, task) for task, key in keys_of.items() if key and key not in known)
        wanted = {task: labelled.keys[row] for task, row in zip(taught, shown.tolist(), strict=True)}
        wanted |= {task: key for key, task in more[:UNLABELLED]}  # content keys are hashes: a random sample
        feature_set = self.finetuner.tune(
            list(wanted.values()),
            self._images(ref, wanted, addresses),
            labelled.targets[shown],
            validation,
            multiple=multiple,
            progress=lambda done, total: self.progress("of fine-tuning", done, total),
        )
        self.embed(feature_set, addresses)

        tuned = self.learner_on(feature_set)
        keys = tuned.embedded(ref)
        base = Generation(
            tuned.artifacts.generation_number(ref) or 0,
            feature_set,
            fit_pca(tuned.features.get(keys)),
            multiple=multiple,
            manifest={"images": len(keys)},
        )
        seen = {int(labelled.tasks[row]) for row in shown}
        full = tuned.fit(ref, labelled.within(tuned.features), base, seen)
        verdict, better = compare(plain.manifest, full.manifest)
        log.info("project %s: %s", ref.id, verdict)
        manifest = {**full.manifest, "full": verdict}
        if full.generation is None or not better:
            return TrainOutcome(None, {**manifest, "why": verdict})
        fresh = replace(full.generation, manifest=manifest)
        tuned.publish(ref, fresh)
        return TrainOutcome(fresh, manifest)

    def _images(
        self, ref: ProjectRef, wanted: Mapping[TaskId, ContentKey], addresses: Mapping[TaskId, str]
    ) -> Iterator[tuple[str, bytes]]:
        """(content key, bytes) of these tasks' images; those that can't be read are left out."""
        keys: dict[str, set[ContentKey]] = {}
        for task, key in wanted.items():
            if task in addresses:
                keys.setdefault(addresses[task], set()).add(key)
        with ThreadPoolExecutor(THREADS, "download") as pool:
            for address, data in images(pool, self.studio, ref, keys):
                if isinstance(data, BadImage):
                    log.warning("project %s: %.160s is left out: %s", ref.id, address, data)
                elif (key := content_key(data)) in keys[address]:
                    yield key, data
                else:  # its label was given to another picture
                    log.warning("project %s: %.160s is left out: it shows another picture.", ref.id, address)


def split_holdout(vectors: Floats, kinds: Array, fair: npt.NDArray[np.bool_]) -> tuple[Rows, Rows]:
    """Rows that judge the network (a fifth) and that say when to stop (a tenth of the others).

    Of unit vectors (n, d) and their kinds (n,), evenly, but as long as there are others none of the first
    half of each kind in farthest-first order (Gonzalez 1985): a style of image that has only one label yet
    is for the network to learn. What judges is therefore rather the ordinary images. First come those
    that are ``fair`` (n,): both the current network and the new one will be judged on them.
    """
    # sklearn's train_test_split(stratify=…) knows no styles within a kind, and refuses a kind of one image.
    random, turn = np.random.default_rng(0), np.empty(len(kinds))
    for kind in np.unique(kinds):
        rows = np.flatnonzero(kinds == kind)
        known = np.zeros(len(rows), bool)
        pool = strategies.Pool(vectors[rows], ~known, known, np.full(len(rows), -1))
        order = rows[strategies.select("diversity", pool, len(rows)).rows]
        first, rest = order[: (len(rows) + 1) // 2], order[(len(rows) + 1) // 2 :]
        turn[first] = 1.0
        turn[random.permutation(rest)] = (np.arange(len(rest)) + random.random()) / len(rows)
        turn[rest] += np.where(fair[rest], 0.0, 0.5)
    order = np.argsort(turn, kind="stable")
    fifth = -(-len(order) // 5)
    return order[:fifth], order[fifth : fifth + len(order[fifth:]) // 10]


def compare(plain: Mapping[str, Any], full: Mapping[str, Any]) -> tuple[str, bool]:
    """What the held-out answers of two rounds say, and whether the second one is better.

    Better is: surer of what is right on the same images (log-loss, which tells more than right and wrong
    where images are few), by more than one standard error of the paired difference, and no fewer right. Both
    rounds must have judged them out of fold.
    """
    both = sorted(judged(plain).keys() & judged(full).keys())
    if not both or "optimistic" in full:
        return "the fine-tuned backbone can't be judged: too few labels were held out", False
    old, new = (np.array([judged(manifest)[task] for task in both]) for manifest in (plain, full))
    before, after = (
        np.array([judged(manifest, "loss")[task] for task in both]) for manifest in (plain, full)
    )
    gain = before - after
    better = bool(gain.mean() > standard_error(gain) and new.mean() >= old.mean())
    return (
        f"fine-tuning the backbone is {'better' if better else 'not better'}: {new.mean():.3f} against "
        f"{old.mean():.3f} right, log-loss {after.mean():.3f} against {before.mean():.3f}, on {len(both)} "
        "images that neither was trained on"
    ), better
