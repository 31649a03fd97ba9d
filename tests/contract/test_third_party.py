"""A package of somebody else's is found by its entry points, once it is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
POOL = """
import numpy as np, strategies
rows = np.eye(4, dtype=np.float32)[[0, 1, 2, 2]]
pool = strategies.Pool(rows, np.ones(4, bool), np.zeros(4, bool), np.full(4, -1))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Runs code in a process that has the package installed; returns what it prints."""
    uv = shutil.which("uv") or shutil.which("uv", path=str(ROOT / ".cache/uv/bin"))
    if uv is None:
        pytest.skip("uv is not installed")
    folder = tmp_path_factory.mktemp("third_party")
    source, target = folder / "source", folder / "target"
    shutil.copytree(ROOT / "tests/third_party/freshest", source)  # building leaves files beside the source
    install = ["pip", "install", "-q", "--offline", "--no-build-isolation", "--no-deps"]
    subprocess.run([uv, *install, "-p", sys.executable, "--target", target, source], check=True)
    path = os.pathsep.join([str(target), str(ROOT)])

    def run(code: str) -> str:
        ran = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout + ran.stderr

    return run


def test_its_strategies_are_listed_and_order_the_pool(python: Callable[[str], str]) -> None:
    said = python(POOL + "print(strategies.names(), strategies.select('freshest', pool, 2).rows.tolist())")
    assert "'farthest'" in said
    assert "'freshest'" in said
    assert "[3, 1]" in said  # the third item is a copy of the last


def test_its_parameters_are_given_in_the_name(python: Callable[[str], str]) -> None:
    said = python(POOL + "print(sorted(strategies.select('farthest(1)', pool, 2).rows.tolist()))")
    assert said.strip() in ("[0, 2]", "[0, 3]")


def test_the_command_line_lists_it_as_installed(python: Callable[[str], str]) -> None:
    said = python("from ml_backend.cli.main import main; main(['strategies'])")
    assert "installed" in said
    assert "Ask about the newest items first." in said
    assert "farthest(row=0)" in said


def test_a_typing_error_finds_it(python: Callable[[str], str]) -> None:
    code = (
        "import strategies\ntry: strategies.get('freshets')\nexcept strategies.UnknownStrategy as e: print(e)"
    )
    assert "Did you mean 'freshest'?" in python(POOL + code)
