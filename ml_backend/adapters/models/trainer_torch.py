"""The head: one linear layer into 64 dimensions and one prototype per class, fitted on cached features."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize

from ml_backend.adapters.models.devices import torch_device
from ml_backend.domain.generation import Array, Floats, Head

STEPS = 50
BATCH = 1024
SCALE = 6.0
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 1e-4


class TorchTrainer:
    """``ports.Trainer``: cosine cross-entropy (multiple: one sigmoid per class), weights start at the PCA.

    ``device`` is as for ``torch_device``.
    The time does not depend on the number of labels: 50 steps of at most 1,024 images.
    """

    def __init__(self, device: str = "auto", steps: int = STEPS) -> None:
        self.device = torch_device(device)
        self._steps = steps

    def fit(self, features: Array, targets: Array, *, multiple: bool, pca: Array, seed: int = 0) -> Head:
        """Return the head of features (n, F) and targets (n,) in 0…C-1, or (n, C) 0/1 where ``multiple``.

        ``pca`` (SPACE_DIM, F) is where the weights start. The same seed and device give the same head.
        """
        x = torch.as_tensor(np.asarray(features, np.float32), device=self.device)
        mean = x.mean(dim=0)
        x = x - mean
        wanted: Any = np.float32 if multiple else np.int64
        y = torch.as_tensor(np.asarray(targets, wanted), device=self.device)
        hot = y if multiple else torch.nn.functional.one_hot(y).float()
        with _one_thread(), torch.enable_grad():
            weight, prototypes, bias = self._descend(x, y, hot, multiple, pca, seed)
        return Head(
            mean=_numpy(mean),
            weight=_numpy(weight),
            prototypes=_numpy(normalize(prototypes, dim=1)),
            bias=_numpy(bias),
            scale=SCALE,
            temperature=1.0,
        )

    def _descend(
        self, x: torch.Tensor, y: torch.Tensor, hot: torch.Tensor, multiple: bool, pca: Array, seed: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        weight = torch.tensor(np.asarray(pca, np.float32), device=self.device)
        # Rows beyond the rank of few images are zero; a zero row with a zero prototype would stay so.
        random = torch.Generator().manual_seed(seed)
        noise = torch.randn(weight.shape, generator=random).to(self.device) / weight.shape[1] ** 0.5
        weight = torch.where(weight.any(dim=1, keepdim=True), weight, 0.1 * noise)
        prototypes = hot.T @ normalize(x @ weight.T, dim=1)
        # A class without an example starts anywhere instead of nowhere.
        start = torch.randn(prototypes.shape, generator=random).to(self.device)
        prototypes = normalize(torch.where(prototypes.any(dim=1, keepdim=True), prototypes, start), dim=1)
        rates = ((hot.sum(dim=0) + 0.5) / (len(hot) + 1)).clamp(1e-3, 1 - 1e-3)
        bias = torch.logit(rates) if multiple else torch.zeros(hot.shape[1], device=self.device)
        parameters = [weight, prototypes, bias] if multiple else [weight, prototypes]
        for parameter in parameters:
            parameter.requires_grad_(True)
        optimiser = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self._steps)
        for _ in range(self._steps):
            rows = _batch(len(x), random, self.device)
            logits = SCALE * normalize(x[rows] @ weight.T, dim=1) @ normalize(prototypes, dim=1).T + bias
            loss = (
                binary_cross_entropy_with_logits(logits, y[rows])
                if multiple
                else cross_entropy(logits, y[rows])
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        return weight, prototypes, bias


@contextmanager
def _one_thread() -> Iterator[None]:
    """A fit in one thread takes 0.35 s with 1,000 labels, in two 0.2 s, or 2 s where the cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _batch(n: int, random: torch.Generator, device: torch.device) -> torch.Tensor | slice:
    if n <= BATCH:
        return slice(None)
    return torch.randint(n, (BATCH,), generator=random).to(device)


def _numpy(tensor: torch.Tensor) -> Floats:
    return np.asarray(tensor.detach().cpu().numpy(), np.float32)
