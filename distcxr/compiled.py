"""The decorator with which `data` and `metrics` compile loops by numba, which importing this file imports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit` for one signature, cached on disk where a folder for that can be written."""

    def compile_(function: Callable[..., Any]) -> Any:
        try:
            return njit(signature, nogil=True, cache=True)(function)
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
            return njit(signature, nogil=True)(function)

    return compile_
