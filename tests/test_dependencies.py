"""What the package imports is what it declares, and constraints.txt pins versions it allows."""

import ast
import re
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

PACKAGES = {"PIL": "pillow", "ruamel": "ruamel.yaml", "sklearn": "scikit-learn"}
"""Name of a module -> of the package that brings it, where they differ."""

IMPORTED_BY_OTHERS = {
    "datasets": "timm, which reads Hugging Face's sets with it",
    "webdataset": "timm, which reads WebDataset's tars with it",
    "tensorboard": "torch.utils.tensorboard",
}
"""Declared package that our own code does not import -> what does, when we call it."""


def requirements(*, extras: bool) -> dict[str, Requirement]:
    """Declared package -> requirement; with extras, also those that users choose."""
    texts = list(PROJECT["dependencies"])
    if extras:
        for name, further in PROJECT["optional-dependencies"].items():
            texts += further if name != "dev" else []
    parsed = [Requirement(text) for text in texts]
    return {requirement.name: requirement for requirement in parsed}


def imported() -> dict[str, list[str]]:
    """Package that is not Python's own -> the files under src/ that import it."""
    found: dict[str, list[str]] = {}
    for file in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module or ""]
            else:
                continue
            for module in modules:
                top = module.partition(".")[0]
                if top != "prenas" and top not in sys.stdlib_module_names:
                    found.setdefault(PACKAGES.get(top, top), []).append(file.name)
    return found


def test_every_import_is_declared() -> None:
    declared = requirements(extras=True)
    missing = {package: files for package, files in imported().items() if package not in declared}
    assert missing == {}


def test_every_declared_package_is_imported() -> None:
    """Those that others import for us are listed, and only as long as that is so."""
    found = imported()
    assert len(found) > 10
    declared = requirements(extras=True)
    assert declared.keys() - found.keys() == IMPORTED_BY_OTHERS.keys()


def test_every_declared_package_has_a_lower_bound_and_a_pin_above_it() -> None:
    """wandb and MLflow are not pinned: no test needs them."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    pins = {re.sub(r"[-_]", "-", name.lower()): version for name, version in pins.items()}
    declared = requirements(extras=True)
    for text in PROJECT["optional-dependencies"]["dev"]:
        requirement = Requirement(text)
        if requirement.name != "prenas":
            declared[requirement.name] = requirement
    for name, requirement in declared.items():
        assert [each.operator for each in requirement.specifier] == [">="], requirement
        if name not in ("wandb", "mlflow"):
            assert requirement.specifier.contains(pins[name]), (name, pins[name])
