"""Docker for the test: the one that runs already, else a daemon of our own, which leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

CLIENT = "/usr/bin/docker"
"""Debian's, which builds with BuildKit by itself; another one on the PATH may lack its plugin for that."""
KEPT = "12GB"
"""Of what was built before: base and worker once."""
PACKAGES = ("docker.io", "containerd", "runc", "iptables", "mmdebstrap", "ca-certificates")


def usable(client: str = "docker") -> bool:
    """Whether a daemon answers."""
    found = shutil.which(client)
    return bool(found) and subprocess.run([client, "info"], capture_output=True).returncode == 0


def install() -> None:
    """Get Docker and mmdebstrap from Debian where they are missing; SystemExit says what is needed."""
    if shutil.which("dockerd") and shutil.which("mmdebstrap"):
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise SystemExit("make test-compose needs Docker, or root on Debian to install it.")
    print("Installing Docker from Debian …", flush=True)
    quiet = {"env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, "check": True}
    subprocess.run(["apt-get", "update", "-qq"], **quiet)  # type: ignore[call-overload]
    subprocess.run(  # type: ignore[call-overload]
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES],
        stdout=subprocess.DEVNULL,
        **quiet,
    )


@contextlib.contextmanager
def own_daemon(folder: Path) -> Iterator[str]:
    """Run dockerd with everything in ``folder`` and give its address; iptables are put back afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    rules = subprocess.run(["iptables-save"], capture_output=True, text=True, check=False).stdout
    address, pid = f"unix://{folder}/docker.sock", folder / "docker.pid"
    command = ["dockerd", "--data-root", str(folder / "data"), "--exec-root", str(folder / "exec")]
    with open(folder / "dockerd.log", "w") as log:
        daemon = subprocess.Popen([*command, "-p", str(pid), "-H", address], stdout=log, stderr=log)
    try:
        os.environ["DOCKER_HOST"] = address
        end = time.monotonic() + 60
        while not usable(CLIENT):
            if daemon.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"dockerd does not start; its log is {folder}/dockerd.log")
            time.sleep(0.5)
        yield address
    finally:
        for what in (["image", "prune", "-f"], ["builder", "prune", "-f", "--keep-storage", KEPT]):
            subprocess.run([CLIENT, *what], capture_output=True, check=False)  # else every build adds 7 GB
        daemon.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            daemon.wait(60)
        subprocess.run(["ip", "link", "del", "docker0"], capture_output=True, check=False)
        subprocess.run(["iptables-restore"], input=rules, text=True, capture_output=True, check=False)
