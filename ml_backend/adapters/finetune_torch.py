"""Fine-tuning a whole backbone: first a classifier on its frozen features, then both together.

Starting from a fitted classifier keeps the first steps from spoiling the pretrained features (Kumar et
al. 2022). The statistics of batch normalisation stay those of the pretraining: a few hundred images are
too few for new ones. Where there are images without a label, self-training follows: what a running mean of
the network is sure of, seeing an image, becomes the label of the same image much changed (FixMatch, Sohn
et al. 2020).
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ml_backend.adapters.backbones import backbone, pixels_to_features, weights_path
from ml_backend.adapters.decode import DEFAULT_LIMITS, Limits, decode
from ml_backend.adapters.devices import torch_device
from ml_backend.adapters.features import feature_set
from ml_backend.adapters.finetune_model import Linear, Model, Teacher, loss_of, moved, rate, shaken
from ml_backend.adapters.pipeline import cpus, in_order
from ml_backend.adapters.ranks import Ranks, together
from ml_backend.errors import BadImage
from ml_backend.generation import Array

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
RECIPE = "5"
"""Part of the name of the weights: another recipe trains anew."""
BATCH = 32
LEAST_STEPS = 25
"""Steps between two looks at the watched images, where an epoch is shorter."""
SELF_BATCH = 96
"""Images without a label beside the ``BATCH`` labelled ones of a step."""
GPU_EPOCHS = 20
"""Times that self-training on a GPU sees every image without a label: on MNIST 2 epochs after 200 labels gave
98.6 % right, 5 gave 99.1, 10 gave 99.3."""
SURE = 0.95
"""Probability from which on the network's own suggestion counts as a label in self-training."""
PATIENCE = 1 / 3
"""Share of all looks without a lower loss after which training ends: the first are often worse than none."""
SMOOTHING = 0.05
WEIGHT_DECAY = 0.01
CLASSIFIER_STEPS = 300


class TorchFinetuner:
    """``ports.Finetuner`` with AdamW, a warm-up and a cosine; on a GPU in bfloat16 and channels_last.

    Where there are several GPUs each trains on batches of its own (``processes``, 0: one per GPU).
    Self-training takes ``epochs`` over the images without a label (None: GPU_EPOCHS, without a GPU as few as
    give it the steps that the labels had), never fewer steps than the labels had.
    Keeps the weights of the least loss on the watched images, as safetensors in ``folder``. Raises what
    ``torch_device``, ``backbones.backbone`` and ``pixels_to_features`` raise.
    """

    def __init__(
        self,
        base: str,
        size: int,
        device: str,
        folder: Path,
        limits: Limits = DEFAULT_LIMITS,
        *,
        looks: int = 20,
        learning_rate: float = 4e-4,
        processes: int = 0,
        epochs: int | None = None,
    ) -> None:
        self._base, self._size, self._folder, self._limits = base, size, folder, limits
        self._looks, self._rate = looks, learning_rate
        self._device = torch_device(device)
        gpus = torch.cuda.device_count() if self._device.type == "cuda" else 1
        self._processes = processes or gpus
        by_default = GPU_EPOCHS if self._device.type == "cuda" else 0
        self._epochs = by_default if epochs is None else epochs

    def tune(
        self,
        keys: Sequence[str],
        images: Iterable[tuple[str, bytes]],
        targets: Array,
        watched: Array,
        *,
        multiple: bool,
        progress: Progress = lambda done, total: None,
    ) -> str:
        """Train on (key, file bytes); see the port. Images that can't be decoded are left out."""
        name = f"{self._base}~{self._digest(keys, targets, watched)}"
        path = weights_path(name, self._folder)
        if not path.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._folder) as folder:
                pixels, rows = self._decode(keys, images, Path(folder) / "pixels")
                known = [place for place, row in enumerate(rows) if row < len(targets)]
                teach = [rows[place] for place in known]
                taught = _Taught(np.array(known), targets[teach], watched[teach], multiple)
                fresh = Path(folder) / "weights"
                if self._processes == 1:
                    self._write(Ranks(), pixels, taught, progress, fresh)
                else:
                    given = (self, Path(folder) / "pixels", pixels.shape, taught, fresh)
                    together(self._processes, _on_rank, given, progress)
                os.replace(fresh, path)
        return feature_set(name, self._size)

    def _digest(self, keys: Sequence[str], targets: Array, watched: Array) -> str:
        text = hashlib.sha256(
            f"{RECIPE} {self._base} {self._size} {self._looks} {self._rate} {self._epochs}".encode()
        )
        for row, key in enumerate(keys):
            said = f"{targets[row].tolist()} {bool(watched[row])}" if row < len(targets) else ""
            text.update(f"{key} {said}\n".encode())
        return text.hexdigest()[:8]

    def _decode(
        self, keys: Sequence[str], images: Iterable[tuple[str, bytes]], path: Path
    ) -> tuple[Array, list[int]]:
        """Pixels (n, size, size, 3) uint8 in a file, so that memory holds only what is in use; their rows."""
        row_of = {key: row for row, key in enumerate(keys)}
        rows: list[int] = []
        with ThreadPoolExecutor(cpus(), "decode") as pool, open(path, "wb") as file:
            work = in_order(pool, lambda data: decode(data, self._size, self._limits), images, ahead=64)
            for key, pixels in work:
                if isinstance(pixels, BadImage):
                    log.warning("%s is left out: %s", key, pixels)
                else:
                    file.write(pixels.tobytes())
                    rows.append(row_of[key])
        return np.memmap(path, np.uint8, "r", shape=(len(rows), self._size, self._size, 3)), rows

    def _write(self, ranks: Ranks, pixels: Array, taught: _Taught, progress: Progress, fresh: Path) -> None:
        """Train, and let the first rank write the weights."""
        network = self._train(pixels, taught, progress, ranks)
        if ranks.rank == 0:
            save_file({key: value.contiguous() for key, value in network.items()}, fresh)

    def _train(self, pixels: Array, taught: _Taught, progress: Progress, ranks: Ranks) -> dict[str, Tensor]:
        module = pixels_to_features(backbone(self._base), self._size).to(self._device)
        module = module.to(memory_format=torch.channels_last)
        y = torch.as_tensor(taught.targets, device=self._device)
        y = y.to(torch.float32 if taught.multiple else torch.int64)
        classes = int(y.shape[1] if taught.multiple else y.max() + 1)
        shown, watch = np.flatnonzero(~taught.watched), np.flatnonzero(taught.watched)
        features = self._features(module, pixels, taught.rows[shown])
        classifier = self._classifier(features, y[shown], classes, taught.multiple)
        model = Model(module, classifier)
        ranks.alike(model)

        steps = max(LEAST_STEPS, math.ceil(len(shown) / (BATCH * ranks.size)))
        others = np.setdiff1d(np.arange(len(pixels)), taught.rows)
        rounds = 1 if taught.multiple or len(others) < ranks.size else 2
        others = others[ranks.rank :: ranks.size]
        many = self._looks * steps
        many_more = max(many, math.ceil(self._epochs * len(others) / SELF_BATCH)) if rounds > 1 else 0
        total = many + many_more
        random = np.random.default_rng(ranks.rank)  # other images on each

        def watched_loss(model: Model) -> float:
            with torch.no_grad():
                said = model.classifier(self._features(model.module, pixels, taught.rows[watch]))
                return ranks.agree(float(loss_of(said, y[watch], taught.multiple)), self._device)

        def taught_loss() -> Tensor:
            mine = random.choice(shown, min(BATCH, len(shown)), replace=False)
            batch = moved(self._batch(pixels, taught.rows[mine]), random)
            return loss_of(self._says(model, batch), y[mine], taught.multiple, SMOOTHING)

        def descend(loss: Callable[[], Tensor], many: int, before: int = 0) -> Iterator[int]:
            """So many steps, each given once it is done."""
            optimiser = self._optimiser(model)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, partial(rate, total=many))
            for step in range(1, many + 1):
                optimiser.zero_grad()
                loss().backward()
                ranks.average(model.parameters())
                nn.utils.clip_grad_norm_(module.parameters(), 1.0)
                optimiser.step()
                schedule.step()
                progress(before + step, total)
                yield step

        best = _Best(watched_loss(model), model.weights())
        worse = 0
        for step in descend(taught_loss, many):
            if step % steps == 0:
                loss = watched_loss(model)
                log.debug("step %d: loss %.4f", step, loss)
                worse = 0 if loss < best.loss else worse + 1
                best = _Best(loss, model.weights()) if loss < best.loss else best
                if worse > PATIENCE * self._looks:
                    break
        if rounds > 1:
            model.load_state_dict(best.weights)
            teacher = Teacher(model)

            def both_losses() -> Tensor:
                more = random.choice(others, min(SELF_BATCH, len(others)), replace=False)
                batch = self._batch(pixels, more)
                with torch.no_grad():
                    chance, said = self._says(teacher.model, moved(batch, random)).softmax(dim=1).max(dim=1)
                sure = chance >= SURE
                if not sure.any():
                    return taught_loss()
                guessed = self._says(model, shaken(batch[sure], random))
                return taught_loss() + loss_of(guessed, said[sure], False) * sure.float().mean()

            for _ in descend(both_losses, many_more, many):
                teacher.follow()
            loss = watched_loss(teacher.model)
            log.debug("after self-training: loss %.4f, was %.4f", loss, best.loss)
            best = _Best(loss, teacher.model.weights()) if loss < best.loss else best
        progress(total, total)
        prefix = "module.network."
        return {
            key.removeprefix(prefix): value for key, value in best.weights.items() if key.startswith(prefix)
        }

    def _says(self, model: Model, images: Tensor) -> Tensor:
        """Logits (n, C) of pictures."""
        with self._autocast():
            found = model.module(images)
        logits: Tensor = model.classifier(found.float())
        return logits

    def _optimiser(self, model: Model) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            [
                {"params": model.module.parameters(), "lr": self._rate},
                {"params": model.classifier.parameters(), "lr": 10 * self._rate},
            ],
            weight_decay=WEIGHT_DECAY,
        )

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._device.type == "cuda")

    def _batch(self, pixels: Array, rows: Array) -> Tensor:
        host = torch.from_numpy(np.ascontiguousarray(pixels[np.sort(rows)][np.argsort(np.argsort(rows))]))
        return host.to(self._device, non_blocking=True)

    @torch.inference_mode()
    def _features(self, module: nn.Module, pixels: Array, rows: Array) -> Tensor:
        parts = []
        for start in range(0, len(rows), 2 * BATCH):
            with self._autocast():
                parts.append(module(self._batch(pixels, rows[start : start + 2 * BATCH])).float())
        return torch.cat(parts)

    def _classifier(self, features: Tensor, y: Tensor, classes: int, multiple: bool) -> nn.Module:
        """Fit a linear layer on frozen features, centred and scaled as a whole."""
        features = features.clone()  # out of inference mode
        classifier = Linear(features.mean(dim=0), features.std(dim=0).mean(), classes).to(self._device)
        optimiser = torch.optim.AdamW(classifier.parameters(), lr=1e-2, weight_decay=WEIGHT_DECAY)
        for _ in range(CLASSIFIER_STEPS):
            optimiser.zero_grad()
            loss_of(classifier(features), y, multiple, SMOOTHING).backward()
            optimiser.step()
        return classifier


def _on_rank(
    ranks: Ranks,
    device: str,
    tell: Progress,
    tuner: TorchFinetuner,
    at: Path,
    shape: tuple[int, ...],
    taught: _Taught,
    fresh: Path,
) -> None:
    tuner._device = torch.device(device)
    torch.set_num_threads(max(1, cpus() // ranks.size))
    pixels = np.memmap(at, np.uint8, "r", shape=shape)
    tuner._write(ranks, pixels, taught, tell, fresh)


@dataclass(frozen=True, slots=True)
class _Taught:
    """The images with a label: their rows among the pixels, targets, and which only say when to stop."""

    rows: Array
    targets: Array
    watched: Array
    multiple: bool


@dataclass(frozen=True, slots=True)
class _Best:
    """The weights of the least loss so far."""

    loss: float
    weights: dict[str, Tensor]
