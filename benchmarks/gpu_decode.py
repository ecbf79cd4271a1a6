"""Measures PNG decoding on this GPU: each stage alone, at 64, 256 and 1,024 streams, and beside training.

    python benchmarks/gpu_decode.py recipes/densenet121.yaml --root /data/nih --json gpu_decode.json

Four tables: what the CPU does for an image before the GPU gets it; what the GPU does with a wave of images, copies to
it counted, and where its time goes; what the whole reader does; and how fast the recipe trains with each loader,
against training on images that are in the GPU's memory already. Pixels are compared with the CPU's first: a wrong
decoder needs no figures, and the command ends with 1. What does not work here has the reason instead of figures.

Without a GPU the kernels run as compiled for the CPU by the tests, on a few small images: that shows that this file
works, and its figures mean nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate.state import AcceleratorState
from loader_bench.images import draw_phantoms, host_facts, pick_files
from loader_bench.product import file_index, rows_of
from rich.console import Console

from distcxr.data.batch import Batch
from distcxr.data.loader import Request
from distcxr.data.pixels.decode import decode_grey, load_kernels
from distcxr.data.pixels.image_bytes import read_file
from distcxr.data.pixels.png_gpu import PngDecoder, Prepared
from distcxr.data.pixels.resize import resize_grey
from distcxr.data.readers.budget import thread_budget
from distcxr.data.readers.make import Rank
from distcxr.engine.build import build_run
from distcxr.engine.fit import updates
from distcxr.engine.state import Run
from distcxr.engine.step import train_step
from distcxr.recipe import load_recipe
from distcxr.recipe.data import Data
from distcxr.runtime import start_runtime

ROOT = Path(__file__).parents[1]
Row = dict[str, Any]
Inflate = Literal["gpu", "cpu"]
INFLATED_BY: tuple[Inflate, ...] = ("gpu", "cpu")
STAGES = {
    "Memcpy HtoD": "copy_ms",
    "nvcomp": "inflate_ms",
    "inflate": "inflate_ms",
    "unfilter": "unfilter_ms",
    "resize": "resize_ms",
}
ON_GPU = {"files": 64, "streams": [64, 256, 1024], "batch": 64, "steps": 40, "windows": 5}
WITHOUT_GPU = {"files": 4, "streams": [2, 4], "batch": 4, "steps": 1, "windows": 1}
WRONG = "other pixels than the CPU's"
LOADERS = (("torch",), ("dali",), ("gpu", "data.gpu.inflate=gpu"), ("gpu", "data.gpu.inflate=cpu"))


def main() -> int:
    """Measure everything, print the tables and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("recipe", type=Path, nargs="?", default=ROOT / "recipes" / "densenet121.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--root", type=Path, help="folder with images*/**/*.png (default: synthetic X-rays)")
    parser.add_argument("--files", type=int, help="different PNGs at most (64)")
    parser.add_argument("--streams", type=int, nargs="+", help="images of a wave (64 256 1024)")
    parser.add_argument("--batch", type=int, help="images of a training step (64)")
    parser.add_argument("--steps", type=int, help="training steps of a window (40)")
    parser.add_argument("--windows", type=int, help="the median counts (5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    args = parser.parse_intermixed_args()
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    for name, value in (ON_GPU if device.type == "cuda" else WITHOUT_GPU).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    load_kernels()
    with tempfile.TemporaryDirectory(prefix="distcxr-decode-") as place:
        root = args.root or draw_phantoms(Path(place), 8)
        files = pick_files(root, args.files, 1)
        rows: list[Row] = []
        host_facts()  # now: later this command itself keeps the cores busy
        try:
            for row in itertools.chain(decoding(args, files, device), training(args, files, Path(place))):
                rows.append(row | host_facts())
                if args.json:  # now: whatever ends this costs the later rows alone
                    args.json.write_text(json.dumps(rows, indent=1))
        finally:  # whatever ends it early: what was measured is kept
            if rows:
                print(tables(rows))
    return int(any(WRONG in row.get("note", "") for row in rows))


def decoding(args: argparse.Namespace, files: Sequence[str], device: torch.device) -> Iterator[Row]:
    """Rows of what the CPU prepares, of waves decoded, and of the whole reader."""
    size = load_recipe(args.recipe, args.overrides).data.image_size
    for inflate in INFLATED_BY:
        contents = [read_file(file)[0] for file in files]
        try:
            decoder = make_decoder(size, device, inflate)
            prepared = [
                (file, image) for file, data in zip(files, contents, strict=True) if (image := decoder.prepare(data))
            ]
            check(decoder, prepared, size, device)
        except (ValueError, RuntimeError) as error:  # nvCOMP is not there, or not right
            yield {"what": "prepare", "inflate": inflate, "img_per_s": None, "note": first_line(error)}
            continue
        yield preparing(decoder, contents, inflate, args.windows)
        for streams in args.streams:
            images = [image for _, image in itertools.islice(itertools.cycle(prepared), streams)]
            row: Row = {"what": "decode", "inflate": inflate, "streams": streams}
            try:
                yield row | wave(decoder, images, size, device, args.windows)
                row["what"] = "reader"
                yield row | whole_reader(decoder, files, size, device, streams, args.windows)
            except RuntimeError as error:  # out of the GPU's memory or of pinned memory
                yield row | {"img_per_s": None, "note": first_line(error)}


def make_decoder(size: int, device: torch.device, inflate: Inflate) -> PngDecoder:
    """The GPU's, or without one the tests' stand-in."""
    if device.type == "cuda":
        return PngDecoder(size, device, inflate=inflate)
    sys.path.insert(0, str(ROOT / "tests"))
    from host_kernels import host_decoder

    return host_decoder(size, inflate=inflate)


def check(decoder: PngDecoder, prepared: Sequence[tuple[str, Prepared]], size: int, device: torch.device) -> None:
    """Every pixel against the CPU's; RuntimeError where one differs."""
    if not prepared:
        raise ValueError("none of the files is a plain grey PNG, which alone the GPU decodes")
    out = torch.empty(len(prepared), size, size, dtype=torch.uint8, device=device)
    verdicts = decoder.decode([image for _, image in prepared], out).tolist()
    for (file, _), pixels, verdict in zip(prepared, out.cpu().numpy(), verdicts, strict=True):
        if verdict or not np.array_equal(pixels, resize_grey(decode_grey(read_file(file)[0]), size)):
            raise RuntimeError(f"{WRONG}: {file}, verdict {verdict}")


def preparing(decoder: PngDecoder, contents: Sequence[bytes], inflate: Inflate, num_windows: int) -> Row:
    """The CPU's part: milliseconds of a core, and what all cores of this process manage together."""
    cores = thread_budget(1)

    def work(_: int) -> float:
        start = time.thread_time()
        for data in contents:
            decoder.prepare(data)
        return time.thread_time() - start

    core_ms, speeds = [], []
    with ThreadPoolExecutor(cores) as pool:
        for window in range(num_windows + 1):
            start = time.perf_counter()
            spent = sum(pool.map(work, range(cores)))
            if window:
                core_ms.append(1e3 * spent / cores / len(contents))
                speeds.append(cores * len(contents) / (time.perf_counter() - start))
    return {
        "what": "prepare", "inflate": inflate, "core_ms": statistics.median(core_ms), "threads": cores,
        "img_per_s": statistics.median(speeds),
    }  # fmt: skip


def wave(decoder: PngDecoder, images: Sequence[Prepared], size: int, device: torch.device, num_windows: int) -> Row:
    """The GPU's part, from pinned memory to pixels."""
    out = torch.empty(len(images), size, size, dtype=torch.uint8, device=device)

    def decode() -> None:
        decoder.decode(images, out)
        finish(device)

    decode()
    seconds = [timed(decode) for _ in range(num_windows)]
    row: Row = {
        "img_per_s": len(images) / statistics.median(seconds),
        "mb_to_gpu": sum(image.bytes_.nbytes for image in images) / 1e6,
    }
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        decode()
        row["gpu_mb"] = (torch.cuda.max_memory_allocated(device) - before) / 1e6
        row |= stages(decode, len(images))
    return row


def stages(decode: Callable[[], None], num_images: int) -> Row:
    """Milliseconds of the GPU for a wave, by stage, as the profiler saw it."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        decode()
    spent = dict.fromkeys([*STAGES.values(), "other_ms"], 0.0)
    for event in seen.key_averages():
        name = next((stage for word, stage in STAGES.items() if word.lower() in event.key.lower()), "other_ms")
        spent[name] += event.self_device_time_total / 1e3
    return spent | {"gpu_ms_per_image": sum(spent.values()) / num_images}


def whole_reader(
    decoder: PngDecoder, files: Sequence[str], size: int, device: torch.device, streams: int, num_windows: int
) -> Row:
    """Files to pixels on the device, all cores of this process at work."""
    index, batch = file_index(files), min(64, streams)
    endless = itertools.cycle(rows_of(index, files).tolist())
    rank = Rank(Data(image_size=size), index, batch, device, thread_budget(1), first_rows=np.arange(len(index)))
    reader = rank.gpu_reader(decoder, streams)
    per_window = max(2 * streams, 512 if device.type == "cuda" else streams) // batch

    def requests() -> Iterator[Request]:
        while True:
            yield np.fromiter(endless, dtype=np.int64, count=batch)

    speeds = []
    with closing(reader), closing(reader.read(requests())) as answers:
        for window in range(num_windows + 2):  # two to fill what is read ahead
            start = time.perf_counter()
            for _ in range(per_window):
                assert not next(answers).unreadable
            finish(device)
            if window > 1:
                speeds.append(per_window * batch / (time.perf_counter() - start))
    return {"img_per_s": statistics.median(speeds), "threads": thread_budget(1)}


def training(args: argparse.Namespace, files: Sequence[str], place: Path) -> Iterator[Row]:
    """Whole training steps with each loader, against images that are on the device already."""
    num_images = args.batch * args.steps * (args.windows + 2) * 2
    data = make_dataset(place / "dataset", files, num_images)
    for loader, *more in LOADERS:
        row: Row = {"what": "train", "loader": loader, "inflate": more[0].partition("=")[2] if more else ""}
        overrides = [
            *args.overrides, *data, *more, f"data.loader={loader}", "model.weights=none", "logging.images=0",
            f"train.global_batch_size={args.batch}", f"output={place / f'run-{loader}-{len(more)}'}",
        ]  # fmt: skip
        AcceleratorState._reset_state(reset_partial_state=False)
        recipe = load_recipe(args.recipe, overrides)
        try:
            run = build_run(recipe, "benchmark", start_runtime(recipe), Console(quiet=True))
            with closing(run.setup.reader):
                row |= steps(run, args)
        except (ValueError, RuntimeError) as error:
            row |= {"img_per_s": None, "note": first_line(error)}
        yield row


def steps(run: Run, args: argparse.Namespace) -> Row:
    """Images a second on a batch that stays on the device, and on batches as the loader makes them."""
    loaded = updates(run)
    held = itertools.repeat(next(loaded))

    def window(batches: Iterator[list[Batch]]) -> float:
        start = time.perf_counter()
        for micro_batches in itertools.islice(batches, args.steps):
            train_step(run, micro_batches)
        finish(run.setup.runtime.device)
        return args.steps * args.batch / (time.perf_counter() - start)

    with closing(loaded):
        speeds = {
            name: [window(batches) for _ in range(args.windows + 1)][1:]  # the first warms up
            for name, batches in (("alone_img_per_s", held), ("img_per_s", loaded))
        }
    return {name: statistics.median(values) for name, values in speeds.items()}


def make_dataset(folder: Path, files: Sequence[str], num_images: int) -> list[str]:
    """A dataset of links to the files, over and over; the keys of a recipe that name it."""
    (folder / "images").mkdir(parents=True)
    lines = ["image,patient,Mass"]
    for number, file in zip(range(num_images), itertools.cycle(files), strict=False):
        (folder / "images" / f"{number}.png").symlink_to(file)
        lines.append(f"images/{number}.png,{number},{number % 2}")
    (folder / "labels.csv").write_text("\n".join(lines))
    return [
        "data.dataset=csv", f"data.root={folder}", "data.findings=[Mass]", "data.split=by_patient", "eval.splits=[]",
        "data.columns={table: labels.csv, image: image, patient: patient}",
    ]  # fmt: skip


def first_line(error: Exception) -> str:
    """A table's columns."""
    return (str(error) or type(error).__name__).splitlines()[0]


def finish(device: torch.device) -> None:
    """Wait for the GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(call: Callable[[], None]) -> float:
    """Seconds."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def tables(rows: Sequence[Row]) -> str:
    """The rows as markdown, a table for each kind."""
    columns = {
        "prepare": ("inflate", "core_ms", "threads", "img_per_s", "note"),
        "decode": ("inflate", "streams", "img_per_s", "mb_to_gpu", "gpu_mb", *dict.fromkeys(STAGES.values()), "note"),
        "reader": ("inflate", "streams", "threads", "img_per_s", "note"),
        "train": ("loader", "inflate", "img_per_s", "alone_img_per_s", "note"),
    }  # fmt: skip
    parts = [f"{rows[0]['gpu'] or 'no GPU: these figures mean nothing'}, {rows[0]['cpu']}, {rows[0]['date']}"]
    for what, names in columns.items():
        lines = [f"| {what} | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        lines += [f"| | {' | '.join(_cell(row.get(name)) for name in names)} |" for row in rows if row["what"] == what]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return "" if value is None else str(value)


if __name__ == "__main__":
    sys.exit(main())
