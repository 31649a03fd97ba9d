"""What lies in the data directory although nobody needs it: it goes a day after it was last touched.

Kept are the features and networks that any generation on disk was made with (the last three of each
project), the features of the settings, and whatever a process holds. Audit samples and generations go with
``rush forget`` only: after a loss of Redis they are all that is left of a project.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from urllib.parse import unquote

from filelock import FileLock, Timeout

from ml_backend.adapters.files.features import made_with

AGE = 86_400.0
"""Seconds that something must not have been touched for."""
_TUNED = re.compile(r"(?P<name>.+~[0-9a-f]+)(\.safetensors|-\d+-openvino-.*)")


def prune(data_dir: Path, settings_set: str, slugs: Collection[str]) -> list[str]:
    """Delete what nobody needs; returns what it was, relative to ``data_dir``.

    ``settings_set`` is the feature set of the settings, ``slugs`` are the projects that are known.
    """
    used = {settings_set, *_used(data_dir)}
    gone = [path for path in _children(data_dir / "index") if path.name not in slugs and _old(path)]
    features = [path for path in _children(data_dir / "features") if path.name not in used]
    gone += [path for path in features if _old(path)]
    fresh = {path.name for path in features if path not in gone}  # a run that embeds just now
    networks = {made_with(name)[0] for name in used | fresh}
    for path in _children(data_dir / "networks"):
        found = _TUNED.fullmatch(path.name)
        unneeded = found is not None and unquote(found["name"]) not in networks
        if (unneeded or path.is_dir()) and _old(path) and not _held(path):
            gone.append(path)
    for path in gone:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return [str(path.relative_to(data_dir)) for path in gone]


def _used(data_dir: Path) -> Iterator[str]:
    """The feature sets of all generations on disk."""
    for manifest in data_dir.glob("projects/*/generation/*/manifest.json"):
        try:
            yield str(json.loads(manifest.read_bytes())["backbone"])
        except (OSError, ValueError, KeyError):
            continue  # damaged, or replaced just now


def _children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _old(path: Path) -> bool:
    try:
        times = [each.stat().st_mtime for each in (path, *(path.rglob("*") if path.is_dir() else ()))]
    except OSError:
        return False  # somebody is at work in it
    return max(times) < time.time() - AGE


def _held(path: Path) -> bool:
    """Whether a fine-tuning run that lives has its pixels there."""
    if not (path / "lock").exists():
        return False
    try:
        with FileLock(path / "lock", timeout=0, fallback_to_soft=False):
            return False
    except Timeout:
        return True
