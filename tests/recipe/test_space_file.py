"""Own search spaces from files: what is read, and every mistake in words that help."""

import json
import re
import string
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

import prenas
from prenas.cost import AXES, count
from prenas.families import FAMILIES, all_spaces, get_space
from prenas.families.base import SearchSpace
from prenas.families.limits import MOST_RATIO
from prenas.families.vit.space import VitSettings, VitSpace
from prenas.recipe import SearchRecipe, searching_recipe, with_space
from prenas.recipe.catalogue import get_recipe
from prenas.recipe.space_file import SUFFIXES, find_space, names_a_space_file, read_space
from test_cli import Command, refused
from test_cli import prenas as prenas_command
from training.runs import value_error_of

__all__ = ["prenas_command"]  # a fixture of another file

ROOT = Path(__file__).resolve().parents[2]
GOOD = """\
family: vit
embed_dim: [16, 32]
depth: [2, 3]
num_heads: [1, 2]
mlp_ratio: [2, 3.5]
image_size: 32
"""
SPACE = VitSpace(
    name="good",
    embed_dim=(16, 32),
    depth=(2, 3),
    num_heads=(1, 2),
    mlp_ratio=(2.0, 3.5),
    settings=VitSettings(image_size=(32, 32)),
)

Write = Callable[[str, str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def as_yaml(fields: dict[str, Any], *, allow_unicode: bool = True) -> str:
    """The fields in YAML, as a library writes them."""
    writer, text = YAML(typ="safe", pure=True), StringIO()
    writer.allow_unicode = allow_unicode
    writer.dump(fields, text)
    return text.getvalue()


def refusal(path: str | Path) -> str:
    """The words of the ValueError that reading raises; they name the file."""
    message = value_error_of(lambda: read_space(path))
    assert message is not None
    assert all(line.startswith(str(path).partition(":")[0]) for line in message.splitlines())
    assert "pydantic" not in message
    return message


# --- what is read --------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".YAML"])
def test_a_space_is_read(suffix: str, write: Write) -> None:
    path = write(f"good{suffix}", GOOD)
    assert read_space(path) == read_space(str(path)) == SPACE
    assert prenas.read_space is read_space


def test_settings_may_stand_under_settings_or_beside(write: Write) -> None:
    nested = GOOD.replace("image_size: 32", "settings:\n  image_size: [32, 32]\n  head_dim: 8")
    flat = f"{GOOD}head_dim: 8\n"
    mixed = f"{GOOD}settings: {{head_dim: 8}}\n"
    expected = SPACE.with_settings(head_dim=8)
    for text in (nested, flat, mixed):
        assert read_space(write("good.yaml", text)) == expected
    assert read_space(write("good.yaml", f"{GOOD}settings:\n")) == SPACE


def test_the_name_is_the_files_unless_given(write: Write) -> None:
    assert read_space(write("my.own.yaml", GOOD)).name == "my.own"
    for name in ("other", '"3"', "yes", "12:14", "2024-01-01"):
        space = read_space(write("good.yaml", f"{GOOD}name: {name}\n"))
        assert space.name == name.strip('"')


@pytest.mark.parametrize("axis", ["embed_dim", "depth", "num_heads", "mlp_ratio"])
def test_one_number_is_one_option(axis: str, write: Write) -> None:
    text = re.sub(rf"{axis}: .*", f"{axis}: 3", GOOD)
    assert getattr(read_space(write("good.yaml", text)), axis) == (3,)


def test_a_byte_order_mark_and_windows_lines_are_read(write: Write) -> None:
    content = b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode()
    assert read_space(write("good.yaml", content)) == SPACE
    fields = YAML(typ="safe", pure=True).load(GOOD)
    tabs = b"\xef\xbb\xbf" + json.dumps(fields, indent="\t").encode()
    assert read_space(write("good.json", tabs)) == SPACE


def test_the_scored_width_is_read(write: Write) -> None:
    for text, width in (("40", 40), ("null", None), ("~", None), ("", None)):
        space = read_space(write("good.yaml", f"{GOOD}supernet_embed_dim: {text}\n"))
        assert space == SPACE.model_copy(update={"supernet_embed_dim": width})


def forms(space: SearchSpace) -> list[dict[str, Any]]:
    """The plain fields of a space, settings nested, flat, and half of each."""
    nested = space.model_dump(mode="json")
    common = nested["settings"]
    rest = {name: value for name, value in nested.items() if name != "settings"}
    half = dict(list(common.items())[::2])
    other = {name: value for name, value in common.items() if name not in half}
    return [nested, {**rest, **common}, {**half, **rest, "settings": other}]


@pytest.mark.parametrize("name", all_spaces())
def test_every_named_space_survives_a_file(name: str, write: Write) -> None:
    space = get_space(name)
    for fields in forms(space):
        assert read_space(write("a.yaml", as_yaml(fields))) == space
        assert read_space(write("b.yaml", json.dumps(fields))) == space
        assert read_space(write("c.json", json.dumps(fields))) == space


def options(elements: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    chosen = st.lists(elements, min_size=1, max_size=4, unique=True)
    return chosen.map(lambda values: tuple(sorted(values)))


@st.composite
def vit_spaces(draw: st.DrawFn) -> VitSpace:
    small = st.integers(1, 200)
    patch = draw(st.integers(1, 32))
    widths = draw(options(st.integers(2, 2000)))
    return VitSpace(
        name=draw(st.text(string.ascii_letters + " -_äß", min_size=1).map(lambda s: f"x{s}x")),
        embed_dim=widths,
        depth=draw(options(st.integers(1, 1000))),
        num_heads=draw(options(small)),
        mlp_ratio=draw(options(st.floats(0.5, MOST_RATIO))),
        supernet_embed_dim=draw(st.none() | st.integers(widths[-1], 5000)),
        settings=VitSettings(
            image_size=(patch * draw(st.integers(1, 20)), patch * draw(st.integers(1, 20))),
            patch_size=patch,
            in_chans=draw(small),
            num_classes=draw(small),
            head_dim=draw(small),
            max_distance=draw(small),
        ),
    )


@given(vit_spaces(), st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_space_survives_a_file(tmp_path: Path, space: VitSpace, unicode: bool) -> None:
    for fields in forms(space):
        for name, text in (
            ("any.yaml", as_yaml(fields, allow_unicode=unicode)),
            ("any.json", json.dumps(fields, ensure_ascii=not unicode)),
        ):
            (tmp_path / name).write_text(text, encoding="utf-8")
            assert read_space(tmp_path / name) == space


def as_json(word: str) -> object:
    """What an unquoted word means: JSON's numbers, truth values and null, and texts."""
    if word == "~":
        return None
    try:
        return json.loads(word)
    except ValueError:
        return word


@given(
    st.from_regex(r"-?[0-9.eE+_:xo-]{1,12}", fullmatch=True)
    | st.sampled_from(["null", "Null", "~", "true", "True", "yes", "no", "on", "y", "2024-01-01"])
    | st.sampled_from(["NaN", "nan", ".nan", "Infinity", "-Infinity", ".inf", "<<", "="])
    | st.floats(allow_nan=False).map(repr)
    | st.integers().map(str)
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@example("12:14")
@example("0x10")
@example("0o17")
@example("017")
@example("1_000")
@example("1e999")
def test_unquoted_words_mean_what_json_says(tmp_path: Path, word: str) -> None:
    """The message shows what was read; YAML 1.1 and other schemas of 1.2 read other values."""
    assume(word != "---" and not re.search(r"^-+$|:$", word))  # YAML's own signs
    path = tmp_path / "any.yaml"
    for version in ("", "%YAML 1.1\n---\n", "%YAML 1.2\n---\n"):
        path.write_text(f"{version}family: [{word}]", encoding="utf-8")
        assert f"(got [{as_json(word)!r}])" in refusal(path)


@given(st.text() | st.binary(), st.sampled_from([".yaml", ".json"]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_anything_else_is_a_value_error(tmp_path: Path, content: str | bytes, suffix: str) -> None:
    path = tmp_path / f"any{suffix}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "replace"))
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read_space(path)


def test_the_example_is_what_its_comments_say() -> None:
    space = read_space(ROOT / "examples/space.yaml")
    assert space.name == "pocket"
    assert space.settings == VitSettings(num_classes=100)
    low, high = (count(arch, space.settings)["params"] for arch in (space.smallest, space.largest))
    assert 2e6 < low < 6e6 < 8e6 < high < 8.5e6


def test_the_guides_space_is_read(write: Write) -> None:
    text = (ROOT / "docs/guide/spaces.md").read_text(encoding="utf-8")
    snippets = re.findall(r"^```yaml\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    spaces = [read_space(write("my_space.yaml", snippet)) for snippet in snippets]
    assert {space.family for space in spaces} == {"vit", "mobilenet"}
    for space in spaces:
        assert space.name == "my_space"
        assert space.num_archs > 1000


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        # fields
        ("family: vit\n", "", ["family: write one of mobilenet", "vit"]),
        ("family: vit", "family: [vit]", ["write one of mobilenet", "vit (got ['vit'])"]),
        ("family: vit", "family: vitt", ["unknown family 'vitt': did you mean 'vit'?"]),
        ("num_heads", "num_head", ["'num_head': did you mean 'num_heads'", "num_heads is missing"]),
        ("image_size", "size", ["unknown field 'size'", "available: depth, embed_dim"]),
        ("image_size: 32", "settings: {hed_dim: 8}", ["did you mean 'settings.head_dim'"]),
        ("image_size: 32", "settings: 32", ["settings must be a group of fields", "32"]),
        ("image_size: 32", "settings: false", ["settings must be a group of fields", "False"]),
        ("image_size: 32", "<<: {image_size: 32}", ["unknown field '<<'"]),
        ("image_size: 32", "32: 32", ["unknown field '32'"]),
        ("embed_dim: [16, 32]\n", "", ["embed_dim is missing: list its options"]),
        ("embed_dim: [16, 32]", "embed_dim:", ["embed_dim is missing: list its options"]),
        ("embed_dim: [16, 32]", "embed_dim: []", ["embed_dim: the list of options is empty"]),
        (
            "32\n",
            "32\nsettings: {image_size: 8}",
            ["image_size is given twice, once under settings"],
        ),
        ("32\n", "32\ndepth: 4", ["line 7, column 1: depth is given twice"]),
        (
            "32\n",
            "32\nsettings: {head_dim: 8, head_dim: 8}",
            ["line 7, column 25: head_dim is given twice"],
        ),
        ("32\n", "32\nname: 3", ["name: must be text (got 3)"]),
        ("32\n", "32\nname:", ["name: must be text (got None)"]),
        # kinds of values
        ("[2, 3]", "deep", ["depth.0: must be an integer (got 'deep')"]),
        ("[2, 3]", "12:14", ["depth.0: must be an integer (got '12:14')"]),
        ("[2, 3]", "yes", ["depth.0: must be an integer (got 'yes')"]),
        ("[2, 3]", "true", ["depth.0: must be an integer (got True)"]),
        ("[2, 3]", '["2", 3]', ["depth.0: must be an integer (got '2')"]),
        ("[2, 3]", "[2, 3.0]", ["depth.1: must be an integer (got 3.0)"]),
        ("[2, 3]", "[2, 0x10]", ["depth.1: must be an integer (got '0x10')"]),
        ("[2, 3]", "[[2, 3]]", ["depth.0: must be an integer (got [2, 3])"]),
        ("[2, 3]", "{min: 2, max: 3}", ["depth: must be a list (got {'min': 2, 'max': 3})"]),
        ("[2, 3]", "9" * 5000, ["depth.0: must be an integer (got '9999", "99..."]),
        ("[1, 2]", "[1.5, 2]", ["num_heads.0: must be an integer (got 1.5)"]),
        ("[16, 32]", "[16.5]", ["embed_dim.0: must be an integer (got 16.5)"]),
        ("[2, 3.5]", "[two]", ["mlp_ratio.0: must be a number (got 'two')"]),
        ("[2, 3.5]", "[.inf]", ["mlp_ratio.0: must be a number (got '.inf')"]),
        ("[2, 3.5]", "[NaN]", ["mlp_ratio.0", "finite"]),
        ("image_size: 32", "image_size: big", ["give one integer or [height, width]", "'big'"]),
        ("image_size: 32", "image_size: [32]", ["image_size: give one integer or [height, width]"]),
        ("image_size: 32", "image_size: true", ["image_size.0: must be an integer", "True"]),
        # nonsense
        ("[2, 3]", "[3, 2, 3]", ["depth: options [3, 2, 3]", "rising order: write [2, 3]"]),
        ("[1, 2]", "[2, 2]", ["num_heads: options [2, 2]", "distinct", "write [2]"]),
        ("[2, 3]", "[2, 12000]", ["depth: 12,000 layers", "at most 1,000"]),
        ("[1, 2]", "[0, 2]", ["num_heads.0", "greater than or equal to 1 (got 0)"]),
        ("[2, 3.5]", "[0, 2]", ["mlp_ratio.0", "greater than 0 (got 0)"]),
        ("[2, 3.5]", "[-1, 2]", ["mlp_ratio.0", "greater than 0 (got -1)"]),
        ("[2, 3.5]", "0.01", ["mlp_ratio 0.01 at embed_dim 16", "without hidden units: raise one"]),
        ("32\n", "32\nhead_dim: 0", ["head_dim", "greater than or equal to 1 (got 0)"]),
        ("32\n", "32\nnum_classes: 0", ["num_classes", "greater than or equal to 1 (got 0)"]),
        ("32\n", "32\npatch_size: 64", ["(32, 32)", "patch_size 64", "from 32, 16, 8"]),
        ("32\n", "32\npatch_size: 5", ["(32, 32)", "patch_size 5", "from 4, 2, 8"]),
        ("32\n", "32\nsupernet_embed_dim: 16", ["supernet_embed_dim 16", "option 32", "raise it"]),
    ],
)
def test_a_mistake_is_named(old: str, new: str, words: list[str], write: Write) -> None:
    assert old in GOOD
    message = refusal(write("bad.yaml", GOOD.replace(old, new)))
    for word in words:
        assert word in message
    assert len(message) < 500


def test_all_mistakes_are_named_at_once(write: Write) -> None:
    message = refusal(write("bad.yaml", GOOD.replace("[1, 2]", "[2, 1]") + "head_dim: 0"))
    assert "head_dim" in message
    assert "num_heads" in message
    message = refusal(write("bad.json", '{"family": "vit", "deep": 1, "embed_dim": 3}'))
    assert len(message.splitlines()) == 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "contains nothing instead of fields: write `field: value`"),
        ("# nothing yet\n", "contains nothing"),
        ("- 16\n- 32\n", "contains a list"),
        ("hello\n", "contains text"),
        ("3\n", "contains a number"),
        ("true\n", "contains true or false"),
        ("embed_dim: [1,", "line 1, column 15: expected"),
        ("family: vit\n\tdepth: 3", "line 2, column 1: found character '\\t'"),
        ("a: 1\n---\nb: 1", "line 2, column 1: there is a second YAML document"),
        ("a: &a [1]\nb: *a", "line 2, column 4: YAML aliases such as *a are not supported"),
        ("a: &a [*a]", "line 1, column 8: YAML aliases such as *a are not supported"),
        ("? [a]\n: b", "line 1, column 3: a field name must be one word"),
        ("a: \x01", "line 1, column 4: unacceptable character U+0001"),
        ("[" * 5000, "nested more deeply"),
    ],
)
def test_other_texts_are_no_space(text: str, words: str, write: Write) -> None:
    assert words in refusal(write("bad.yaml", text))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "contains nothing"),
        ("[1]", "contains a list"),
        ("{", "line 1 column 2"),
        ('{"family": "vit", "family": "vit"}', "family is given twice"),
        ("[" * 100_000, "nested more deeply"),
        ('{"family": "vit", "depth": ' + "9" * 5000 + "}", "cannot be read"),
    ],
)
def test_other_json_is_no_space(text: str, words: str, write: Write) -> None:
    assert words in refusal(write("bad.json", text))


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.mkdir [{folder}]",
        "!!python/object/new:os.mkdir [{folder}]",
        "!!python/name:os.system",
        "!!python/module:this",
        "!!timestamp never",
        "!!int twelve",
        "!!set {{a}}",
        "!mine 3",
    ],
)
def test_tags_run_nothing(value: str, write: Write, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    tagged = value.format(folder=folder)
    for text in (f"{GOOD}name: {tagged}\n", f"depth: [{tagged}]\n", f"{tagged}\n", f"? {tagged}\n"):
        message = refusal(write("bad.yaml", text))
        assert "tag" in message or "field name" in message
    assert not folder.exists()


def test_files_that_are_none(write: Write, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml does not exist: check the path"):
        read_space(tmp_path / "nowhere.yaml")
    assert "is a folder" in refusal(tmp_path)
    assert "must end in .yaml, .yml, .json, .py" in refusal(write("space.txt", GOOD))
    for name in ("bad.yaml", "bad.json"):
        assert "it is not UTF-8: save the file as UTF-8" in refusal(
            write(name, GOOD.encode("utf-16"))
        )


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_large_files_are_not_parsed(suffix: str, write: Write) -> None:
    """A file that was named by mistake is refused at once, whatever it holds."""
    text = json.dumps({"name": "x" * 2**18})
    assert "larger than 256 KiB" in refusal(write(f"bad{suffix}", text))
    good = GOOD + "#" * (2**18 - len(GOOD))
    assert read_space(write("good.yaml", good)) == SPACE
    assert "larger than 256 KiB" in refusal(write("good.yaml", f"{good}#"))


def test_a_billion_laughs_are_refused_at_the_first(write: Write) -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)]
    assert "line 2, column 10: YAML aliases such as *a0" in refusal(
        write("bad.yaml", "\n".join(lines))
    )


# --- Python --------------------------------------------------------------------------------------

MODULE = """\
from prenas import VitSpace
_base = VitSpace(name="base", embed_dim=8, depth=1, num_heads=1, mlp_ratio=2)
mine = _base.model_copy(update={"name": "mine"})
"""


def test_a_python_file_holds_one_space(write: Write) -> None:
    """Names that begin with an underscore are its own, and another name of the same no second."""
    path = write("own.py", MODULE)
    assert read_space(path).name == "mine"
    assert read_space(write("twice.py", f"{MODULE}again = mine\n")).name == "mine"
    assert read_space(f"{path}:mine") == read_space(path)
    assert read_space(f"{path}:_base").name == "base"
    assert "no SearchSpace named 'yours': it has _base, mine" in refusal(f"{path}:yours")
    assert "no SearchSpace named 'VitSpace'" in refusal(f"{path}:VitSpace")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["one SearchSpace at module level, but defines none: assign one"]),
        (f"{MODULE}other = _base\n", ["defines mine, other: choose one, e.g.", "own.py:mine"]),
        ("def f():\n    return 1 / 0\n\nf()", ["own.py, line 2: ZeroDivisionError: division by"]),
        ("x = (", ["own.py, line 1: SyntaxError: '(' was never closed"]),
        ("import sys\nsys.exit('enough')", ["own.py, line 2: SystemExit: enough"]),
        ("\nimport nowhere", ["own.py, line 2: ModuleNotFoundError: No module named 'nowhere'"]),
        (MODULE.replace("8", "(8, 4)"), ["own.py, line 2", "embed_dim: options [8, 4]", "[4, 8]"]),
        (
            "from prenas import SearchSpace\ns = SearchSpace(family='x', name='x', settings={})",
            ["SearchSpace does not belong to a registered family (vit"],
        ),
    ],
)
def test_a_mistake_in_a_python_file_is_named(text: str, words: list[str], write: Write) -> None:
    message = refusal(write("own.py", text))
    for word in words:
        assert word in message


# --- names or files ------------------------------------------------------------------------------


def test_a_space_is_found_by_name_or_file(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("good.yaml", GOOD)
    assert find_space("tiny") == get_space("tiny")
    assert find_space(str(path)) == SPACE
    monkeypatch.chdir(path.parent)
    write("tiny", GOOD)
    assert find_space("tiny") == get_space("tiny")
    with pytest.raises(ValueError, match="unknown space 'tinny': did you mean 'tiny'"):
        find_space("tinny")
    for text in (*(f"nowhere{suffix}" for suffix in SUFFIXES), "own.py:mine", "tiny"):
        assert names_a_space_file(text)
    assert not names_a_space_file("small")
    Path("folder.py").mkdir()
    assert not names_a_space_file("folder.py")


# --- recipes of an own space ---------------------------------------------------------------------


def test_a_recipe_that_only_searches() -> None:
    recipe = searching_recipe(SPACE, ["params=20k", "macs=1M"])
    assert (recipe.name, recipe.space) == ("good", SPACE)
    assert recipe.search == SearchRecipe(budgets=("params=20k", "macs=1M"))
    assert (recipe.data, recipe.training) == (None, None)
    assert searching_recipe(get_space("tiny"), ["params=5M:12M:1M"]) == get_recipe("tiny")
    with pytest.raises(ValueError, match=r"search\.budgets: .*no budget given"):
        searching_recipe(SPACE, [])


@pytest.mark.parametrize("num_channels", [1, 5])
def test_other_channels_take_the_average_of_imagenets(num_channels: int) -> None:
    recipe = searching_recipe(SPACE.with_settings(in_chans=num_channels), ["params=20k"])
    assert recipe.preprocessing.mean == (0.449,) * num_channels
    assert recipe.preprocessing.std == (0.226,) * num_channels
    assert recipe.data is not None
    assert recipe.data.name == "own"


def test_a_recipe_moves_to_another_space() -> None:
    digits = get_recipe("digits")
    space = SPACE.with_settings(in_chans=1, num_classes=10)
    moved = with_space(digits, space)
    assert moved == digits.model_copy(update={"space": space})
    assert with_space(moved, digits.space) == digits
    with pytest.raises(ValueError, match="images of 3 channels, but the recipe digits prepares 1"):
        with_space(digits, SPACE)


# --- the command line ----------------------------------------------------------------------------


def test_info_describes_a_space_file(prenas_command: Command, write: Write) -> None:
    path = write("good.yaml", f"{GOOD}supernet_embed_dim: 48\n")
    result = prenas_command("info", path)
    assert (result.status, result.err) == (0, "")
    space = read_space(path)
    assert "Space good (vit): 160 architectures in 50 isomer classes" in result.out
    for field in ("embed_dim", "depth"):
        assert re.search(rf"{field} .*\] +per network", result.out)
    for field in ("num_heads", "mlp_ratio"):
        assert re.search(rf"{field} .*\] +per layer", result.out)
    for field in ("settings.image_size +.32, 32.", "settings.head_dim +64", "supernet_em.* +48"):
        assert re.search(rf"{field} +fixed", result.out)
    for word, arch in (
        ("smallest", space.smallest),
        ("largest", space.largest),
        ("supernet for scoring", space.supernet),
    ):
        cost = count(arch, space.settings)
        (line,) = re.findall(rf"^ *{word} .*", result.out, re.MULTILINE)
        assert f" {cost['params']:,} " in line
        assert line.rstrip().endswith(arch.summary)


def test_the_budgets_that_info_names_hold_subnets(prenas_command: Command) -> None:
    """Rounded so that the smallest fits the lower one, and all the upper one."""
    for name, space in all_spaces().items():
        (line,) = re.findall(
            r"^Budgets can range .*", prenas_command("info", name).out, re.MULTILINE
        )
        amounts = re.findall(r"[\d.]+[kMG]?(?= to|,|\.$)", line)
        assert len(amounts) == 4
        low, high = (count(arch, space.settings) for arch in (space.smallest, space.largest))
        for text, exact in zip(
            amounts, (low["params"], high["params"], low["macs"], high["macs"]), strict=True
        ):
            assert exact <= AXES["params"].parse(text) <= 1.01 * exact


def test_info_of_numbers_beyond_floats(prenas_command: Command, write: Write) -> None:
    path = write("deep.yaml", GOOD.replace("[2, 3]", "600"))
    result = prenas_command("info", path)
    assert (result.status, result.err) == (0, "")
    assert "3.44 x 10³⁶¹ architectures in 722,402 isomer classes" in result.out


def test_info_of_a_wrong_file_is_one_message(prenas_command: Command, write: Write) -> None:
    refused(prenas_command("info", write("bad.yaml", "family: vitt")), "did you mean 'vit'?")
    refused(prenas_command("info", "nowhere.yaml"), "nowhere.yaml does not exist")
    refused(prenas_command("info", write("own.py", "1 / 0")), "own.py, line 1: ZeroDivisionError")
    refused(prenas_command("info", write("space.txt", GOOD)), "must end in .yaml")


def test_every_family_can_be_written() -> None:
    """Names of settings and of the space's own fields differ, or flat settings were ambiguous."""
    for family in FAMILIES.values():
        assert not family.settings_type.model_fields.keys() & family.space_type.model_fields.keys()
