"""Importing a module as soon as another package is imported, and not before."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def import_after(package: str, module: str) -> None:
    """Imports `module` right after `package`, whenever that happens; at once if it has happened.

    So a light package can add itself to a heavy one, and stay light for those who only use it.
    """
    if package in sys.modules:
        importlib.import_module(module)
    else:
        sys.meta_path.insert(0, _Following(package, module))


class _Following(MetaPathFinder):
    """Finds the package as all others do, and adds the import of the module to its loading."""

    def __init__(self, package: str, module: str) -> None:
        self._package, self._module = package, module
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
            execute(loaded)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            importlib.import_module(self._module)

        vars(spec.loader)["exec_module"] = exec_module
        return spec
