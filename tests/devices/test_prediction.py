"""Prediction: classes and probabilities of pictures, and what is said of those without."""

import csv
import io
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from edits import write_edited
from models.handed_over import NAMES, model_of
from prenas.cli import app, main, predicting
from prenas.cli.output import PlainConsole
from prenas.data.folders import list_pictures
from prenas.devices import prediction as module
from prenas.devices.exporting import export
from prenas.devices.prediction import Prediction, predict
from prenas.models.export import load, load_described, write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_of(tmp_path_factory.mktemp("model") / "00")


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Of several kinds and sizes."""
    paths = []
    for number, mode in enumerate(("RGB", "L", "RGBA", "P", "RGB")):
        pixels = np.random.default_rng(number).integers(0, 256, (9 + number, 12, 3), dtype=np.uint8)
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(pixels).convert(mode).save(paths[-1])
    return paths


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["predict", *map(str, arguments)])


# --- from Python ---------------------------------------------------------------------------------


def test_an_output_that_is_not_finite_is_refused(tmp_path: Path, pictures: list[Path]) -> None:
    """Weights may be finite, and what they compute not."""
    described = load_described(model_of(tmp_path / "sound"))
    network, description = described.model.network, described.description
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(3e38)
    folder = tmp_path / "damaged"
    write_model(
        folder,
        network,
        description.arch,
        description.settings,
        family="vit",
        class_names=description.class_names,
        preprocessing=description.preprocessing,
        provenance={},
    )
    with pytest.raises(ValueError, match=r"damaged for .*0\.png is not finite: its weights"):
        next(predict(folder, pictures))
    result = run(folder, pictures[0], "--json")
    assert (result.exit_code != 0, "NaN" in result.output) == (True, False)


def test_probabilities_are_the_softmax_of_the_models_logits(
    model: Path, pictures: list[Path]
) -> None:
    """Of each picture alone, in the order given; the likeliest class first."""
    network, transform = load(model)
    found = list(predict(model, pictures, top=4))
    assert [prediction.path for prediction in found] == pictures
    winners = set()
    for path, prediction in zip(pictures, found, strict=True):
        with Image.open(path) as image, torch.inference_mode():
            expected = network(transform(image)[None])[0].softmax(0)
        assert prediction.error is None
        probabilities = dict(prediction.classes)
        assert probabilities.keys() == set(NAMES)
        for name, value in zip(NAMES, expected.tolist(), strict=True):
            assert probabilities[name] == pytest.approx(value, rel=1e-5)
        values = [value for _, value in prediction.classes]
        assert values == sorted(values, reverse=True)
        assert sum(values) == pytest.approx(1, abs=1e-5)
        winners.add(prediction.classes[0][0])
    assert len(winners) > 1


@pytest.mark.parametrize(("top", "shown"), [(1, 1), (3, 3), (4, 4), (99, 4)])
def test_top_limits_the_classes(top: int, shown: int, model: Path, pictures: list[Path]) -> None:
    whole = next(predict(model, pictures[:1], top=4))
    (found,) = predict(model, pictures[:1], top=top)
    assert found.classes == whole.classes[:shown]


def test_names_belong_to_their_outputs(model: Path, pictures: list[Path], tmp_path: Path) -> None:
    renamed = model_of(tmp_path / "renamed", names=("a", "b", "c", "d"))
    ours, theirs = (next(predict(at, pictures[:1], top=4)) for at in (model, renamed))
    pairs = dict(zip(NAMES, "abcd", strict=True))
    assert [pairs[name] for name, _ in ours.classes] == [name for name, _ in theirs.classes]
    assert load_described(renamed).description.class_names == ("a", "b", "c", "d")


def test_spare_outputs_are_never_named(tmp_path: Path, pictures: list[Path]) -> None:
    """A head of more outputs than classes, such as that of a run on fewer classes."""
    spare = model_of(tmp_path / "spare", num_classes=9)
    for prediction in predict(spare, pictures, top=9):
        assert {name for name, _ in prediction.classes} == set(NAMES)
        assert sum(value for _, value in prediction.classes) <= 1 + 1e-6


def test_an_unreadable_picture_does_not_stop_the_others(
    model: Path, pictures: list[Path], tmp_path: Path
) -> None:
    text, deep, cut = tmp_path / "text.jpg", tmp_path / "deep.png", tmp_path / "cut.png"
    text.write_text("no picture")
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(deep)
    cut.write_bytes(pictures[0].read_bytes()[:200])
    paths = [pictures[0], text, deep, pictures[1], cut, pictures[2]]
    found = list(predict(model, paths))
    assert [prediction.path for prediction in found] == paths
    assert [prediction.error is None for prediction in found] == [
        True,
        False,
        False,
        True,
        False,
        True,
    ]
    assert "not a supported picture format" in str(found[1].error)
    assert "more than 8 bits" in str(found[2].error)
    assert all(found[n].classes == () for n in (1, 2, 4))
    assert found[3] == next(predict(model, [pictures[1]]))


def test_a_missing_picture_stops_before_anything(
    model: Path, pictures: list[Path], tmp_path: Path
) -> None:
    found = []
    missing = tmp_path / "no.png"
    with pytest.raises(FileNotFoundError, match="nothing was classified") as caught:
        found += list(predict(model, [pictures[0], missing]))
    assert str(missing) in str(caught.value)
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"no pictures found in .*none"):
        found += list(predict(model, [pictures[0], tmp_path / "none"]))
    assert found == []
    table = tmp_path / "new/x.csv"
    assert run(model, missing, "--format", "csv", "--out", table).exit_code != 0
    assert not table.parent.exists()
    assert run(model, pictures[0], "--format", "csv", "--out", table).exit_code == 0
    assert table.exists()


def test_a_folder_is_all_pictures_in_it_as_in_training(
    model: Path, pictures: list[Path], tmp_path: Path
) -> None:
    """At any depth, in the order of the names; other, hidden and system files are skipped."""
    deep = tmp_path / "more" / "deep"
    deep.mkdir(parents=True)
    for name in ("z.PNG", "notes.txt", ".hidden.png"):
        (deep / name).write_bytes(pictures[0].read_bytes())
    (deep / "@eaDir").mkdir()
    (deep / "@eaDir" / "small.png").write_bytes(pictures[0].read_bytes())
    expected = [*pictures, deep / "z.PNG"]
    assert [*list_pictures(tmp_path).sizes] == [
        path.relative_to(tmp_path).as_posix() for path in expected
    ]
    assert list(predict(model, [tmp_path])) == list(predict(model, expected))


def test_a_warning_names_its_picture(
    model: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9 * 12)  # as large as the smallest of them
    before = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        list(predict(model, pictures[:2]))
    assert warnings.showwarning is before
    (message,) = caplog.messages
    assert message.startswith(f"picture {pictures[1]}: Image size (120 pixels) exceeds limit")


def test_a_missing_or_damaged_model_is_said(
    model: Path, pictures: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match="prenas specialize"):
        next(predict(tmp_path / "no", pictures))
    with pytest.raises(ValueError, match="does not exist on this machine"):
        next(predict(model, pictures, device="cudda"))
    damaged = model_of(tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"12345678")
    with pytest.raises(ValueError, match="not a readable safetensors"):
        next(predict(damaged, pictures))
    described = json.loads((model / "arch.json").read_text())
    del described["class_names"]
    write_edited(damaged / "arch.json", described)
    with pytest.raises(ValueError, match="'class_names' is missing"):
        next(predict(damaged, pictures))


def test_a_prediction_is_plain_values() -> None:
    good = Prediction(Path("a.png"), (("cat", 0.75), ("dog", 0.25)))
    classes = [{"name": "cat", "probability": 0.75}, {"name": "dog", "probability": 0.25}]
    assert good.as_dict() == {"picture": "a.png", "classes": classes}
    bad = Prediction(Path("a.png"), (), "broken")
    assert bad.as_dict() == {"picture": "a.png", "error": "broken"}


# --- in batches ----------------------------------------------------------------------------------


def assert_alike(found: list[Prediction], expected: list[Prediction]) -> None:
    """The same classes, with probabilities that differ by rounding."""
    assert [(one.path, one.error) for one in found] == [(one.path, one.error) for one in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert [name for name, _ in ours.classes] == [name for name, _ in theirs.classes]
        assert [share for _, share in ours.classes] == pytest.approx(
            [share for _, share in theirs.classes], rel=1e-4
        )


@pytest.fixture
def mixed(pictures: list[Path], tmp_path: Path) -> list[Path]:
    """Pictures, of which the second and the last cannot be read."""
    broken = [tmp_path / "broken.jpg", tmp_path / "last.jpg"]
    for path in broken:
        path.touch()
    return [pictures[0], broken[0], *pictures[1:], broken[1]]


@pytest.mark.parametrize("batch_size", [2, 3, 7, 64])
def test_a_batch_size_changes_nothing_but_rounding(
    batch_size: int, model: Path, mixed: list[Path]
) -> None:
    """Wherever the unreadable pictures are: alone in a batch, too."""
    one_by_one = list(predict(model, mixed, top=4))
    assert sum(one.error is None for one in one_by_one) == 5
    assert_alike(list(predict(model, mixed, top=4, batch_size=batch_size)), one_by_one)


def test_only_one_batch_of_pictures_is_read_at_a_time(
    model: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    read = module.read_file
    monkeypatch.setattr(module, "read_file", lambda path: (opened.append(path), read(path))[1])
    found = predict(model, pictures, batch_size=2)
    assert opened == []
    for number in range(len(pictures)):
        next(found)
        assert sorted(opened) == pictures[: 2 * (number // 2 + 1)]


def test_a_batch_size_below_one_is_refused(model: Path, pictures: list[Path]) -> None:
    with pytest.raises(ValueError, match="batch_size is 0: give at least 1"):
        predict(model, pictures, batch_size=0)


@pytest.mark.parametrize(("form", "batch"), [("onnx", 3), ("torch", None)])
def test_exported_files_take_any_batch_size(
    form: str, batch: int | None, model: Path, mixed: list[Path], tmp_path: Path
) -> None:
    """A file for three images per call gets five in two calls, the second filled up."""
    pytest.importorskip(form, reason=f"{form} is not installed")
    folder, _ = export(model, form, batch=batch, out=tmp_path / "file")
    expected = list(predict(model, mixed, top=4))
    for batch_size in (None, 1, 2, 4, 64):
        assert_alike(list(predict(folder, mixed, top=4, batch_size=batch_size)), expected)


# --- from the command line -----------------------------------------------------------------------


def test_the_table_shows_every_picture(model: Path, pictures: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.touch()
    assert run(model, *pictures).exit_code == 0
    result = run(model, *pictures, broken, "--top", 2)
    assert result.exit_code == 1
    for path in pictures:
        assert str(path) in result.output
    assert result.output.count("%") == 2 * len(pictures)
    (line,) = [line for line in result.output.splitlines() if "cannot be read" in line]
    assert line == f"{broken} cannot be read: not a supported picture format"  # not in the table
    assert result.output.splitlines()[-1].startswith("Formats that can be read: JPEG, PNG, ")
    cut_short = tmp_path / "short.png"
    content = pictures[0].read_bytes()
    cut_short.write_bytes(content[: len(content) // 2])
    output = run(model, cut_short).output
    assert "cannot be read" in output
    assert "Formats that can be read" not in output  # its format is none of the others
    best = next(predict(model, pictures[:1])).classes[0]
    assert f"{100 * best[1]:.2f} %" in result.output


def test_json_is_one_object_per_line(model: Path, pictures: list[Path], tmp_path: Path) -> None:
    """Whatever is in a name, and however long it is."""
    odd = tmp_path / ('[bold]:cat: \u00e9 "quoted" ' + "long " * 30 + ".png")
    odd.write_bytes(pictures[0].read_bytes())
    broken = tmp_path / "broken.png"
    broken.touch()
    result = run(model, *pictures, odd, broken, "--json", "--top", 9)
    assert result.exit_code == 1
    lines = [json.loads(line) for line in result.output.splitlines()]
    assert [line["picture"] for line in lines] == [str(p) for p in (*pictures, odd, broken)]
    expected = [prediction.as_dict() for prediction in predict(model, [*pictures, odd], top=9)]
    assert lines[:-1] == expected
    assert "not a supported picture format" in lines[-1]["error"]


@pytest.mark.parametrize("arguments", [[], ["no model"], ["no model", "no.png", "--top", "0"]])
def test_the_command_line_refuses_what_is_missing(arguments: list[str]) -> None:
    assert run(*arguments).exit_code != 0


def test_mistakes_end_in_one_line(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for arguments, words in (
        ([str(tmp_path / "no"), "x.png"], "prenas specialize"),
        ([str(model), str(tmp_path / "x.png")], "x.png does not exist"),
    ):
        monkeypatch.setattr(sys, "argv", ["prenas", "predict", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ")
        assert words in message
        assert message.count("\n") == 1


# --- CSV, JSON lines and files -------------------------------------------------------------------


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_csv_has_the_same_columns_whatever_was_read(model: Path, mixed: list[Path]) -> None:
    header = "path,class,probability,class_2,probability_2,error"
    for paths in (mixed, mixed[1:2]):
        result = run(model, *paths, "--format", "csv", "--top", 2, "--batch-size", 4)
        assert result.exit_code == 1
        assert result.stdout.splitlines()[0] == header
        found, expected = rows_of(result.stdout), predict(model, paths, top=2, batch_size=4)
        for row, one in zip(found, expected, strict=True):
            assert (row["path"], row["error"]) == (str(one.path), one.error or "")
            pairs = [(row["class"], row["probability"]), (row["class_2"], row["probability_2"])]
            filled = [(name, float(share)) for name, share in pairs if name]
            assert filled == list(one.classes)
    assert "class_5" not in run(model, mixed[0], "--format", "csv", "--top", 9).stdout


def test_names_with_anything_in_them_survive_csv(pictures: list[Path], tmp_path: Path) -> None:
    names = ('a,"b"', "two\nlines", "\rback", "\t\u00e9")
    odd = model_of(tmp_path / "odd", names=names)
    path = tmp_path / 'x,\r\n"y"\r.png'
    path.write_bytes(pictures[0].read_bytes())
    target = tmp_path / "out.csv"
    printed = run(odd, path, "--format", "csv", "--top", 4).stdout_bytes
    assert run(odd, path, "--format", "csv", "--top", 4, "--out", target).exit_code == 0
    for content in (printed, target.read_bytes()):
        (row,) = rows_of(content.decode())
        assert row["path"] == str(path)
        found = {row[f"class{number}"] for number in ("", "_2", "_3", "_4")}
        assert found == set(names)


def test_a_terminal_is_not_steered_by_csv(
    model: Path, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "\x1b[31mred.png"
    path.write_bytes(pictures[0].read_bytes())
    shown = io.StringIO()
    terminal = PlainConsole(file=shown, force_terminal=True)
    monkeypatch.setattr(predicting, "console", terminal)
    run(model, path, "--format", "csv")
    assert "\\x1b[31mred.png" in shown.getvalue()
    assert "\x1b" not in shown.getvalue()


@pytest.mark.parametrize("form", ["csv", "json"])
def test_a_file_has_what_would_be_printed(
    form: str, model: Path, mixed: list[Path], tmp_path: Path
) -> None:
    target = tmp_path / "new" / "out"
    printed = run(model, *mixed, "--format", form)
    told = run(model, *mixed, "--format", form, "--out", target)
    assert told.exit_code == printed.exit_code == 1
    assert target.read_text(encoding="utf-8") == printed.stdout
    assert f"{target}: 7 pictures, of which 2 cannot be read" in told.stdout


def test_a_file_is_written_whole_or_not_at_all(
    model: Path, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out.csv"
    target.write_text("earlier")

    def failing(*_: Any, **__: Any) -> Any:
        yield Prediction(pictures[0], (("cat", 1.0),))
        raise ValueError("its weights are damaged")

    monkeypatch.setattr(module, "classify", failing)
    result = run(model, *pictures, "--format", "csv", "--out", target)
    assert "damaged" in str(result.exception)
    assert target.read_text() == "earlier"
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_what_is_read_is_not_replaced(model: Path, pictures: list[Path], tmp_path: Path) -> None:
    """Neither a picture nor a file of the model, also by another name."""
    (tmp_path / "link.csv").hardlink_to(pictures[0])
    for out in (pictures[-1], tmp_path / "link.csv", model / "arch.json"):
        before = out.read_bytes()
        said = str(run(model, *pictures, "--format", "csv", "--out", out).exception)
        assert f"--out {out} is what is read: name another file" in said
        assert out.read_bytes() == before


def test_files_of_a_run_are_not_replaced(model: Path, pictures: list[Path], tmp_path: Path) -> None:
    """Its own earlier predictions are, as everywhere."""
    for name in ("recipe.json", "preferred.json", "evaluation.csv", "mine.csv"):
        (tmp_path / name).write_text("earlier")
    for name in ("recipe.json", "preferred.json", "evaluation.csv"):
        out = tmp_path / name
        said = str(run(model, *pictures, "--format", "json", "--out", out).exception)
        assert f"--out {out} is a file of a run or model: name another file" in said
        assert out.read_text() == "earlier"
    out = tmp_path / "mine.csv"
    assert run(model, *pictures, "--format", "csv", "--out", out).exit_code == 0
    assert out.read_text() != "earlier"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--out", "out.csv"], "--out out.csv needs a format: add --format csv or json"),
        (["--format", "cvs"], "unknown format 'cvs': did you mean 'csv'?"),
        (["--format", "csv", "--json"], "--json and --format csv both give a format"),
        (["--format", "csv", "--out", "."], "--out . is not a regular file"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    options: list[str],
    words: str,
    model: Path,
    pictures: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in str(run(model, *pictures, *options).exception)
    assert not Path("out.csv").exists()


def test_a_bar_is_shown_on_a_terminal_and_nowhere_else(
    model: Path, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out.csv"
    for is_terminal in (False, True):
        shown = io.StringIO()
        monkeypatch.setattr(
            predicting, "errors", PlainConsole(file=shown, force_terminal=is_terminal)
        )
        run(model, *pictures, "--format", "csv", "--out", target)
        assert ("5/5" in shown.getvalue()) == is_terminal


def test_a_single_picture_needs_no_list(model: Path, pictures: list[Path]) -> None:
    (expected,) = predict(model, [pictures[0]])
    for one in (pictures[0], str(pictures[0])):
        (found,) = predict(model, one)
        assert found == expected
