"""A person at the keyboard: real Chromium on Label Studio's page, answering by key presses alone."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Page, Response, sync_playwright

PATIENCE = 30_000
"""Milliseconds that a page may take."""
_SHOWN = """() => {
  const image = document.querySelector('img[alt="image"]');
  return image && image.complete && image.naturalWidth > 0 ? image.src : '';
}"""


def chromium() -> str:
    """Chromium's path; skips the test where there is none, fails it where CI is set."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    line = "No Chromium: install it (Debian: apt-get install chromium) to run the browser tests."
    if os.environ.get("CI"):
        pytest.fail(line, pytrace=False)
    pytest.skip(line)


@dataclass
class Annotator:
    """One browser page in the label stream."""

    page: Page
    url: str
    served: list[int] = field(default_factory=list)
    """Ids of the tasks that Label Studio served, as its answers say."""

    def __post_init__(self) -> None:
        self.page.on("response", self._heard)

    def _heard(self, response: Response) -> None:
        if response.ok and ("id=next_task" in response.url or response.url.endswith("/next")):
            self.served.append(int(response.json()["id"]))

    def open(self, project: int) -> None:
        """Start labelling by the project's button: the stream's own address alone ignores the order."""
        self.page.goto(f"{self.url}/projects/{project}/data")
        self.page.get_by_role("button", name=re.compile("^Label .*Tasks?$")).click()
        self.wait_for_image("")

    def image(self) -> str:
        """The address of the image that is shown, nothing while none is."""
        return str(self.page.evaluate(_SHOWN))

    def wait_for_image(self, before: str, patience: float = PATIENCE / 1000) -> str:
        """Wait until another image than ``before`` is shown and answers to keys; returns its address."""
        end = time.monotonic() + patience
        submit = self.page.get_by_label("Submit current annotation")
        while time.monotonic() < end:
            shown = self.image()
            if shown and shown != before and submit.is_enabled():
                return shown
            self.page.wait_for_timeout(5)
        raise AssertionError(f"no image after {before!r} within {patience:.0f} s")

    def suggestion(self) -> str:
        """The preselected class, nothing where there is none."""
        checked = self.page.locator("input[type=checkbox]:checked, input[type=radio]:checked")
        return str(checked.first.get_attribute("name") or "") if checked.count() else ""

    def press(self, key: str) -> None:
        """Press one key, as a person does."""
        self.page.keyboard.press(key)


@contextmanager
def annotator(url: str, email: str, password: str, shots: Path | None = None) -> Iterator[Annotator]:
    """Log in with a fresh browser profile."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=chromium(),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"],
        )
        page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(f"{url}/user/login")
        page.fill('input[name="email"]', email)
        page.fill('input[name="password"]', password)
        page.press('input[name="password"]', "Enter")
        page.wait_for_url(lambda address: "/user/login" not in address)
        try:
            yield Annotator(page, url)
        finally:
            if shots is not None:
                page.screenshot(path=str(shots))
            browser.close()
