"""Images per second from file to features, against a plain PIL + torchvision loop of the same backbone.

Both paths see the same file bytes in turns of the same run. The plain loop runs with one thread and with
torch's default, which is slower than one where other processes want the cores; the faster of the two is
what each block is compared with. The photographs are the 364 of BCCD (640×480),
made up to ``--images`` by flips and crops that are encoded again, so that no two files are equal.
"""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.common import report
from bench.data import cifar10
from ml_backend.adapters.models.backbones import backbone
from ml_backend.adapters.models.embedders import open_embedder

SIZE, NAME = 224, "efficientnet-lite0"
DEFAULT_SAMPLE = 100
Embed = Callable[[Sequence[bytes]], np.ndarray]


def photographs(path: Path, count: int) -> list[bytes]:
    """File bytes of BCCD's images, then of variants of them, each different."""
    with tarfile.open(path) as tar:
        members = sorted(m.name for m in tar if m.isfile() and m.name.endswith(".jpg"))
        files = [tar.extractfile(name).read() for name in members]  # type: ignore[union-attr]
    found = files[:count]
    for number in range(count - len(found)):
        turn, index = divmod(number, len(files))
        image = Image.open(io.BytesIO(files[index])).convert("RGB")
        width, height = image.size
        left, top = 16 * (turn + 1), 12 * (turn + 1)
        image = image.crop((left, top, width, height)).resize((width, height))
        if turn % 2:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        out = io.BytesIO()
        image.save(out, "JPEG", quality=90)
        found.append(out.getvalue())
    assert len(set(found)) == count
    return found


def plain() -> tuple[Embed, Embed]:
    """The loop that one writes first, one forward pass per image: on one thread, and on torch's default."""
    default = torch.get_num_threads()
    spec = backbone(NAME)
    network = spec.build()
    prepare = transforms.Compose(
        [
            transforms.Resize((SIZE, SIZE)),
            transforms.ToTensor(),
            transforms.Normalize(spec.mean, spec.std),
        ]
    )

    @torch.inference_mode()
    def embed(files: Sequence[bytes], threads: int) -> np.ndarray:
        torch.set_num_threads(threads)
        images = (Image.open(io.BytesIO(data)).convert("RGB") for data in files)
        return np.stack([network(prepare(image)[None])[0].numpy() for image in images])

    return (lambda files: embed(files, 1)), (lambda files: embed(files, default))


def compare(
    files: Sequence[bytes], fast: Embed, slow: tuple[Embed, Embed], sample: int, blocks: int
) -> dict[str, Any]:
    """Speeds of all in alternating blocks, and the cosine of their features on the sample.

    The plain loop gets an even sample of ``sample`` files, at most DEFAULT_SAMPLE of them on torch's default
    threads, the fast path all. ``rows`` and ``features`` are for further comparison, not for the report.
    """
    rows = np.linspace(0, len(files) - 1, min(sample, len(files))).astype(int)
    ways = {"fast": fast, "plain_1_thread": slow[0], "plain_default": slow[1]}
    for embed in ways.values():
        embed(files[:8])
    rates: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    features: dict[str, list[np.ndarray]] = {name: [] for name in ways}
    few = max(1, min(len(rows), DEFAULT_SAMPLE) // blocks)
    pairs = zip(np.array_split(np.arange(len(files)), blocks), np.array_split(rows, blocks), strict=True)
    for every, some in pairs:
        for (name, embed), part in zip(ways.items(), (every, some, some[:few]), strict=True):
            wall, spent = time.perf_counter(), time.process_time()
            features[name].append(embed([files[row] for row in part]))
            rates[name].append(len(part) / (time.perf_counter() - wall))
            cpu[name].append(1000 * (time.process_time() - spent) / len(part))
    ours = np.concatenate(features["fast"])[rows]
    theirs = np.concatenate(features["plain_1_thread"])
    cosine = (unit(ours) * unit(theirs)).sum(axis=1)
    best_plain = np.maximum(rates["plain_1_thread"], rates["plain_default"])
    ratios = np.divide(rates["fast"], best_plain)
    return {
        "images": len(files),
        "plain_images": len(rows),
        "images_per_second": {name: round(float(np.median(rate)), 1) for name, rate in rates.items()},
        "cpu_ms_per_image": {name: round(float(np.median(spent)), 1) for name, spent in cpu.items()},
        "ratio": round(float(np.median(ratios)), 2),
        "ratio_of_blocks": [round(float(ratio), 2) for ratio in ratios],
        "cosine_mean": round(float(cosine.mean()), 5),
        "cosine_min": round(float(cosine.min()), 5),
        "rows": rows,
        "features": (ours, theirs),
    }


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def knn_accuracy(features: np.ndarray, labels: np.ndarray, k: int = 10) -> float:
    """Leave-one-out accuracy in % of the majority among the k nearest by cosine."""
    near = unit(features)
    similarity = near @ near.T
    np.fill_diagonal(similarity, -np.inf)
    nearest = np.argpartition(-similarity, k, axis=1)[:, :k]
    classes, numbers = np.unique(labels, return_inverse=True)
    votes = np.stack([np.bincount(row, minlength=len(classes)) for row in numbers[nearest]])
    return round(100 * float((votes.argmax(axis=1) == numbers).mean()), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bccd", type=Path, required=True, help="tar of BCCD")
    parser.add_argument("--cifar10", type=Path, required=True, help="tar of CLASS/NAME.jpg")
    parser.add_argument("--images", type=int, default=2000, help="photographs")
    parser.add_argument("--small", type=int, default=10_000, help="CIFAR-10 images, evenly taken")
    parser.add_argument("--sample", type=int, default=200, help="photographs that the plain loop gets")
    parser.add_argument("--accuracy-sample", type=int, default=2000, help="CIFAR-10 images for 10-NN")
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        embedder = open_embedder(NAME, SIZE, "cpu", Path(folder))

        def fast(files: Sequence[bytes]) -> np.ndarray:
            rows = [row for _, row in embedder.embed(("", data) for data in files)]
            assert all(isinstance(row, np.ndarray) for row in rows)
            return np.stack(rows)  # type: ignore[arg-type]

        slow = plain()
        large = compare(photographs(args.bccd, args.images), fast, slow, args.sample, args.blocks)
        pool = list(cifar10(args.cifar10))
        step = max(1, len(pool) // args.small)
        pool = list(islice(pool[::step], args.small))
        small = compare([data for _, data in pool], fast, slow, args.accuracy_sample, args.blocks)
        labels = np.array([label for label, _ in pool])[small["rows"]]
        ours, theirs = small["features"]
        small["knn10_accuracy"] = knn_accuracy(ours, labels)
        small["knn10_accuracy_plain"] = knn_accuracy(theirs, labels)
        embedder.close()
    for figures in (large, small):
        del figures["rows"], figures["features"]
    source = f"{min(364, args.images)} BCCD photographs, the rest flips and crops of them, encoded again"
    report(
        "ingest",
        {
            "backbone": f"{NAME} at {SIZE} px, float32, CPU",
            "photographs_640x480": {"source": source, **large},
            "small_32x32": {"source": "CIFAR-10 test images", **small},
        },
        args.out,
    )


if __name__ == "__main__":
    main()
