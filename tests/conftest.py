"""What all tests share: threads, garbage, how hypothesis draws, what machines the marks ask for."""

import gc
import os
import sys
from collections import Counter
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from types import ModuleType
from typing import BinaryIO

import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

# Tensors are small here: more threads gain nothing, and cost tenfold where others use the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for tests of equal bits on a GPU

# Tests kill processes, not machines: what was written is there without waiting for the disk.
os.fsync = lambda descriptor: None

# Building networks makes many objects and little garbage: looking for it took a fifth of the time.
gc.set_threshold(50_000, 20, 20)

# `repeatable` draws the same examples in every run; HYPOTHESIS_PROFILE=explore draws new ones.
_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("repeatable", derandomize=True, max_examples=10, **_COMMON)
settings.register_profile("explore", max_examples=200, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def _blank_png() -> bytes:
    file = BytesIO()
    Image.new("L", (1, 1)).save(file, "png")
    return file.getvalue()


_BLANK = {"png": _blank_png(), "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>"}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Figures are drawn in every test, but saved as blanks unless the test is marked `pictures`.

    Laying out and saving the pictures of a report takes seconds, and many tests make a run that
    has one.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    is_real = item.get_closest_marker("pictures") is not None
    for kind, name, blank in (
        (Figure, "savefig", _save_blank),
        (ConstrainedLayoutEngine, "execute", lambda engine, figure: None),
    ):
        if not hasattr(kind, f"real_{name}"):
            setattr(kind, f"real_{name}", getattr(kind, name))
        setattr(kind, name, getattr(kind, f"real_{name}") if is_real else blank)
    _set_plotting_library(item.get_closest_marker("plotting") is not None)
    _keep_operators_of_onnx()


def _keep_operators_of_onnx() -> None:
    """PyTorch gathers them anew for every file, which takes half a second."""
    module = sys.modules.get("torch.onnx._internal.exporter._registration")
    registry = getattr(module, "ONNXRegistry", None)
    if registry is not None and not hasattr(registry, "gathered"):
        registry.gathered = registry.from_torchlib
        registry.from_torchlib = staticmethod(cache(registry.gathered))


@cache
def _plotting_library(is_real: bool) -> ModuleType:
    """The module that contains it; the real one cannot be imported twice in a process."""
    if is_real:
        if find_spec("vl_convert") is None:
            pytest.skip("needs vl-convert-python, which is not installed here")
        return import_module("vl_convert")
    blank = ModuleType("vl_convert")
    blank.javascript_bundle = lambda snippet: ""  # type: ignore[attr-defined]
    return blank


def _set_plotting_library(is_real: bool) -> None:
    """HTML pages contain a blank library unless the test is marked `plotting`: it takes seconds."""
    sys.modules.pop("vl_convert", None)
    sys.modules["vl_convert"] = _plotting_library(is_real)
    if (library := sys.modules.get("prenas.report.html.library")) is not None:
        library.plotting_library.cache_clear()


def _save_blank(figure: object, file: BinaryIO, *, format: str, **options: object) -> None:
    file.write(_BLANK[format])


def pytest_collection_finish() -> None:
    """What is there now stays to the end, and need not be looked through."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow files come first, and tests marked `gpu` are skipped aloud where there is none.

    Two workers get a file each, then the next one: what is long and comes last keeps one waiting.
    """
    num_tests = Counter(item.path for item in items)
    places = {path: place for place, path in enumerate(num_tests)}
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in slow, -num_tests[item.path], places[item.path]))
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu:
        return
    import torch

    if not torch.accelerator.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="needs an accelerator; this machine has none"))
