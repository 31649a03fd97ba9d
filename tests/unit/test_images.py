"""Images behind addresses: every spelling is read, the token stays home, one never ends others."""

from __future__ import annotations

import base64
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler

import pytest

from ml_backend.adapters.label_studio.client import HttpLabelStudio
from ml_backend.domain.errors import BadImage
from tests.serving import serving

PICTURE = b"\x89PNG picture"
SIGNED = "X-Amz-Signature=seecret&X-Amz-Expires=60"
INLINE = "data:image/png;base64," + base64.b64encode(PICTURE).decode()


class Answers(BaseHTTPRequestHandler):
    """Answers by path: (status, headers, body); the rest is 404. Notes each path and its token."""

    rows: dict[str, tuple[int, dict[str, str], bytes]]
    seen: list[tuple[str, str]]

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers.get("Authorization") or ""))
        status, headers, body = self.rows.get(self.path, (404, {}, b"nothing"))
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *given: object) -> None: ...


@contextmanager
def answering(
    rows: dict[str, tuple[int, dict[str, str], bytes]],
) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    seen: list[tuple[str, str]] = []
    with serving(type("Here", (Answers,), {"rows": rows, "seen": seen})) as address:
        yield address, seen


def found(*paths: str) -> dict[str, tuple[int, dict[str, str], bytes]]:
    return {path: (200, {}, PICTURE) for path in paths}


UPLOAD, LOCAL = (
    "/label-studio/data/upload/4/3b05-frame.png",
    "/label-studio/data/local-files/?d=set/frame.png",
)


@pytest.mark.parametrize(
    "spelling",
    [
        UPLOAD,
        LOCAL,
        "{host}" + UPLOAD,
        "/data/upload/4/3b05-frame.png",
        "{host}/data/upload/4/3b05-frame.png",
    ],
)
def test_below_a_path_every_spelling_is_read_with_the_token(spelling: str) -> None:
    with (
        answering(found(UPLOAD, LOCAL)) as (host, seen),
        closing(HttpLabelStudio(f"{host}/label-studio", "t")) as studio,
    ):
        assert studio.download(spelling.format(host=host), 1) == PICTURE
    assert len(seen) == 1
    assert seen[0][1] == "Token t"


@pytest.mark.parametrize(
    "path",
    [
        "/team-b/data/upload/1/a.png",
        "/label-studio2/data/upload/1/a.png",
        "/label-studio/../team-b/data/a.png",
        "/label-studio/%2e%2e/team-b/data/a.png",
    ],
)
def test_the_token_is_sent_below_the_path_only(path: str) -> None:
    rows = found(
        "/team-b/data/upload/1/a.png", "/label-studio2/data/upload/1/a.png", "/team-b/data/a.png", path
    )
    with answering(rows) as (host, seen), closing(HttpLabelStudio(f"{host}/label-studio", "t")) as studio:
        assert studio.download(f"{host}{path}") == PICTURE
    assert seen
    assert not any(token for _, token in seen)


def test_a_redirect_out_of_the_path_leaves_the_token_behind() -> None:
    rows = {
        **found("/team-b/data/upload/1/a.png"),
        UPLOAD: (302, {"Location": "/team-b/data/upload/1/a.png"}, b""),
    }
    with answering(rows) as (host, seen), closing(HttpLabelStudio(f"{host}/label-studio", "t")) as studio:
        assert studio.download(UPLOAD) == PICTURE
    assert [token for _, token in seen] == ["Token t", ""]


@pytest.mark.parametrize("hosts", ["", "*", "elsewhere.example"])
@pytest.mark.parametrize("public", ["http://localhost:9", "https://studio.example/label-studio"])
@pytest.mark.parametrize("path", ["/data/upload/4/a.png", "/data/local-files/?d=set/a.png"])
def test_label_studios_own_files_come_from_its_address_here(path: str, public: str, hosts: str) -> None:
    with (
        answering(found(path)) as (host, seen),
        closing(HttpLabelStudio(host, "t", allowed_hosts=hosts)) as studio,
    ):
        assert studio.download(path) == PICTURE
        assert studio.download(public + path) == PICTURE
    assert seen == [(path, "Token t")] * 2


def test_where_all_hosts_are_allowed_another_label_studios_files_are_found_there() -> None:
    path = "/data/upload/4/a.png"
    with (
        answering(found(path)) as (there, asked),
        answering({}) as (host, seen),
        closing(HttpLabelStudio(host, "t", allowed_hosts="*")) as studio,
    ):
        assert studio.download(there + path) == PICTURE
    assert asked == [(path, "")]
    assert seen == [(path, "Token t")]


@pytest.mark.parametrize(
    "url",
    [
        INLINE,
        "data:image/png;base64," + base64.b64encode(PICTURE).decode().rstrip("="),
        "data:;base64,iVBORyBwaWN0dXJl".replace(
            "iVBORyBwaWN0dXJl", base64.urlsafe_b64encode(PICTURE).decode()
        ),
        "data:image/png,%89PNG%20picture",
    ],
)
def test_an_image_that_stands_in_the_task_is_read(url: str) -> None:
    with closing(HttpLabelStudio("http://127.0.0.1:9", "t")) as studio:
        assert studio.download(url) == PICTURE


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64",
        "data:image/png;base64,",
        "data:;base64,A",
        "data:image/png;base64," + "A" * 300_000,
    ],
)
def test_one_that_can_not_be_read_is_named_shortly(url: str) -> None:
    with (
        closing(HttpLabelStudio("http://127.0.0.1:9", "t", max_image_bytes=100_000)) as studio,
        pytest.raises(BadImage) as caught,
    ):
        studio.download(url)
    assert len(str(caught.value)) < 200


def test_a_storage_that_answers_with_the_image_itself_is_read() -> None:
    encoded = base64.urlsafe_b64encode(b"gs://bucket/a.png").decode()
    rows = {f"/projects/2/resolve/?fileuri={encoded}": (303, {"Location": INLINE}, b"")}
    with answering(rows) as (host, _), closing(HttpLabelStudio(host, "t")) as studio:
        assert studio.download("gs://bucket/a.png", 2) == PICTURE


REDIRECTS = {
    "no Location": {},
    "an odd port": {"Location": "http://127.0.0.1:99999/a.png"},
    "no number as port": {"Location": "http://127.0.0.1:port/a.png"},
    "broken brackets": {"Location": "http://[::1/a.png"},
    "a name that is none": {"Location": "http://" + "a" * 70 + ".example/a.png"},
    "another scheme": {"Location": "ftp://h/a.png"},
    "data that is none": {"Location": "data:image/png;base64,A"},
    "itself": {"Location": "/a.png"},
    "nothing": {"Location": ""},
}


@pytest.mark.parametrize("status", [300, 302, 304, 308])
@pytest.mark.parametrize("headers", REDIRECTS.values(), ids=REDIRECTS)
@pytest.mark.parametrize("hosts", ["", "*"])
def test_a_redirect_that_leads_nowhere_is_a_bad_image(
    status: int, headers: dict[str, str], hosts: str
) -> None:
    with (
        answering({"/a.png": (status, headers, b""), **found("/b.png")}) as (host, _),
        closing(HttpLabelStudio(host, "t", allowed_hosts=hosts)) as studio,
    ):
        with pytest.raises(BadImage) as caught:
            studio.download(f"{host}/a.png")
        assert len(str(caught.value)) < 300
        assert studio.download(f"{host}/b.png") == PICTURE


@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_refused_signed_link_may_have_expired_and_is_not_printed(status: int) -> None:
    with (
        answering({f"/p.png?{SIGNED}": (status, {}, b"")}) as (bucket, _),
        closing(HttpLabelStudio("http://127.0.0.1:9", "t", allowed_hosts="127.0.0.1")) as studio,
        pytest.raises(BadImage, match="may have expired") as caught,
    ):
        studio.download(f"{bucket}/p.png?{SIGNED}")
    assert "seecret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        f"http://me:seecret@127.0.0.1:1/p.png?{SIGNED}",
        f"http://h.example/p.png?{SIGNED}",
        f"ftp://me:seecret@h/p?{SIGNED}",
        f"http://me:seecret@h:port/?{SIGNED}",
    ],
)
def test_no_message_shows_a_signature_or_a_password(url: str) -> None:
    with (
        closing(HttpLabelStudio("http://127.0.0.1:9", "t", allowed_hosts="127.0.0.1")) as studio,
        pytest.raises(BadImage) as caught,
    ):
        studio.download(url)
    assert "seecret" not in str(caught.value)


def test_an_answer_that_is_no_http_is_a_bad_image() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with server.accept()[0] as there:
                there.recv(4096)
                there.sendall(b"SSH-2.0-OpenSSH\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with (
            closing(HttpLabelStudio("http://127.0.0.1:9", "t", allowed_hosts="*")) as studio,
            pytest.raises(BadImage, match="can't be read"),
        ):
            studio.download(f"http://127.0.0.1:{server.getsockname()[1]}/a.png")
        thread.join()


def test_an_image_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ml_backend.adapters.label_studio.images.SLOWEST", 0.3)
    done = threading.Event()

    class Dripping(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            with suppress(OSError):
                while not done.wait(0.05):
                    self.wfile.write(b"x")

        def log_message(self, *given: object) -> None: ...

    with serving(Dripping) as address, closing(HttpLabelStudio(address, "t")) as studio:
        with pytest.raises(BadImage, match="takes longer than"):
            studio.download("/data/upload/1/a.png")
        done.set()
