"""How families get into the table: by registration, or as declared by an installed package."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import residual_mlp
from prenas.families import (
    FAMILIES,
    all_families,
    all_spaces,
    family_names,
    family_of,
    get_family,
    get_space,
    register,
)
from prenas.families.base import Family, SearchSpace
from prenas.recipe.space_file import find_space

FAMILY, SPACE = residual_mlp.FAMILY, residual_mlp.DIGITS
ROOT = Path(__file__).resolve().parents[2]


class OtherArch(residual_mlp.MlpArch):
    """Belongs to another family."""


class OtherSpace(SearchSpace[OtherArch, residual_mlp.MlpSettings]):
    """Belongs to another family."""


class SpaceOfTheSameArchs(SearchSpace[residual_mlp.MlpArch, residual_mlp.MlpSettings]):
    """A space of another family that claims the architectures of the first."""


OTHER = replace(FAMILY, name="other", space_type=OtherSpace, spaces={})

Declare = Callable[..., None]


@pytest.fixture(autouse=True)
def _table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the package's own families; whatever a test adds is removed afterwards."""
    before = {name: family for name, family in FAMILIES.items() if family is not FAMILY}
    monkeypatch.setattr("prenas.families.registry.FAMILIES", before)


@pytest.fixture
def declare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Declare:
    """Simulates an installed package that declares families: name=value."""

    def install(package: str = "toy", **entries: str) -> None:
        folder = tmp_path / f"{package}-1.2.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
        lines = [f"{name.replace('_', '-')} = {value}" for name, value in entries.items()]
        (folder / "entry_points.txt").write_text("\n".join(["[prenas.families]", *lines, ""]))

    monkeypatch.syspath_prepend(tmp_path)
    return install


# --- registered ----------------------------------------------------------------------------------


def test_a_registered_family_is_found_by_everything() -> None:
    with pytest.raises(ValueError, match="unknown family 'residual-mlp'"):
        get_family("residual-mlp")
    with pytest.raises(
        TypeError, match=r"MlpSpace does not belong to a registered family .*register"
    ):
        family_of(SPACE)
    register(FAMILY)
    register(FAMILY)
    assert get_family("residual-mlp") is family_of(SPACE) is family_of(SPACE.smallest) is FAMILY
    assert get_space("mlp-digits") is all_spaces()["mlp-digits"] is find_space("mlp-digits")
    assert all_families().count(FAMILY) == family_names().count("residual-mlp") == 1


def test_architectures_of_a_family_by_others_are_taken_apart() -> None:
    """Whatever width the space gives to a stage in which nothing is chosen."""
    generator = np.random.default_rng(0)
    for _ in range(20):
        choices, resolution = SPACE.sample_choices(generator)
        assert SPACE.choices_of(SPACE.compose(choices, resolution)) == choices


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            replace(OTHER, name="residual-mlp"),
            "the family name 'residual-mlp' is already registered",
        ),
        (
            replace(OTHER, spaces=FAMILY.spaces),
            "space name 'mlp-digits' of family 'other' already belongs",
        ),
        (
            replace(OTHER, space_type=SpaceOfTheSameArchs),
            "architecture or space types of family 'residual",
        ),
        (replace(OTHER, space_type=FAMILY.space_type), "architecture or space types of family"),
    ],
    ids=["name", "space", "arch-type", "space-type"],
)
def test_what_is_taken_is_refused(other: Family, words: str) -> None:
    register(FAMILY)
    with pytest.raises(ValueError, match=words):
        register(other)
    assert "other" not in family_names()
    assert get_family("residual-mlp") is FAMILY


def test_a_space_file_may_register_its_family(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    head = "import residual_mlp\n\nspace = residual_mlp.DIGITS.with_settings(num_classes=3)\n"
    file.write_text(head)
    with pytest.raises(
        ValueError, match=r"own\.py: MlpSpace does not belong to a registered family"
    ):
        find_space(str(file))
    file.write_text(
        head + "import prenas.families\n\nprenas.families.register(residual_mlp.FAMILY)\n"
    )
    assert find_space(str(file)) == SPACE.with_settings(num_classes=3)


# --- declared by a package -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "look",
    [
        lambda: get_family("residual-mlp"),
        lambda: family_of(get_space("mlp-digits")),
        lambda: family_of(SPACE.smallest),
        lambda: family_of(all_spaces()["mlp-digits"]),
        lambda: all_families()[-1],
    ],
    ids=["family", "space", "value", "spaces", "families"],
)
def test_a_declared_family_is_found(look: Callable[[], Family], declare: Declare) -> None:
    declare(residual_mlp="residual_mlp:FAMILY")
    assert "residual-mlp" in family_names()
    assert look() is FAMILY


def test_nothing_is_loaded_before_it_is_needed(declare: Declare) -> None:
    declare(broken="no_such_module:FAMILY")
    assert "broken" in family_names()
    assert get_family("vit").name == family_of(get_space("digits")).name == "vit"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("no_such_module:FAMILY", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("residual_mlp:NOTHING", "AttributeError"),
        ("residual_mlp:DIGITS", "it is of type MlpSpace, not Family"),
        ("residual_mlp:FAMILY", "the family's own name is 'residual-mlp'"),
    ],
)
def test_a_broken_package_is_named(
    value: str, words: str, declare: Declare, caplog: pytest.LogCaptureFixture
) -> None:
    """An error if the family is asked for by name, a warning if families are only listed."""
    declare(broken=value)
    says = rf"family 'broken' of toy 1\.2 \({value}\) cannot be used: .*{words}.*uninstall"
    with pytest.raises(ValueError, match=says):
        get_family("broken")
    with pytest.raises(ValueError, match=says):
        get_space("mlp-digits")
    with caplog.at_level(logging.WARNING):
        assert "digits" in all_spaces()
        all_spaces()
    assert caplog.text.count(f"({value}) cannot be used") == 1


def test_two_packages_with_one_name(declare: Declare) -> None:
    """Neither is loaded, in any order and at any number of calls."""
    declare("toy", residual_mlp="residual_mlp:FAMILY")
    declare("zoo", residual_mlp="residual_zoo:FAMILY")
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"toy 1\.2 .*zoo 1\.2 also provides a family of that name"
        ):
            get_family("residual-mlp")
        assert "mlp-digits" not in all_spaces()


def test_a_package_cannot_replace_a_family(declare: Declare) -> None:
    declare(vit="residual_mlp:FAMILY")
    assert get_family("vit") is not FAMILY
    assert FAMILY not in all_families()


def test_commands_know_a_declared_family(declare: Declare, tmp_path: Path) -> None:
    """In a fresh process, as after `pip install examples/residual_mlp`."""
    declare(residual_mlp="residual_mlp:FAMILY")
    paths = [str(tmp_path), str(ROOT / "examples/residual_mlp"), str(ROOT / "src")]
    result = subprocess.run(
        [sys.executable, "-m", "prenas", "info", "mlp-digits"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "residual-mlp" in result.stdout


def test_the_example_declares_its_family() -> None:
    said = tomllib.loads((ROOT / "examples/residual_mlp/pyproject.toml").read_text())
    assert said["project"]["entry-points"]["prenas.families"] == {
        FAMILY.name: "residual_mlp:FAMILY"
    }
