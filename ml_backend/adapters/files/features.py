"""The cache of backbone features: two append-only files that any number of processes share.

``vectors.f16`` holds rows of float16, ``keys.bin`` their content keys of 16 bytes. A row exists once its
key is complete, and its key is written after its vector is on disk. So a writer that dies at any moment
leaves at most a tail that no reader looks at and that the next writer cuts off.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock

from ml_backend.domain.content_hash import KEY_BYTES
from ml_backend.domain.errors import StoreError
from ml_backend.domain.generation import Array
from ml_backend.domain.model import ContentKey


def feature_set(backbone: str, size: int) -> str:
    """Name the folder of features that may be compared with each other: same backbone, same input size."""
    return f"{backbone}-{size}"


def made_with(feature_set: str) -> tuple[str, int]:
    """The backbone and input size that a feature set is named after."""
    backbone, _, size = feature_set.rpartition("-")
    return backbone, int(size)


def size_of(feature_set: str, backbone: str) -> int | None:
    """The input size of a feature set of this backbone; None for a set of another one."""
    name, _, size = feature_set.rpartition("-")
    return int(size) if name == backbone and size.isdigit() else None


class FileFeatures:
    """``ports.Features`` in a folder of files; safe for many processes and threads, writers take turns.

    Raises StoreError where the files are of another dimension or damaged.
    """

    def __init__(self, root: Path, backbone: str, dim: int) -> None:
        self.dim = dim
        self._folder = root / backbone
        self._folder.mkdir(parents=True, exist_ok=True)
        self._vectors_path = self._folder / "vectors.f16"
        self._keys_path = self._folder / "keys.bin"
        self._check_dim()
        self._rows: dict[bytes, int] = {}
        self._seen = (0, 0)  # inode and complete keys of keys.bin as last read
        self._refreshing = threading.Lock()
        self._refresh()

    def __len__(self) -> int:
        self._refresh()
        return len(self._rows)

    def __contains__(self, key: ContentKey) -> bool:
        raw = _raw(key)
        if raw not in self._rows:
            self._refresh()
        return raw in self._rows

    def missing(self, keys: Iterable[ContentKey]) -> list[ContentKey]:
        """Return the keys without features, in order, each once."""
        self._refresh()
        return [key for key in dict.fromkeys(keys) if _raw(key) not in self._rows]

    def append(self, keys: Sequence[ContentKey], features: Array) -> None:
        """Store features (n, dim), ignoring keys that are there already; durable on return.

        Raises ValueError for a malformed key, another shape, or values that float16 can't hold.
        """
        with np.errstate(over="ignore"):
            rows = np.asarray(features).astype(np.float16)
        if rows.shape != (len(keys), self.dim):
            raise ValueError(f"Features must be of shape {(len(keys), self.dim)}, got {rows.shape}.")
        if not np.isfinite(rows).all():
            raise ValueError("Features must be finite in float16.")
        raws = [_raw(key) for key in keys]
        for key, raw in zip(keys, raws, strict=True):
            if not raw:
                raise ValueError(f"A content key is {2 * KEY_BYTES} hex characters, got {key!r}.")
        with self._writing() as (vectors, stored):
            self._refresh()
            first = {raw: i for i, raw in reversed(list(enumerate(raws))) if raw not in self._rows}
            order = sorted(first.values())
            if not order:
                return
            count = self._seen[1]
            # What lies behind the last complete row is the torn tail of a writer that died.
            vectors.truncate(count * self.dim * 2)
            stored.truncate(count * KEY_BYTES)
            _write(vectors, rows[order].tobytes())
            _write(stored, b"".join(raws[i] for i in order))
            self._refresh()

    def get(self, keys: Sequence[ContentKey]) -> Array:
        """Return (n, dim) float16 in the order of ``keys``; KeyError names the first missing key."""
        raws = [_raw(key) for key in keys]
        if any(raw not in self._rows for raw in raws):
            self._refresh()
        try:
            rows = [self._rows[raw] for raw in raws]
        except KeyError as error:
            raise KeyError(keys[raws.index(error.args[0])]) from None
        # Mapped for this call only: pages once read would count as this process's memory for good.
        return self._map(max(rows) + 1)[rows] if rows else np.empty((0, self.dim), np.float16)

    def _refresh(self) -> None:
        """Take in rows that other processes have added; one stat where there are none."""
        try:
            found = os.stat(self._keys_path)
        except FileNotFoundError:
            self._rows, self._seen = {}, (0, 0)  # deleted, and not made anew yet
            return
        if (found.st_ino, found.st_size // KEY_BYTES) == self._seen:
            return
        with self._refreshing, open(self._keys_path, "rb") as file:
            status = os.fstat(file.fileno())
            inode, count = self._seen
            if status.st_ino == inode and status.st_size // KEY_BYTES >= count:
                known = self._rows
            else:  # deleted and made anew
                known, count = {}, 0
            file.seek(count * KEY_BYTES)
            added = file.read()
            total = count + len(added) // KEY_BYTES
            self._map(total)  # raises where vectors are missing
            for row in range(count, total):
                start = (row - count) * KEY_BYTES
                known.setdefault(added[start : start + KEY_BYTES], row)
            self._rows, self._seen = known, (status.st_ino, total)

    def _map(self, total: int) -> Array:
        size = self._vectors_path.stat().st_size if self._vectors_path.exists() else 0
        if size < total * self.dim * 2:
            raise StoreError(
                f"{self._vectors_path} holds {size // (self.dim * 2)} vectors for {total} keys.",
                f"Delete {self._folder}; the features are computed again.",
            )
        if not total:
            return np.empty((0, self.dim), np.float16)
        return np.memmap(self._vectors_path, np.float16, "r", shape=(total, self.dim))

    @contextmanager
    def _writing(self) -> Iterator[tuple[BinaryIO, BinaryIO]]:
        """Open both files for the one writer that holds the lock; the kernel frees it when a process dies."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._check_dim()
        with (
            FileLock(self._folder / "lock", fallback_to_soft=False),
            open(self._vectors_path, "ab") as vectors,
            open(self._keys_path, "ab") as keys,
        ):
            yield vectors, keys

    def _check_dim(self) -> None:
        path = self._folder / "dim"
        if not path.exists():
            fresh = self._folder / f"dim.{os.getpid()}.{threading.get_ident()}"
            fresh.write_text(str(self.dim))
            os.replace(fresh, path)
        stored = path.read_text()
        if stored != str(self.dim):
            raise StoreError(
                f"{self._folder} holds features of {stored} dimensions, not {self.dim}.",
                "Give the backbone another name, or delete that folder.",
            )


def _raw(key: str) -> bytes:
    """Return the key's bytes; none for what is no content key, which is stored nowhere."""
    try:
        raw = bytes.fromhex(key)
    except ValueError:
        return b""
    return raw if len(raw) == KEY_BYTES else b""


def _write(file: BinaryIO, data: bytes) -> None:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())
