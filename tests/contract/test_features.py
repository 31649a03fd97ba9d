"""The contract of ports.Features, on real files, with real processes that die and race."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ml_backend
from ml_backend.adapters.files.features import FileFeatures, feature_set
from ml_backend.domain.content_hash import content_key
from ml_backend.domain.errors import StoreError
from ml_backend.domain.model import ContentKey

DIM = 7
REPOSITORY = Path(ml_backend.__file__).parents[1]

WRITER = """
import sys
from pathlib import Path
import numpy as np
import ml_backend
from ml_backend.adapters.files.features import FileFeatures
from ml_backend.domain.content_hash import content_key

root, seed, batches, dim, size = Path(sys.argv[1]), *map(int, sys.argv[2:])
store = FileFeatures(root, "b", dim)
print("ready", flush=True)
for batch in range(batches):
    numbers = range(seed + batch * size, seed + (batch + 1) * size)
    store.append([content_key(str(n).encode()) for n in numbers],
                 np.array([np.full(dim, n % 1000) for n in numbers]))
"""


def key(number: int) -> ContentKey:
    return content_key(str(number).encode())


def row(number: int, dim: int = DIM) -> np.ndarray:
    return np.full(dim, number % 1000, np.float16)


def writer(root: Path, seed: int, batches: int, dim: int = DIM, size: int = 8) -> subprocess.Popen[bytes]:
    arguments = [str(root), *map(str, (seed, batches, dim, size))]
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, *arguments], stdout=subprocess.PIPE, cwd=REPOSITORY
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


@given(st.lists(st.lists(st.integers(0, 30), max_size=8), max_size=8), st.booleans())
def test_what_was_appended_first_is_what_is_read(batches: list[list[int]], reopen: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        store = reader = FileFeatures(root, "b", DIM)
        expected: dict[int, float] = {}
        value = 0
        for batch in batches:
            values = []
            for number in batch:
                value += 1
                values.append(value)
                expected.setdefault(number, value)
            assert store.missing([key(n) for n in batch]) == [
                key(n) for n in dict.fromkeys(batch) if key(n) not in reader
            ]
            store.append([key(n) for n in batch], np.repeat(values, DIM).reshape(-1, DIM))
            if reopen:
                store = FileFeatures(root, "b", DIM)
        numbers = list(reversed(expected))
        for each in (store, reader, FileFeatures(root, "b", DIM)):
            assert len(each) == len(expected)
            got = each.get([key(n) for n in numbers])
            assert got.dtype == np.float16
            assert got.shape == (len(numbers), DIM)
            assert got[:, 0].tolist() == [expected[n] for n in numbers]
            assert key(99) not in each


@given(st.integers(0, 3 * DIM * 2), st.integers(0, 15), st.integers(0, 5))
def test_a_torn_tail_is_never_read_and_is_cut_off_by_the_next_writer(
    vector_bytes: int, key_bytes: int, rows: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        store = FileFeatures(root, "b", DIM)
        store.append(
            [key(n) for n in range(rows)], np.array([row(n) for n in range(rows)]).reshape(rows, DIM)
        )
        with open(root / "b" / "vectors.f16", "ab") as file:
            file.write(b"\xff" * vector_bytes)
        with open(root / "b" / "keys.bin", "ab") as file:
            file.write(b"\xff" * key_bytes)
        fresh = FileFeatures(root, "b", DIM)
        assert len(fresh) == len(store) == rows
        fresh.append([key(100)], row(100)[None])
        assert (root / "b" / "vectors.f16").stat().st_size == (rows + 1) * DIM * 2
        assert (root / "b" / "keys.bin").stat().st_size == (rows + 1) * 16
        for each in (store, fresh):
            assert (each.get([key(100), *map(key, range(rows))])[:, 0] == [100, *range(rows)]).all()


@pytest.mark.parametrize("after", [0.002, 0.01, 0.03, 0.08])
def test_a_killed_writer_corrupts_nothing(tmp_path: Path, after: float) -> None:
    dim, size = 20_000, 64
    process = writer(tmp_path, 0, 10_000, dim, size)
    time.sleep(after)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    store = FileFeatures(tmp_path, "b", dim)
    count = len(store)
    # All of the first rows and none behind them.
    assert store.missing([key(n) for n in range(count + 200)]) == [key(n) for n in range(count, count + 200)]
    store.append([key(-1)], row(-1, dim)[None])
    for number in (*range(count), -1):
        assert (store.get([key(number)])[0] == row(number, dim)).all()


def test_concurrent_writers_lose_and_mix_nothing(tmp_path: Path) -> None:
    # Halves overlap: numbers 80 to 159 come from both.
    processes = [writer(tmp_path, 0, 20), writer(tmp_path, 80, 20)]
    reader = FileFeatures(tmp_path, "b", DIM)
    while any(process.poll() is None for process in processes):
        seen = [key(n) for n in range(240) if key(n) in reader]
        numbers = [n for n in range(240) if key(n) in set(seen)]
        assert (reader.get([key(n) for n in numbers])[:, 0] == numbers).all()
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    assert len(reader) == 240
    assert (reader.get([key(n) for n in range(240)])[:, 0] == np.arange(240)).all()
    assert (tmp_path / "b" / "keys.bin").stat().st_size == 240 * 16


def test_get_names_the_first_missing_key(tmp_path: Path) -> None:
    store = FileFeatures(tmp_path, "b", DIM)
    store.append([key(1)], row(1)[None])
    with pytest.raises(KeyError, match=key(2)):
        store.get([key(1), key(2), key(3)])
    with pytest.raises(KeyError):
        store.get([ContentKey("")])
    assert store.get([]).shape == (0, DIM)


def test_what_is_no_content_key_is_absent_and_refused(tmp_path: Path) -> None:
    store = FileFeatures(tmp_path, "b", DIM)
    assert ContentKey("") not in store
    assert ContentKey("no hex") not in store
    with pytest.raises(ValueError, match="32 hex characters"):
        store.append([ContentKey("abcd")], row(1)[None])


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_values_that_float16_cannot_hold_are_refused(tmp_path: Path, value: float) -> None:
    store = FileFeatures(tmp_path, "b", DIM)
    with pytest.raises(ValueError, match="finite"):
        store.append([key(1)], np.full((1, DIM), value))
    assert len(store) == 0


def test_rows_of_another_shape_are_refused(tmp_path: Path) -> None:
    store = FileFeatures(tmp_path, "b", DIM)
    with pytest.raises(ValueError, match="shape"):
        store.append([key(1), key(2)], row(1)[None])


def test_another_dimension_under_the_same_name_is_refused(tmp_path: Path) -> None:
    FileFeatures(tmp_path, "b", DIM).append([key(1)], row(1)[None])
    with pytest.raises(StoreError, match="7 dimensions, not 8"):
        FileFeatures(tmp_path, "b", DIM + 1)


def test_missing_vectors_are_an_error_that_says_what_to_delete(tmp_path: Path) -> None:
    FileFeatures(tmp_path, "b", DIM).append([key(1), key(2)], np.array([row(1), row(2)]))
    os.truncate(tmp_path / "b" / "vectors.f16", DIM * 2)
    with pytest.raises(StoreError, match="1 vectors for 2 keys"):
        FileFeatures(tmp_path, "b", DIM)


def test_a_store_that_was_deleted_and_made_anew_is_noticed(tmp_path: Path) -> None:
    old = FileFeatures(tmp_path, "b", DIM)
    old.append([key(1)], row(1)[None])
    (tmp_path / "b").rename(tmp_path / "gone")
    new = FileFeatures(tmp_path, "b", DIM)
    new.append([key(2)], row(2)[None])
    assert old.missing([key(1), key(2)]) == [key(1)]
    assert old.get([key(2)])[0, 0] == 2


def test_sizes_have_feature_sets_of_their_own() -> None:
    assert feature_set("efficientnet-lite0", 224) != feature_set("efficientnet-lite0", 160)
