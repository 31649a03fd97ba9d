"""Features on CPUs by OpenVINO.

Each thread decodes one image and runs it through a stream of its own: simplejpeg, Pillow and OpenVINO release
the GIL, and batches of one were the fastest of 1, 4, 8 and 16.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from ml_backend.adapters.files.features import feature_set
from ml_backend.adapters.models.backbones import Backbone, backbone, pixels_to_features
from ml_backend.adapters.models.decode import DEFAULT_LIMITS, Limits, Pixels, decode
from ml_backend.adapters.models.openvino_quiet import ov
from ml_backend.domain.errors import ServerError
from ml_backend.domain.generation import Floats
from ml_backend.prefetch import HungError, cpus, in_order

PATIENCE = 600.0
"""Seconds that one image may take on a busy machine; longer only takes what stands for ever."""


class OpenVinoEmbedder:
    """``ports.Embedder`` on all CPUs that the process may use, or on ``threads`` of them.

    The network is converted once and kept in the folder ``cache``, from where it loads without torch;
    fine-tuned weights are there too.
    Raises what ``backbones.backbone`` and ``pixels_to_features`` raise.
    """

    def __init__(
        self,
        backbone_name: str = "efficientnet-lite0",
        size: int = 224,
        threads: int | None = None,
        cache: Path | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        spec = backbone(backbone_name, cache)
        self.name = feature_set(spec.name, size)
        self.dim = spec.dim
        self._size = size
        self._limits = limits
        self._threads = threads or cpus()
        core = ov.Core()
        self._compiled = core.compile_model(
            _network(core, spec, size, cache),
            "CPU",
            {
                "NUM_STREAMS": self._threads,
                "INFERENCE_NUM_THREADS": self._threads,
                # Pinned streams of two processes share the first cores and leave the others idle.
                "ENABLE_CPU_PINNING": False,
                # bf16, OpenVINO's choice where the CPU has it, is 1.5 times as fast, but its features are
                # only 0.995 like those of float32: the cache would depend on the machine.
                "INFERENCE_PRECISION_HINT": "f32",
            },
        )
        self._local = threading.local()
        # OpenVINO makes a static of its first inference while the GIL changes hands: several threads that
        # begin at once deadlock with the interpreter now and then. So the first one has no company.
        self._infer(np.zeros((size, size, 3), np.uint8))
        self._pool = ThreadPoolExecutor(self._threads, "embed")

    def embed(self, images: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, Floats | Exception]]:
        """(name, file bytes) → (name, features (F,)) or (name, BadImage), in order and lazily."""
        try:
            yield from in_order(self._pool, self._features, images, 8 * self._threads, PATIENCE)
        except HungError:
            raise ServerError(
                f"Embedding one image with {self.name} took more than {PATIENCE:g} s: OpenVINO hangs.",
                "Start the worker again; images that are embedded stay so.",
            ) from None

    def close(self) -> None:
        """Stop the threads; what is under way is finished, what waits is dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _features(self, data: bytes) -> Floats:
        return self._infer(decode(data, self._size, self._limits))

    def _infer(self, pixels: Pixels) -> Floats:
        request: Any = getattr(self._local, "request", None)
        if request is None:
            request = self._local.request = self._compiled.create_infer_request()
        request.infer({0: pixels[None]}, share_inputs=True)
        return np.array(request.get_output_tensor(0).data[0], np.float32)


def _network(core: ov.Core, spec: Backbone, size: int, cache: Path | None) -> ov.Model:
    if cache is None:
        return _convert(spec, size)
    path = cache / f"{quote(spec.name, safe='~')}-{size}-openvino-{ov.__version__.split('-')[0]}.xml"
    if path.exists():
        try:
            return core.read_model(path)
        except RuntimeError:
            pass  # a damaged file: converted again
    model = _convert(spec, size)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        fresh = Path(folder) / path.name
        ov.save_model(model, fresh, compress_to_fp16=False)
        # The .xml last: a reader that finds it finds its weights too.
        for suffix in (".bin", ".xml"):
            os.replace(fresh.with_suffix(suffix), path.with_suffix(suffix))
    return model


def _convert(spec: Backbone, size: int) -> ov.Model:
    import torch

    module = pixels_to_features(spec, size)
    example = torch.zeros(1, size, size, 3, dtype=torch.uint8)
    model = ov.convert_model(torch.export.export(module, (example,)))
    model.reshape([1, size, size, 3])
    return model
