"""A network as one file that runs without distcxr: written as ONNX or by torch.export, and run again from the file.

A file holds its weights, so an ONNX file can't be larger than protobuf's 2 GB. Text goes along in both: ONNX's
`metadata_props`, and torch.export's extra files.

Shapes: N images.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Runner = Callable[[Mapping[str, NDArray[np.generic]]], tuple[NDArray[np.float32], ...]]
"""Inputs by name, [N, ...] each, to the network's outputs."""

ABOUT = "distcxr.json"
"""Name of the text in a file of torch.export."""

_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_PROTOBUF_BYTES = 2**31
_LOGGERS = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


def check_onnx_installed() -> None:
    """Raise ValueError, with how to get them, where the packages that write and run ONNX are not there."""
    missing = [name for name in _ONNX_PACKAGES if find_spec(name) is None]
    if missing:
        raise ValueError(f"ONNX needs {', '.join(missing)}, not installed here: pip install 'distcxr[onnx]'")


def write_onnx(
    module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], texts: Mapping[str, str], path: Path
) -> None:
    """Write a network on the CPU as ONNX, for any N.

    Args:
        inputs: an example by the names of `forward`'s arguments, in their order, N of 2 at least.
        outputs: names of what it returns.
        texts: what `metadata_props` holds, by name.

    Raises:
        ValueError: it is too large, or has an operation that ONNX has no counterpart of.
    """
    num_bytes = sum(tensor.nbytes for tensor in module.state_dict().values())
    if num_bytes >= _PROTOBUF_BYTES:
        raise ValueError(
            f"the weights take {num_bytes / 2**30:.1f} GB, and one ONNX file holds 2: use --format torch-export"
        )
    with _quiet(), _naming("ONNX"):
        program = torch.onnx.export(
            module, tuple(inputs.values()), input_names=list(inputs), output_names=list(outputs),
            dynamic_shapes=_any_number(inputs), dynamo=True, external_data=False, verbose=False,
        )  # fmt: skip
        assert program is not None
        for node in program.model.graph.all_nodes():  # stack traces, with paths of this machine
            node.metadata_props.clear()
        program.model.metadata_props.update(texts)
        program.save(path, external_data=False)


def run_onnx(path: Path) -> Runner:
    """What runs an ONNX file on the CPU, by onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda inputs: tuple(session.run(None, dict(inputs)))


def write_torch_export(module: nn.Module, inputs: Mapping[str, Tensor], text: str, path: Path) -> None:
    """Write a network on the CPU by `torch.export.save`, for any N.

    Args:
        inputs: as for `write_onnx`.
        text: kept in the file as `ABOUT`.

    Raises:
        ValueError: it has something that torch.export can't follow.
    """
    with _quiet(), _naming("torch.export"), path.open("wb") as stream:  # of a name it wants the ending .pt2
        program = torch.export.export(module, tuple(inputs.values()), dynamic_shapes=_any_number(inputs), strict=False)
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths of this machine
        torch.export.save(program, stream, extra_files={ABOUT: text})


def run_torch_export(path: Path) -> Runner:
    """What runs a file of `write_torch_export`."""
    with _quiet(), path.open("rb") as stream:
        module = torch.export.load(stream).module()

    def run(inputs: Mapping[str, NDArray[np.generic]]) -> tuple[NDArray[np.float32], ...]:
        with torch.no_grad():
            return tuple(output.numpy() for output in module(*map(torch.from_numpy, inputs.values())))

    return run


def _any_number(inputs: Mapping[str, Tensor]) -> dict[str, dict[int, torch.export.Dim]]:
    num = torch.export.Dim("N")
    return {name: {0: num} for name in inputs}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' own progress and advice, which is about their insides."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _naming(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError):
        raise
    except Exception as error:  # the exporters document few of what they raise, and their messages run over pages
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(f"{what} can't express this network: {first.strip()}") from error
