"""`benchmarks.environments`, with this environment in place of fresh ones."""

import sys
from pathlib import Path

import pytest
from benchmarks import environments

from models.handed_over import model_of

pytest_plugins = "sources.cut_runs"


@pytest.mark.slow
def test_other_environments_classify_the_same(
    cut_run: Path, cut_pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(environments.PACKAGES, "openvino")  # goes the way of ONNX Runtime
    monkeypatch.setattr(environments, "fresh_python", lambda *given: Path(sys.executable))
    rows = environments.compare(cut_run / "subnets/00", cut_pictures)
    assert [row["environment"] for row in rows] == ["timm", "onnx"]
    num_pictures = len([path for path in cut_pictures.rglob("*") if path.is_file()])
    for row in rows:
        assert row["same_class"] == row["pictures"] == num_pictures
        assert row["largest_difference"] < 1e-5  # none at all, where both lay memory out alike
        assert row["has_prenas"]  # it would say so


def test_differences_are_found() -> None:
    expected = [
        {
            "picture": "a",
            "classes": [{"name": "x", "probability": 0.6}, {"name": "y", "probability": 0.4}],
        },
        {"picture": "b", "error": "no picture"},
    ]
    other = [
        {
            "picture": "a",
            "classes": [{"name": "y", "probability": 0.7}, {"name": "x", "probability": 0.3}],
        }
    ]
    found = environments.agreement(other, expected)
    assert (found["pictures"], found["same_class"]) == (1, 0)
    assert found["largest_difference"] == pytest.approx(0.3)


def test_models_that_timm_cannot_build_alone_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_of(tmp_path / "model")
    with pytest.raises(SystemExit):
        environments.main(["--model", str(model), "--pictures", str(tmp_path)])
    assert "is no convolutional cut" in capsys.readouterr().err
