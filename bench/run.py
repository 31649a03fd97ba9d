"""All benchmarks, one after the other, and a table of their figures.

python bench/run.py FOLDER, with cifar10-test.tar, mnist-test-10k.npz and bccd.tar in the folder.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from table import tables

HERE = Path(__file__).parent


def main() -> None:
    """Run each benchmark in a process of its own; the first that fails ends the run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--cache", type=Path, help="Folder that keeps the features of the data sets.")
    options = parser.parse_args()
    cifar10, mnist, bccd = (options.data / n for n in ("cifar10-test.tar", "mnist-test-10k.npz", "bccd.tar"))
    for path in (cifar10, mnist, bccd):
        if not path.exists():
            sys.exit(f"There is no {path}. Say where the data sets are: make bench BENCH_DATA=folder")
    with tempfile.TemporaryDirectory(prefix="rush-bench-") as folder:
        cache = ["--cache", str(options.cache or folder)]
        runs = {
            "ingest": ["--bccd", str(bccd), "--cifar10", str(cifar10)],
            "sizes": ["--cifar10", str(cifar10), "--mnist", str(mnist)],
            "index": [],
            "learning": ["--cifar10", str(cifar10), "--mnist", str(mnist), *cache],
            "submit": ["--cifar10", str(cifar10), *cache],
            "selection": [],
            "browser": [],
            "simulate": ["--cifar10", str(cifar10), "--mnist", str(mnist), *cache],
        }
        for name, arguments in runs.items():
            print(f"== {name}", flush=True)
            subprocess.run(
                [sys.executable, str(HERE / f"{name}.py"), *arguments], check=True, cwd=HERE.parent
            )
    print(tables())


if __name__ == "__main__":
    main()
