"""What the package imports is what it declares, and constraints.txt pins versions it allows."""

import ast
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

PACKAGES = {
    "IPython": "ipython",
    "PIL": "pillow",
    "markdown_it": "markdown-it-py",
    "ruamel": "ruamel.yaml",
    "sklearn": "scikit-learn",
    "torch_pruning": "torch-pruning",
    "vl_convert": "vl-convert-python",
}
"""Name of a module -> of the package that brings it, where they differ."""

IMPORTED_BY_OTHERS = {
    "datasets": "timm, which reads Hugging Face's sets with it",
    "webdataset": "timm, which reads WebDataset's tars with it",
    "tensorboard": "torch.utils.tensorboard",
    "onnxscript": "torch.onnx, whose exporter it is",
}
"""Declared package that our own code does not import -> what does, when we call it."""

OF_OTHER_ENVIRONMENTS = {"litert_torch", "ai_edge_litert"}
"""What an example imports that says itself where to install it."""

LOCAL = {
    "prenas",
    "benchmarks",
    "classify",
    "residual_mlp",
    "service",
    *(path.stem for path in (ROOT / "tests").iterdir()),
}


def requirements(*extras: str) -> dict[str, Requirement]:
    """Declared package -> requirement, with those of some extras."""
    texts = list(PROJECT["dependencies"])
    for extra in extras:
        texts += PROJECT["optional-dependencies"][extra]
    parsed = [Requirement(text) for text in texts]
    return {each.name: each for each in parsed if each.name != "prenas"}


EXTRAS = tuple(name for name in PROJECT["optional-dependencies"] if name != "dev")


def imported(*folders: str) -> dict[str, set[str]]:
    """Package that is neither Python's own nor ours -> the files that import it."""
    found: dict[str, set[str]] = {}
    for file in sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module or ""]
            else:
                continue
            for module in modules:
                top = module.partition(".")[0]
                if top not in LOCAL and top not in sys.stdlib_module_names:
                    found.setdefault(PACKAGES.get(top, top), set()).add(file.name)
    return found


def test_every_import_is_declared() -> None:
    for folders, extras in (
        (["src"], EXTRAS),
        (["tests", "examples"], (*EXTRAS, "dev")),
    ):
        found, declared = imported(*folders), requirements(*extras)
        assert len(found) > 10
        for name in ("tensorflow_datasets", *OF_OTHER_ENVIRONMENTS):  # the first is a stand-in
            found.pop(name, None)
        assert {package: files for package, files in found.items() if package not in declared} == {}


def test_every_declared_package_is_imported() -> None:
    """Those that others import for us are listed, and only as long as that is so."""
    unused = requirements(*EXTRAS).keys() - imported("src").keys()
    assert unused == IMPORTED_BY_OTHERS.keys()


def test_every_declared_package_has_a_lower_bound_and_a_pin_above_it() -> None:
    """wandb and MLflow are not pinned: no test needs them."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pairs}
    for name, requirement in requirements(*EXTRAS, "dev").items():
        assert [each.operator for each in requirement.specifier] == [">="], requirement
        if name not in ("wandb", "mlflow"):
            pin = pins[canonicalize_name(name)]
            assert requirement.specifier.contains(pin), (name, pin)
