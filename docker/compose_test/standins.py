"""Stand-ins for images that can't be pulled: Python, Redis, PostgreSQL and Label Studio from packages.

The programs inside are the real ones, from Debian's and Python's packages; only who put them into an image
differs. A Qdrant server is in neither: its stand-in only listens, and Rush uses its embedded engine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

Run = Callable[..., str]

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rush-compose"
BASE = (
    "ca-certificates,netbase,tzdata,libssl3,libffi8,libsqlite3-0,libreadline8,libbz2-1.0,liblzma5,zlib1g,"
    "libncursesw6,libuuid1,libexpat1,libgdbm6"
)
NO_DOCS = [f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("doc", "locale", "man", "info", "help")]
PYTHON = "rush-standin/python:3.11"
REDIS = "rush-standin/redis:7"
POSTGRES = "rush-standin/postgres:15"
QDRANT = "rush-standin/qdrant:none"
LABEL_STUDIO = "rush-standin/label-studio"

CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


def debian(name: str, include: str) -> Path:
    """A root file system of Debian bookworm with these packages, as a tar that is kept."""
    path = CACHE / f"{name}.tar"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.tar")
        print(f"Making a root file system of Debian with {name}: about a minute …", flush=True)
        command = ["mmdebstrap", "--variant=minbase", "--mode=root", "--dpkgopt=force-unsafe-io", *NO_DOCS]
        subprocess.run([*command, f"--include={include}", "bookworm", str(part)], check=True)
        part.replace(path)
    return path


def import_debian(docker: Run, tag: str, name: str, include: str) -> None:
    """Make an image of such a root file system, once."""
    if not docker("images", "-q", tag):
        docker("import", str(debian(name, include)), tag)


def build(docker: Run, tag: str, dockerfile: str, files: dict[str, Path | str] | None = None) -> None:
    """Build an image of the text of a Dockerfile and some files."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "Dockerfile").write_text(dockerfile)
        for name, source in (files or {}).items():
            if isinstance(source, Path):
                shutil.copy(source, Path(folder) / name)
            else:
                (Path(folder) / name).write_text(source)
        docker("build", "-q", "-t", tag, folder)


def python(docker: Run) -> None:
    """What python:3.11-slim is: Debian with CPython under /usr/local, which is this machine's own."""
    prefix, version = Path(sys.base_prefix), f"python{sys.version_info.major}.{sys.version_info.minor}"
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "python.tar"

        def lean(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
            parts = Path(info.name).parts
            left_out = {"site-packages", "__pycache__", "test", "idlelib"} & set(parts)
            return None if left_out or any(part.startswith("config-3") for part in parts) else info

        with tarfile.open(archive, "w") as tar:
            libraries = sorted((prefix / "lib").glob(f"lib{version}*.so*"))
            for path in (prefix / "bin" / version, *libraries, prefix / "lib" / version):
                tar.add(
                    path.resolve() if path.name == version else path, path.relative_to(prefix), filter=lean
                )
        files: dict[str, Path | str] = {"python.tar": archive, "ca.crt": Path(CERTIFICATES)}
        files |= {"pip.conf": pip_settings()}
        build(
            docker,
            PYTHON,
            f"""FROM rush-standin/debian
ADD python.tar /usr/local
COPY ca.crt {CERTIFICATES}
COPY pip.conf /etc/pip.conf
ENV PIP_CERT={CERTIFICATES} SSL_CERT_FILE={CERTIFICATES} REQUESTS_CA_BUNDLE={CERTIFICATES} \\
    PIP_ROOT_USER_ACTION=ignore
RUN ldconfig && ln -sf {version} /usr/local/bin/python3 && ln -sf python3 /usr/local/bin/python \\
    && python3 -m ensurepip --default-pip
""",
            files,
        )


def pip_settings() -> str:
    """Where this machine's pip finds packages."""
    found = Path("/etc/pip.conf")
    return found.read_text() if found.exists() else "[global]\n"


def servers(docker: Run) -> None:
    """Redis and PostgreSQL of Debian, with users and entry points like those of the official images."""
    build(docker, REDIS, "FROM rush-standin/servers\nRUN install -d -o redis -g redis /data\n")
    entry = """#!/bin/sh
set -e
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  echo "$POSTGRES_PASSWORD" > /tmp/password
  initdb -U "$POSTGRES_USER" --pwfile=/tmp/password -E UTF8 --locale=C.UTF-8 \\
    --auth-host=scram-sha-256 --auth-local=trust
  rm /tmp/password
  pg_ctl -w -o "-c listen_addresses=''" start
  createdb -U "$POSTGRES_USER" "$POSTGRES_DB"
  pg_ctl -w -m fast stop
  echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
fi
exec postgres -c listen_addresses='*'
"""
    build(
        docker,
        POSTGRES,
        """FROM rush-standin/servers
ENV PATH=/usr/lib/postgresql/15/bin:$PATH PGDATA=/var/lib/postgresql/data
RUN rm -rf /var/lib/postgresql/* && install -d -o postgres -g postgres -m 700 /var/lib/postgresql/data
COPY --chmod=755 entry.sh /entry.sh
CMD ["/entry.sh"]
""",
        {"entry.sh": entry},
    )


def qdrant(docker: Run) -> None:
    """Nothing but an open port."""
    build(
        docker,
        QDRANT,
        f"FROM {PYTHON}\nRUN install -d -o 1000 -g 1000 /qdrant/storage\nUSER 1000\n"
        'CMD ["python3", "-m", "http.server", "6333", "-d", "/qdrant"]\n',
    )


def label_studio(docker: Run, version: str) -> str:
    """Label Studio from the Python package index; returns its tag."""
    tag = f"{LABEL_STUDIO}:{version}"
    if not docker("images", "-q", tag):
        print("Installing Label Studio into an image: about five minutes …", flush=True)
        build(
            docker,
            tag,
            f"""FROM {PYTHON}
RUN --mount=type=cache,target=/root/.cache/pip pip install --no-compile label-studio=={version}
RUN useradd --uid 1001 --create-home studio && install -d -o studio -g studio /label-studio/data
ENV LABEL_STUDIO_BASE_DATA_DIR=/label-studio/data PYTHONUNBUFFERED=1
USER 1001
CMD ["label-studio", "start", "--no-browser", "--internal-host", "0.0.0.0", "--port", "8080"]
""",
        )
    return tag


def make(docker: Run, label_studio_version: str) -> dict[str, str]:
    """Build all stand-ins; returns the variables of the compose file that name them."""
    import_debian(docker, "rush-standin/debian", "debian", BASE)
    import_debian(docker, "rush-standin/servers", "servers", f"{BASE},redis-server,postgresql-15")
    python(docker)
    servers(docker)
    qdrant(docker)
    return {
        "PYTHON_IMAGE": PYTHON,
        "REDIS_IMAGE": REDIS,
        "POSTGRES_IMAGE": POSTGRES,
        "QDRANT_IMAGE": QDRANT,
        "LABEL_STUDIO_IMAGE": label_studio(docker, label_studio_version),
        "RUSH_QDRANT_URL": "",
    }
