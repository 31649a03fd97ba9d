"""Which embedder this machine gets."""

from __future__ import annotations

from pathlib import Path

from ml_backend.adapters.models.decode import DEFAULT_LIMITS, Limits
from ml_backend.domain.errors import BadRequest
from ml_backend.ports import Embedder


def open_embedder(
    backbone: str = "efficientnet-lite0",
    size: int = 224,
    device: str = "auto",
    cache: Path | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Embedder:
    """Return torch's embedder where there is a GPU, OpenVINO's elsewhere; ``cuda`` and ``cpu`` insist.

    Raises BadRequest for another device or an unknown backbone, NotReady where the GPU or the weights of
    the backbone can't be had.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise BadRequest(f"There is no device {device!r}.", "Set RUSH_DEVICE to auto, cpu or cuda.")
    if device == "cuda" or (device == "auto" and _has_gpu()):
        from ml_backend.adapters.models.embedder_torch import TorchEmbedder

        return TorchEmbedder(backbone, size, "cuda", limits=limits, cache=cache)
    from ml_backend.adapters.models.embedder_openvino import OpenVinoEmbedder

    return OpenVinoEmbedder(backbone, size, cache=cache, limits=limits)


def _has_gpu() -> bool:
    # Without a driver there is no need to import torch, which takes seconds, to ask it.
    if not any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")):
        return False
    import torch

    return torch.cuda.is_available()
