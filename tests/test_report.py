"""Tables and pictures hold what the evaluation holds."""

import csv
from pathlib import Path

import pytest
from PIL import Image

from prenas import pipeline
from prenas.evaluation import Evaluation, Metrics
from prenas.families.vit.space import VitArch
from prenas.report import draw, flat_rows, write_csv

pytest_plugins = "training.runs"


def row(params: int, *splits: str, top5: float | None = None) -> Evaluation:
    arch = VitArch(embed_dim=params, num_heads=(1, 2), mlp_ratio=(1.5, 2.0))
    return Evaluation(
        arch=arch,
        params=params,
        macs=3 * params,
        splits={
            name: Metrics(top1=0.1 * number + params / 1000, top5=top5, loss=1.25, num_images=7)
            for number, name in enumerate(splits, start=1)
        },
    )


def test_the_table_holds_every_number(tmp_path: Path) -> None:
    rows = [row(100, "validation", "test"), row(200, "validation", "test", top5=0.75)]
    write_csv(rows, tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 2
    for number, (line, expected) in enumerate(zip(table, rows, strict=True)):
        assert line["subnet"] == str(number)
        assert int(line["params"]) == expected.params
        assert int(line["macs"]) == expected.macs
        for split, metrics in expected.splits.items():
            assert float(line[f"{split}_top1"]) == metrics.top1
            assert line[f"{split}_top5"] == ("" if metrics.top5 is None else "0.75")
            assert float(line[f"{split}_loss"]) == metrics.loss
            assert line[f"{split}_num_images"] == "7"
        assert line["embed_dim"] == str(expected.params)
        assert (line["num_heads"], line["mlp_ratio"]) == ("1 2", "1.5 2.0")


def test_a_finished_runs_table_is_its_evaluation(finished_run: Path) -> None:
    rows = flat_rows(pipeline.evaluate(finished_run))
    with (finished_run / "evaluation.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [line["params"] for line in table] == [str(row["params"]) for row in rows]
    for split in ("validation", "test"):
        found = [float(line[f"{split}_top1"]) for line in table]
        assert found == [row[f"{split}_top1"] for row in rows]


def test_a_finished_run_has_a_picture(finished_run: Path) -> None:
    with Image.open(finished_run / "accuracy.png") as picture:
        picture.verify()
        assert picture.format == "PNG"
        assert min(picture.size) > 300


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([row(100, "validation", "test")], id="one"),
        pytest.param([row(100, "validation"), row(90, "validation")], id="no-test"),
        pytest.param([row(100, "validation", "test"), row(100, "validation", "test")], id="equal"),
    ],
)
def test_any_evaluation_can_be_drawn(rows: list[Evaluation], tmp_path: Path) -> None:
    write_csv(rows, tmp_path / "table.csv")
    assert len((tmp_path / "table.csv").read_text().splitlines()) == len(rows) + 1
    draw(rows, tmp_path / "plot.png", title="a title")
    with Image.open(tmp_path / "plot.png") as picture:
        pixels = picture.convert("L")
        assert pixels.getextrema() == (pytest.approx(0, abs=40), 255)  # something is drawn


def test_more_points_draw_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every subnet's accuracy is a point of its split's line, against params and against MACs."""
    from matplotlib.axes import Axes

    lines: list[tuple[str, list[float], list[float]]] = []
    plot = Axes.plot

    def spy(self: Axes, xs: list[float], ys: list[float], **kwargs: str) -> object:
        lines.append((kwargs["label"], list(xs), list(ys)))
        return plot(self, xs, ys, **kwargs)

    monkeypatch.setattr(Axes, "plot", spy)
    rows = [row(300, "validation", "test"), row(100, "validation", "test")]
    draw(rows, tmp_path / "plot.png", title="two")
    assert len(lines) == 4
    for label, xs, ys in lines:
        scale = 3 if xs[0] == 300 else 1
        assert [x / scale for x in xs] == [100, 300]  # from cheap to dear
        base = {"validation": 10.0, "test": 20.0}[label]
        assert ys == pytest.approx([base + 10, base + 30])
