"""A page in a headless Chromium, driven by chromedriver over plain HTTP: no package is needed for it."""

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
)
SECONDS_TO_START = 60


def browser_programs() -> tuple[str, str] | None:
    """Chromium and chromedriver, where both are installed."""
    browser = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


class Page:
    """One session of the browser."""

    def __init__(self, address: str, capabilities: dict[str, Any]) -> None:
        self.address = address
        self.address += (
            f"/session/{self._send('/session', {'capabilities': {'alwaysMatch': capabilities}})['sessionId']}"
        )

    def _send(self, path: str, body: dict[str, Any] | None, method: str = "POST") -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]

    def open(self, url: str) -> None:
        self._send("/url", {"url": url})

    def run(self, script: str) -> Any:
        """What a script returns."""
        return self._send("/execute/sync", {"script": script, "args": []})

    def console(self) -> list[str]:
        """What the console has said since it was last asked."""
        return [entry["message"] for entry in self._send("/se/log", {"type": "browser"})]

    def close(self) -> None:
        self._send("", None, "DELETE")


@contextmanager
def open_page(file: Path, profile: Path) -> Iterator[Page]:
    """The page in a browser with a profile of its own; the browser ends with the block."""
    programs = browser_programs()
    assert programs is not None
    driver = subprocess.Popen([programs[1], "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        page = Page(_address(driver), _capabilities(programs[0], profile))
        try:
            page.open(file.resolve().as_uri())
            yield page
        finally:
            page.close()
    finally:
        driver.terminate()
        driver.wait(30)


def _capabilities(browser: str, profile: Path) -> dict[str, Any]:
    options = {"binary": browser, "args": [*ARGUMENTS, f"--user-data-dir={profile}"]}
    return {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}


def _address(driver: subprocess.Popen) -> str:
    """Where the driver listens: it says so in a line, and is ready a moment later."""
    said = next(line for line in driver.stdout if "started successfully on port" in line)
    port = said.strip().rstrip(".").rpartition(" ")[2]
    address = f"http://127.0.0.1:{port}"
    limit = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < limit:
        try:
            urllib.request.urlopen(f"{address}/status", timeout=5)
            return address
        except urllib.error.URLError:
            time.sleep(0.1)
    raise TimeoutError("chromedriver does not answer")
