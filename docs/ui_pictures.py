"""Opens `distcxr ui` in headless Chromium, uses each tab, and keeps what it looks like; ui.png is the one of docs/.

    distcxr ui runs/a runs/b &
    python docs/ui_pictures.py http://127.0.0.1:7860 chest.png pictures

It fails where the page asks anything but its own server. Needs Chromium, and aiohttp, which comes with NiceGUI.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from PIL import Image

_INSIDE = ("data", "blob")  # of the page itself
WIDTHS = {1280: 900, 390: 844}
CLICK = """(() => { const found = [...document.querySelectorAll(%s)].filter(e => e.textContent.includes(%s)
  && e.offsetParent); if (found.length) found[0].click(); return found.length })()"""
COUNT = "[...document.querySelectorAll(%s)].filter(e => e.offsetParent && (e.tagName != 'IMG' || e.complete)).length"
TEXT = "[...document.querySelectorAll(%s)].filter(e => e.offsetParent).map(e => e.textContent).join(' | ')"


class Browser:
    """A page of Chromium by its DevTools protocol."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._numbers = socket, itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.asked: list[str] = []
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            content = json.loads(message.data)
            if "id" in content:
                self._answers.pop(content["id"]).set_result(content)
            elif content["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated"):
                params = content["params"]
                self.asked.append(params["request"]["url"] if "request" in params else params["url"])

    async def call(self, method: str, **params: Any) -> Any:
        """A method's result."""
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        answer = await asyncio.wait_for(self._answers[number], 60)
        assert "result" in answer, answer
        return answer["result"]

    async def value(self, expression: str, *words: str) -> Any:
        """What a line of JavaScript gives, with words put into it."""
        filled = expression % tuple(map(json.dumps, words))
        return (await self.call("Runtime.evaluate", expression=filled, returnByValue=True))["result"].get("value")

    async def until(self, expression: str, *words: str, least: int = 1) -> None:
        """Wait until it gives a number that large."""
        for _ in range(240):
            if (await self.value(expression, *words) or 0) >= least:
                return
            await asyncio.sleep(0.25)
        raise TimeoutError(f"{expression % words}: {await self.value(TEXT, '.message, .caption')}")

    async def drop(self, file: Path) -> None:
        """Give a file to the upload that can be seen."""
        found = await self.call(
            "Runtime.evaluate",
            expression="[...document.querySelectorAll('input[type=file]')]"
            ".filter(e => e.closest('.upload').offsetParent)[0]",
        )
        await self.call("DOM.setFileInputFiles", files=[str(file)], objectId=found["result"]["objectId"])

    async def keep(self, path: Path) -> None:
        """The page as it looks now, whole."""
        await asyncio.sleep(0.7)
        size = (await self.call("Page.getLayoutMetrics"))["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = await self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))


async def take(browser: Browser, url: str, image: Path, folder: Path, width: int) -> None:
    """Use the page at one width."""
    await browser.call(
        "Emulation.setDeviceMetricsOverride", width=width, height=WIDTHS[width], deviceScaleFactor=1, mobile=width < 500
    )
    await browser.call("Page.navigate", url=url)
    await browser.until(COUNT, "input[type=file], .upload")
    await browser.drop(image)
    await browser.until(COUNT, ".finding", least=10)
    await browser.value(CLICK, ".finding.positive", "") or await browser.value(CLICK, ".finding", "")
    await browser.until("%s.length && document.querySelector('.looked-at .caption').textContent.length", "1", least=20)
    await browser.keep(folder / f"one_{width}.png")
    bad = folder / "notes.txt"
    bad.write_text("no image")
    await browser.drop(bad)
    await browser.until(CLICK, ".message", "can't be read")
    await browser.keep(folder / f"wrong_file_{width}.png")
    await browser.until(CLICK, ".q-tab", "Worst errors")
    await browser.until(COUNT, ".card img", least=2)
    await browser.value(CLICK, ".card", "")
    await asyncio.sleep(3)
    await browser.keep(folder / f"worst_{width}.png")
    if await browser.value(CLICK, ".q-tab", "Two runs"):
        await browser.until(COUNT, ".columns.of-2")
        await browser.drop(image)
        await browser.until(COUNT, ".of-2 .finding", least=20)
        await browser.value(CLICK, ".of-2 .finding", "")
        await asyncio.sleep(4)
        await browser.keep(folder / f"two_{width}.png")


async def main(url: str, image: Path, folder: Path) -> None:
    """Every width; ends with an error where another server was asked for something."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        chromium = subprocess.Popen(
            [
                "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank",
            ],
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            port_file = Path(profile) / "DevToolsActivePort"
            for _ in range(120):
                if port_file.exists() and port_file.read_text():
                    break
                await asyncio.sleep(0.25)
            port = port_file.read_text().splitlines()[0]
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json") as answer:
                    targets = await answer.json()
                (page,) = [one["webSocketDebuggerUrl"] for one in targets if one["type"] == "page"]
                async with session.ws_connect(page, max_msg_size=0) as socket:
                    browser = Browser(socket)
                    for name in ("Page", "Network", "DOM"):
                        await browser.call(f"{name}.enable")
                    for width in WIDTHS:
                        await take(browser, url, image.absolute(), folder.absolute(), width)
                    own = urlsplit(url).netloc
                    addresses = [urlsplit(one) for one in browser.asked]
                    foreign = {one.geturl() for one in addresses if one.scheme not in _INSIDE and one.netloc != own}
                    assert browser.asked and not foreign, foreign
        finally:
            chromium.terminate()
            chromium.wait(30)


if __name__ == "__main__":
    place = Path(sys.argv[3])
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), place))
    with Image.open(place / "one_1280.png") as shot:
        shot.convert("RGB").quantize(200).save(place / "ui.png", optimize=True)
