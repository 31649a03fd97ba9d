"""Images per second of embedding end to end, and as a share of a bare forward loop on pixels on the device.

python bench/gpu.py [--device cuda] [--images 4096] [--size 224]

End to end is ``TorchEmbedder`` on JPEG files of 500 × 375 (smoothed noise): decoding in threads, transfer,
forward, features back. The bare loop is the same network, precision and batch on pixels that are on the
device already, also compiled by ``torch.compile``. Weights are random: they don't change the time.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from common import report
from PIL import Image
from torch import nn

from ml_backend.adapters.models import backbones
from ml_backend.adapters.models.embedder_torch import TorchEmbedder
from ml_backend.prefetch import cpus

NETWORKS = {"efficientnet-lite0": "", "resnet50": "fc", "vit_b_16": "heads"}
"""Names and the classifiers that are cut off, nothing where the weights are installed."""
DISTINCT, WIDTH, HEIGHT = 64, 500, 375


def photographs() -> list[bytes]:
    """JPEG files that take as long to decode as photographs."""
    rng, files = np.random.default_rng(0), []
    for _ in range(DISTINCT):
        rough = Image.fromarray(rng.integers(0, 255, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8))
        out = io.BytesIO()
        rough.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
        files.append(out.getvalue())
    return files


def random_weights(name: str, classifier: str) -> None:
    """Let the backbone of that name be built without its weights, which would have to be fetched."""

    def build() -> nn.Module:
        network: nn.Module = torchvision.models.get_model(name, weights=None)
        network.set_submodule(classifier, nn.Identity())
        return network.eval()

    backbones.BUILT_IN[name] = replace(backbones.BUILT_IN[name], build=build)


def bare(
    module: Callable[[torch.Tensor], torch.Tensor], device: str, images: int, size: int, batch: int
) -> float:
    """Images per second of forward alone."""
    pixels = torch.randint(0, 255, (batch, size, size, 3), dtype=torch.uint8, device=device)

    def run(times: int) -> float:
        began = time.perf_counter()
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            for _ in range(times):
                found = module(pixels)
        found.float().cpu()  # waits for the device
        return time.perf_counter() - began

    run(3)
    times = max(1, images // batch)
    return times * batch / run(times)


def end_to_end(embedder: TorchEmbedder, files: list[bytes], images: int) -> float:
    """Images per second from file bytes to features."""

    def named(count: int) -> Iterator[tuple[str, bytes]]:
        return ((str(n), files[n % DISTINCT]) for n in range(count))

    for _ in embedder.embed(named(256)):
        pass
    began = time.perf_counter()
    for _ in embedder.embed(named(images)):
        pass
    return images / (time.perf_counter() - began)


def main() -> None:
    """Measure each network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    files, figures = photographs(), dict[str, Any]()
    card = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    for name in options.networks:
        if NETWORKS[name]:
            random_weights(name, NETWORKS[name])
        embedder = TorchEmbedder(name, options.size, options.device, options.batch)
        given = options.device, options.images, options.size, options.batch
        alone = bare(embedder._module, *given)
        through = end_to_end(embedder, files, options.images)
        found = {"bare": alone, "end_to_end": through, "share": through / alone}
        if not options.no_compile:
            found["bare_compiled"] = bare(torch.compile(embedder._module), *given)
        figures[name] = {key: round(value, 3 if key == "share" else 1) for key, value in found.items()}
        print(name, figures[name], flush=True)
        embedder.close()
    report("gpu", {"device": card, "decoding_threads": cpus(), "networks": figures}, options.out)


if __name__ == "__main__":
    main()
