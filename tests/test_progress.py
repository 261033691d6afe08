"""What people see of a training while it runs."""

import io
import math
import re
from typing import Any

import pytest
from rich.console import Console

from prenas.cli import progress as module
from prenas.cli import terminal
from prenas.cli.progress import training_progress, validation_line
from prenas.recipe.catalogue import get_recipe
from prenas.selection.search import zero_cost_search
from prenas.training.loop import Progress


def validation(
    subnet: int, top1: float, epoch: int = 9, weights: str = "trained"
) -> dict[str, Any]:
    return {
        **{"event": "validation", "epoch": epoch, "step": 3 * epoch + 3, "subnet": subnet},
        **{
            "costs": {"params": 1000 + subnet},
            "weights": weights,
            "top1": top1,
            "top5": None,
            "loss": 1.0,
        },
        "num_images": 10,
    }


@pytest.mark.parametrize(
    ("records", "line"),
    [
        ([validation(4, 0.5)], "subnet 4 50.0"),
        ([validation(5, 0.75), validation(0, 0.5)], "smallest 50.0, largest 75.0"),
        (
            [validation(n, 0.91 + n / 100) for n in (4, 0, 2, 1, 3)],
            "smallest 91.0, middle 93.0, largest 95.0",
        ),
        (
            [validation(0, 0.5), validation(0, 0.625, weights="ema")],
            "subnet 0 50.0; ema: subnet 0 62.5",
        ),
    ],
)
def test_the_line_of_a_validation(records: list[dict[str, Any]], line: str) -> None:
    assert validation_line(records) == f"epoch 10: validation top-1: {line}"


def follow() -> None:
    """Two epochs of three steps with a validation of two subnets after each."""
    with training_progress() as progress:
        for step in range(6):
            progress.watch(Progress(step + 1, 6, step // 3, 2.0, 0.1, 10))
            progress.sink({"event": "step", "epoch": step // 3, "step": step + 1, "loss": 2.0})
            if step % 3 == 2:
                for subnet in (0, 1):
                    progress.sink(validation(subnet, 0.5 + subnet / 4, epoch=step // 3))


def test_after_a_skipped_step_no_old_loss_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with training_progress() as progress:
        for step, loss in enumerate([math.nan, 2.0, math.inf, 3.0]):
            progress.watch(Progress(step + 1, 4, 0, loss, 0.1, 10))
    lines = capsys.readouterr().out.splitlines()
    shown = [re.search("loss (.*), lr", line)[1] for line in lines]  # type: ignore[index]
    assert shown == ["not finite", "2.000", "not finite", "3.000"]


def test_elsewhere_than_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """One line per validation, the last one too, between those of the training."""
    follow()
    lines = capsys.readouterr().out.splitlines()
    texts = [f"epoch {epoch}: validation top-1: smallest 50.0, largest 75.0" for epoch in (1, 2)]
    assert [line for line in lines if "validation" in line] == texts
    assert [line.split(":")[0] for line in lines if "validation" not in line] == [
        f"Training {10 * (10 * step // 6)} %" for step in range(1, 7)
    ]
    assert lines.index(texts[0]) == 3
    assert lines[-1] == texts[1]


def test_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the bar, in full."""
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=100, highlight=False)
    monkeypatch.setattr(module, "console", terminal)
    follow()
    for epoch in (1, 2):
        text = f"epoch {epoch}: validation top-1: smallest 50.0, largest 75.0"
        assert screen.getvalue().count(text) == 1
    assert "Training" in screen.getvalue()


@pytest.mark.parametrize("width", [80, 100, 200])
def test_the_bar_fits_and_invents_no_numbers(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=width, color_system=None)
    monkeypatch.setattr(module, "console", terminal)
    with training_progress():
        pass
    assert "loss" not in screen.getvalue()
    assert "images/s" not in screen.getvalue()
    with training_progress() as progress:
        progress.watch(Progress(7, 9, 299, 2.25, 1.5e-3, 10))
    (numbers,) = set(
        re.findall(r"epoch 300, loss 2.250, lr 1.50e-03, \d+ images/s", screen.getvalue())
    )
    assert numbers
    lines = re.split("[\\n\\r]", re.sub(r"\x1b\[[0-9?]*[A-Za-z]", "", screen.getvalue()))
    assert max(map(len, lines)) <= width
    assert "…" not in screen.getvalue()


def test_a_validation_is_shown_though_the_training_stops(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop() -> None:
        with training_progress() as progress:
            progress.sink(validation(0, 0.5))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert "epoch 10: validation top-1: subnet 0 50.0" in capsys.readouterr().out


def test_validations_that_follow_each_other_are_two_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with training_progress() as progress:
        progress.sink(validation(0, 0.5, epoch=0))
        progress.sink(validation(0, 0.75, epoch=1))
    assert capsys.readouterr().out.splitlines() == [
        "epoch 1: validation top-1: subnet 0 50.0",
        "epoch 2: validation top-1: subnet 0 75.0",
    ]


# --- choosing ------------------------------------------------------------------------------------


def test_choosing_is_shown_only_if_it_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line for every tenth that ends later than two seconds after the first budget."""
    written, now = io.StringIO(), 0.0
    monkeypatch.setattr(terminal, "console", Console(file=written, width=200))
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now)
    shown = terminal.Terminal()
    for number in range(1, 1001):
        now = 0.001 * number
        shown.chose_for_budgets(number, 1000)
    assert written.getvalue() == ""
    for number in range(1, 1001):
        now = 50 + 0.004 * number
        shown.chose_for_budgets(number, 1000)
    lines = written.getvalue().splitlines()
    assert lines[0] == "Choosing 50 %: 502 of 1,000 budgets"
    assert lines[-1] == "Choosing 100 %: 1,000 of 1,000 budgets"
    assert len(lines) == 6


@pytest.mark.parametrize("strategy", ["best", "skeletons", "random"])
def test_a_search_tells_of_every_budget(strategy: str) -> None:
    """Where subnets are not listed; the choice is the same."""
    recipe = get_recipe("mobilenet-micro")
    fields = {"strategy": strategy, "k": 1 + (strategy != "best")}
    search = recipe.search.model_copy(update=fields)
    recipe = recipe.model_copy(update={"search": search})
    told = list[tuple[int, int]]()
    watched = zero_cost_search(recipe, watch=lambda *numbers: told.append(numbers))
    budgets = len(watched.preferred.budgets)
    assert budgets > 1
    assert told == [(number, budgets) for number in range(1, budgets + 1)]
    assert watched.preferred.choices == zero_cost_search(recipe).preferred.choices
