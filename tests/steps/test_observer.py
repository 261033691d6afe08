"""What an observer of a run hears, and in which order."""

from pathlib import Path
from typing import Any

import pytest

from prenas import pipeline
from prenas.runs.run import Run
from prenas.sources.transfer import finetuning_recipe, read_source
from prenas.steps.observer import Observer, Step
from training.runs import StoppedError, mini_recipe, stop_at

pytest_plugins = "training.runs"

STEPS: list[Step] = ["read images", "search", "train", "evaluate", "hand over", "report"]


class Listener(Observer):
    """Writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Step]] = []
        self.resumed: tuple[int, int] | None = None
        self.num_steps, self.events, self.generations = 0, list[str](), list[int]()

    def began(self, step: Step, run: Run) -> None:
        self.heard.append(("began", step))

    def finished(self, step: Step, run: Run, seconds: float) -> None:
        assert seconds >= 0
        self.heard.append(("finished", step))

    def was_complete(self, step: Step, run: Run) -> None:
        self.heard.append(("was complete", step))

    def resumed_training(self, step: int, num_steps: int) -> None:
        assert self.num_steps == 0
        self.resumed = (step, num_steps)

    def trained_step(self, progress: Any) -> None:
        self.num_steps += 1

    def logged(self, record: Any) -> None:
        self.events.append(record["event"])

    def evolved_generation(self, generation: Any) -> None:
        self.generations.append(generation.number)


def pairs(steps: list[Step]) -> list[tuple[str, Step]]:
    return [(word, step) for step in steps for word in ("began", "finished")]


def test_a_whole_run_and_the_same_again(tmp_path: Path) -> None:
    first, again = Listener(), Listener()
    pipeline.run(mini_recipe(), tmp_path / "run", observer=first)
    assert first.heard == pairs(STEPS)
    assert (first.num_steps, first.events.count("epoch")) == (27, 3)
    pipeline.run(mini_recipe(), tmp_path / "run", observer=again)
    done: list[Step] = ["search", "train", "evaluate"]
    assert again.heard == [
        *pairs(["read images"]),
        *[("was complete", step) for step in done],
        *pairs(["hand over", "report"]),
    ]
    assert (again.num_steps, again.events) == (0, [])


def test_one_shot_nas_evolves_between(tmp_path: Path) -> None:
    evolution = {"population": 4, "generations": 2, "num_parents": 2, "num_mutations": 2}
    listener = Listener()
    recipe = mini_recipe(training={"epochs": 1}, evolution=evolution)
    pipeline.run(recipe, tmp_path / "run", observer=listener)
    assert listener.heard == pairs([*STEPS[:3], "evolve", *STEPS[3:]])
    assert listener.generations == [1, 2] * 3


def test_a_source_is_adapted_in_place_of_the_search(finished_run: Path, tmp_path: Path) -> None:
    source, listener = read_source(finished_run), Listener()
    recipe = finetuning_recipe(source, overrides=["training.epochs=1"])
    pipeline.run(recipe, tmp_path / "fine", source=source, observer=listener)
    assert listener.heard == pairs(["read images", "adapt", *STEPS[2:]])
    assert Run(tmp_path / "fine").preferred.adapted is not None


def test_a_step_that_fails_is_not_finished(searched: Path) -> None:
    class Breaking(Listener):
        def trained_step(self, progress: Any) -> None:
            raise StoppedError

    listener = Breaking()
    with pytest.raises(StoppedError):
        pipeline.train(searched, observer=listener)
    assert listener.heard == [("began", "train")]


def test_what_a_step_made_is_in_the_run(tmp_path: Path) -> None:
    class Reading(Observer):
        def finished(self, step: Step, run: Run, seconds: float) -> None:
            if step == "search":
                found.append(run.preferred)
            elif step == "evaluate":
                found.append(run.evaluations)

    found: list[Any] = []
    rows = pipeline.run(mini_recipe(training={"epochs": 1}), tmp_path / "run", observer=Reading())
    assert found == [pipeline.read_preferred(tmp_path / "run"), rows]


def test_a_training_that_continues_says_from_where(searched: Path) -> None:
    first, again = Listener(), Listener()
    with pytest.raises(StoppedError):
        pipeline.train(searched, observer=_Both(first, stop_at(14)))
    pipeline.train(searched, observer=again)
    assert first.resumed is None
    assert again.resumed == (9, 27)  # the last checkpoint is that of the first epoch
    assert again.num_steps == 18


class _Both(Observer):
    """Passes steps on to a listener and to a watcher."""

    def __init__(self, listener: Listener, watch: Any) -> None:
        self._listener, self._watch = listener, watch

    def trained_step(self, progress: Any) -> None:
        self._listener.trained_step(progress)
        self._watch(progress)
