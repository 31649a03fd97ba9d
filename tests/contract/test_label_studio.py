"""The LabelStudio port against a real Label Studio."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from ml_backend.adapters.label_studio.client import PAGE, HttpLabelStudio
from ml_backend.adapters.processes.servers import LocalLabelStudio
from ml_backend.controls import Choices
from ml_backend.domain.errors import BadImage, LabelStudioError, NotFound, Unauthorized
from ml_backend.domain.model import MODEL_VERSION, PredictionId, Suggestion, TaskId
from ml_backend.wire import prediction
from tests.ports import free_port
from tests.serving import serving

CONFIG = """<View><Image name="image" value="$image"/>
<Choices name="kind" toName="image"><Choice value="cat"/><Choice value="dog"/></Choices></View>"""
CAT = [{"from_name": "kind", "to_name": "image", "type": "choices", "value": {"choices": ["cat"]}}]
DOG = [{"from_name": "kind", "to_name": "image", "type": "choices", "value": {"choices": ["dog"]}}]
SPEC = Choices("kind", "image", "image", ("cat", "dog"))
PIXELS = b"\x89PNG not really, but bytes are bytes"
numbers = itertools.count(1)


def connected(origin: str, token: str, **settings: Any) -> closing[HttpLabelStudio]:
    return closing(HttpLabelStudio(origin, token, **settings))


@pytest.fixture(scope="module")
def studio(label_studio: LocalLabelStudio) -> Iterator[HttpLabelStudio]:
    client = HttpLabelStudio(label_studio.url, label_studio.token, max_image_bytes=1000, timeout=30)
    yield client
    client.close()


@pytest.fixture
def project(studio: HttpLabelStudio) -> int:
    made = studio.call("POST", "/api/projects/", json={"title": "contract", "label_config": CONFIG})
    assert studio.project(made["id"])["title"] == "contract"
    return int(made["id"])


def tasks(count: int) -> list[dict[str, object]]:
    return [{"data": {"image": f"http://127.0.0.1:1/{next(numbers)}.png"}} for _ in range(count)]


def annotate(studio: HttpLabelStudio, task: TaskId, *, skipped: bool = False) -> int:
    body = {"result": [] if skipped else CAT, "was_cancelled": skipped, "lead_time": 1.5}
    return int(studio.call("POST", f"/api/tasks/{task}/annotations/", json=body)["id"])


def test_import_returns_ids_in_the_order_of_the_tasks(studio: HttpLabelStudio, project: int) -> None:
    sent = tasks(120)
    ids = studio.import_tasks(project, sent)
    found = {record.task.id: record.task.data for record in studio.records(project)}
    assert [found[task] for task in ids] == [task["data"] for task in sent]
    assert studio.import_tasks(project, []) == []


def test_records_carry_data_meta_predictions_and_skipped_annotations(
    studio: HttpLabelStudio, project: int
) -> None:
    sent = tasks(3)
    sent[0]["meta"] = {"rush": {"x": 0.5}}
    sent[0]["predictions"] = [prediction(SPEC, Suggestion(("dog",), 0.5), -2)]
    first, second, third = studio.import_tasks(project, sent)
    labelled, skipped = annotate(studio, first), annotate(studio, second, skipped=True)
    records = {record.task.id: record for record in studio.records(project, SPEC)}
    assert records[first].task.meta == {"rush": {"x": 0.5}}
    [row] = records[first].predictions
    assert (row.task, row.score, row.model_version) == (first, -2, MODEL_VERSION)
    [answer] = records[first].annotations
    assert (answer.id, answer.task, answer.labels, answer.skipped) == (labelled, first, ("cat",), False)
    assert answer.lead_time == 1.5
    assert answer.annotator > 0
    assert answer.created_at
    [refusal] = records[second].annotations
    assert (refusal.id, refusal.labels, refusal.skipped) == (skipped, (), True)
    assert records[third].annotations == ()


def test_records_stream_every_task_although_others_are_deleted_meanwhile(
    studio: HttpLabelStudio, project: int
) -> None:
    ids = studio.import_tasks(project, tasks(PAGE + 30))
    stream = studio.records(project)
    seen = [next(stream).task.id]
    for task in (ids[0], ids[5], ids[PAGE + 3]):
        studio.call("DELETE", f"/api/tasks/{task}/")
    seen += [record.task.id for record in stream]
    assert seen == [task for task in ids if task != ids[PAGE + 3]]


def test_the_lowest_score_is_the_next_task_and_a_patch_moves_it(
    studio: HttpLabelStudio, project: int
) -> None:
    ids = studio.import_tasks(project, tasks(4))
    rows = {task: studio.create_prediction(project, task, float(n), CAT) for n, task in enumerate(ids)}
    # Label Studio takes a model version only once a prediction or a backend of that name exists.
    studio.update_project(project, sampling="Uncertainty sampling", model_version=MODEL_VERSION)
    studio.update_prediction(rows[ids[2]], -1e9, DOG)
    assert studio.next_task(project) == ids[2]
    studio.update_prediction(rows[ids[3]], -2e9, DOG)
    assert studio.next_task(project) == ids[2], "asking locks a task for the user until it is submitted"
    annotate(studio, ids[2])
    assert studio.next_task(project) == ids[3]


def test_a_project_without_an_open_task_has_no_next_one(studio: HttpLabelStudio, project: int) -> None:
    assert studio.next_task(project) is None


def test_predictions_are_found_by_project_and_by_task(studio: HttpLabelStudio, project: int) -> None:
    ids = studio.import_tasks(project, tasks(5))
    assert studio.predictions(project) == []
    places = dict(zip(ids[:4], (-(2**40), -3, 0, 2**33 + 1), strict=True))
    cat = Suggestion(("cat",), 0.5)
    body = [{"task": task, **prediction(SPEC, cat, place)} for task, place in places.items()]
    assert studio.import_predictions(project, body) == 4
    assert studio.import_predictions(project, []) == 0
    rows = studio.predictions(project)
    assert {row.task: row.score for row in rows} == places
    for wanted in ([], ids[:1], ids[1:3], ids[1:5]):
        assert {row.task for row in studio.predictions(project, wanted)} == set(wanted) & set(ids[:4])


def test_deleting_a_prediction_twice_is_fine(studio: HttpLabelStudio, project: int) -> None:
    [task] = studio.import_tasks(project, tasks(1))
    made = studio.create_prediction(project, task, 0.0, CAT)
    studio.delete_prediction(made)
    studio.delete_prediction(made)
    assert studio.predictions(project, [task]) == []


def test_updating_a_task_replaces_what_is_given_and_keeps_the_rest(
    studio: HttpLabelStudio, project: int
) -> None:
    [task] = studio.import_tasks(project, [{"data": {"image": "/a.png"}, "meta": {"old": 1}}])
    studio.update_task(task, meta={"rush": {"x": 1}})
    [record] = studio.records(project)
    assert (record.task.data, record.task.meta) == ({"image": "/a.png"}, {"rush": {"x": 1}})


def test_what_is_gone_is_not_found(studio: HttpLabelStudio, project: int) -> None:
    missing = 2**31 - 7
    with pytest.raises(NotFound, match=f"/api/projects/{missing}/ answered 404"):
        studio.project(missing)
    with pytest.raises(NotFound):
        list(studio.records(missing))
    with pytest.raises(NotFound):
        studio.next_task(missing)
    with pytest.raises(NotFound):
        studio.update_prediction(PredictionId(missing), 0.0, CAT)
    with pytest.raises(NotFound):
        studio.create_prediction(project, TaskId(missing), 0.0, CAT)
    with pytest.raises(NotFound):
        studio.update_task(TaskId(missing), meta={})
    assert studio.predictions(project, [TaskId(missing)]) == []
    assert studio.predictions(missing) == []


def test_refusals_carry_label_studios_own_words(studio: HttpLabelStudio, project: int) -> None:
    with pytest.raises(LabelStudioError, match=r"answered 400.*at least 3 characters"):
        studio.update_project(project, title="x")


def test_a_wrong_token_is_unauthorized_and_never_quoted(label_studio: LocalLabelStudio) -> None:
    for token in ("f" * 40, "aaaa.bbbb.cccc"):
        with connected(label_studio.url, token) as client, pytest.raises(Unauthorized) as caught:
            client.project(1)
        assert "answered 401" in str(caught.value)
        assert token not in str(caught.value)


def test_a_server_that_is_not_there_is_named() -> None:
    port = free_port()
    with connected(f"http://127.0.0.1:{port}", "t") as client, pytest.raises(LabelStudioError) as caught:
        client.project(1)
    assert f"can't be reached: GET http://127.0.0.1:{port}/api/projects/1/" in str(caught.value)


def test_a_personal_access_token_is_exchanged_renewed_and_survives_a_401(
    label_studio: LocalLabelStudio, studio: HttpLabelStudio, project: int
) -> None:
    client = HttpLabelStudio(label_studio.url, studio.call("POST", "/api/token/")["token"])
    try:
        assert client.project(project)["id"] == project
        token = client._http._token
        assert 200 < token._fresh_until - time.monotonic() < 300
        good = token._access
        token._access = "no.longer.valid"
        assert client.project(project)["id"] == project
        assert token._access not in ("no.longer.valid", "")
        token._fresh_until = 0.0
        assert client.project(project)["id"] == project
        assert token._fresh_until > time.monotonic()
        assert good
    finally:
        client.close()


def test_a_refused_access_token_is_exchanged_anew_once_for_requests_and_images() -> None:
    seen: list[str | None] = []

    class Studio(BaseHTTPRequestHandler):
        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            seen.append("exchange")
            assert "Authorization" not in self.headers
            assert json.loads(self.rfile.read(int(self.headers["Content-Length"])))["refresh"] == "a.b.c"
            self.answer(200, json.dumps({"access": f"access {seen.count('exchange')}"}).encode())

        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization"))
            self.answer(200 if seen[-1] == "Bearer access 2" else 401, b"{}")

        def log_message(self, *_: object) -> None:
            """Keep the test output clean."""

    with serving(Studio) as address, connected(address, "a.b.c") as client:
        assert client.project(7) == {}
        assert seen == ["exchange", "Bearer access 1", "exchange", "Bearer access 2"]
        client._http._token._access = "access 1"
        with pytest.raises(Unauthorized):
            client.download("/data/upload/1/image.png")
        assert seen[4:] == ["Bearer access 1", "exchange", "Bearer access 3"]


class Elsewhere(BaseHTTPRequestHandler):
    """Another web server: images, a redirect to Label Studio, a redirect loop, one image without an end."""

    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, str | None]]
    target = ""

    def do_GET(self) -> None:
        type(self).seen.append((self.path, self.headers.get("Authorization")))
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", {"/to/studio": self.target, "/to/loop": "/to/loop"}[self.path])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Connection", "close")
        if self.path != "/endless.png":
            self.send_header("Content-Length", str(len(PIXELS)))
        self.end_headers()
        with suppress(OSError):  # the client hangs up on what is too large
            self.wfile.write(PIXELS if self.path != "/endless.png" else b"x" * 500_000)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Keep the test output clean."""


@pytest.fixture
def elsewhere() -> Iterator[str]:
    Elsewhere.seen = []
    with serving(Elsewhere) as address:
        yield address


@pytest.fixture
def local_file(studio: HttpLabelStudio, label_studio: LocalLabelStudio, project: int) -> str:
    folder = label_studio.files_root / "images"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a b.png").write_bytes(PIXELS)
    (folder / "big.png").write_bytes(b"x" * 1001)
    body = {"project": project, "path": str(folder), "use_blob_urls": True, "title": "images"}
    studio.call("POST", "/api/storages/localfiles/", json=body)
    return "/data/local-files/?d=images/a%20b.png"


def test_local_files_are_read_with_the_token_by_path_and_by_any_address_of_label_studio(
    studio: HttpLabelStudio, local_file: str
) -> None:
    for host in ("", studio.origin, "http://label-studio.internal:8080"):
        assert studio.download(host + local_file) == PIXELS


def test_uploaded_files_are_read(studio: HttpLabelStudio, project: int) -> None:
    upload = {"file": ("cat.png", PIXELS, "image/png")}
    studio.call("POST", f"/api/projects/{project}/import", files=upload)
    [record] = studio.records(project)
    assert record.task.data["image"].startswith("/data/upload/")
    assert studio.download(record.task.data["image"]) == PIXELS


def test_images_over_the_limit_are_refused(studio: HttpLabelStudio, local_file: str) -> None:
    with pytest.raises(BadImage, match="limit"):
        studio.download(local_file.replace("a%20b", "big"))


def test_other_hosts_need_to_be_allowed_and_never_see_the_token(
    label_studio: LocalLabelStudio, studio: HttpLabelStudio, local_file: str, elsewhere: str
) -> None:
    with pytest.raises(BadImage, match="RUSH_ALLOWED_HOSTS"):
        studio.download(f"{elsewhere}/image.png")
    assert Elsewhere.seen == []
    client = HttpLabelStudio(
        label_studio.url, label_studio.token, allowed_hosts="example.org, 127.0.0.1", max_image_bytes=1000
    )
    try:
        assert client.download(f"{elsewhere}/image.png") == PIXELS
        Elsewhere.target = label_studio.url + local_file
        assert client.download(f"{elsewhere}/to/studio") == PIXELS
        with pytest.raises(BadImage, match="redirects"):
            client.download(f"{elsewhere}/to/loop")
        with pytest.raises(BadImage, match="limit"):
            client.download(f"{elsewhere}/endless.png")
    finally:
        client.close()
    assert {header for _, header in Elsewhere.seen} == {None}


def test_label_studios_storage_resolver_may_redirect_anywhere_but_without_the_token(elsewhere: str) -> None:
    class Resolver(Elsewhere):
        seen: ClassVar[list[tuple[str, str | None]]] = []

        def do_GET(self) -> None:
            self.path = "/to/studio" if "/resolve/" in self.path else self.path
            super().do_GET()

    Resolver.target = f"{elsewhere}/bucket/image.png?signature=secret"
    with serving(Resolver) as address, connected(address, "t") as client:
        assert client.download("s3://bucket/image.png", 7) == PIXELS
        with pytest.raises(BadImage, match="RUSH_ALLOWED_HOSTS"):
            client.download(f"{address}/to/studio")
    assert Resolver.seen == [("/to/studio", "Token t"), ("/to/studio", None)]
    assert Elsewhere.seen == [("/bucket/image.png?signature=secret", None)]


def test_an_image_address_cannot_make_us_call_the_api(studio: HttpLabelStudio, project: int) -> None:
    [task] = studio.import_tasks(project, tasks(1))
    for path in (f"/api/projects/{project}/next", f"/data/../api/projects/{project}/next"):
        for url in (path, studio.origin + path):
            with pytest.raises((BadImage, Unauthorized)):
                studio.download(url)
    assert studio.next_task(project) == task


def test_files_are_read_below_the_roots_only(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "in.png").write_bytes(PIXELS)
    (tmp_path / "out.png").write_bytes(PIXELS)
    (root / "link.png").symlink_to(tmp_path / "out.png")
    client = HttpLabelStudio(f"http://127.0.0.1:{free_port()}", "t", file_roots=str(root), timeout=1)
    assert client.download(f"file://{root}/in.png") == PIXELS
    assert client.download(str(root / "in.png")) == PIXELS
    for outside in (
        f"{root}/../out.png",
        f"{root}/link.png",
        f"{tmp_path}/out.png",
        "/etc/passwd",
        f"{root}",
    ):
        with pytest.raises(BadImage):
            client.download(f"file://{outside}")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "  ",
        "a.png",
        "ftp://x/y",
        "//evil/x.png",
        "http://[",
        "http://h:99999/",
        "s3://b/k",
        "\0",
        "data:,",
    ],
)
def test_what_is_no_readable_address_is_a_bad_image(url: str) -> None:
    client = HttpLabelStudio(f"http://127.0.0.1:{free_port()}", "t", allowed_hosts="h", timeout=1)
    with pytest.raises(BadImage):
        client.download(url)


def test_cloud_addresses_go_to_label_studios_resolver(studio: HttpLabelStudio, project: int) -> None:
    with pytest.raises(BadImage, match=rf"/projects/{project}/resolve/ answered 404"):
        studio.download("s3://bucket/key.png", project)


def test_a_get_is_tried_again_while_label_studio_is_overloaded() -> None:
    answers = [503, 502, 200]

    class Overloaded(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"id": 7}).encode()
            self.send_response(answers.pop(0))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            """Keep the test output clean."""

    with serving(Overloaded) as address, connected(address, "t") as client:
        assert client.project(7) == {"id": 7}
        answers[:] = [503, 200]
        with pytest.raises(LabelStudioError, match="answered 503"):
            client.create_prediction(7, TaskId(1), 0.0, [])
        assert answers == [200]


def test_the_prediction_timeout_bounds_the_submit_path() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as silent:  # accepts, never answers
        client = HttpLabelStudio(f"http://127.0.0.1:{silent.server_port}", "t", prediction_timeout=0.1)
        began = time.monotonic()
        with pytest.raises(LabelStudioError, match="did not answer in time"):
            client.update_prediction(PredictionId(1), 0.0, [])
        assert time.monotonic() - began < 5, "the general timeout is 10 s"
        client.close()
