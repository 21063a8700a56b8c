"""A real headless browser for tests of the pages we write: chromedriver, spoken to over plain HTTP (W3C WebDriver)."""

from __future__ import annotations

import base64
import io
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

_ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]


class Browser:
    """One browser window."""

    def __init__(self, server: str, session: str) -> None:
        self.base = f"{server}/session/{session}"

    def open(self, path: Path) -> None:
        _call(f"{self.base}/url", {"url": path.resolve().as_uri()})

    def run(self, script: str) -> Any:
        """The value a JavaScript function body returns."""
        return _call(f"{self.base}/execute/sync", {"script": script, "args": []})

    def wait_for(self, script: str, seconds: float = 200) -> Any:
        """The first truthy value of a JavaScript expression."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            value = self.run(f"return {script}")
            if value:
                return value
            time.sleep(0.2)
        raise AssertionError(f"{script} did not become true within {seconds:g} s")

    def complaints(self) -> list[str]:
        """Warnings and errors on the console, and everything that was fetched from a network."""
        logged = _call(f"{self.base}/se/log", {"type": "browser"})
        fetched = self.run("return performance.getEntriesByType('resource').map(entry => entry.name)")
        remote = [address for address in fetched if not address.startswith(("data:", "blob:", "file:"))]
        return [entry["message"] for entry in logged if entry["level"] != "INFO"] + remote

    def canvas(self, selector: str) -> np.ndarray:
        """(rows, columns, 3) of what a canvas shows."""
        address = self.run(f"return document.querySelector({json.dumps(selector)}).toDataURL('image/png')")
        content = base64.b64decode(address.partition(",")[2])
        return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))

    def screenshot(self) -> np.ndarray:
        """(rows, columns, 3) of the window."""
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(_call(f"{self.base}/screenshot")))).convert("RGB"))

    def set_width(self, pixels: int) -> None:
        """Show the page as on a screen of this width."""
        metrics = {"width": pixels, "height": 800, "deviceScaleFactor": 1, "mobile": pixels < 600}
        body = {"cmd": "Emulation.setDeviceMetricsOverride", "params": metrics}
        _call(f"{self.base}/goog/cdp/execute", body)

    def drag(self, selector: str, right: int, down: int) -> None:
        """Press in the middle of an element, move by pixels, release."""
        found = _call(f"{self.base}/element", {"using": "css selector", "value": selector})
        origin = {"element-6066-11e4-a52e-4f735466cecf": next(iter(found.values()))}
        moves = [
            {"type": "pointerMove", "origin": origin, "x": 0, "y": 0, "duration": 0},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerMove", "origin": "pointer", "x": right, "y": down, "duration": 100},
            {"type": "pointerUp", "button": 0},
        ]
        mouse = {"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": moves}
        _call(f"{self.base}/actions", {"actions": [mouse]})


@contextmanager
def browser(folder: Path, *, width: int = 1200, height: int = 900) -> Iterator[Browser]:
    """A browser with a fresh profile in `folder`; skips the test where none is installed."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
    chromedriver = shutil.which("chromedriver")
    if not (chromium and chromedriver):
        pytest.skip("install chromium and chromedriver to test pages in a real browser")
    port = _free_port()
    driver = subprocess.Popen([chromedriver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    server = f"http://127.0.0.1:{port}"
    arguments = [*_ARGUMENTS, f"--user-data-dir={folder}", f"--window-size={width},{height}"]
    wanted = {
        "browserName": "chrome",
        "goog:chromeOptions": {"binary": chromium, "args": arguments},
        "goog:loggingPrefs": {"browser": "ALL"},
    }
    session = None
    try:
        _wait_until_ready(server)
        session = _call(f"{server}/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        yield Browser(server, session)
    finally:
        if session:
            _call(f"{server}/session/{session}", method="DELETE")
        driver.kill()  # the browser itself has ended with its session
        driver.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_ready(server: str) -> None:
    for _ in range(1000):
        try:
            if _call(f"{server}/status")["ready"]:
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise RuntimeError("chromedriver did not start")


def _call(address: str, body: dict[str, Any] | None = None, *, method: str | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"}, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=120) as reply:
        return json.load(reply)["value"]
