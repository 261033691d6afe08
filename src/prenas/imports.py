"""How heavy packages are imported: what follows them, and what they do without."""

from __future__ import annotations

import gc
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def import_after(package: str, module: str) -> None:
    """Imports `module` right after `package`, whenever that happens; at once if it has happened.

    So a light package can add itself to a heavy one, and stay light for those who only use it.
    """

    @contextmanager
    def followed() -> Iterator[None]:
        yield
        importlib.import_module(module)

    if package in sys.modules:
        importlib.import_module(module)
    else:
        import_within(package, followed)


def import_within(package: str, context: Callable[[], AbstractContextManager[None]]) -> None:
    """Imports `package` inside of a context, whenever that happens.

    Of several contexts, the one that was named last is the outermost.
    """
    if package not in sys.modules:
        sys.meta_path.insert(0, _Within(package, context))


class _Within(MetaPathFinder):
    """Finds the package as all others do, and puts the context around its loading."""

    def __init__(self, package: str, context: Callable[[], AbstractContextManager[None]]) -> None:
        self._package, self._context = package, context
        self._is_asking_others = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """None for every name but that of the package."""
        if fullname != self._package or self._is_asking_others:
            return None
        self._is_asking_others = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._is_asking_others = False
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(loaded: ModuleType) -> None:
            with self._context():
                execute(loaded)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)

        vars(spec.loader)["exec_module"] = exec_module
        return spec


@contextmanager
def without_collection() -> Iterator[None]:
    """Python does not look for garbage inside of this context.

    For imports, which make many objects and hardly any garbage: looking takes a fifth of that time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def frozen() -> Iterator[None]:
    """What is there when this context ends is never looked through for garbage.

    For a process of our own: modules stay to its end, and are half a million objects.
    """
    yield
    gc.freeze()


def leave_quietly() -> None:
    """For the end of a process: Python does not look through all objects before it lets them go.

    Unless Triton is loaded, which PyTorch's builds for CUDA do: its bindings (3.9) then print that
    their objects have leaked.
    """
    if "triton" in sys.modules:
        gc.unfreeze()
    else:
        gc.freeze()


@contextmanager
def late_compiler() -> Iterator[None]:
    """What is imported inside of this context gets PyTorch's compiler when it first needs it.

    timm and torchvision load `torch._dynamo`, a second of work and 150 MB, for two decorators that
    most processes never call. Two modules stand for it here. They are gone afterwards, so that any
    later import finds the real ones.
    """
    importlib.import_module("torch")  # all of it, before anything stands for a part
    if _COMPILER in sys.modules:
        yield
        return
    compiler, utilities = _Late(_COMPILER), _Late(f"{_COMPILER}.utils")
    vars(compiler)["disable"] = _disabled
    vars(utilities)["is_compile_supported"] = _is_compile_supported
    sys.modules.update({one.__name__: one for one in (compiler, utilities)})
    try:
        yield
    finally:
        _remove_stand_ins()


_COMPILER = "torch._dynamo"


class _Late(ModuleType):
    """Stands for a module, which is imported if anything is asked for that is not given here."""

    def __getattr__(self, name: str) -> Any:
        if name == "__file__" or (name == "__path__" and self.__name__ != _COMPILER):
            # `inspect` asks every module for its file, and `from MODULE import` for a path, which
            # only packages have.
            raise AttributeError(f"{self.__name__} is not imported yet: it has no {name}")
        _remove_stand_ins()
        return getattr(importlib.import_module(self.__name__), name)


def _remove_stand_ins() -> None:
    for name in [name for name, module in sys.modules.items() if isinstance(module, _Late)]:
        del sys.modules[name]


def _disabled(function: Any = None, recursive: bool = True, **options: Any) -> Any:
    """Like `torch._dynamo.disable`, which it calls when `function` is called first."""
    import torch

    return torch._disable_dynamo(function, recursive)


def _is_compile_supported(device_type: Any) -> Any:
    from torch._dynamo.utils import is_compile_supported

    return is_compile_supported(device_type)
