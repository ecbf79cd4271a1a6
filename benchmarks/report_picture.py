"""Pictures of a page that is there already, as a browser shows it; trains nothing and scores nothing.

    distcxr report RUN
    python benchmarks/report_picture.py RUN docs/report.png    the top of the page, as in the README
    python benchmarks/report_picture.py RUN FOLDER             all of it: 1280 px, a phone's 390 px, paper

RUN is a run's folder or a sweep's. With a folder, what is wider than its window is named, and the exit code is 1.
Needs Chromium; pages of paper are a PDF (`pdftoppm -r 60 -png FOLDER/paper.pdf FOLDER/paper` makes pictures of it).
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TOP = (1080, 1110)
WIDTHS = {"desk": 1280, "phone": 390}
PART_HEIGHT = 3000  # of one picture of a long page
WIDER = """JSON.stringify([document.documentElement.scrollWidth - innerWidth,
  ...[...document.querySelectorAll('body *')]
  .filter((one) => one.getBoundingClientRect().right > innerWidth + 1 && !one.closest('.scroll, pre, svg'))
  .map((one) => one.tagName + ' ' + one.textContent.trim().slice(0, 60))])"""


class Browser:
    """Chromium without a window, driven by its DevTools protocol through two pipes: nothing to install."""

    def __init__(self, program: str) -> None:
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        flags = "--headless=new --no-sandbox --disable-gpu --hide-scrollbars --remote-debugging-pipe"
        # The protocol is on descriptors 3 and 4.
        command = f'exec 3<&{to_read} 4>&{to_write}; exec "$0" "$@"'
        self._process = subprocess.Popen(
            ["bash", "-c", command, program, *flags.split(), f"--user-data-dir={self._profile.name}"],
            pass_fds=(to_read, to_write), stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_read)
        os.close(to_write)
        self._rest, self._number, self._session = b"", 0, ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """What a method returns. Raises RuntimeError where it fails."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def open(self, page: Path, width: int, height: int) -> None:
        is_phone = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=2 if is_phone else 1, mobile=is_phone)  # fmt: skip
        self.call("Page.navigate", url=page.resolve().as_uri())
        while self._next().get("method") != "Page.loadEventFired":
            pass

    def value(self, script: str) -> Any:
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def shoot(self, out: Path, width: int, top: int, height: int) -> None:
        clip = {"x": 0, "y": top, "width": width, "height": height, "scale": 1}
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        out.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._profile.cleanup()

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            read = os.read(self._read, 1 << 20)
            if not read:
                raise RuntimeError("the browser ended")
            self._rest += read
        line, _, self._rest = self._rest.partition(b"\0")
        return json.loads(line)


def look_through(browser: Browser, page: Path, out: Path) -> bool:
    """Pictures of the whole page with its folds open, and its PDF; whether it fits."""
    fits = True
    for name, width in WIDTHS.items():
        browser.open(page, width, 900)
        browser.value("document.querySelectorAll('details').forEach((fold) => (fold.open = true))")
        wider, *which = json.loads(browser.value(WIDER))
        if wider > 0 or which:
            fits = False
            print(f"{name}, {width} px: the page is {wider} px wider than its window: {which[:8]}")
        height = browser.value("document.documentElement.scrollHeight")
        for number, top in enumerate(range(0, height, PART_HEIGHT)):
            browser.shoot(out / f"{name}-{number:02}.png", width, top, min(PART_HEIGHT, height - top))
    printed = browser.call("Page.printToPDF", printBackground=False, preferCSSPageSize=True)
    (out / "paper.pdf").write_bytes(base64.b64decode(printed["data"]))
    return fits


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run's or a sweep's folder, with its page")
    parser.add_argument("out", type=Path, help="a .png for the top of the page, or a folder for all of it")
    parser.add_argument("--browser", default="chromium", help="a Chromium (default: chromium)")
    parser.add_argument("--dark", action="store_true", help="as for somebody who prefers dark pages")
    chosen = parser.parse_args()
    page = next((chosen.run / name for name in ("report.html", "sweep.html") if (chosen.run / name).exists()), None)
    if page is None:
        sys.exit(f"{chosen.run} has no report.html: distcxr report {chosen.run} makes one")
    browser, fits = Browser(chosen.browser), True
    try:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if chosen.dark else "light"}
        browser.call("Emulation.setEmulatedMedia", features=[scheme])
        if chosen.out.suffix == ".png":
            browser.open(page, *TOP)
            browser.shoot(chosen.out, TOP[0], 0, TOP[1])
        else:
            chosen.out.mkdir(parents=True, exist_ok=True)
            fits = look_through(browser, page, chosen.out)
    finally:
        browser.close()
    return 0 if fits else 1


if __name__ == "__main__":
    sys.exit(main())
