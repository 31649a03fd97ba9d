"""Reads the image behind a task's value, from where it may be read and no further."""

from __future__ import annotations

import base64
import binascii
import re
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import SplitResult, unquote, unquote_to_bytes, urljoin, urlsplit

import httpx

from ml_backend.adapters.label_studio.transport import Transport, failure, unreachable
from ml_backend.domain.errors import BadImage, RushError
from ml_backend.domain.shown import shown

SLOWEST = 120.0
"""Seconds for the bytes of one image: each read has a limit of its own, which dripping keeps."""
_REDIRECTS = 5
_STORAGE = frozenset({"s3", "gs", "azure-blob", "azure_blob", "redis", "dbfs"})
_REFUSED = frozenset({400, 401, 403, 410})
_RESOLVER = re.compile(r"/(?:tasks|projects)/\d+/(?:resolve|presign)/$")
_FILES = re.compile(r"/(?:data/|storage-data/|(?:tasks|projects)/\d+/(?:resolve|presign|file-proxy)/)")
_OWN_PATH = re.compile(r"(?:/[^/]+)*?(/data/(?:local-files|upload)/.*)")
"""A file of Label Studio's own, below whatever path it is seen under elsewhere."""

_URL_SAFE = bytes.maketrans(b"-_", b"+/")


class ImageSource:
    """Image addresses → bytes.

    The token goes to Label Studio's own origin and below its path only, also after a redirect, and there
    only to what serves files: task data is anybody's, and must not make us call the API. Other hosts are
    asked only where ``hosts`` names them (``*``: all) or where Label Studio's own storage resolver redirects
    there. Files are read only below ``roots``, symbolic links resolved.
    """

    def __init__(self, http: Transport, hosts: Sequence[str], roots: Sequence[Path], max_bytes: int) -> None:
        self._http = http
        self._hosts = frozenset(host.lower() for host in hosts)
        self._roots = tuple(root.resolve() for root in roots)
        self._max_bytes = max_bytes
        own = urlsplit(http.origin)
        self._own, self._prefix = _site(own), own.path.rstrip("/")

    def read(self, url: str, project: int | None = None) -> bytes:
        """The bytes; BadImage if refused, too large or not there, whatever goes wrong with this image.

        ``project`` is whose storages resolve cloud addresses (s3://…).
        """
        try:
            return self._read(url.strip(), project)
        except RushError:
            raise
        except Exception as error:
            raise BadImage(
                f"{shown(url, 100)!r} can't be read: {type(error).__name__}: {shown(error, 100)}."
            ) from error

    def _read(self, url: str, project: int | None) -> bytes:
        try:
            parts = urlsplit(url)
            _ = parts.port
        except ValueError as error:
            raise BadImage(f"Not an address: {shown(url, 100)!r} ({shown(error, 60)}).") from None
        if parts.scheme in ("http", "https"):
            return self._fetch(url)
        if parts.scheme in _STORAGE:
            return self._fetch(self._resolver(url, project))
        if parts.scheme == "data":
            return self._data(url)
        if parts.scheme == "file":
            return self._file(Path(unquote(parts.path)), url)
        if parts.scheme or not url:
            raise BadImage(
                f"Can't read images from {shown(url, 100)!r}.", "Use http, https, a path or a cloud storage."
            )
        path = Path(url)
        if path.is_absolute() and self._within_roots(path):
            return self._file(path, url)
        if url.startswith("/") and not url.startswith("//"):
            below = self._prefix and self._is_below(parts.path)
            return self._fetch(urljoin(self._http.origin, url) if below else self._inside(url))
        raise BadImage(
            f"{shown(url, 100)!r} is neither an address nor an absolute path.",
            "Import the file through Label Studio, or give its absolute path below RUSH_FILE_ROOTS.",
        )

    # ---- which address

    def _is_below(self, path: str) -> bool:
        """Whether a path on Label Studio's host is one of this Label Studio's."""
        return path.startswith(f"{self._prefix}/")

    def _inside(self, path: str) -> str:
        """A path that Label Studio wrote without its own prefix, or below another one, as an address."""
        found = _OWN_PATH.match(path)
        return self._http.origin + (found[1] if found else path)

    def _is_own(self, parts: SplitResult) -> bool:
        return _site(parts) == self._own and self._is_below(parts.path)

    def _reachable(self, parts: SplitResult) -> list[str]:
        """Where to look for it, the likeliest first.

        Label Studio writes its own LABEL_STUDIO_HOST into tasks, which may not be its address from here.
        """
        url, named = parts.geturl(), self._names(parts)
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        found = _OWN_PATH.match(path)
        if found is None or named or self._is_own(parts):
            return [url]
        if _site(parts) == self._own:  # another Label Studio's may be there, too
            return [self._http.origin + path] if path.startswith("/data/") else [url]
        return [self._http.origin + found[1], *([url] if "*" in self._hosts else [])]

    def _resolver(self, url: str, project: int | None) -> str:
        if project is None:
            raise BadImage(
                f"{shown(url, 100)!r} needs its project's storage.", "Sync the project and try again."
            )
        encoded = base64.urlsafe_b64encode(url.encode()).decode()
        return f"{self._http.origin}/projects/{project}/resolve/?fileuri={encoded}"

    # ---- reading it

    def _fetch(self, url: str) -> bytes:
        *others, last = self._reachable(urlsplit(url))
        for other in others:
            try:
                return self._follow(other)
            except BadImage:
                continue
        return self._follow(last)

    def _follow(self, url: str) -> bytes:
        trusted = False
        for _ in range(_REDIRECTS + 1):
            try:
                parts = urlsplit(url)
                own = _site(parts) == self._own
                allowed = own or trusted or "*" in self._hosts or self._names(parts)
            except ValueError as error:
                raise BadImage(f"Not an address: {shown(url, 100)!r} ({shown(error, 60)}).") from None
            if parts.scheme == "data":
                return self._data(url)
            if not allowed or parts.scheme not in ("http", "https"):
                raise BadImage(
                    f"Images from {shown(f'{parts.scheme}://{parts.netloc}', 100)} are not allowed.",
                    f"Add {shown(parts.hostname, 80)} to RUSH_ALLOWED_HOSTS." if parts.hostname else "",
                )
            own = self._is_own(parts)
            body, location = self._get(url, own, authorised=own and self._serves_files(parts.path))
            if body is not None:
                return body
            trusted = own and _RESOLVER.search(parts.path) is not None
            try:
                url = urljoin(url, location)
                url = self._reachable(urlsplit(url))[0] if own and not trusted else url
            except ValueError as error:
                raise BadImage(f"{shown(url, 100)} leads to no address: {shown(error, 60)}.") from None
        raise BadImage(f"More than {_REDIRECTS} redirects, the last to {shown(url, 100)}.")

    def _serves_files(self, path: str) -> bool:
        path = unquote(path).removeprefix(unquote(self._prefix))
        return ".." not in path.split("/") and _FILES.match(path) is not None

    def _get(self, url: str, own: bool, *, authorised: bool) -> tuple[bytes | None, str]:
        """The body, or nothing and where to look instead."""
        try:
            with self._http.stream(url, authorised=authorised) as reply:
                if reply.is_redirect and (location := str(reply.extensions.get("location", "")).strip()):
                    return None, location
                if reply.is_redirect:
                    raise BadImage(
                        f"{shown(url, 100)} answered {reply.status_code} without saying where to look."
                    )
                if reply.status_code != 200:
                    reply.read()
                    raise self._refusal(url, reply, own)
                return self._body(url, reply), ""
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            if own and isinstance(error, httpx.HTTPError):
                raise unreachable("GET", shown(url, 100), error) from None
            reason = f"{type(error).__name__}: {shown(error, 100)}"
            raise BadImage(f"{shown(url, 100)} can't be read: {reason}.") from None

    def _refusal(self, url: str, reply: httpx.Response, own: bool) -> RushError:
        """A missing image is the image's fault, a dead or locked Label Studio is not."""
        if own and (reply.status_code == 401 or reply.status_code >= 502):
            return failure("GET", shown(url, 100), reply)
        hint = ""
        if not own and "?" in url and reply.status_code in _REFUSED:
            hint = "A signed link may have expired: use one that lasts, or a storage of Label Studio's."
        elif own and "/data/local-files/" in url:
            hint = "Label Studio serves a local file only below a Local files storage of one of its projects."
        return BadImage(f"{shown(url, 100)} answered {reply.status_code}.", hint)

    def _body(self, url: str, reply: httpx.Response) -> bytes:
        body = bytearray()
        said = reply.headers.get("content-length", "")
        size = int(said) if said.isascii() and said.isdigit() else 0
        if size <= self._max_bytes:
            end = time.monotonic() + SLOWEST
            for chunk in reply.iter_bytes():
                body += chunk
                if len(body) > self._max_bytes:
                    break
                if time.monotonic() > end:
                    raise BadImage(
                        f"{shown(url, 100)} takes longer than {SLOWEST:.0f} s.", "Its server is too slow."
                    )
        size = max(size, len(body))
        if size > self._max_bytes:
            raise self._too_large(shown(url, 100), size)
        if not body:
            raise BadImage(f"{shown(url, 100)} is empty.")
        return bytes(body)

    def _data(self, url: str) -> bytes:
        """The image that an address itself holds (data:image/png;base64,…)."""
        head, comma, body = url.partition(",")
        if not comma:
            raise BadImage(f"{shown(url, 60)!r} holds no data.")
        if len(body) > 4 * self._max_bytes:
            raise self._too_large("The data: address", len(body) // 4 * 3)
        data = unquote_to_bytes(body)
        if head.lower().rstrip().endswith(";base64"):
            try:
                data = base64.b64decode(data.translate(_URL_SAFE) + b"=" * (-len(data) % 4))
            except binascii.Error as error:
                raise BadImage(f"The data: address ({shown(head, 40)}) is no base64: {error}.") from None
        if len(data) > self._max_bytes:
            raise self._too_large("The data: address", len(data))
        if not data:
            raise BadImage("The data: address is empty.")
        return data

    def _file(self, path: Path, url: str) -> bytes:
        try:
            real = path.resolve(strict=True)
            if not any(real.is_relative_to(root) for root in self._roots):
                raise BadImage(
                    f"{shown(url, 100)!r} is outside of the allowed folders.", "See RUSH_FILE_ROOTS."
                )
            if not real.is_file():
                raise BadImage(f"{shown(url, 100)!r} is not a file.")
            if (size := real.stat().st_size) > self._max_bytes:
                raise self._too_large(shown(path, 100), size)
            return real.read_bytes()
        except (OSError, ValueError, RuntimeError) as error:
            raise BadImage(f"{shown(url, 100)!r} can't be read: {error}.") from None

    def _within_roots(self, path: Path) -> bool:
        try:
            return any(path.resolve().is_relative_to(root) for root in self._roots)
        except (OSError, ValueError, RuntimeError):
            return False

    def _names(self, parts: SplitResult) -> bool:
        """Whether RUSH_ALLOWED_HOSTS has this host by name."""
        return bool(
            parts.hostname
            and (parts.hostname in self._hosts or f"{parts.hostname}:{parts.port}" in self._hosts)
        )

    def _too_large(self, what: str, size: int) -> BadImage:
        limit = self._max_bytes / 1e6
        return BadImage(
            f"{what} has {size / 1e6:.1f} MB or more, the limit is {limit:.1f} MB.", "See RUSH_MAX_IMAGE_MB."
        )


def _site(parts: SplitResult) -> tuple[str, str, int | None]:
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, (parts.hostname or "").lower(), port
