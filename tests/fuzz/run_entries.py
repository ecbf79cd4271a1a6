"""Checkpoints, weights and run folders: JSON, YAML, CSV, safetensors and PyTorch's files, with right checksums."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import torch
import yaml
from fuzz.harness import Entry
from fuzz.mutations import HOSTILE, spoil_bytes, spoil_lines, spoil_value, to_text
from fuzz.places import Place, spoiling
from run_folders import write_run
from safetensors.torch import save_file

from distcxr.engine.checkpoint import CheckpointError, load_training, load_weights, open_checkpoint
from distcxr.engine.state import Run, TrainState
from distcxr.jobs.run_status import read_status
from distcxr.jobs.runs_json import read_listing
from distcxr.models.importers import read_weights
from distcxr.recipe import Recipe
from distcxr.report.page import write_report
from distcxr.runfolder.contents import read_autotune, read_environment, read_operating, read_run
from distcxr.runfolder.layout import checkpoint_being_written
from distcxr.runfolder.manifest import META, MODEL, TRAINING, write_meta

torch.set_num_threads(1)


def _network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Linear(2, 2))


def _checkpoint(folder: Path) -> None:
    network = _network()
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    meta = {
        "findings": ["Mass", "Edema"], "mean": [0.5], "std": [0.5], "world_size": 1, "hashes": {"labels": "a" * 64},
        "recipe": Recipe().model_dump(mode="json"), "state": asdict(TrainState()),
    }  # fmt: skip
    with checkpoint_being_written(folder / "best", meta) as part:
        save_file(state, part / MODEL, metadata={"format": "pt"})
        torch.save({"optimizer": optimizer.state_dict(), "scaler": {}}, part / TRAINING)


def _weights(folder: Path) -> None:
    state = {f"module.{name}": value for name, value in _network().state_dict().items()}
    torch.save(state, folder / "zip.pt")
    torch.save({"state_dict": state, "epoch": 3}, folder / "old.pth", _use_new_zipfile_serialization=False)
    save_file(state, folder / "plain.safetensors")


CHECKPOINT, WEIGHTS = Place("checkpoint", _checkpoint), Place("weights", _weights)
RUN = Place("run", lambda folder: _run(folder))


def _run(folder: Path) -> None:
    write_run(folder / "run", images=30, patients=12, replicates=4, pictures=1, steps=8)
    (folder / "run" / "autotune.json").write_text('{"mode": "eager"}')
    (folder / "run" / "operating.json").write_text('{"thresholds": {"Mass": 0.5}}')
    (folder / "run" / "run_status.log").write_text("")
    listed = {"name": "a", "recipe": "densenet121", "values": {"optim.lr": "1"}, "folder": "run", "num_parameters": 7}
    (folder / "runs.json").write_text(json.dumps([listed]))


def spoil_file(name: str, content: bytes, rng: Random, seeds: Sequence[bytes]) -> bytes:
    """By what the file is."""
    if name.endswith(".json"):
        return to_text(spoil_value(json.loads(content), rng), rng)
    if name.endswith(".csv"):
        return spoil_lines(content, rng, seeds)
    if name.endswith(".yaml"):
        if rng.random() < 0.2:
            return spoil_lines(content, rng)
        held = spoil_value(yaml.safe_load(content), rng)
        return yaml.safe_dump(held, allow_unicode=rng.random() < 0.5).encode(errors="surrogatepass")
    if name.endswith(".safetensors"):
        return spoil_safetensors(content, rng)
    if name.endswith((".pt", ".pth")) and rng.random() < 0.7:
        return spoil_pickle(content, rng)
    return spoil_bytes(content, rng, seeds)


def spoil_safetensors(content: bytes, rng: Random) -> bytes:
    (length,) = struct.unpack_from("<Q", content)
    if rng.random() < 0.3:
        return spoil_bytes(content, rng)
    head = spoil_value(json.loads(content[8 : 8 + length]), rng)
    if isinstance(head, dict) and head and rng.random() < 0.5:
        one = head[rng.choice(list(head))]
        if isinstance(one, dict):
            one[rng.choice(("shape", "data_offsets", "dtype"))] = rng.choice(
                ([1 << 62, 4], [0, 1 << 62], [-1], "F64", *HOSTILE)
            )
    text = to_text(head, rng)
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def spoil_pickle(content: bytes, rng: Random) -> bytes:
    """The pickle in a PyTorch file changed, its archive right: opcodes, sizes, names of classes."""
    if not content.startswith(b"PK"):
        at = content.find(b"\x80\x02", 1)
        return content[:at] + spoil_bytes(content[at:], rng)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    chosen = rng.choice([name for name in members if name.endswith("data.pkl")] * 4 + list(members))
    held = members[chosen]
    kind = rng.randrange(3)
    if kind == 0:
        held = held.replace(
            b"torch._utils\n_rebuild_tensor_v2", rng.choice((b"os\nsystem", b"builtins\neval", b"torch\nload"))
        )
    if kind == 1:
        held = held.replace(
            b"K\x03", rng.choice((b"K\xff", b"J\xff\xff\xff\x7f", b"M\xff\xff", b"N", b"]")), rng.choice((1, 9))
        )
    members[chosen] = spoil_bytes(held, rng) if kind == 2 or held == members[chosen] else held
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data)  # without the time of day
    return stream.getvalue()


def _checksums(name: str, content: bytes) -> dict[str, bytes]:
    """`checkpoint.json` has the checksums of what is there, and of itself."""
    meta_name = f"best/{META}"
    if name == meta_name:
        try:
            meta = json.loads(content)
            assert isinstance(meta, dict) and isinstance(meta.get("crc32"), dict)
        except (ValueError, AssertionError, RecursionError):
            return {name: content}
    else:
        meta = json.loads(CHECKPOINT.files[meta_name])
        meta["crc32"][Path(name).name] = zlib.crc32(content)
        if isinstance(meta.get("bytes"), dict):
            meta["bytes"][Path(name).name] = len(content)
    meta["crc32"].pop(META, None)
    try:
        write_meta(CHECKPOINT.folder / "best", meta)
    except ValueError:  # NaN, which no checkpoint holds
        return {name: content}
    written = (CHECKPOINT.folder / "best" / META).read_bytes()
    return {name: content, meta_name: written}


_SPOIL = spoiling(spoil_file)


def run_checkpoint(data: bytes) -> None:
    with CHECKPOINT.holding(data, _checksums):
        checkpoint = open_checkpoint(CHECKPOINT.folder / "best")
        assert checkpoint.recipe.data is not None
        network = _network()
        load_weights(checkpoint, network)
        optimizer = torch.optim.AdamW(network.parameters(), fused=True)
        runtime = SimpleNamespace(accelerator=SimpleNamespace(scaler=None))
        run = SimpleNamespace(training=SimpleNamespace(optimizer=optimizer), setup=SimpleNamespace(runtime=runtime))
        load_training(checkpoint, cast(Run, run))


def run_weights(data: bytes) -> None:
    with WEIGHTS.holding(data) as name:
        read_weights(WEIGHTS.folder / name)
        assert not Path("owned").exists()


def run_folder(data: bytes) -> None:
    """All that is read of a run folder but by the report."""
    with RUN.holding(data) as name:
        folder = RUN.folder / "run"
        read_status(folder, {})
        if name == "runs.json":
            for listed in read_listing(RUN.folder):
                assert isinstance(listed.num_parameters, int)
        elif name.endswith("operating.json"):
            read_operating(folder)
        elif name.endswith("autotune.json"):
            read_autotune(folder)
        else:
            read_environment(folder / "environment.json")
            read_run(folder)


def run_report(data: bytes) -> None:
    with RUN.holding(data):
        write_report(RUN.folder / "run")


def _inputs(place: Place) -> Any:
    return lambda: place.inputs([name for name in place.files if not name.endswith((".png", ".log"))])


def _named(place: Place) -> Callable[[], str]:
    return lambda: str(place.folder)


ENTRIES = (
    Entry("checkpoint", _inputs(CHECKPOINT), _SPOIL, run_checkpoint, (CheckpointError,), _named(CHECKPOINT)),
    Entry("weights", _inputs(WEIGHTS), _SPOIL, run_weights, (ValueError,), _named(WEIGHTS), share=0.3),
    Entry("run-folder", _inputs(RUN), _SPOIL, run_folder, (ValueError,), _named(RUN), share=0.1),
    Entry("report", RUN.inputs, _SPOIL, run_report, (ValueError,), _named(RUN), share=0.03),
)
