"""``ports.TaskSink`` on label-studio-sdk, which takes seconds to load: for the command line only."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
from label_studio_sdk import LabelStudio as Sdk
from label_studio_sdk.core.api_error import ApiError

from ml_backend.adapters.label_studio.transport import REFUSALS, unreachable
from ml_backend.domain.errors import LabelStudioError, Refused
from ml_backend.domain.model import TaskId
from ml_backend.domain.shown import shown
from ml_backend.ports import LabelStudio
from ml_backend.settings import authorities

TIMEOUT = 600.0


class SdkSink:
    """Creates tasks, storages and uploads; LabelStudioError where Label Studio refuses."""

    def __init__(self, url: str, token: str, studio: LabelStudio) -> None:
        self._http = httpx.Client(timeout=TIMEOUT, verify=authorities())
        self._sdk = Sdk(base_url=url, api_key=token, timeout=TIMEOUT, httpx_client=self._http)
        self._studio = studio

    def close(self) -> None:
        """Close the SDK's connections."""
        self._http.close()

    def ensure_storage(self, project: int, folder: Path) -> None:
        """Make Label Studio serve the files below ``folder`` to this project.

        A sync of that storage in Label Studio finds nothing: it would import every file once more.
        """
        try:
            for storage in self._sdk.import_storage.local.list(project=project):
                if storage.path and folder.is_relative_to(Path(storage.path).resolve()):
                    return
            self._sdk.import_storage.local.create(
                project=project, path=str(folder), use_blob_urls=True, title="Rush", regex_filter="(?!)"
            )
        except ApiError as error:
            raise LabelStudioError(
                f"Label Studio can't serve {folder}: {error.body}.",
                "Set its LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT to a folder above, or unset ours to upload.",
            ) from None

    def upload(self, project: int, files: Sequence[Path]) -> list[str]:
        """Upload files without making tasks of them; returns their addresses in order."""
        mark = secrets.token_hex(2)
        names = [f"{mark}{n:04}-{_upload_name(path)}" for n, path in enumerate(files)]
        path = f"/api/projects/{project}"
        with ExitStack() as stack:
            # One name a part: Label Studio keys the files of a request by it.
            parts = {
                f"file{n}": (name, stack.enter_context(file.open("rb")))
                for n, (name, file) in enumerate(zip(names, files, strict=True))
            }
            try:
                answer = self._studio.call(
                    "POST",
                    f"{path}/import",
                    params={"commit_to_project": "false"},
                    files=parts,
                    timeout=TIMEOUT,
                )
            except Refused as error:
                if "more than one data key" not in error.message:
                    raise
                # It has stored the files, and only then finds that it could make no tasks of them.
                rows = self._studio.call("GET", f"{path}/file-uploads", params={"all": "true"})
                stored = {_number(row["file"], mark): row["file"] for row in rows}
                if not set(range(len(files))) <= set(stored):
                    raise
                return [f"/data/{stored[n]}" for n in range(len(files))]
        numbers = sorted(answer["file_upload_ids"])
        rows = self._studio.call("GET", f"{path}/file-uploads", params={"ids": str(numbers)})
        files_of = {row["id"]: row["file"] for row in rows}
        return [f"/data/{files_of[n]}" for n in numbers]

    def import_tasks(self, project: int, tasks: Sequence[Mapping[str, Any]]) -> list[TaskId]:
        """Create tasks in one request; returns their ids in order."""
        try:
            answer = self._sdk.projects.import_tasks(
                id=project,
                request=[dict(task) for task in tasks],
                return_task_ids=True,
                request_options={"max_retries": 0},  # a request that failed late may have made the tasks
            )
        except ApiError as error:
            kind = Refused if error.status_code in REFUSALS else LabelStudioError
            raise kind(f"Label Studio refused {len(tasks)} tasks: {_reason(error.body)}.") from None
        except httpx.HTTPError as error:
            raise unreachable("POST", f"/api/projects/{project}/import", error) from None
        ids = [TaskId(int(task)) for task in answer.task_ids or ()]
        if len(ids) != len(tasks):
            raise LabelStudioError(
                f"Label Studio answered with {len(ids)} ids for {len(tasks)} tasks.", "Run the import again."
            )
        return ids


def _number(stored: str, mark: str) -> int | None:
    """Which file of an upload with this mark it is; None where it is of another one."""
    found = re.search(rf"-{mark}(\d{{4}})-", stored)
    return int(found[1]) if found else None


def _upload_name(path: Path) -> str:
    """A name that Label Studio takes: it knows JPEG files by two suffixes only, and cuts no long name."""
    suffix = ".jpg" if path.suffix.lower() in (".jfif", ".jpe") else path.suffix
    return path.stem[:60] + suffix


def _reason(body: object) -> str:
    """Label Studio's own words without the copies of what was sent that it puts behind them."""
    if isinstance(body, Mapping):
        errors = body.get("validation_errors") or body.get("detail") or body
        while isinstance(errors, (Mapping, list)) and errors:
            rows = errors.values() if isinstance(errors, Mapping) else errors
            errors = next((row for row in rows if row), "")  # the first of them, of one task
        body = errors
    return shown(str(body).partition(" :: ")[0], 160).rstrip(".")
