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
"""None where there is none."""


class Page:
    """A tab of the browser, 1600 x 1300 pixels."""

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._loop, self._socket, self._number = loop, socket, 0

    def open(self, url: str) -> None:
        """Go to an address, from nowhere: a page that is there already would only change its fragment."""
        self._call("Page.navigate", url="about:blank")
        self._call("Page.navigate", url=url)

    def value(self, script: str) -> Any:
        """What a JavaScript expression is worth there."""
        return self._call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def wait(self, script: str, seconds: float = 60.0) -> Any:
        """The first value of an expression that counts as true."""
        deadline = time.monotonic() + seconds
        while not (found := self.value(script)):
            assert time.monotonic() < deadline, f"{script} never came true; shown is: {self.value(TEXT)}"
            time.sleep(0.2)
        return found

    def shot(self, path: Path) -> None:
        """Keep what is seen, as a PNG file."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot")["data"]))

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        return self._loop.run_until_complete(self._answer(self._number, method, parameters))

    async def _answer(self, number: int, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while (message := json.loads(await self._socket.receive_str(timeout=60))).get("id") != number:
            pass  # an event
        return message["result"]


TEXT = "document.body.innerText"


@contextmanager
def chromium(profile: Path) -> Iterator[Page]:
    """A browser that keeps its files in a folder, with one page."""
    assert CHROMIUM
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    options += [f"--user-data-dir={profile}", "--remote-debugging-port=0", "--window-size=1600,1300"]
    process = subprocess.Popen(
        [CHROMIUM, *options, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    loop = asyncio.new_event_loop()
    told, session = profile / "DevToolsActivePort", None
    try:
        deadline = time.monotonic() + 30
        while not told.exists() or len(told.read_text().splitlines()) < 2:
            assert time.monotonic() < deadline, "the browser did not start"
            time.sleep(0.1)
        port = told.read_text().splitlines()[0]

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
