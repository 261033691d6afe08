"""The shape of the package: what imports what, and what no module may do."""

import ast
import gc
import importlib.util
import io
import os
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from types import ModuleType

import pytest
import torch

import prenas
from prenas import imports
from prenas.imports import (
    import_after,
    import_within,
    late_compiler,
    leave_quietly,
    without_collection,
)

HOME = Path(prenas.__file__).parent
MODULES = {
    ".".join(path.relative_to(HOME).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(HOME.rglob("*.py"))
}
SOURCES = {name: path.read_text(encoding="utf-8") for name, path in MODULES.items()}
TREES = {name: ast.parse(source) for name, source in SOURCES.items()}


def dotted(node: ast.AST) -> str:
    """`a.b.c` of a chain of attributes; of other values, what they hang on."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def calls_of(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield dotted(node.func), node


# --- layers --------------------------------------------------------------------------------------

ROOT = Path(__file__).parent.parent


def declared_layers() -> list[set[str]]:
    """The layers of `[tool.importlinter]`, from the top down."""
    (layers,) = [
        contract["layers"]
        for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"][
            "importlinter"
        ]["contracts"]
        if contract["type"] == "layers"
    ]
    return [set(re.findall(r"\w+", layer)) for layer in layers]


def test_imports_point_downwards() -> None:
    """`[tool.importlinter]` in pyproject.toml declares the layers, for all modules there are."""
    result = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(HOME.parent)},
    )
    assert result.returncode == 0, result.stdout
    assert "4 kept, 0 broken" in result.stdout
    assert set().union(*declared_layers()) == {
        name.split(".")[0] for name in MODULES if name != "__init__"
    }


def test_contributing_shows_the_layers_that_are_declared() -> None:
    """Each line of the map in CONTRIBUTING.md is a layer, from the top down."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    shown = [set(re.findall(r"\w+", line.split("  ")[0])) for line in block.splitlines()]
    assert shown == declared_layers()


def test_packages_that_only_hold_others_are_empty() -> None:
    for name in (
        "selection",
        "proxy",
        "runs",
        "models",
        "sources",
        "rivals",
        "evaluation",
        "steps",
    ):
        assert not [node for node in TREES[name].body if not isinstance(node, ast.Expr)], name


# --- families stay in their room -----------------------------------------------------------------

OF_A_FAMILY = re.compile(
    r"(?<![a-z])vit(?![a-z])|(?-i:Vit[A-Z])|embed_dim|num_heads|mlp_ratio|head_dim|patch_size",
    re.IGNORECASE,
)


def code_tokens(name: str) -> Iterator[tuple[int, str]]:
    """(line, text) of every token that is neither comment nor docstring."""
    texts = {
        (node.value.lineno, node.value.col_offset)
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for token in tokenize.generate_tokens(io.StringIO(SOURCES[name]).readline):
        if token.type != tokenize.COMMENT and token.start not in texts:
            yield token.start[0], token.string


def test_only_families_and_the_catalogue_know_a_family() -> None:
    """Everything else works for a family that does not exist yet."""
    allowed = ("families.", "recipe.catalogue.", "__init__")
    outside = [name for name in MODULES if not f"{name}.".startswith((*allowed, "__init__."))]
    assert len(outside) > 60
    found = [
        (name, line, text)
        for name in outside
        for line, text in code_tokens(name)
        if OF_A_FAMILY.search(text)
    ]
    assert found == []


def test_a_familys_words_would_be_found() -> None:
    words = [text for _, text in code_tokens("families.vit.space") if OF_A_FAMILY.search(text)]
    assert {"embed_dim", "VitSpace", '"vit"'} <= set(words)
    assert not OF_A_FAMILY.search("activity")


# --- habits --------------------------------------------------------------------------------------


def test_only_the_command_line_prints() -> None:
    calls = {name: [call for call, _ in calls_of(tree)] for name, tree in TREES.items()}
    assert any("print" in call for name in calls if name.startswith("cli.") for call in calls[name])
    for name, found in calls.items():
        if name.split(".")[0] != "cli":
            assert "print" not in found, name
            assert not [c for c in found if c.startswith(("sys.stdout", "sys.stderr"))], name


# Functions that draw from, or set, a global generator unless they are given one.
_DRAWS = {"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "rand_like"}
_DRAWS |= {"randn_like", "randint_like", "poisson"}
_FILLS = {"uniform_", "normal_", "random_", "bernoulli_", "exponential_", "trunc_normal_"}
_FILLS |= {
    "xavier_uniform_",
    "xavier_normal_",
    "kaiming_uniform_",
    "kaiming_normal_",
    "orthogonal_",
}
_SEEDS = {"manual_seed", "seed", "set_rng_state", "initial_seed", "fork_rng"}


def global_randomness(tree: ast.AST) -> list[str]:
    """Calls that touch a global generator."""
    found = []
    for call, node in calls_of(tree):
        parts = call.split(".")
        root, last = parts[0], parts[-1]
        has_generator = any(keyword.arg == "generator" for keyword in node.keywords)
        # A method of a generator object, e.g. `generator.random(3)`, is what we want.
        if (
            (root == "random" and len(parts) == 2)
            or (call.startswith(("np.random.", "numpy.random.")) and not last[0].isupper())
            or (root == "torch" and last in _DRAWS and not has_generator)
            or (root == "torch" and last in _SEEDS)
            or (last in _FILLS and not has_generator)
        ):
            found.append(f"{call} in line {node.lineno}")
    return found


def test_no_module_touches_a_global_generator() -> None:
    found = {name: global_randomness(tree) for name, tree in TREES.items()}
    assert len(found.pop("randomness")) > 2
    assert {name: calls for name, calls in found.items() if calls} == {}


def test_global_randomness_would_be_found() -> None:
    bad = """
torch.manual_seed(0); np.random.seed(0); random.random(); torch.randn(3); x.normal_()
nn.init.trunc_normal_(w, std=0.02); np.random.rand(); torch.random.fork_rng()
"""
    assert len(global_randomness(ast.parse(bad))) == 8
    good = """
torch.randn(3, generator=g); g.random(3); nn.init.normal_(w, generator=g); g.integers(3)
np.random.Generator(np.random.Philox(key=1)); generator.uniform(0, 1)
"""
    assert global_randomness(ast.parse(good)) == []


# --- public names --------------------------------------------------------------------------------


def names_for_type_checkers() -> dict[str, str]:
    """Name -> module, as the `if TYPE_CHECKING` block imports them."""
    (block,) = [
        node
        for node in TREES["__init__"].body
        if isinstance(node, ast.If) and dotted(node.test) == "TYPE_CHECKING"
    ]
    return {
        alias.name: node.module or ""
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_type_checkers_see_what_is_loaded() -> None:
    assert names_for_type_checkers() == prenas._HOME_OF
    assert sorted(prenas.__all__) == sorted(prenas._HOME_OF)


def test_every_public_name_is_there() -> None:
    assert len(prenas.__all__) > 30
    for name in prenas.__all__:
        value = getattr(prenas, name)
        assert value is getattr(sys.modules[prenas._HOME_OF[name]], name)
        assert value.__doc__, name
        assert name in dir(prenas)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'prenas' has no attribute 'serach'"):
        prenas.serach  # noqa: B018
    with pytest.raises(ImportError):
        exec("from prenas import serach")


# --- speed of the first impression ---------------------------------------------------------------

HEAVY = ("torch", "timm", "torchvision", "scipy", "numpy", "sklearn", "matplotlib", "safetensors")


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("import prenas; prenas.__version__; dir(prenas)", id="import"),
        pytest.param("import prenas.cli", id="import-cli"),
        pytest.param(
            "sys.argv = ['prenas', '--help']\nfrom prenas.cli import main\n"
            "try: main()\nexcept SystemExit as end: assert not end.code",
            id="help",
        ),
        pytest.param(
            "sys.argv = ['prenas', 'run', '--help']\nfrom prenas.cli import main\n"
            "try: main()\nexcept SystemExit as end: assert not end.code",
            id="help-of-run",
        ),
    ],
)
def test_help_and_import_are_light(code: str) -> None:
    script = f"import sys\n{code}\nprint('LOADED', *sorted(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    loaded = set(result.stdout.rpartition("LOADED")[2].split())
    assert "prenas" in loaded
    assert sorted(loaded & set(HEAVY)) == []


def test_a_command_does_not_load_what_only_some_need() -> None:
    """Optimisers, statistics and the compiler take as long as all else that a command imports."""
    script = (
        "import sys, prenas.pipeline\n"
        "print(*{'scipy.optimize', 'scipy.stats', 'timm.optim', 'torch._dynamo', 'triton'}"
        " & {*sys.modules})"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    assert result.stdout.strip() == ""


@pytest.mark.parametrize("is_loaded", [False, True])
def test_a_process_leaves_its_objects_alone_unless_triton_counts_them(
    is_loaded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton's bindings print every object of theirs that is still there at the end."""
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    if is_loaded:
        monkeypatch.setitem(sys.modules, "triton", ModuleType("triton"))
    gc.freeze()
    try:
        leave_quietly()
        assert (gc.get_freeze_count() == 0) is is_loaded
    finally:
        gc.freeze()  # as the tests have it


# --- imports of one package after another --------------------------------------------------------


LOADED = "heavy_one.part"  # the package imports it


@pytest.fixture
def heavy_and_light(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two packages that are not loaded; `light_one` notes that `heavy_one` was complete."""
    (tmp_path / "heavy_one").mkdir()
    (tmp_path / "heavy_one" / "__init__.py").write_text("from heavy_one import part\ndone = True\n")
    (tmp_path / "heavy_one" / "part.py").write_text("")
    (tmp_path / "light_one.py").write_text("import heavy_one\nsaw = heavy_one.done\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    yield
    for name in ("heavy_one", "heavy_one.part", "light_one"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("statement", ["import heavy_one", "from heavy_one.part import __name__"])
@pytest.mark.usefixtures("heavy_and_light")
def test_a_module_follows_a_package(statement: str) -> None:
    before = [*sys.meta_path]
    import_after("heavy_one", "light_one")
    assert importlib.util.find_spec("heavy_one") is not None  # a look is no import
    assert "light_one" not in sys.modules
    exec(statement, {})
    assert sys.modules["light_one"].saw
    assert sys.meta_path == before


@pytest.mark.usefixtures("heavy_and_light")
def test_a_module_follows_a_package_that_is_there() -> None:
    exec("import heavy_one", {})
    import_after("heavy_one", "light_one")
    assert sys.modules["light_one"].saw


@pytest.mark.usefixtures("heavy_and_light")
def test_a_package_is_imported_within_contexts() -> None:
    seen = []

    def noting(name: str) -> Callable[[], AbstractContextManager[None]]:
        @contextmanager
        def noted() -> Iterator[None]:
            seen.append(f"into {name}, loaded: {LOADED in sys.modules}")
            yield
            seen.append(f"out of {name}, loaded: {LOADED in sys.modules}")

        return noted

    before = [*sys.meta_path]
    for name in ("inner", "outer"):
        import_within("heavy_one", noting(name))
    exec("import heavy_one.part", {})
    assert seen == [
        "into outer, loaded: False",
        "into inner, loaded: False",
        "out of inner, loaded: True",
        "out of outer, loaded: True",
    ]
    assert sys.meta_path == before
    import_within("heavy_one", noting("late"))
    assert sys.meta_path == before


@pytest.mark.parametrize("enabled", [True, False])
def test_no_garbage_is_looked_for_within(enabled: bool) -> None:
    was_enabled = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with suppress(ImportError), without_collection():
            assert not gc.isenabled()
            raise ImportError
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if was_enabled else gc.disable)()


def test_a_package_that_is_missing_stays_missing() -> None:
    before = [*sys.meta_path]
    import_after("no_such_package", "light_one")
    try:
        assert importlib.util.find_spec("no_such_package") is None
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("no_such_package")
    finally:
        sys.meta_path[:] = before


def test_timm_knows_our_networks_when_it_comes_second() -> None:
    """And brings no compiler, whose import takes longer than all else that `prenas info` does."""
    code = (
        "import sys, prenas, timm; print(len(timm.list_models('prenas_*m')));"
        "print([name for name in sys.modules if name.startswith('torch._dynamo')]);"
        "import torch; print(torch._dynamo.__file__)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    number, loaded, file = result.stdout.splitlines()
    assert number == "13", result.stderr
    assert loaded == "[]"
    assert Path(file).parts[-3:] == ("torch", "_dynamo", "__init__.py")


# --- the compiler, later -------------------------------------------------------------------------


@pytest.fixture
def heavy_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heavy_and_light: None
) -> Iterator[None]:
    """`heavy_one` is the compiler."""
    (tmp_path / "heavy_one" / "utils.py").write_text("is_compile_supported, limit = id, 3\n")
    monkeypatch.setattr(imports, "_COMPILER", "heavy_one")
    yield
    sys.modules.pop("heavy_one.utils", None)


@pytest.mark.usefixtures("heavy_compiler")
def test_what_decorates_does_not_load_the_compiler() -> None:
    with late_compiler():
        exec("import heavy_one; heavy_one.disable(len); import inspect; inspect.getmodule(len)", {})
        exec("from heavy_one.utils import is_compile_supported", {})
        assert LOADED not in sys.modules
    assert not {"heavy_one", "heavy_one.utils"} & set(sys.modules)
    exec("import heavy_one; assert heavy_one.done", {})


@pytest.mark.usefixtures("heavy_compiler")
@pytest.mark.parametrize(
    "statement",
    [
        "import heavy_one; assert heavy_one.done",
        "import heavy_one.part as part; assert part.__file__",
        "from heavy_one.utils import limit; assert limit == 3",
    ],
)
def test_whatever_else_is_asked_for_loads_the_compiler(statement: str) -> None:
    with late_compiler():
        exec(statement, {})
        assert LOADED in sys.modules
        assert sys.modules["heavy_one"].__file__
    assert sys.modules["heavy_one"].done


@pytest.mark.usefixtures("heavy_compiler")
def test_a_compiler_that_is_there_stays() -> None:
    exec("import heavy_one.utils", {})
    there = sys.modules["heavy_one"], sys.modules["heavy_one.utils"]
    with late_compiler():
        assert (sys.modules["heavy_one"], sys.modules["heavy_one.utils"]) == there
    assert (sys.modules["heavy_one"], sys.modules["heavy_one.utils"]) == there


def test_stand_ins_go_when_an_import_fails(heavy_compiler: None) -> None:
    def fails() -> None:
        with late_compiler():
            raise ImportError

    with pytest.raises(ImportError):
        fails()
    assert "heavy_one" not in sys.modules


def test_the_decorators_do_what_those_of_the_compiler_do() -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        graphs.append([node.target for node in graph.graph.nodes])
        return graph.forward

    @imports._disabled
    def apart(x: torch.Tensor) -> torch.Tensor:
        return torch.sin(x)

    x = torch.linspace(0, 1, 3)
    compiled = torch.compile(lambda x: apart(x + 1) * 2, backend=backend)
    assert torch.equal(compiled(x), torch.sin(x + 1) * 2)
    assert graphs
    assert torch.sin not in [target for graph in graphs for target in graph]
    for device in ("cpu", "meta"):
        expected = torch._dynamo.utils.is_compile_supported(device)
        assert imports._is_compile_supported(device) == expected
