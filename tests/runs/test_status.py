"""How far a run is, at every stage, whatever else is in the folder."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from edits import write_edited
from families.test_vit_released import mini
from prenas import pipeline
from prenas.artifacts import write_json
from prenas.cli import app, main
from prenas.recipe.budgets import parse_budgets
from prenas.rivals.evolution import Generation
from prenas.runs.log import MetricsLog
from prenas.runs.status import Status, read_status
from prenas.training.stopping import Stopped
from training.runs import (
    StoppedError,
    contents,
    hearing,
    mini_recipe,
    stop_at,
)

pytest_plugins = "training.runs"

STEPS = 9
"""Of an epoch of the mini recipe."""


def stages(status: Status) -> list[str]:
    return [status.search, status.training, status.evaluation, status.hand_over]


def show(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What `prenas WORDS` prints; it must succeed."""
    monkeypatch.setattr(sys, "argv", ["prenas", *words])
    capsys.readouterr()
    with suppress(SystemExit):
        main()
    captured = capsys.readouterr()
    assert not captured.err
    return captured.out


# --- stages --------------------------------------------------------------------------------------


def test_a_model_is_told_from_a_run(finished: Path) -> None:
    model = finished / "subnets" / "00"
    (problem,) = read_status(model).problems
    assert f"{model} is a handed-over model, not a run" in problem
    assert f"`prenas evaluate {model} --data PICTURES`" in problem


def test_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()  # of a search that was refused
    status = read_status(tmp_path)
    assert stages(status) == ["missing"] * 4
    assert (status.recipe, status.progress, status.problems) == (None, None, ())
    assert status.next_command == f"prenas search RECIPE --out {tmp_path}"


def test_a_search_that_was_cut_off(
    searched: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (searched / "preferred.json").read_bytes()
    (searched / "preferred.json").unlink()
    status = read_status(searched)
    assert stages(status) == ["begun", "missing", "missing", "missing"]
    assert status.next_command == f"prenas search --out {searched}"
    show(monkeypatch, capsys, *status.next_command.split()[1:], "--device", "cpu")
    assert (searched / "preferred.json").read_bytes() == before


def test_after_the_search(searched: Path) -> None:
    status = read_status(searched)
    assert stages(status) == ["done", "missing", "missing", "missing"]
    assert (status.recipe, status.num_subnets, status.is_busy) == ("mini", 3, False)
    assert status.progress is not None
    assert status.progress.num_epochs == 3
    assert status.progress.num_steps is None  # nobody has read the images yet
    assert status.next_command == f"prenas train {searched}"


def test_while_training_and_after_an_interruption(searched: Path) -> None:
    seen: list[Status] = []

    def watch(progress: Any) -> None:
        seen.append(read_status(searched))
        stop_at(2 * STEPS + 3)(progress)

    with pytest.raises(StoppedError):
        pipeline.train(searched, observer=hearing(steps=watch))
    first, last = seen[0], seen[-1]
    assert stages(first) == ["done", "running", "missing", "missing"]
    assert first.is_busy
    assert first.next_command is None
    assert first.progress is not None
    assert (first.progress.epoch, first.progress.num_steps) == (None, 3 * STEPS)
    stopped = read_status(searched)
    assert stages(stopped) == ["done", "begun", "missing", "missing"]
    assert stopped.next_command == f"prenas train {searched}"
    assert not stopped.is_busy
    assert last.progress == stopped.progress
    progress = stopped.progress
    assert progress is not None
    assert (progress.step, progress.num_steps, progress.epoch) == (2 * STEPS, 3 * STEPS, 1)
    assert progress.checkpoint == f"checkpoints/step-{2 * STEPS:08d}"
    assert progress.images_per_second is not None
    assert progress.seconds_left == pytest.approx(1077 / progress.images_per_second)


def test_models_without_their_search_are_counted_alone(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (finished / "preferred.json").unlink()
    assert "3 subnets" in show(monkeypatch, capsys, "status", str(finished))


def test_after_everything(finished: Path) -> None:
    status = read_status(finished)
    assert stages(status) == ["done"] * 4
    assert status.num_models == status.num_subnets == 3
    assert status.next_command is None
    assert status.progress is not None
    assert status.progress.seconds_left is None
    (finished / "subnets/01/arch.json").unlink()
    status = read_status(finished)
    assert (status.hand_over, status.num_models) == ("begun", 2)
    assert status.next_command is None  # nobody has to take all of them home
    (finished / "subnets/02/model.safetensors").unlink()
    assert read_status(finished).num_models == 1  # without its weights it is no model


def test_a_budget_that_is_given_twice_is_searched_once(tmp_path: Path) -> None:
    evolution = {"population": 4, "generations": 1, "num_parents": 2, "num_mutations": 2}
    recipe = mini_recipe(training={"epochs": 1}, evolution=evolution)
    twice = (*recipe.search.budgets[:1], *recipe.search.budgets)
    search = recipe.search.model_copy(update={"budgets": twice})
    pipeline.search(recipe.model_copy(update={"search": search}), tmp_path)
    pipeline.train(tmp_path)
    pipeline.evolve(tmp_path)
    assert read_status(tmp_path).evolution == "done"


def test_one_shot_nas_evolves_between_training_and_evaluation(tmp_path: Path) -> None:
    evolution = {"population": 4, "generations": 2, "num_parents": 2, "num_mutations": 2}
    recipe = mini_recipe(training={"epochs": 1}, evolution=evolution)
    pipeline.search(recipe, tmp_path)
    pipeline.train(tmp_path)
    status = read_status(tmp_path)
    assert (status.evolution, status.evaluation) == ("missing", "missing")
    assert status.next_command == f"prenas evolve {tmp_path}"

    def stop_in_the_second_budget(generation: Generation) -> None:
        if generation.budget != parse_budgets(recipe.search.budgets, keep_partial=False).kept[0]:
            raise StoppedError

    with pytest.raises(StoppedError):
        pipeline.evolve(tmp_path, observer=hearing(generations=stop_in_the_second_budget))
    status = read_status(tmp_path)
    assert (status.evolution, status.next_command) == ("begun", f"prenas evolve {tmp_path}")
    found = pipeline.evolve(tmp_path)
    status = read_status(tmp_path)
    assert (status.evolution, status.next_command) == ("done", f"prenas evaluate {tmp_path}")
    assert status.num_subnets == len({each.arch for each in found})
    pipeline.evaluate(tmp_path)
    largest = max(each.costs["params"] for each in found)
    command = f"prenas specialize {tmp_path} --max-params {largest}"
    assert read_status(tmp_path).next_command == command


def test_a_recipe_that_only_searches(tmp_path: Path) -> None:
    pipeline.search(mini_recipe().model_copy(update={"training": None}), tmp_path)
    status = read_status(tmp_path)
    assert stages(status) == ["done", "none", "none", "none"]
    assert (status.progress, status.next_command) == (None, None)


def test_an_imported_run(tmp_path: Path) -> None:
    file, out = tmp_path / "released.pth", tmp_path / "run"
    torch.save({"model": mini()}, file)
    pipeline.import_released(file, out)
    status = read_status(out)
    assert stages(status) == ["imported", "done", "missing", "missing"]
    assert status.next_command == f"prenas evaluate {out} --data PATH"
    (out / "supernet.safetensors").unlink()
    assert read_status(out).next_command == f"prenas import FILE --out {out}"


def test_the_advice_leads_to_the_end(
    searched: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Doing what is next, until nothing is."""
    names = []
    while (command := read_status(searched).next_command) is not None:
        names.append(command.split()[1])
        assert len(names) < 5
        show(monkeypatch, capsys, *command.split()[1:])
    assert names == ["train", "evaluate", "specialize"]
    (model,) = (searched / "subnets").iterdir()
    assert read_status(searched).finish_command is None
    rows = pipeline.evaluate(searched)
    best = max(row.splits["validation"].top1 for row in rows)
    assert rows[int(model.name)].splits["validation"].top1 == best


def test_one_command_finishes_what_was_begun(
    searched: Path,
    finished_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It needs no recipe: the folder has it."""
    with pytest.raises(StoppedError):
        pipeline.run(mini_recipe(), searched, observer=hearing(steps=stop_at(14)))
    command = read_status(searched).finish_command
    assert command == f"prenas run --out {searched}"
    shown = show(monkeypatch, capsys, *command.split()[1:], "--device", "cpu")
    assert f"Training continues after step {STEPS} of {3 * STEPS}" in shown
    assert stages(read_status(searched)) == ["done"] * 4
    for name in ("recipe.json", "preferred.json", "supernet.safetensors", "evaluation.json"):
        assert (searched / name).read_bytes() == (finished_run / name).read_bytes()


# --- the log of a longer training ----------------------------------------------------------------


def log_of(folder: Path) -> MetricsLog:
    """A run on 1,000 images in batches of 128, so far without a record."""
    document = {"class_names": ["a"], "num_images": {"train": 1000}, "notes": []}
    write_json(folder / "data.json", {**document, "fingerprint": None})
    return MetricsLog(folder / "metrics.jsonl", step=0)


def test_in_the_middle_of_an_epoch(searched: Path) -> None:
    log = log_of(searched)
    for step, speed in ((2, 50.0), (4, 100.0), (6, 100.0)):
        log.append(
            "step",
            epoch=0,
            step=step,
            **{"loss": 2.0, "lr": 0.1, "grad_norm": 1.0, "images_per_second": speed},
        )
        log.append("skipped", epoch=0, step=step, loss=None, reason="the loss is nan", arch="a")
    for name in ("step-00000002", "step-00000004", "step-notes", "best.safetensors"):
        (searched / "checkpoints" / name).mkdir(parents=True)
    progress = read_status(searched).progress
    assert progress is not None
    assert (progress.step, progress.num_steps, progress.epoch) == (6, 24, 0)
    assert (progress.loss, progress.lr, progress.skipped) == (2.0, 0.1, 3)
    assert progress.seconds_left == pytest.approx((3 - 6 / 8) * 1000 / 100)
    assert progress.checkpoint == "checkpoints/step-00000004"
    assert progress.best == "checkpoints/best.safetensors"


def test_a_checkpoint_may_be_further_than_the_log(searched: Path) -> None:
    """Whoever asks a training to stop gets a checkpoint, but no record."""
    log = log_of(searched)
    (searched / "checkpoints" / "step-00000005").mkdir(parents=True)
    progress = read_status(searched).progress
    assert progress is not None
    assert (progress.step, progress.num_steps, progress.epoch) == (5, 24, 0)
    assert (progress.loss, progress.seconds_left) == (None, None)
    log.append(
        "step",
        epoch=1,
        step=12,
        **{"loss": 2.0, "lr": 0.1, "grad_norm": 1.0, "images_per_second": 100.0},
    )
    for step, epoch in ((16, 1), (17, 2)):
        (searched / "checkpoints" / f"step-{step:08d}").mkdir()
        progress = read_status(searched).progress
        assert progress is not None
        assert (progress.step, progress.epoch, progress.loss) == (step, epoch, 2.0)
        assert progress.seconds_left == pytest.approx((3 - step / 8) * 1000 / 100)


def test_after_a_request_to_stop_status_says_the_step_reached(
    searched: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The log of this run has a record every 50 steps."""

    def stop(progress: Any) -> None:
        if progress.step == 15:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        pipeline.train(searched, observer=hearing(steps=stop))
    progress = read_status(searched).progress
    assert progress is not None
    assert (progress.step, progress.epoch) == (16, 1)
    shown = show(monkeypatch, capsys, "status", str(searched))
    assert "step 16 of 27, epoch 2 of 3" in shown
    assert f"Or        prenas run --out {searched}, which does all the remaining steps" in shown
    told = show(monkeypatch, capsys, "train", str(searched), "--device", "cpu")
    assert "Training continues after step 16 of 27" in told


def test_skipped_steps_have_no_loss(searched: Path) -> None:
    log = log_of(searched)
    numbers = {"lr": 0.1, "grad_norm": 1.0, "images_per_second": 100.0}
    log.append("step", epoch=0, step=4, loss=2.0, **numbers)
    log.append("skipped", epoch=0, step=6, loss=None, reason="the loss is nan", archs=["a"])
    progress = read_status(searched).progress
    assert progress is not None
    assert (progress.step, progress.loss, progress.lr, progress.skipped) == (6, None, 0.1, 1)
    log.append("step", epoch=0, step=8, loss=1.5, **numbers)
    progress = read_status(searched).progress
    assert progress is not None
    assert (progress.step, progress.loss, progress.skipped) == (8, 1.5, 1)


def test_the_log_knows_the_epochs_length_best(searched: Path) -> None:
    """Loaders from Python batch as they like."""
    log_of(searched).append("epoch", epoch=0, step=20, loss=1.0, lr=0.1, images_per_second=10.0)
    progress = read_status(searched).progress
    assert progress is not None
    assert (progress.step, progress.num_steps) == (20, 60)


def test_a_log_of_the_older_form(searched: Path) -> None:
    log_of(searched)
    (searched / "metrics.jsonl").write_text('{"epoch": 1, "loss": 2.0, "lr": 0.1}\n')
    progress = read_status(searched).progress
    assert progress is not None
    assert (progress.step, progress.num_steps, progress.epoch) == (16, 24, 1)
    assert (progress.images_per_second, progress.seconds_left) == (None, None)


def test_only_the_last_validation_is_shown(
    searched: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = log_of(searched)
    for epoch in (0, 1):
        log.append("epoch", epoch=epoch, step=8 * epoch + 8, loss=1.0, lr=0.1)
        for subnet in (0, 2):
            for weights in ("trained", "ema")[: subnet + 1]:
                log.append(
                    "validation",
                    **{"epoch": epoch, "step": 8 * epoch + 8, "subnet": subnet},
                    **{
                        "costs": {"params": 1000 + subnet},
                        "weights": weights,
                        "top1": 0.5 + epoch / 4,
                    },
                    **{"top5": None, "loss": 1.0, "num_images": 9},
                )
    progress = read_status(searched).progress
    assert progress is not None
    assert {(v.epoch, v.subnet, v.weights, v.top1) for v in progress.validations} == {
        (1, 0, "trained", 0.75),
        (1, 2, "trained", 0.75),
        (1, 2, "ema", 0.75),
    }
    lines = [
        line.split() for line in show(monkeypatch, capsys, "status", str(searched)).split("\n")
    ]
    assert ["0", "1,000", "75.00", "-"] in lines
    assert ["2", "1,002", "75.00", "75.00"] in lines


# --- somebody else is there ----------------------------------------------------------------------


@pytest.fixture
def locked_by_another(searched: Path) -> Iterator[Path]:
    """A searched run whose lock another process holds."""
    script = (
        "import sys; from prenas.runs.run import Run\n"
        "with Run(sys.argv[1]).locked():\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(searched)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == "held\n"
        yield searched
        process.stdin.close()


def test_while_another_process_holds_the_lock(locked_by_another: Path) -> None:
    before = contents(locked_by_another)
    for _ in range(3):
        status = read_status(locked_by_another)
        assert status.is_busy
        assert stages(status) == ["done", "running", "missing", "missing"]
        assert status.next_command is None
    assert contents(locked_by_another) == before
    with pytest.raises(ValueError, match="another process"):  # the lock is still held
        pipeline.train(locked_by_another)


def test_asking_leaves_the_lock_free(finished: Path) -> None:
    assert not read_status(finished).is_busy
    (finished / "subnets/00/arch.json").unlink()
    pipeline.specialize(finished, 0)


# --- damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["recipe.json", "preferred.json", "data.json", "metrics.jsonl"])
@pytest.mark.parametrize(
    "content", [b"", b"{}", b"\xff\xfe", b"[1, 2]\n", b'{"schema_version": 1}']
)
def test_damaged_files_are_named(name: str, content: bytes, finished: Path) -> None:
    (finished / name).write_bytes(content)
    before = contents(finished)
    status = read_status(finished)
    is_only_cut_short = name == "metrics.jsonl" and not content.endswith(b"\n")
    assert [str(finished / name) in problem for problem in status.problems] == (
        [] if is_only_cut_short else [True]
    )
    assert stages(status)[1:3] == ["done", "done"]
    assert contents(finished) == before


@pytest.mark.parametrize(
    ("name", "entries"), [("preferred.json", "subnets"), ("evaluation.json", "subnets")]
)
@pytest.mark.parametrize(
    ("arch", "problem"), [({"wings": 2}, r"\.\w+: "), (0, r": must be a group of fields \(got 0\)")]
)
def test_the_part_of_a_file_that_is_wrong_is_named(
    name: str, entries: str, arch: object, problem: str, finished: Path
) -> None:
    document = json.loads((finished / name).read_text())
    document[entries][1]["arch"] = arch
    write_edited(finished / name, document)
    with pytest.raises(ValueError, match=rf"{name} is damaged .*: {entries}\.1\.arch{problem}"):
        pipeline.specialize(finished, 0)


@pytest.mark.parametrize("value", [2**63, "many", None, {"0": {}}])
def test_subnets_that_are_no_list_are_named(value: object, searched: Path) -> None:
    path = searched / "preferred.json"
    write_edited(path, {**json.loads(path.read_text()), "subnets": value})
    with pytest.raises(ValueError, match=r"preferred\.json is damaged .*: subnets: must be a list"):
        pipeline.train(searched)


def test_a_foreign_batch_size(searched: Path) -> None:
    path = searched / "recipe.json"
    document = json.loads(path.read_text())
    document["recipe"]["training"]["batch_size"] = 0
    write_edited(path, document)
    (problem,) = read_status(searched).problems
    assert (
        f"{path} is damaged or was not written by prenas: epochs, steps and batch_size must "
        "be positive" in problem
    )


def test_a_foreign_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "holiday.jpg").touch()
    status = read_status(tmp_path)
    assert "not a run folder of prenas" in status.problems[0]
    assert status.next_command is None
    out = show(monkeypatch, capsys, "status", str(tmp_path))
    assert out == f"Problem   {status.problems[0]}\n"


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist: give a run folder"):
        read_status(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        read_status(tmp_path / "file")


# --- the command ---------------------------------------------------------------------------------


def test_the_command(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = show(monkeypatch, capsys, "status", str(finished))
    for word in ("mini", "3 subnets", "step 27 of 27, epoch 3 of 3, loss ", "checkpoints/step-0"):
        assert word in out
    (finished / "evaluation.json").unlink()
    for path in finished.glob("subnets/*/arch.json"):
        path.unlink()
    out = show(monkeypatch, capsys, "status", str(finished))
    assert f"Next      prenas evaluate {finished}\n" in out
    document = json.loads(show(monkeypatch, capsys, "status", str(finished), "--json"))
    assert Status.model_validate(document) == read_status(finished)
    assert "status" in {command.name for command in app.registered_commands}


def test_it_is_light(finished: Path) -> None:
    script = (
        "import sys; from prenas.cli import main; sys.argv = ['prenas', 'status', sys.argv[1]]\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'numpy', 'matplotlib', 'safetensors'} & set(sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, finished], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "hand-over" in result.stdout
