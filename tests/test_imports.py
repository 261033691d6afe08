"""The shape of the package: what imports what, and what no module may do."""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import prenas

HOME = Path(prenas.__file__).parent
MODULES = {
    ".".join(path.relative_to(HOME).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(HOME.rglob("*.py"))
}
SOURCES = {name: path.read_text(encoding="utf-8") for name, path in MODULES.items()}
TREES = {name: ast.parse(source) for name, source in SOURCES.items()}

# From the ground up; a room imports from rooms below, never from beside (but its own) or above.
ROOMS: list[set[str]] = [
    {"values", "randomness", "processes"},
    {"devices"},
    {"artifacts"},
    {"families", "runlog"},
    {"cost", "supernet", "status"},
    {"proxy"},
    {"selection.budgets", "selection.isomers"},
    {"selection.graph"},
    {"selection.front"},
    {"selection.ranking"},
    {"selection.program"},
    {"selection.select", "selection.within", "selection.exact"},
    {"selection.placing"},
    {"data_recipe"},
    {"recipe", "space_file"},
    {"recipes", "data", "selection.preferred"},
    {"calibration", "evaluation", "export", "zero_cost_search", "released", "evolution"},
    {"training"},
    {"one_shot", "run_folder", "run_statistics", "specialization", "report"},
    {"transfer", "prediction", "run_data"},
    {"hand_over"},
    {"pipeline"},
    {"cli"},
    {"__main__"},
]
ENTRANCES = {"__init__", "selection"}  # packages that only hold others; see below


def room_of(module: str) -> tuple[int, str]:
    """(height, room) of a module."""
    for height, rooms in enumerate(ROOMS):
        for room in rooms:
            if module == room or module.startswith(f"{room}."):
                return height, room
    raise AssertionError(f"module {module!r} stands in no room: give it a place in ROOMS")


def imports_of(tree: ast.AST) -> Iterator[str]:
    """The modules of this package that a tree imports, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "prenas":
                    yield alias.name.removeprefix("prenas").removeprefix(".")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if node.module and node.module.split(".")[0] == "prenas":
                base = node.module.removeprefix("prenas").removeprefix(".")
                for alias in node.names:
                    inner = f"{base}.{alias.name}" if base else alias.name
                    yield inner if inner in MODULES else base


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


inner_modules = pytest.mark.parametrize("name", [n for n in MODULES if n not in ENTRANCES])


# --- layers --------------------------------------------------------------------------------------


@inner_modules
def test_imports_point_downwards(name: str) -> None:
    height, room = room_of(name)
    for other in imports_of(TREES[name]):
        other_height, other_room = room_of(other)
        assert other_height < height or other_room == room, f"{name} imports {other}"


def test_every_room_exists() -> None:
    """So that the test above cannot go blind when a module is renamed."""
    rooms = {room_of(name)[1] for name in MODULES if name not in ENTRANCES}
    assert rooms == set().union(*ROOMS)
    assert sum(len(list(imports_of(tree))) for tree in TREES.values()) > 80


def test_packages_that_only_hold_others_are_empty() -> None:
    assert list(imports_of(TREES["selection"])) == []


def test_within_a_family_nothing_knows_the_table() -> None:
    """families/base knows no family, and a family knows only base."""
    for name in MODULES:
        if name.startswith("families."):
            family = name.split(".")[1]
            for other in imports_of(TREES[name]):
                assert other.startswith((f"families.{family}", "families.base")) or (
                    room_of(other)[0] == 0
                ), f"{name} imports {other}"


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


@pytest.mark.parametrize(
    "name",
    [n for n in MODULES if n.split(".")[0] not in ("families", "recipes") and n != "__init__"],
)
def test_only_families_and_recipes_know_a_family(name: str) -> None:
    """Everything else works for a family that does not exist yet."""
    found = [(line, text) for line, text in code_tokens(name) if OF_A_FAMILY.search(text)]
    assert found == []


def test_a_familys_words_would_be_found() -> None:
    words = [text for _, text in code_tokens("families.vit.space") if OF_A_FAMILY.search(text)]
    assert {"embed_dim", "VitSpace", '"vit"'} <= set(words)
    assert not OF_A_FAMILY.search("activity")


# --- habits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in MODULES if n.split(".")[0] != "cli"])
def test_only_the_command_line_prints(name: str) -> None:
    calls = [call for call, _ in calls_of(TREES[name])]
    assert "print" not in calls
    assert not [call for call in calls if call.startswith(("sys.stdout", "sys.stderr"))]


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


@pytest.mark.parametrize("name", [n for n in MODULES if n != "randomness"])
def test_no_module_touches_a_global_generator(name: str) -> None:
    assert global_randomness(TREES[name]) == []


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
    assert len(global_randomness(TREES["randomness"])) > 2


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


@pytest.mark.parametrize("name", prenas.__all__)
def test_every_public_name_is_there(name: str) -> None:
    value = getattr(prenas, name)
    assert value is getattr(sys.modules[prenas._HOME_OF[name]], name)
    assert value.__doc__
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
