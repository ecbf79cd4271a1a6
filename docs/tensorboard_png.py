"""Makes docs/tensorboard.png: two tabs of TensorBoard, one above the other, as headless Chromium draws them.

    python docs/tensorboard_png.py FOLDER [PNG]

FOLDER holds run folders. Needs `chromium` (Debian: apt-get install chromium).
"""

from __future__ import annotations

import argparse
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from PIL import Image

_WIDTH_PX = 1500
_TABS = {"custom_scalars&_smoothingWeight=0": 450, "images&tagFilter=val_images": 560}
"""What follows # in the address, and the height that is kept."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("png", type=Path, nargs="?", default=Path(__file__).with_name("tensorboard.png"))
    wanted = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = wanted.folder.resolve()  # the page shows what --logdir names
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", folder.name, "--port", str(port)]
    with (
        subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=folder.parent) as server,
        tempfile.TemporaryDirectory() as scratch,
    ):
        try:
            _wait(f"http://localhost:{port}/data/runs")
            shots = [_shot(f"http://localhost:{port}/#{tab}", Path(scratch), height) for tab, height in _TABS.items()]
        finally:
            server.terminate()
    picture = Image.new("RGB", (_WIDTH_PX, sum(shot.height for shot in shots)), "white")
    top = 0
    for shot in shots:
        picture.paste(shot, (0, top))
        top += shot.height
    picture.quantize(256).save(wanted.png, optimize=True)
    return 0


def _wait(address: str) -> None:
    """Until the server has read the runs; they are read within seconds of its start."""
    for _ in range(60):
        try:
            if urllib.request.urlopen(address, timeout=5).read().strip() != b"[]":
                time.sleep(5)
                return
        except OSError:
            pass
        time.sleep(1)
    raise TimeoutError(f"{address} shows no runs")


def _shot(address: str, scratch: Path, height: int) -> Image.Image:
    chromium = shutil.which("chromium") or shutil.which("google-chrome") or "chromium"
    file = scratch / "shot.png"
    subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         f"--user-data-dir={scratch}/profile", f"--window-size={_WIDTH_PX},1100", "--virtual-time-budget=25000",
         f"--screenshot={file}", address],
        check=True, capture_output=True, timeout=180,
    )  # fmt: skip
    with Image.open(file) as shot:
        return shot.convert("RGB").crop((0, 0, _WIDTH_PX, height))


if __name__ == "__main__":
    sys.exit(main())
