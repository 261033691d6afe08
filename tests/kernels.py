"""Results that round alike on every processor."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, ParamSpec, TypeVar

import pytest

P = ParamSpec("P")
R = TypeVar("R")


def by_general_kernels(function: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> R:
    """What the function returns in a new process, where oneDNN has no kernels for AVX2 and later.

    oneDNN reads the variable before its first kernel, so this process cannot change its own.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DNNL_MAX_CPU_ISA", "SSE41")
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            found: Any = pool.submit(function, *arguments, **named).result()
    return found
