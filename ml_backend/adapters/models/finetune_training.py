"""How a backbone is fine-tuned: a classifier on its frozen features, both on labels, both on themselves.

Starting from a fitted classifier keeps the first steps from spoiling the pretrained features (Kumar et
al. 2022). The statistics of batch normalisation stay those of the pretraining: a few hundred images are
too few for new ones. Where there are images without a label, self-training follows: what a running mean of
the network is sure of, seeing an image, becomes the label of the same image much changed (FixMatch, Sohn
et al. 2020).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from ml_backend.adapters.models.backbones import backbone, pixels_to_features
from ml_backend.adapters.models.finetune_model import (
    Linear,
    Model,
    Teacher,
    loss_of,
    moved,
    quick_on_cpu,
    rate,
    shaken,
)
from ml_backend.adapters.models.ranks import Progress, Ranks
from ml_backend.domain.generation import Array

log = logging.getLogger(__name__)

BATCH = 32
LEAST_STEPS = 25
"""Steps between two looks at the validation images, where an epoch is shorter."""
SELF_BATCH = 96
"""Images without a label beside the ``BATCH`` labelled ones of a step."""
SURE = 0.95
"""Probability from which on the network's own suggestion counts as a label in self-training."""
PATIENCE = 1 / 3
"""Share of all looks without a lower loss after which training ends: the first are often worse than none."""
SMOOTHING = 0.05
WEIGHT_DECAY = 0.01
CLASSIFIER_STEPS = 300


@dataclass(frozen=True, slots=True)
class Recipe:
    """``base`` network at ``size`` px, ``looks`` at the validation images, ``epochs`` of self-training."""

    base: str
    size: int
    looks: int
    learning_rate: float
    epochs: int


@dataclass(frozen=True, slots=True)
class Taught:
    """The images with a label: their rows among the pixels, targets, and which only say when to stop."""

    rows: Array
    targets: Array
    validation: Array
    multiple: bool


@dataclass(frozen=True, slots=True)
class _Best:
    """The weights of the least loss so far."""

    loss: float
    weights: dict[str, Tensor]


class Training:
    """One network being trained on ``pixels`` (n, size, size, 3) uint8, of which some are ``taught``."""

    def __init__(
        self,
        recipe: Recipe,
        device: torch.device,
        pixels: Array,
        taught: Taught,
        ranks: Ranks,
        progress: Progress,
    ) -> None:
        self._recipe, self._device, self._pixels = recipe, device, pixels
        self._taught, self._ranks, self._progress = taught, ranks, progress
        self._random = np.random.default_rng(ranks.rank)  # other images on each
        self._shown, self._validation = np.flatnonzero(~taught.validation), np.flatnonzero(taught.validation)
        targets = torch.as_tensor(taught.targets, device=device)
        self._targets = targets.to(torch.float32 if taught.multiple else torch.int64)

        module = pixels_to_features(backbone(recipe.base), recipe.size).to(device)
        module = module.to(memory_format=torch.channels_last)
        if device.type == "cpu":
            quick_on_cpu(module)
        self._model = Model(module, self._classifier(module))
        ranks.alike(self._model)

        self._between = max(LEAST_STEPS, math.ceil(len(self._shown) / (BATCH * ranks.size)))
        others = np.setdiff1d(np.arange(len(pixels)), taught.rows)
        self._others = others[:0] if taught.multiple or len(others) < ranks.size else others
        self._others = self._others[ranks.rank :: ranks.size]
        self._steps, self._more = recipe.looks * self._between, 0
        if len(self._others):
            epochs = math.ceil(recipe.epochs * len(self._others) / SELF_BATCH)
            self._more = max(self._steps, epochs)

    def run(self) -> dict[str, Tensor]:
        """Train, and return the backbone's weights of the least loss on the validation images."""
        best = self._on_labels()
        if self._more:
            best = self._on_itself(best)
        self._progress(self._steps + self._more, self._steps + self._more)
        prefix = "module.network."
        return {
            key.removeprefix(prefix): value for key, value in best.weights.items() if key.startswith(prefix)
        }

    def _on_labels(self) -> _Best:
        model = self._model
        best, worse = _Best(self._validation_loss(model), model.weights()), 0
        for step in self._descend(self._taught_loss, self._steps):
            if step % self._between == 0:
                loss = self._validation_loss(model)
                log.debug("step %d: loss %.4f", step, loss)
                worse = 0 if loss < best.loss else worse + 1
                best = _Best(loss, model.weights()) if loss < best.loss else best
                if worse > PATIENCE * self._recipe.looks:
                    break
        return best

    def _on_itself(self, best: _Best) -> _Best:
        self._model.load_state_dict(best.weights)
        teacher = Teacher(self._model)

        def loss() -> Tensor:
            more = self._random.choice(self._others, min(SELF_BATCH, len(self._others)), replace=False)
            batch = self._batch(more)
            with torch.no_grad():
                seen = moved(batch, self._random)
                chance, said = self._says(teacher.model, seen).softmax(dim=1).max(dim=1)
            sure = chance >= SURE
            if not sure.any():
                return self._taught_loss()
            guessed = self._says(self._model, shaken(batch[sure], self._random))
            return self._taught_loss() + loss_of(guessed, said[sure], False) * sure.float().mean()

        for _ in self._descend(loss, self._more, self._steps):
            teacher.follow()
        after = self._validation_loss(teacher.model)
        log.debug("after self-training: loss %.4f, was %.4f", after, best.loss)
        return _Best(after, teacher.model.weights()) if after < best.loss else best

    def _descend(self, loss: Callable[[], Tensor], many: int, before: int = 0) -> Iterator[int]:
        """So many steps, each given once it is done."""
        model = self._model
        optimiser = torch.optim.AdamW(
            [
                {"params": model.module.parameters(), "lr": self._recipe.learning_rate},
                {"params": model.classifier.parameters(), "lr": 10 * self._recipe.learning_rate},
            ],
            weight_decay=WEIGHT_DECAY,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, partial(rate, total=many))
        for step in range(1, many + 1):
            optimiser.zero_grad()
            loss().backward()
            self._ranks.average(model.parameters())
            nn.utils.clip_grad_norm_(model.module.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            self._progress(before + step, self._steps + self._more)
            yield step

    def _taught_loss(self) -> Tensor:
        mine = self._random.choice(self._shown, min(BATCH, len(self._shown)), replace=False)
        batch = moved(self._batch(self._taught.rows[mine]), self._random)
        return loss_of(self._says(self._model, batch), self._targets[mine], self._taught.multiple, SMOOTHING)

    def _validation_loss(self, model: Model) -> float:
        with torch.no_grad():
            said = model.classifier(self._features(model.module, self._taught.rows[self._validation]))
            loss = loss_of(said, self._targets[self._validation], self._taught.multiple)
            return self._ranks.agree(float(loss), self._device)

    def _says(self, model: Model, images: Tensor) -> Tensor:
        """Logits (n, C) of pictures."""
        with self._autocast():
            found = model.module(images)
        logits: Tensor = model.classifier(found.float())
        return logits

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._device.type == "cuda")

    def _batch(self, rows: Array) -> Tensor:
        pixels = self._pixels[np.sort(rows)][np.argsort(np.argsort(rows))]
        return torch.from_numpy(np.ascontiguousarray(pixels)).to(self._device, non_blocking=True)

    @torch.inference_mode()
    def _features(self, module: nn.Module, rows: Array) -> Tensor:
        parts = []
        for start in range(0, len(rows), 2 * BATCH):
            with self._autocast():
                parts.append(module(self._batch(rows[start : start + 2 * BATCH])).float())
        return torch.cat(parts)

    def _classifier(self, module: nn.Module) -> nn.Module:
        """Fit a linear layer on frozen features, centred and scaled as a whole."""
        features = self._features(module, self._taught.rows[self._shown]).clone()  # out of inference mode
        y, multiple = self._targets[self._shown], self._taught.multiple
        classes = int(y.shape[1] if multiple else self._targets.max() + 1)
        classifier = Linear(features.mean(dim=0), features.std(dim=0).mean(), classes).to(self._device)
        optimiser = torch.optim.AdamW(classifier.parameters(), lr=1e-2, weight_decay=WEIGHT_DECAY)
        for _ in range(CLASSIFIER_STEPS):
            optimiser.zero_grad()
            loss_of(classifier(features), y, multiple, SMOOTHING).backward()
            optimiser.step()
        return classifier
