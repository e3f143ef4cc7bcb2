"""A headless Chromium, driven by its DevTools protocol."""

import asyncio
import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
"""Path of a Chromium or Chrome executable, None if none is installed."""


class Page:
    """A tab of the browser, 1600 x 1300 pixels."""

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._loop, self._socket, self._number = loop, socket, 0

    def open(self, url: str) -> None:
        """Load an address from scratch: the blank page first, because an open page only changes its fragment."""
        self._call("Page.navigate", url="about:blank")
        self._call("Page.navigate", url=url)

    def value(self, script: str) -> Any:
        """Value of a JavaScript expression on the page."""
        return self._call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def wait(self, script: str, seconds: float = 60.0) -> Any:
        """Evaluate an expression until it is truthy, and return its value."""
        deadline = time.monotonic() + seconds
        while not (found := self.value(script)):
            assert time.monotonic() < deadline, f"{script} stayed false for {seconds:g} s on: {self.value(TEXT)}"
            time.sleep(0.2)
        return found

    def shot(self, path: Path) -> None:
        """Write a screenshot as a PNG file."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot")["data"]))

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        return self._loop.run_until_complete(self._answer(self._number, method, parameters))

    async def _answer(self, number: int, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while (message := json.loads(await self._socket.receive_str(timeout=60))).get("id") != number:
            pass  # messages without this id are events
        return message["result"]


TEXT = "document.body.innerText"
"""JavaScript expression for the visible text of a page."""


@contextmanager
def chromium(profile: Path) -> Iterator[Page]:
    """Start a browser that keeps its files in `profile`, and yield its one page."""
    assert CHROMIUM
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    options += [f"--user-data-dir={profile}", "--remote-debugging-port=0", "--window-size=1600,1300"]
    process = subprocess.Popen(
        [CHROMIUM, *options, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    loop = asyncio.new_event_loop()
    port_file, session = profile / "DevToolsActivePort", None
    try:
        deadline = time.monotonic() + 30
        while not port_file.exists() or len(port_file.read_text().splitlines()) < 2:
            assert time.monotonic() < deadline, "the browser did not start"
            time.sleep(0.1)
        port = port_file.read_text().splitlines()[0]

        async def connect() -> tuple[aiohttp.ClientSession, aiohttp.ClientWebSocketResponse]:
            session = aiohttp.ClientSession()
            async with session.get(f"http://127.0.0.1:{port}/json") as answer:
                address = next(
                    target["webSocketDebuggerUrl"] for target in await answer.json() if target["type"] == "page"
                )
            return session, await session.ws_connect(address, max_msg_size=0)

        session, socket = loop.run_until_complete(connect())
        yield Page(loop, socket)
    finally:
        if session:
            loop.run_until_complete(session.close())
        loop.close()
        process.terminate()
        process.wait(20)
