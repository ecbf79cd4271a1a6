"""`distcxr ui`: what is behind its page, and the page as a browser would use it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from distcxr.api import NOT_CLINICAL, Predictor, open_runs
from distcxr.cli import main
from distcxr.runfolder.predictions import read_predictions
from distcxr.ui.answers import answers, heat_map, one_image, row_html
from distcxr.ui.past_errors import PastErrors
from distcxr.ui.strip import strip


@pytest.fixture(scope="module")
def predictor(finished: Path) -> Predictor:
    return open_runs([finished], "cpu")


@pytest.fixture
def image(finished: Path) -> Path:
    return next((finished.parent / "phantom" / "images").glob("*.png"))


def test_answers_are_those_of_predict(predictor: Predictor, image: Path, tmp_path: Path) -> None:
    table = predictor.predict(image, rule="recall_90")
    uploaded = tmp_path / "list.csv"  # an image by its content: no table is opened
    shutil.copy(image, uploaded)
    found, note = answers(predictor, one_image(uploaded, "chest.png"), "recall_90")
    assert [one.finding for one in found] == list(predictor.findings) and note == ""
    assert [one.probability for one in found] == table["probability"].tolist()
    assert [one.positive for one in found] == table["positive"].astype(object).where(
        table["positive"].notna(), None
    ).tolist()
    assert {one.positive for one in found} == {True, False, None}
    num = predictor.validation()
    for one, row in zip(found, table.itertuples(), strict=True):
        assert f"{100 * row.above_negatives:.0f} % of {num[one.finding]['negatives']} negatives" in one.common
        html = row_html(one)
        assert f"{one.probability:.3f}"[1:] in html
        assert {True: "positive", False: "negative", None: "no threshold"}[one.positive] in html and one.chart in html
    assert heat_map(predictor, one_image(uploaded, "x"), "Edema").mode == "RGB"
    wrong = tmp_path / "notes.png"
    wrong.write_text("no image")
    with pytest.raises(ValueError, match=r"^notes\.png can't be read: neither a PNG"):
        answers(predictor, one_image(wrong, "notes.png"), "youden")
    with pytest.raises(ValueError, match="no threshold rule 'half' here"):
        answers(predictor, one_image(image, "x"), "half")


def test_validation_scores_are_on_the_scale_of_probabilities(predictor: Predictor, finished: Path) -> None:
    kept = read_predictions(finished / "predictions_val.csv")
    for at, finding in enumerate(predictor.findings):
        known = kept.mask_NC[:, at] == 1
        for target, found in enumerate(predictor.validation_scores(finding)):
            logits = np.sort(kept.logits_NC[known & (kept.targets_NC[:, at] == target), at])
            assert np.array_equal(found, predictor.calibrated(finding, logits))


@pytest.mark.parametrize("split", ["test", "val"])
def test_the_worst_errors_of_a_finding(predictor: Predictor, finished: Path, split: str) -> None:
    past, kept = PastErrors(predictor), read_predictions(finished / f"predictions_{split}.csv")
    kinds = set()
    for at, finding in enumerate(predictor.findings):
        threshold = predictor.thresholds["youden"][finding]
        probs = predictor.calibrated(finding, kept.logits_NC[:, at])
        found = past.worst(split, finding, "youden", 3)
        for missed in (False, True):
            wrong = [
                (-prob if not missed else prob, file)
                for prob, file, target in zip(probs, kept.files, kept.targets_NC[:, at], strict=True)
                if (target == 1) == missed and (np.isnan(threshold) or (prob >= threshold) != missed)
            ]
            assert [one.file for one in found if one.missed == missed] == [file for _, file in sorted(wrong)[:3]]
            kinds |= {missed} if wrong else set()
        for one in found:
            assert (finding in one.labels) == one.missed
    assert kinds == {False, True}
    images = past.image(kept.files[0])
    assert Path(images.files[0]).is_file() and images.about["sex"][0] in ("M", "F") and images.about["age"][0]


def test_what_worst_errors_lack_is_a_sentence(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    past = PastErrors(open_runs([run], "cpu"))
    figures = json.loads((run / "metrics_val.json").read_text())
    (run / "metrics_val.json").write_text(json.dumps(figures | {"step": 1}))
    (run / "predictions_test.csv").unlink()
    with pytest.raises(ValueError, match=r"predictions_test.csv is not there: distcxr test writes it"):
        past.worst("test", "Mass", "youden", 1)
    with pytest.raises(ValueError, match=r"predictions_val.csv is of other weights \(step 1\)"):
        past.worst("val", "Mass", "youden", 1)
    with pytest.raises(ValueError, match=r"phantom has no gone\.png"):
        past.image("gone.png")
    monkeypatch.setattr("distcxr.ui.past_errors.data_root", lambda _: tmp_path / "moved")
    with pytest.raises(ValueError, match="moved"):
        PastErrors(past.predictor).image("gone.png")


@pytest.mark.parametrize(
    ("negatives", "positives", "threshold", "probability"),
    [
        ([0.01, 0.02, 0.5], [0.3, 0.9], 0.1, 0.4),
        ([0.0, 1.0], [], 1.0, 0.0),
        ([], [], None, 0.2),
        ([0.2] * 5, [0.2], 0.2, 0.2),
        ([0.1], [0.2], float("nan"), None),
    ],
)
def test_the_chart(
    negatives: list[float], positives: list[float], threshold: float | None, probability: float | None
) -> None:
    drawn = ElementTree.fromstring(strip(np.array(negatives), np.array(positives), threshold, probability))
    at = {one.get("class"): float(one.get("x1", "nan")) for one in drawn.iter("line")}
    known = threshold is not None and threshold == threshold
    assert ("threshold" in at) == known and ("here" in at) == (probability is not None)
    if known and probability is not None:
        assert np.sign(at["here"] - at["threshold"]) == np.sign(probability - threshold)
    for style, values in (("negatives", negatives), ("positives", positives)):
        bars = [one for one in drawn.iter("rect") if one.get("class") == style]
        assert bool(bars) == bool(values)
        for bar in bars:
            assert float(bar.get("x", "")) >= 0 and float(bar.get("x", "")) + float(bar.get("width", "")) <= 300


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("missing", "problem"), [(True, r"pip install 'distcxr\[ui\]'"), (False, "choose another with")]
)
def test_mistakes(
    missing: bool, problem: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("distcxr.cli.ui.find_spec", lambda _: None if missing else "there")
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        monkeypatch.setattr("sys.argv", ["distcxr", "ui", "no_run", "--port", str(used.getsockname()[1])])
        assert main() == 2
    assert re.fullmatch(f"error: .*{problem}.*\n", capsys.readouterr().err)


@pytest.mark.skipif(find_spec("nicegui") is None, reason="NiceGUI is not installed: pip install 'distcxr[ui]'")
def test_the_page(finished: Path, image: Path, tmp_path: Path) -> None:
    """Its server as a process, spoken to as a browser does: the page, an upload, what the socket then sends."""
    port = free_port()
    words = ["-m", "distcxr.cli", "ui", finished, finished / "checkpoints" / "best", "--port", port, "--device", "cpu"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}  # NiceGUI looks
    environment["TMPDIR"] = str(tmp_path)
    server = subprocess.Popen(
        [sys.executable, *map(str, words)], cwd=tmp_path, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        asyncio.run(asyncio.wait_for(visit(f"http://127.0.0.1:{port}", image, server), 90))
        assert [path.name[:11] for path in tmp_path.iterdir()] == ["distcxr-ui-"]  # with what was uploaded
    finally:
        server.terminate()
        output, _ = server.communicate(timeout=30)
    assert output.startswith(f"{NOT_CLINICAL}\nhttp://127.0.0.1:{port} ") and "Traceback" not in output, output
    assert server.returncode == 0 and list(tmp_path.iterdir()) == []


async def visit(url: str, image: Path, server: subprocess.Popen[str]) -> None:
    import aiohttp
    import socketio

    async with aiohttp.ClientSession() as session:
        deadline = time.monotonic() + 60
        while True:
            try:
                async with session.get(url) as answer:
                    html = await answer.text()
                break
            except aiohttp.ClientConnectorError:
                assert server.poll() is None and time.monotonic() < deadline
                await asyncio.sleep(0.1)
        assert NOT_CLINICAL in html and "Two runs" in html
        addresses = set(re.findall(r"https?://[\w.-]+", html)) - {url.rpartition(":")[0]}
        assert not addresses, f"the page names other servers: {addresses}"
        async with session.get(url, headers={"Host": "elsewhere.example"}) as answer:
            assert answer.status == 400
        sent: asyncio.Queue[str] = asyncio.Queue()
        browser = socketio.AsyncClient()
        browser.on("update", lambda content: sent.put_nowait(json.dumps(content)))
        (client,) = set(re.findall(r"_nicegui/client/([\w-]+)/upload", html))
        query = f"client_id={client}&next_message_id=0&implicit_handshake=true&tab_id=tab&document_id=document"
        await browser.connect(f"{url}?{query}", socketio_path="/_nicegui_ws/socket.io", transports=["websocket"])
        upload = f"{url}/_nicegui/client/{client}/upload/" + re.findall(r"/upload/(\d+)", html)[0]

        async def answered(name: str, content: bytes, wanted: str) -> str:
            form = aiohttp.FormData()
            form.add_field("file", content, filename=name)
            async with session.post(upload, data=form) as answer:
                assert answer.status == 200
            seen = ""
            while wanted not in seen:
                seen += await sent.get()
            return seen

        shown = await answered("chest.png", image.read_bytes(), "strip")
        assert "data:image/jpeg;base64," in shown and "Hernia" in shown and "positive" in shown
        await answered("notes.txt", b"no image", "notes.txt can't be read: neither a PNG")
        await browser.disconnect()
