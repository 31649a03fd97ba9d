import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from ml_backend.adapters.files.artifacts import FileArtifacts
from ml_backend.domain.audit_sample import AuditSample
from ml_backend.domain.errors import StoreError
from ml_backend.domain.generation import Generation, Head, Pca, Projection
from ml_backend.domain.model import SPACE_DIM, ProjectRef
from strategies.audits.target import Target

REF = ProjectRef("http://localhost:8080", 3)
WIDTH = 96


def generation(number, *, head=True):
    """Every array holds the number, so that a mixture of two generations would show."""

    def full(*shape):
        return np.full(shape, number, np.float32)

    return Generation(
        number=number,
        backbone="efficientnet-lite0-224",
        pca=Pca(full(WIDTH), full(SPACE_DIM, WIDTH)),
        head=Head(full(WIDTH), full(SPACE_DIM, WIDTH), full(2, SPACE_DIM), full(2), 6.0, 0.5)
        if head
        else None,
        classes=("a", "ü"),
        space="head",
        suggester="blend",
        manifest={"labels": number, "nested": {"list": [1, 2.5, None]}},
    )


def projection(number, n=5):
    return Projection(
        number,
        np.array([f"{i:032x}" for i in range(n)]),
        np.full((n, 2), number, np.float32),
        np.arange(n, dtype=np.int32),
        np.full(n, number, np.float32),
        np.full((2, SPACE_DIM), number, np.float32),
    )


def assert_whole(found):
    assert (found.pca.components == found.number).all()
    assert (found.head.weight == found.number).all()
    assert found.manifest["labels"] == found.number


def test_nothing_is_there_before_the_first(tmp_path):
    artifacts = FileArtifacts(tmp_path)
    assert artifacts.generation(REF) is None
    assert artifacts.generation_number(REF) is None
    assert artifacts.projection(REF) is None


@pytest.mark.parametrize("head", [True, False])
def test_what_was_published_comes_back(tmp_path, head):
    wanted = generation(7, head=head)
    FileArtifacts(tmp_path).publish_generation(REF, wanted)
    found = FileArtifacts(tmp_path).generation(REF)
    assert FileArtifacts(tmp_path).generation_number(REF) == 7
    for name in ("number", "backbone", "classes", "multiple", "space", "suggester", "manifest"):
        assert getattr(found, name) == getattr(wanted, name)
    np.testing.assert_array_equal(found.pca.mean, wanted.pca.mean)
    assert (found.head is not None) == head
    if head:
        assert_whole(found)
        assert (found.head.scale, found.head.temperature) == (6.0, 0.5)


def test_a_projection_comes_back_beside_the_generation_and_per_project(tmp_path):
    artifacts = FileArtifacts(tmp_path)
    artifacts.publish_generation(REF, generation(4))
    artifacts.publish_projection(REF, projection(3))
    found = artifacts.projection(REF)
    assert found.generation == 3
    assert found.keys.tolist() == projection(3).keys.tolist()
    assert found.cluster.dtype == np.int32
    np.testing.assert_array_equal(found.xy, projection(3).xy)
    assert artifacts.generation_number(REF) == 4
    assert artifacts.projection(ProjectRef(REF.origin, 4)) is None


def test_a_draw_comes_back_as_it_was(tmp_path):
    artifacts = FileArtifacts(tmp_path)
    assert artifacts.audit_sample(REF) is None
    wanted = AuditSample(
        3, "2026-01-01", 2**62 + 1, 7, Target(0.01, 0.95, 9), 5, 6, 0.5, True, (("a", "b"), ("ü",)),
        np.arange(9), np.zeros(9, np.int32), np.linspace(0, 1, 9, dtype=np.float32),
    )  # fmt: skip
    artifacts.publish_audit_sample(REF, wanted)
    found = FileArtifacts(tmp_path).audit_sample(REF)
    assert found.facts() == wanted.facts()
    assert found.audits == [0, 1, 2, 3, 4, 5]
    for name, array in wanted.arrays().items():
        np.testing.assert_array_equal(found.arrays()[name], array)
        assert found.arrays()[name].dtype == array.dtype


def test_an_empty_projection_comes_back(tmp_path):
    FileArtifacts(tmp_path).publish_projection(REF, projection(1, 0))
    assert FileArtifacts(tmp_path).projection(REF).xy.shape == (0, 2)


def test_three_generations_are_kept_also_where_numbers_start_again(tmp_path):
    artifacts = FileArtifacts(tmp_path)
    for number in (5, 6, 7, 0, 1):
        artifacts.publish_generation(REF, generation(number))
        assert artifacts.generation_number(REF) == artifacts.generation(REF).number == number
    folder = tmp_path / "projects" / REF.slug / "generation"
    assert sorted(path.name.split("-")[1] for path in folder.glob("0*")) == ["0", "1", "7"]


@pytest.mark.parametrize("damage", ["cut", "gone", "manifest", "bits"])
def test_a_damaged_generation_gives_way_to_the_one_before(tmp_path, damage, caplog):
    artifacts = FileArtifacts(tmp_path)
    artifacts.publish_generation(REF, generation(1))
    artifacts.publish_generation(REF, generation(2))
    folder = next((tmp_path / "projects" / REF.slug / "generation").glob("*-2"))
    arrays = folder / "arrays.npz"
    data = bytearray(arrays.read_bytes())
    if damage == "cut":
        arrays.write_bytes(data[: len(data) // 2])
    elif damage == "gone":
        arrays.unlink()
    elif damage == "manifest":
        (folder / "manifest.json").write_text('{"number": 2')
    else:
        data[len(data) // 2] ^= 255
        arrays.write_bytes(data)
    assert_whole(artifacts.generation(REF))
    assert artifacts.generation(REF).number == 1
    assert "damaged" in caplog.text
    artifacts.publish_generation(REF, generation(3))
    assert artifacts.generation(REF).number == 3


def test_pickles_are_not_loaded(tmp_path):
    artifacts = FileArtifacts(tmp_path)
    artifacts.publish_projection(REF, projection(1))
    file = next((tmp_path / "projects" / REF.slug / "projection").glob("*-1")) / "arrays.npz"
    np.savez(
        file, **{name: np.array([{}], object) for name in ("keys", "xy", "cluster", "density", "centroids")}
    )
    assert artifacts.projection(REF) is None


def test_readers_always_see_a_whole_generation_while_others_publish(tmp_path):
    artifacts = FileArtifacts(tmp_path)
    artifacts.publish_generation(REF, generation(1))
    stop = threading.Event()

    def write():
        number = 2
        while not stop.is_set():
            artifacts.publish_generation(REF, generation(number))
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = []
        for _ in range(150):
            found = FileArtifacts(tmp_path).generation(REF)
            assert_whole(found)
            seen.append(found.number)
    finally:
        stop.set()
        writer.join()
    assert seen == sorted(seen)
    assert seen[-1] > 1


PUBLISHER = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from test_artifacts import REF, generation
from ml_backend.adapters.files.artifacts import FileArtifacts
artifacts = FileArtifacts(Path(sys.argv[1]))
number = artifacts.generation_number(REF) or 0
while True:
    number += 1
    artifacts.publish_generation(REF, generation(number))
    print(number, flush=True)
"""


def test_a_publisher_killed_at_any_moment_leaves_a_whole_generation(tmp_path):
    here = Path(__file__).parent
    random = np.random.default_rng(0)
    published = 0
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", PUBLISHER, str(tmp_path), str(here), str(here.parents[1])],
            stdout=subprocess.PIPE,
            text=True,
        )
        process.stdout.readline()
        time.sleep(random.uniform(0, 0.05))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        found = FileArtifacts(tmp_path).generation(REF)
        assert_whole(found)
        assert found.number > published
        published = found.number
    FileArtifacts(tmp_path).publish_generation(REF, generation(published + 1))
    folder = tmp_path / "projects" / REF.slug / "generation"
    assert not list(folder.glob(".new-*"))
    assert FileArtifacts(tmp_path).generation(REF).number == published + 1


def test_a_folder_that_can_not_be_written_is_named(tmp_path):
    (tmp_path / "projects").write_text("a file where a folder should be")
    with pytest.raises(StoreError, match=r"projects.*RUSH_DATA_DIR"):
        FileArtifacts(tmp_path).publish_generation(REF, generation(1))
