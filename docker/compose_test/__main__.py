"""``make test-compose``: the real compose file on a real Docker daemon, labelled through, and a report.

What can be pulled is pulled. Where nothing can, stand-ins are built from packages (``standins.py``), and the
report says which parts those are.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))
import daemon
import standins

from tests import readme

ROOT = Path(__file__).parents[2]
TOOLS = Path(os.environ.get("COMPOSE_TOOLS") or ROOT / ".cache" / "compose" / "bin")
VERSION = "1.23.2"
ANSWERS = 45
PHOTOS = "/files/photos"
WEB_LIMIT = 400e6
PORT, BACKEND_PORT = "18080", "19090"
CLIENT = ["docker"]
REPORT: list[tuple[str, str]] = []


def run(*command: str, env: dict[str, str] | None = None, check: bool = True, show: bool = False) -> str:
    """Run a command and return what it prints; its own words end the test where it fails."""
    done = subprocess.run(
        command,
        text=True,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        stdout=None if show else subprocess.PIPE,
    )
    if check and done.returncode:
        raise SystemExit(f"{' '.join(command)} failed ({done.returncode}).\n{done.stdout or ''}")
    return (done.stdout or "").strip()


def docker(*arguments: str) -> str:
    """The docker client."""
    return run(CLIENT[0], *arguments)


def note(what: str, said: str) -> None:
    """A line of the report."""
    REPORT.append((what, said))
    print(f"  {what}: {said}", flush=True)


def lint(environment: dict[str, str]) -> None:
    """Everything that needs no daemon."""
    run(str(TOOLS / "check-jsonschema"), "--builtin-schema", "vendor.compose-spec", "docker-compose.yml")
    for dockerfile in sorted((ROOT / "docker").glob("Dockerfile.*")):
        run(str(TOOLS / "hadolint"), str(dockerfile))
    for profile in ((), ("--profile", "gpu")):
        compose(environment, *profile, "config", "-q")
    note("lint", "hadolint, compose schema, config with and without the profile gpu")


def compose(environment: dict[str, str], *arguments: str, check: bool = True, show: bool = False) -> str:
    """Compose with the project's own file and the variables of .env.example."""
    command = [str(TOOLS / "docker-compose"), "--env-file", ".env.example", "-p", "rush-test", *arguments]
    return run(*command, env=environment, check=check, show=show)


def example() -> dict[str, str]:
    """The variables of .env.example."""
    lines = (line.strip() for line in (ROOT / ".env.example").read_text().splitlines())
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))  # type: ignore[misc]


def call(method: str, path: str, body: object = None, *, port: str = PORT, auth: str = "") -> object:
    """One request; returns its JSON, None where there is none."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "Authorization": auth}
    request = Request(f"http://127.0.0.1:{port}{path}", data, headers, method=method)
    with urlopen(request, timeout=60) as reply:
        text = reply.read()
    return json.loads(text) if text else None


def label(variables: dict[str, str]) -> None:
    """Answer images one by one as a person would, and see the chain and a training round happen."""
    token = f"Token {variables['LABEL_STUDIO_API_KEY']}"
    password = f"{variables['RUSH_BASIC_AUTH_USER']}:{variables['RUSH_BASIC_AUTH_PASSWORD']}"
    basic = f"Basic {base64.b64encode(password.encode()).decode()}"
    projects = call("GET", "/api/projects/", auth=token)["results"]  # type: ignore[index]
    project = next(row for row in projects if row["title"] == "Rush: handwritten digits")
    number = project["id"]
    hits = accepted = 0
    task = call("GET", f"/api/projects/{number}/next", auth=token)
    for _ in range(ANSWERS):
        truth = Path(str(task["data"]["image"])).parent.name  # type: ignore[index]
        said = [r["value"]["choices"] for p in task["predictions"] for r in p["result"]]  # type: ignore[index]
        accepted += [truth] in said
        result = {"type": "choices", "value": {"choices": [truth]}}
        body = {"result": [result | names(project)], "lead_time": 1.0}
        call("POST", f"/api/tasks/{task['id']}/annotations/", body, auth=token)  # type: ignore[index]
        intended = status(number, basic)["next"].values()
        task = call("GET", f"/api/projects/{number}/next", auth=token)
        hits += task["id"] in intended  # type: ignore[index]
        if task["id"] not in intended:  # type: ignore[index]
            missed(token, list(intended), task["id"])  # type: ignore[index]
    note("order", f"{hits} of {ANSWERS} times Label Studio served the image that Rush had decided on")
    note("suggestions", f"{accepted} of {ANSWERS} were right")
    if hits < ANSWERS:
        raise SystemExit("The queue was not followed.")
    end = time.monotonic() + 180
    while not status(number, basic).get("generation"):
        if time.monotonic() > end:
            raise SystemExit("No generation was published within three minutes.")
        time.sleep(2)
    found = status(number, basic)
    note(
        "training", f"generation {found['generation']} by the worker's container, {found['labelled']} labels"
    )


def command_line(environment: dict[str, str], variables: dict[str, str]) -> None:
    """The README's commands in the worker's container, for a project that somebody made on the page."""
    some = f"mkdir {PHOTOS} && ls /files/digits/3/* | head -12 | xargs cp -t {PHOTOS}"
    compose(environment, "run", "--rm", "-T", "--no-deps", "demo", "sh", "-c", some)
    token = f"Token {variables['LABEL_STUDIO_API_KEY']}"
    empty = {"title": "Made on the page", "label_config": "<View></View>"}
    project = int(call("POST", "/api/projects/", empty, auth=token)["id"])  # type: ignore[index]
    began = time.monotonic()
    ran = []
    for words in readme.commands():
        if words[0] != "rush" or words[1] == "start":  # the containers are what these would start
            continue
        ours = [PHOTOS if word == "photos/" else word for word in readme.for_project(words, project)]
        if words[1] == "doctor":
            ran.append(f"doctor (well at look {looks(environment, ours)})")
        else:
            compose(environment, "exec", "-T", "worker", *ours, show=True)
            ran.append(words[1])
    note("command line", f"{', '.join(ran)} in the worker: {time.monotonic() - began:.0f} s")


def looks(environment: dict[str, str], doctor: list[str]) -> int:
    """How many times the doctor looked until all was well; SystemExit with what it said within a minute.

    Importer and backend may both fill the queue: Rush deletes a task's second prediction seconds later.
    """
    end = time.monotonic() + 60
    count = 1
    while True:
        try:
            compose(environment, "exec", "-T", "worker", *doctor, show=True)
            return count
        except SystemExit:
            if time.monotonic() > end:
                raise
            count += 1
            time.sleep(3)


def missed(token: str, intended: list[object], served: object) -> None:
    """Say what Label Studio knows of both tasks."""
    print(f"  {time.strftime('%X')} intended {intended}, served {served}")
    for task in [*intended, served]:
        rows = call("GET", f"/api/predictions/?task={task}", auth=token)
        print(f"    predictions of {task}: {[(row['id'], row['score']) for row in rows]}")  # type: ignore[attr-defined, index]


def names(project: dict[str, object]) -> dict[str, str]:
    """What the label config of the project calls its control and its image."""
    parsed = project["parsed_label_config"]
    ((control, facts),) = parsed.items()  # type: ignore[attr-defined]
    return {"from_name": control, "to_name": facts["to_name"][0]}


def status(number: int, basic: str) -> dict[str, object]:
    """Rush's own view of the project."""
    found = call("GET", "/status", port=BACKEND_PORT, auth=basic)
    return next(row for row in found["projects"] if row["project"] == number)  # type: ignore[index]


def closed(variables: dict[str, str]) -> None:
    """Nobody gets in without the password."""
    for path in ("/status", "/metrics"):
        try:
            call("GET", path, port=BACKEND_PORT)
        except HTTPError as error:
            if error.code == 401:
                continue
        raise SystemExit(f"{path} is open to everybody.")
    call("GET", "/health", port=BACKEND_PORT)
    note("door", "/health is open, everything else asks for the password")


def hardened(environment: dict[str, str]) -> None:
    """Users, file systems and sizes of our containers as they run."""
    for service in ("ml_backend", "worker", "redis", "postgres"):
        container = compose(environment, "ps", "-q", service)
        facts = json.loads(docker("inspect", container))[0]
        if not facts["HostConfig"]["ReadonlyRootfs"] or facts["HostConfig"]["CapDrop"] != ["ALL"]:
            raise SystemExit(f"{service} has a writable root file system or capabilities.")
        if docker("exec", container, "id", "-u") == "0":
            raise SystemExit(f"{service} runs as root.")
    note("hardening", "backend, worker, Redis and PostgreSQL: not root, read-only, no capabilities")
    for service, limit in (("ml_backend", WEB_LIMIT), ("worker", float("inf"))):
        image = compose(environment, "images", "-q", service).split()[0]
        size = int(docker("image", "inspect", "-f", "{{.Size}}", image))
        note(f"image of {service}", f"{size / 1e6:.0f} MB")
        if size > limit:
            raise SystemExit(f"The image of {service} is over {limit / 1e6:.0f} MB.")


@contextlib.contextmanager
def up(environment: dict[str, str]) -> Iterator[None]:
    """The compose file up and healthy, and gone afterwards."""
    try:
        began = time.monotonic()
        compose(environment, "up", "-d", "--no-build", "--pull", "never", "--wait", "--wait-timeout", "600",
                "label-studio", "postgres", "redis", "qdrant", "ml_backend", "worker", show=True)  # fmt: skip
        compose(environment, "run", "--rm", "-T", "--no-deps", "demo", show=True)
        note("up", f"healthy, connected and filled after {time.monotonic() - began:.0f} s")
        yield
    except BaseException:
        print(compose(environment, "logs", "--tail", "60", check=False))
        raise
    finally:
        compose(environment, "down", "-v", "--remove-orphans", check=False)


def pullable() -> bool:
    """Whether images can be had from outside."""
    return (
        subprocess.run(["docker", "pull", "-q", "redis:7.2.5-bookworm"], capture_output=True).returncode == 0
    )


def main() -> None:
    """Everything, and the report."""
    began = time.monotonic()
    os.environ["DOCKER_BUILDKIT"] = "1"
    environment = {"LABEL_STUDIO_PORT": PORT, "RUSH_PORT": BACKEND_PORT}
    environment["LABEL_STUDIO_HOST"] = f"http://localhost:{PORT}"
    lint(environment)
    with contextlib.ExitStack() as stack:
        if not daemon.usable():
            daemon.install()
            CLIENT[0] = daemon.CLIENT
            stack.enter_context(daemon.own_daemon(standins.CACHE / "docker"))
        real = pullable()
        if real:
            compose(environment, "pull", "-q", "label-studio", "postgres", "redis", "qdrant")
        else:
            environment |= standins.make(docker, VERSION)
        for service in ("web", "worker"):
            began_build = time.monotonic()
            arguments = {"PYTHON_IMAGE": environment.get("PYTHON_IMAGE")}
            arguments["TORCH_INDEX"] = os.environ.get("TORCH_INDEX")
            given = [f"--build-arg={name}={value}" for name, value in arguments.items() if value]
            tag = f"label-studio-rush-{service}:0.1.0"
            docker("build", "-q", "-f", f"docker/Dockerfile.{service}", "-t", tag, *given, ".")
            note(f"build of {service}", f"{time.monotonic() - began_build:.0f} s")
        with up(environment):
            variables = example()
            closed(variables)
            hardened(environment)
            label(variables)
            command_line(environment, variables)
    stood_in = (
        "the images of Python, Redis, PostgreSQL and Label Studio (the real programs, as packages); Qdrant's "
        "server, which can't be had that way: the backend used its embedded engine"
    )
    print("\nmake test-compose: passed")
    for what, said in REPORT:
        print(f"  {what:20} {said}")
    print("  real                 dockerd, Compose, our compose file and images, everything not named next")
    print(f"  stood in             {'nothing' if real else stood_in}")
    print(f"  took                 {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    try:
        main()
    except (HTTPError, URLError) as error:
        raise SystemExit(f"A request failed: {error}") from None
