"""Reads the image behind a task's value, from where it may be read and no further."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

import httpx

from ml_backend.adapters.label_studio.transport import Transport, failure, unreachable
from ml_backend.domain.errors import BadImage, RushError

_REDIRECTS = 5
_STORAGE = frozenset({"s3", "gs", "azure-blob", "azure_blob", "redis", "dbfs"})
_RESOLVER = re.compile(r"/(?:tasks|projects)/\d+/(?:resolve|presign)/$")
_FILES = re.compile(r"/(?:data/|storage-data/|(?:tasks|projects)/\d+/(?:resolve|presign|file-proxy)/)")
_OWN_PATHS = ("/data/local-files/", "/data/upload/")


class ImageSource:
    """Image addresses → bytes.

    The token goes to Label Studio's own origin only, also after a redirect, and there only to what serves
    files: task data is anybody's, and must not make us call the API. Other hosts are asked only where
    ``hosts`` names them (``*``: all) or where Label Studio's own storage resolver redirects there.
    Files are read only below ``roots``, symbolic links resolved.
    """

    def __init__(self, http: Transport, hosts: Sequence[str], roots: Sequence[Path], max_bytes: int) -> None:
        self._http = http
        self._hosts = frozenset(host.lower() for host in hosts)
        self._roots = tuple(root.resolve() for root in roots)
        self._max_bytes = max_bytes
        self._own = _site(urlsplit(http.origin))

    def read(self, url: str, project: int | None = None) -> bytes:
        """The bytes; BadImage if refused, too large or not there.

        ``project`` is whose storages resolve cloud addresses (s3://…).
        """
        try:
            parts = urlsplit(url.strip())
            _ = parts.port
        except ValueError as error:
            raise BadImage(f"Not an address: {url[:200]!r} ({error}).") from None
        if parts.scheme in ("http", "https"):
            return self._fetch(self._reachable(parts))
        if parts.scheme in _STORAGE:
            return self._fetch(self._resolver(url, project))
        if parts.scheme == "file":
            return self._file(Path(unquote(parts.path)), url)
        if parts.scheme or not url.strip():
            raise BadImage(
                f"Can't read images from {url[:200]!r}.", "Use http, https, a path or a cloud storage."
            )
        path = Path(url.strip())
        if path.is_absolute() and self._within_roots(path):
            return self._file(path, url)
        if url.strip().startswith("/") and not url.strip().startswith("//"):
            return self._fetch(self._http.origin + url.strip())
        raise BadImage(
            f"{url[:200]!r} is neither an address nor an absolute path.",
            "Import the file through Label Studio, or give its absolute path below RUSH_FILE_ROOTS.",
        )

    def _reachable(self, parts: SplitResult) -> str:
        # Label Studio writes its own LABEL_STUDIO_HOST into tasks, which may not be its address from here.
        if _site(parts) != self._own and not self._allowed(parts) and parts.path.startswith(_OWN_PATHS):
            return f"{self._http.origin}{parts.path}" + (f"?{parts.query}" if parts.query else "")
        return parts.geturl()

    def _resolver(self, url: str, project: int | None) -> str:
        if project is None:
            raise BadImage(f"{url[:200]!r} needs its project's storage.", "Sync the project and try again.")
        encoded = base64.urlsafe_b64encode(url.strip().encode()).decode()
        return f"{self._http.origin}/projects/{project}/resolve/?fileuri={encoded}"

    def _fetch(self, url: str) -> bytes:
        trusted = False
        for _ in range(_REDIRECTS + 1):
            try:
                parts = urlsplit(url)
                own = _site(parts) == self._own
                allowed = own or trusted or self._allowed(parts)
            except ValueError as error:
                raise BadImage(f"Not an address: {url[:200]!r} ({error}).") from None
            if not allowed or parts.scheme not in ("http", "https"):
                raise BadImage(
                    f"Images from {parts.scheme}://{parts.netloc.rpartition('@')[2]} are not allowed.",
                    f"Add {parts.hostname} to RUSH_ALLOWED_HOSTS.",
                )
            body, location = self._get(url, own, authorised=own and self._serves_files(parts.path))
            if body is not None:
                return body
            trusted = own and _RESOLVER.search(parts.path) is not None
            url = urljoin(url, location)
        raise BadImage(f"More than {_REDIRECTS} redirects, the last to {_bare(url)}.")

    def _serves_files(self, path: str) -> bool:
        path = unquote(path).removeprefix(urlsplit(self._http.origin).path)
        return ".." not in path.split("/") and _FILES.match(path) is not None

    def _get(self, url: str, own: bool, *, authorised: bool) -> tuple[bytes | None, str]:
        """The body, or nothing and where to look instead."""
        try:
            with self._http.stream(url, authorised=authorised) as reply:
                if reply.is_redirect:
                    return None, reply.headers["location"]
                if reply.status_code != 200:
                    reply.read()
                    raise self._refusal(url, reply, own)
                return self._body(url, reply), ""
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            if own and isinstance(error, httpx.HTTPError):
                raise unreachable("GET", _bare(url), error) from None
            raise BadImage(f"{_bare(url)} can't be read: {type(error).__name__}: {error}.") from None

    def _refusal(self, url: str, reply: httpx.Response, own: bool) -> RushError:
        """A missing image is the image's fault, a dead or locked Label Studio is not."""
        if own and (reply.status_code == 401 or reply.status_code >= 502):
            return failure("GET", _bare(url), reply)
        hint = ""
        if own and "/data/local-files/" in url:
            hint = "Label Studio serves a local file only below a Local files storage of one of its projects."
        return BadImage(f"{_bare(url)} answered {reply.status_code}.", hint)

    def _body(self, url: str, reply: httpx.Response) -> bytes:
        body = bytearray()
        said = reply.headers.get("content-length", "")
        size = int(said) if said.isascii() and said.isdigit() else 0
        if size <= self._max_bytes:
            for chunk in reply.iter_bytes():
                body += chunk
                if len(body) > self._max_bytes:
                    break
        size = max(size, len(body))
        if size > self._max_bytes:
            raise self._too_large(_bare(url), size)
        if not body:
            raise BadImage(f"{_bare(url)} is empty.")
        return bytes(body)

    def _file(self, path: Path, url: str) -> bytes:
        try:
            real = path.resolve(strict=True)
            if not any(real.is_relative_to(root) for root in self._roots):
                raise BadImage(f"{url[:200]!r} is outside of the allowed folders.", "See RUSH_FILE_ROOTS.")
            if not real.is_file():
                raise BadImage(f"{url[:200]!r} is not a file.")
            if (size := real.stat().st_size) > self._max_bytes:
                raise self._too_large(str(path), size)
            return real.read_bytes()
        except (OSError, ValueError, RuntimeError) as error:
            raise BadImage(f"{url[:200]!r} can't be read: {error}.") from None

    def _within_roots(self, path: Path) -> bool:
        try:
            return any(path.resolve().is_relative_to(root) for root in self._roots)
        except (OSError, ValueError, RuntimeError):
            return False

    def _allowed(self, parts: SplitResult) -> bool:
        return "*" in self._hosts or bool(
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


def _bare(url: str) -> str:
    """An address without user, password and signed query, fit for logs."""
    parts = urlsplit(url)
    query = f"?{parts.query}" if parts.path.startswith(_OWN_PATHS) and parts.query else ""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}{query}"[:300]
