"""Features on a GPU by torch; on a CPU it gives the same features, slowly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from ml_backend.adapters.files.features import feature_set
from ml_backend.adapters.models.backbones import backbone, pixels_to_features
from ml_backend.adapters.models.decode import DEFAULT_LIMITS, Limits, Pixels, decode
from ml_backend.adapters.models.devices import torch_device
from ml_backend.domain.errors import BadImage
from ml_backend.domain.generation import Floats
from ml_backend.prefetch import cpus, in_order


class TorchEmbedder:
    """``ports.Embedder`` in batches: threads decode the next ones while the device computes the last.

    Fine-tuned weights are read from the folder ``cache``. Raises what ``torch_device``,
    ``backbones.backbone`` and ``pixels_to_features`` raise.
    """

    def __init__(
        self,
        backbone_name: str = "efficientnet-lite0",
        size: int = 224,
        device: str = "cuda",
        batch: int = 64,
        threads: int | None = None,
        limits: Limits = DEFAULT_LIMITS,
        cache: Path | None = None,
    ) -> None:
        self._device = torch_device(device)
        spec = backbone(backbone_name, cache)
        self.name = feature_set(spec.name, size)
        self.dim = spec.dim
        self._size = size
        self._batch = batch
        self._limits = limits
        module = pixels_to_features(spec, size).requires_grad_(False)
        self._module = module.to(self._device).to(memory_format=torch.channels_last)
        self._pool = ThreadPoolExecutor(threads or cpus(), "decode")

    def embed(self, images: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, Floats | Exception]]:
        """(name, file bytes) → (name, features (F,)) or (name, BadImage), in order and lazily."""
        with closing(in_order(self._pool, self._decode, images, ahead=3 * self._batch)) as decoded:
            names: list[tuple[str, BadImage | None]] = []
            features = torch.empty(0, self.dim)
            while entries := list(islice(decoded, self._batch)):
                started = self._start([pixels for _, pixels in entries if not isinstance(pixels, BadImage)])
                # Only now wait for the batch before: the device has its next work already.
                yield from _rows(names, features)
                names = [(name, it if isinstance(it, BadImage) else None) for name, it in entries]
                features = started
            yield from _rows(names, features)

    def close(self) -> None:
        """Stop the threads; what is under way is finished, what waits is dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _decode(self, data: bytes) -> Pixels:
        return decode(data, self._size, self._limits)

    @torch.inference_mode()
    def _start(self, pixels: list[Pixels]) -> torch.Tensor:
        if not pixels:
            return torch.empty(0, self.dim)
        cuda = self._device.type == "cuda"
        host = torch.from_numpy(np.stack(pixels))
        batch = (host.pin_memory() if cuda else host).to(self._device, non_blocking=True)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=cuda):
            features: torch.Tensor = self._module(batch)
        return features.float()


def _rows(
    names: list[tuple[str, BadImage | None]], features: torch.Tensor
) -> Iterator[tuple[str, Floats | Exception]]:
    rows = iter(features.cpu().numpy())
    for name, error in names:
        yield name, error or next(rows)
