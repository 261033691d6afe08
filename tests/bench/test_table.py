"""Tables in every form give the same architectures; what cannot be used is refused by its place."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.tables import SPACE, archs, rows, some_rows, written
from prenas.bench.table import read_accuracies
from prenas.cost import AXES, CostAxis, register
from prenas.families import all_spaces
from prenas.families.base import Arch


def as_csv(table: list[dict[str, Any]], cell: Any = json.dumps) -> str:
    file = io.StringIO()
    accuracies = table[0]["accuracy"]
    fields = [name for name in table[0] if name != "accuracy"]
    writer = csv.writer(file)
    writer.writerow([*fields, *(f"accuracy.{name}" for name in accuracies)])
    for row in table:
        writer.writerow([*(cell(row[name]) for name in fields), *row["accuracy"].values()])
    return file.getvalue()


def spaced(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def nested(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"arch": {n: v for n, v in row.items() if n != "accuracy"}, "accuracy": row["accuracy"]}
        for row in table
    ]


def test_all_forms_are_the_same_table(tmp_path: Path) -> None:
    table = some_rows()
    of_arch_json = [row | {"family": SPACE.family} for row in nested(table)]
    forms = {
        "list.json": table,
        "rows.json": {"source": "made up", "rows": table},
        "nested.json": nested(table),
        "family.json": of_arch_json,
        "json.csv": as_csv(table),
        "spaces.csv": "\ufeff" + as_csv(table, spaced),
        "nested.csv": as_csv(nested(table)),
    }
    expected = archs(12)
    for name, content in forms.items():
        found = read_accuracies(written(tmp_path / name, content), SPACE)
        assert list(found.archs) == expected, name
        assert list(found.accuracies) == ["first", "second"], name
        assert found.accuracies["first"].tolist() == list(range(50, 62)), name
        assert [SPACE.compose(choices) for choices in found.choices] == expected, name


def test_a_single_accuracy_needs_no_name(tmp_path: Path) -> None:
    chosen = archs(10)
    table = rows(chosen, lambda arch: 0.5 + chosen.index(arch) / 100)
    found = read_accuracies(written(tmp_path / "table.json", table), SPACE)
    assert list(found.accuracies) == ["accuracy"]
    lines = as_csv([row | {"accuracy": {"x": row["accuracy"]}} for row in table])
    alone = read_accuracies(
        written(tmp_path / "table.csv", lines.replace("accuracy.x", "accuracy")), SPACE
    )
    assert list(alone.accuracies) == ["accuracy"]
    assert alone.accuracies["accuracy"].tolist() == found.accuracies["accuracy"].tolist()


def test_a_depth_that_follows_from_lists_may_be_given_and_is_checked(tmp_path: Path) -> None:
    table = [
        row | {"depth": arch.num_layers} for row, arch in zip(some_rows(), archs(12), strict=True)
    ]
    found = read_accuracies(written(tmp_path / "table.json", table), SPACE)
    assert list(found.archs) == archs(12)
    table[4]["depth"] += 1
    with pytest.raises(ValueError, match=r"row 5: depth is \d, but follows as \d"):
        read_accuracies(written(tmp_path / "table.json", table), SPACE)


def test_the_file_may_name_its_space(tmp_path: Path) -> None:
    path = written(tmp_path / "table.json", {"space": "digits", "rows": some_rows()})
    assert read_accuracies(path).space == SPACE


def test_settings_beside_a_space_are_refused(tmp_path: Path) -> None:
    """Costs and scores would be those of other networks than the table states."""
    table = {"space": "digits", "settings": {"num_classes": 77}, "rows": some_rows()}
    path = written(tmp_path / "table.json", table)
    with pytest.raises(ValueError, match="space digits has its own: leave out the settings"):
        read_accuracies(path)


@pytest.mark.parametrize("name", ["digits", "mobilenet-micro"])
def test_a_family_is_enough_and_the_table_is_its_own_space(tmp_path: Path, name: str) -> None:
    space = all_spaces()[name]
    chosen = archs(15, space)
    document = {
        "family": space.family,
        "settings": space.settings.model_dump(mode="json"),
        "rows": rows(chosen, lambda arch: float(chosen.index(arch))),
    }
    found = read_accuracies(written(tmp_path / "table.json", document))
    assert list(found.archs) == chosen
    assert found.space.settings == space.settings
    assert [
        found.space.compose(choices, arch.resized_to)
        for choices, arch in zip(found.choices, chosen, strict=True)
    ] == chosen


def test_columns_are_chosen_by_name(tmp_path: Path) -> None:
    table = some_rows()
    del table[3]["accuracy"]["second"]
    path = written(tmp_path / "table.json", table)
    assert list(read_accuracies(path, SPACE, ["first"]).accuracies) == ["first"]
    with pytest.raises(ValueError, match=r"row 4 lacks the accuracy second.*--accuracy"):
        read_accuracies(path, SPACE)
    with pytest.raises(
        ValueError, match="unknown column of accuracies 'frist': did you mean 'first'"
    ):
        read_accuracies(path, SPACE, ["frist"])


def test_the_digest_follows_architectures_and_settings_but_not_accuracies(tmp_path: Path) -> None:
    table = some_rows()
    path = tmp_path / "table.json"
    first = read_accuracies(written(path, table), SPACE)
    table[0]["accuracy"]["first"] = 7.5
    assert read_accuracies(written(path, table), SPACE).digest == first.digest
    assert read_accuracies(path, SPACE.with_settings(num_classes=3)).digest != first.digest
    assert read_accuracies(written(path, table[1:]), SPACE).digest != first.digest


def test_costs_and_options_that_differ(tmp_path: Path) -> None:
    found = read_accuracies(written(tmp_path / "table.json", some_rows()), SPACE)
    assert list(found.costs) == ["params", "macs"]
    assert list(found.network_options) == ["embed_dim", "depth"]
    assert all(len(chosen) == 12 for chosen in found.network_options.values())


def without(name: str) -> Any:
    def change(table: list[dict[str, Any]]) -> None:
        del table[1][name]

    return change


def with_accuracy(value: object) -> Any:
    def change(table: list[dict[str, Any]]) -> None:
        table[1]["accuracy"]["first"] = value

    return change


def all_equal(table: list[dict[str, Any]]) -> None:
    for row in table:
        row["accuracy"]["first"] = 3


def with_field(**fields: object) -> Any:
    return lambda table: table[1].update(fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.__delitem__(slice(9, None)), "9 rows, but a comparison needs 10 to"),
        (without("accuracy"), "row 2 has no `accuracy`"),
        (without("embed_dim"), "row 2 lacks embed_dim"),
        (with_accuracy(float("nan")), "row 2: the accuracy first is nan, not a finite number"),
        (with_accuracy("high"), "row 2: the accuracy first is 'high', not a finite number"),
        (with_accuracy(True), "row 2: the accuracy first is True, not a finite number"),
        (with_accuracy(None), "row 2 lacks the accuracy first"),
        (all_equal, "the accuracy first is 3 in every row"),
        (
            with_field(embed_dim=56),
            "row 2: the width 56 of .* is not in stage 0 of the space digits",
        ),
        (with_field(embed_dim="wide"), "row 2: embed_dim: must be an integer"),
        (with_field(head=3), "row 2: unknown field 'head': did you mean"),
        (with_field(arch=[1]), r"row 2: arch must be an object, not \[1\]"),
        (with_field(family="mobilenet"), "the families vit and mobilenet do not belong"),
        (with_field(family="resnet"), "unknown family 'resnet': .*available: mobilenet, .*vit"),
        (lambda table: table.append(table[2] | {}), "rows 3 and 13 are the same architecture"),
        (lambda table: table.append(5), "row 13 is not an object"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    table = some_rows()
    change(table)
    with pytest.raises(ValueError, match=message) as caught:
        read_accuracies(written(tmp_path / "table.json", table), SPACE)
    assert str(caught.value).startswith(str(tmp_path / "table.json"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("table.json", "{", "not JSON .*: a CSV file needs a name in .csv"),
        ("table.json", '{"row": []}', "a table is a list of rows"),
        ("table.json", '{"rows": [], "spaces": 1}', "unknown field of the table 'spaces'"),
        ("table.json", '{"rows": []}', "there are 0 rows"),
        ("table.csv", "", "no column of accuracies among none"),
        ("table.csv", "a,b\n1,2\n", "no column of accuracies among a, b: name it `accuracy`"),
        ("table.csv", "a,accuracy,accuracy\n1,2,3\n", "the header has 'accuracy' twice"),
        ("table.csv", "a,accuracy\n1\n", "row 1 does not have the 2 cells of the header"),
        ("table.csv", f"a,accuracy\n{'1' * 200_000},2\n", r"table\.csv: field larger than"),
    ],
)
def test_a_file_that_is_no_table_is_refused(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read_accuracies(written(tmp_path / name, content), SPACE)


def test_without_a_space_or_family_the_choices_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--space NAME\|FILE.*available: mobilenet, .*timm, vit"):
        read_accuracies(written(tmp_path / "table.json", some_rows()))
    with pytest.raises(FileNotFoundError):
        read_accuracies(tmp_path / "missing.json", SPACE)


def test_architectures_of_other_kinds_do_not_form_a_space(tmp_path: Path) -> None:
    space = all_spaces()["mobilenet-micro"]
    chosen: list[Arch] = archs(12, space)
    table = rows(chosen, lambda arch: float(chosen.index(arch)))
    table[0]["stages"] = table[0]["stages"][:-1]
    document = {"family": space.family, "rows": table}
    with pytest.raises(ValueError, match="these architectures do not form one space"):
        read_accuracies(written(tmp_path / "table.json", document))


@pytest.mark.parametrize("name", all_spaces())
def test_the_choices_of_an_architecture_make_it_up(name: str) -> None:
    space, generator = all_spaces()[name], np.random.default_rng(0)
    for _ in range(20):
        choices, resolution = space.sample_choices(generator)
        arch = space.compose(choices, resolution)
        assert space.choices_of(arch) == choices


def test_counts_are_parameters_and_macs_whatever_else_costs(tmp_path: Path) -> None:
    """An axis of a user's own would change what scores are worth beyond counting."""
    table = read_accuracies(written(tmp_path / "t.json", some_rows()), SPACE)
    register(CostAxis(name="odd", of_part=lambda part: 1, label="odd", noun="odd units"))
    try:
        assert [*table.costs] == ["params", "macs", "odd"]
        assert [*table.counts] == ["params", "macs"]
    finally:
        del AXES["odd"]
