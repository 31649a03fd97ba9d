"""Every strategy in the simulator on CIFAR-10 and MNIST: accuracy against labels and annotator seconds.

python bench/simulate.py --cifar10 cifar10-test.tar --mnist mnist-test-10k.npz --cache DIR [--seeds 5]

Runs are kept in the cache folder: a second call goes on, and with more seeds only computes the new ones.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from common import report
from data import cifar10_features, mnist_features

import strategies
from ml_backend.domain.simulated_run import Options
from ml_backend.simulation.runner import on_processes, simulate, write_report
from strategies.simulate import summarise

NAMES = tuple(name for name in strategies.names() if strategies.get(name).asks == "open")
"""All but those that ask about labelled images; grouped is margin, class by class."""


def main() -> None:
    """Simulate and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cifar10", type=Path, required=True)
    parser.add_argument("--mnist", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--labels", type=int, default=300)
    parser.add_argument("--strategies", nargs="+", default=NAMES)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    cifar10_features(options.cifar10, options.cache)
    mnist_features(options.mnist, options.cache)
    sets = [options.cache / "mnist-224.npz", options.cache / "cifar10-224.npz"]
    folder = options.cache / "simulation"
    runs = simulate(
        sets,
        options.strategies,
        options.seeds,
        Options(labels=options.labels),
        folder,
        on_processes(options.processes),
        lambda stage, done, total: print(f"{stage}: {done} of {total}", flush=True),
    )
    print(write_report(runs, folder))
    rows = [asdict(row) for row in summarise(runs)]
    report("simulate", {"options": asdict(Options(labels=options.labels)), "summary": rows}, options.out)


if __name__ == "__main__":
    main()
