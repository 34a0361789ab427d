"""A page in headless Chromium, driven by its DevTools protocol: what it logs, asks for, and does under a pointer."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --remote-debugging-port=0"
)
PATIENCE_S = 60.0


class Page:
    """One open page."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._number = socket, 0
        self.events: list[dict[str, Any]] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a command; events that come before it are kept."""
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            said = await self._socket.receive_json(timeout=PATIENCE_S)
            if said.get("id") == self._number:
                if "error" in said:
                    raise AssertionError(f"{method}: {said['error']}")
                return dict(said.get("result", {}))
            self.events.append(said)

    async def value(self, expression: str) -> Any:
        """A JavaScript expression's value."""
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def until(self, expression: str) -> None:
        """Wait until an expression is true."""
        for _ in range(int(PATIENCE_S / 0.1)):
            if await self.value(expression):
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"never true: {expression}")

    async def point_at(self, x: float, y: float) -> None:
        """Move the mouse there, in CSS pixels of the window."""
        for step in (-3, 0):
            await self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + step, y=y)
            await asyncio.sleep(0.2)

    async def picture(self, file: Path, width: int, *, whole: bool = True) -> None:
        """A screenshot at this width; of the whole page, or of the window."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False
        )
        await asyncio.sleep(1)
        data = (await self.call("Page.captureScreenshot", captureBeyondViewport=whole))["data"]
        file.write_bytes(base64.b64decode(data))

    def errors(self) -> list[dict[str, Any]]:
        """Exceptions, and what the console or the browser logged as an error."""
        return [
            event
            for event in self.events
            if event["method"] == "Runtime.exceptionThrown"
            or (event["method"] == "Runtime.consoleAPICalled" and event["params"]["type"] == "error")
            or (event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error")
        ]

    def requests(self) -> list[str]:
        """Addresses asked for that are not within the page."""
        urls = [
            event["params"]["request"]["url"]
            for event in self.events
            if event["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in urls if not url.startswith(("data:", "blob:"))]


@contextlib.asynccontextmanager
async def opened(file: Path, width: int = 1400) -> AsyncIterator[Page]:
    """The page, loaded; the browser ends with the block."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = ["chromium", *FLAGS.split(), f"--user-data-dir={profile}", f"--window-size={width},900"]
        browser = subprocess.Popen([*command, "about:blank"], stderr=subprocess.DEVNULL)
        try:
            async with aiohttp.ClientSession() as session:
                port = _port(Path(profile))
                async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                    targets = await answer.json()
                address = next(each for each in targets if each["type"] == "page")["webSocketDebuggerUrl"]
                async with session.ws_connect(address, max_msg_size=0) as socket:
                    page = Page(socket)
                    for domain in ("Page", "Runtime", "Log", "Network"):
                        await page.call(f"{domain}.enable")
                    await page.call("Page.navigate", url=f"file://{file}")
                    await page.until("document.readyState === 'complete'")
                    yield page
        finally:
            browser.terminate()
            browser.wait()


def _port(profile: Path) -> int:
    """Where the browser listens: it writes a file when it does."""
    file, until = profile / "DevToolsActivePort", time.monotonic() + PATIENCE_S
    while not file.exists() or not file.read_text():
        if time.monotonic() > until:
            raise AssertionError("chromium did not start")
        time.sleep(0.1)
    return int(file.read_text().splitlines()[0])
