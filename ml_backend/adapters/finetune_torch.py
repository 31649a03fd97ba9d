"""Fine-tuning a whole backbone: first a classifier on its frozen features, then both together.

Starting from a fitted classifier keeps the first steps from spoiling the pretrained features (Kumar et
al. 2022). The statistics of batch normalisation stay those of the pretraining: a few hundred images are
too few for new ones.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import (
    affine_grid,
    binary_cross_entropy_with_logits,
    cross_entropy,
    grid_sample,
)

from ml_backend.adapters.backbones import backbone, pixels_to_features, weights_path
from ml_backend.adapters.decode import DEFAULT_LIMITS, Limits, decode
from ml_backend.adapters.devices import torch_device
from ml_backend.adapters.features import feature_set
from ml_backend.adapters.pipeline import cpus, in_order
from ml_backend.errors import BadImage
from ml_backend.generation import Array

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
RECIPE = "1"
"""Part of the name of the weights: another recipe trains anew."""
BATCH = 32
LEAST_STEPS = 25
"""Steps between two looks at the watched images, where an epoch is shorter."""
PATIENCE = 1 / 3
"""Share of all looks without a lower loss after which training ends: the first are often worse than none."""
WARM_UP = 0.1
SMOOTHING = 0.1
WEIGHT_DECAY = 0.01
CLASSIFIER_STEPS = 300


class TorchFinetuner:
    """``ports.Finetuner`` with AdamW, a warm-up and a cosine; on a GPU in bfloat16 and channels_last.

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
        learning_rate: float = 2e-4,
    ) -> None:
        self._base, self._size, self._folder, self._limits = base, size, folder, limits
        self._looks, self._rate = looks, learning_rate
        self._device = torch_device(device)

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
                network = self._train(pixels, targets[rows], watched[rows], multiple, progress)
                fresh = Path(folder) / "weights"
                save_file({key: value.contiguous() for key, value in network.items()}, fresh)
                os.replace(fresh, path)
        return feature_set(name, self._size)

    def _digest(self, keys: Sequence[str], targets: Array, watched: Array) -> str:
        text = hashlib.sha256(f"{RECIPE} {self._base} {self._size} {self._looks} {self._rate}".encode())
        for row, key in enumerate(keys):
            text.update(f"{key} {targets[row].tolist()} {bool(watched[row])}\n".encode())
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

    def _train(
        self, pixels: Array, targets: Array, watched: Array, multiple: bool, progress: Progress
    ) -> dict[str, Tensor]:
        module = pixels_to_features(backbone(self._base), self._size).to(self._device)
        module = module.to(memory_format=torch.channels_last)
        shown, watch = np.flatnonzero(~watched), np.flatnonzero(watched)
        y = torch.as_tensor(targets, device=self._device).to(torch.float32 if multiple else torch.int64)
        classes = int(targets.shape[1] if multiple else targets.max() + 1)
        classifier = self._classifier(self._features(module, pixels, shown), y[shown], classes, multiple)

        steps = max(LEAST_STEPS, math.ceil(len(shown) / BATCH))
        total = steps * self._looks
        optimiser = torch.optim.AdamW(
            [
                {"params": module.parameters(), "lr": self._rate},
                {"params": classifier.parameters(), "lr": 10 * self._rate},
            ],
            weight_decay=WEIGHT_DECAY,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step / total))
        random = np.random.default_rng(0)
        best, kept, worse = float("inf"), _weights(module), 0
        for step in range(total + 1):
            if step % steps == 0:
                with torch.no_grad():
                    said = classifier(self._features(module, pixels, watch))
                    loss = float(_loss(said, y[watch], multiple))
                log.debug("step %d: loss %.4f", step, loss)
                if loss < best:
                    best, kept, worse = loss, _weights(module), 0
                else:
                    worse += 1
                if worse > PATIENCE * self._looks or step == total:
                    break
            rows = random.choice(shown, min(BATCH, len(shown)), replace=False)
            with self._autocast():
                features = module(_moved(self._batch(pixels, rows), random))
            error = _loss(classifier(features.float()), y[rows], multiple, SMOOTHING)
            optimiser.zero_grad()
            error.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            progress(step + 1, total)
        progress(total, total)
        return kept

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
        classifier = _Linear(features.mean(dim=0), features.std(dim=0).mean(), classes).to(self._device)
        optimiser = torch.optim.AdamW(classifier.parameters(), lr=1e-2, weight_decay=WEIGHT_DECAY)
        for _ in range(CLASSIFIER_STEPS):
            optimiser.zero_grad()
            _loss(classifier(features), y, multiple, SMOOTHING).backward()
            optimiser.step()
        return classifier


class _Linear(nn.Module):
    mean: Tensor
    spread: Tensor

    def __init__(self, mean: Tensor, spread: Tensor, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("spread", spread.clamp_min(1e-6))
        self.linear = nn.Linear(len(mean), classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.linear((features - self.mean) / self.spread)
        return logits


def _loss(said: Tensor, y: Tensor, multiple: bool, smoothing: float = 0.0) -> Tensor:
    if multiple:
        return binary_cross_entropy_with_logits(said, y * (1 - smoothing) + smoothing / 2)
    return cross_entropy(said, y, label_smoothing=smoothing)


def _rate(done: float) -> float:
    """Linear warm-up, then a cosine to zero; ``done`` is the share of steps taken."""
    if done < WARM_UP:
        return (done + 1e-3) / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (done - WARM_UP) / (1 - WARM_UP))))


def _moved(pixels: Tensor, random: np.random.Generator) -> Tensor:
    """Each picture (n, s, s, 3) shifted, turned, scaled a little; not mirrored: that may change its class."""
    n = len(pixels)
    angle = np.radians(random.uniform(-5, 5, n))
    scale = random.uniform(0.95, 1.05, n)
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    shift = random.uniform(-0.08, 0.08, (2, n))
    rows = np.stack([np.stack([cos, -sin, shift[0]], -1), np.stack([sin, cos, shift[1]], -1)], 1)
    theta = torch.as_tensor(rows, dtype=torch.float32, device=pixels.device)
    images = pixels.permute(0, 3, 1, 2).float()
    grid = affine_grid(theta, list(images.shape), align_corners=False)
    moved = grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    return moved.permute(0, 2, 3, 1)


def _weights(module: nn.Module) -> dict[str, Tensor]:
    state = module.get_submodule("network").state_dict()
    return {key: value.detach().to("cpu", copy=True) for key, value in state.items()}
