"""A tiny space and recipe, runs of it that several test files share, and comparisons of runs.

A test file that wants the fixtures says `pytest_plugins = "training.runs"`.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from prenas import pipeline
from prenas.data import ImageData
from prenas.evaluation.accuracy import Evaluation
from prenas.families.vit.space import VitArch, VitSettings, VitSpace
from prenas.recipe import Recipe, SearchRecipe, TrainingRecipe
from prenas.recipe.catalogue import get_recipe
from prenas.recipe.data import DataRecipe, Preprocessing
from prenas.rivals.evolution import Generation
from prenas.runs.run import Run
from prenas.steps.observer import Observer
from prenas.training.loop import Progress

MINI = VitSpace(
    name="mini",
    embed_dim=(8, 16),
    depth=(1, 2),
    num_heads=(1, 2),
    mlp_ratio=(1.0, 2.0),
    supernet_embed_dim=20,
    settings=VitSettings(
        image_size=(8, 8), in_chans=1, num_classes=10, patch_size=4, head_dim=4, max_distance=2
    ),
)
"""40 architectures of 710 to 4,138 parameters, for 8 x 8 digits; its supernet is wider yet."""

WHOLE = VitArch(embed_dim=16, num_heads=(2, 2), mlp_ratio=(2.0, 2.0))
SMALLEST = VitArch(embed_dim=8, num_heads=(1,), mlp_ratio=(1.0,))


def mini_recipe(
    *, search: dict[str, Any] | None = None, training: dict[str, Any] | None = None, **fields: Any
) -> Recipe:
    """A run of a second on the digits, with everything random in training switched on.

    Its budgets: three that hold subnets, one left out as no whole step, one that is empty; the
    envelope of the three is smaller than the largest subnet.
    """
    searching = {
        "budgets": ("params=1200:3400:700", "params=10k:11k"),
        "num_images": 8,
        **(search or {}),
    }
    learning = {
        "epochs": 3,
        "batch_size": 128,
        "lr_per_512_images": 2e-2,
        "warmup_epochs": 0.5,
        "drop_path": 0.2,
        "clip_grad_norm": 1.0,
        **(training or {}),
    }
    return Recipe(
        **{
            "name": "mini",
            "space": MINI,
            "search": SearchRecipe(**searching),
            "data": get_recipe("digits").data,
            "training": TrainingRecipe(**learning),
            **fields,
        }
    )


def own_recipe(num_classes: int = 10, in_chans: int = 1, **fields: Any) -> Recipe:
    """The mini recipe for data that come from Python."""
    preprocessing = Preprocessing(mean=(0.5,) * in_chans, std=(0.25,) * in_chans, crop_pct=1.0)
    return mini_recipe(
        **{
            "space": MINI.with_settings(num_classes=num_classes, in_chans=in_chans),
            "data": DataRecipe(name="own", preprocessing=preprocessing),
            **fields,
        }
    )


def own_data(num_classes: int = 10, in_chans: int = 1, num_images: int = 40) -> ImageData:
    """Normal noise with labels, the same at every call."""
    generator = torch.Generator().manual_seed(1)

    def split(number: int) -> Dataset[Any]:
        images = torch.randn(number, in_chans, 8, 8, generator=generator)
        return TensorDataset(images, torch.arange(number) % num_classes)

    names = tuple(f"class {number}" for number in range(num_classes))
    return ImageData(split(num_images), split(num_images // 2), split(num_images // 2), names)


class StoppedError(Exception):
    """Stands for whatever interrupts a training."""


def stop_at(step: int) -> Callable[[Progress], None]:
    """A watcher that interrupts after that many steps."""

    def watch(progress: Progress) -> None:
        if progress.step == step:
            raise StoppedError

    return watch


class _Hearing(Observer):
    def __init__(self, **heard: Callable[[Any], object]) -> None:
        self._heard = heard

    def trained_step(self, progress: Progress) -> None:
        self._heard.get("steps", lambda _: None)(progress)

    def logged(self, record: Mapping[str, Any]) -> None:
        self._heard.get("records", lambda _: None)(record)

    def evolved_generation(self, generation: Generation) -> None:
        self._heard.get("generations", lambda _: None)(generation)


def hearing(**heard: Callable[[Any], object]) -> Observer:
    """An observer that passes on training `steps`, `records` of the log, or `generations`."""
    assert heard.keys() <= {"steps", "records", "generations"}
    return _Hearing(**heard)


def other_data(run: Path, texts: Sequence[str] = (), *, crops: int | None = None) -> ImageData:
    """Images for a run from another place than its recipe says."""
    return Run(run).images.read_from(texts, crops=crops)


def value_error_of(action: Callable[[], object]) -> str | None:
    """The words of the ValueError that an action raises; None if it succeeds."""
    try:
        action()
    except ValueError as error:
        return str(error)
    return None


def never(*args: object, **kwargs: object) -> NoReturn:
    """Replaces work that must not be done again."""
    raise AssertionError("this was done again")


@pytest.fixture(scope="session")
def searched_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The search of `mini_recipe()`, done. Copy it, do not change it."""
    out = tmp_path_factory.mktemp("searched") / "run"
    pipeline.search(mini_recipe(), out)
    return out


@pytest.fixture(scope="session")
def finished_run(searched_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All steps of `mini_recipe()`, done. Copy it, do not change it."""
    out = shutil.copytree(searched_run, tmp_path_factory.mktemp("finished") / "run")
    pipeline.run(mini_recipe(), out)
    return out


@pytest.fixture(scope="session")
def finished_rows(finished_run: Path) -> list[Evaluation]:
    """What the finished run's evaluation says."""
    return pipeline.evaluate(finished_run)


@pytest.fixture
def searched(searched_run: Path, tmp_path: Path) -> Path:
    """A copy of the searched run, to train."""
    return shutil.copytree(searched_run, tmp_path / "searched")


@pytest.fixture
def finished(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to change."""
    return shutil.copytree(finished_run, tmp_path / "finished")


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Relative name -> (content, time of change) of every file below a folder but the lock."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def assert_same_tensors(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    """To the bit."""
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def assert_same_values(left: Any, right: Any, place: str = "") -> None:
    """Nested plain values and tensors, to the bit and of the same types."""
    assert type(left) is type(right), place
    if isinstance(left, Tensor):
        assert left.dtype == right.dtype, place
        assert torch.equal(left, right), place
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), place
        for key in left:
            assert_same_values(left[key], right[key], f"{place}/{key}")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), place
        for number, pair in enumerate(zip(left, right, strict=True)):
            assert_same_values(*pair, f"{place}/{number}")
    else:
        assert left == right, place


def assert_same_training(left: Path, right: Path) -> None:
    """Two trained run folders agree to the bit in everything but the speed.

    In weights, their moving average and the best of them, every tensor and number of optimiser,
    loss scaler and position, the log, and which checkpoints are kept; neither has leftovers.
    """
    assert metrics_of(left) == metrics_of(right)
    names = [f"checkpoints/{path.relative_to(left / 'checkpoints')}" for path in _files(left)]
    assert names == [f"checkpoints/{p.relative_to(right / 'checkpoints')}" for p in _files(right)]
    assert any(name.endswith("state.pt") for name in names)
    contents = [name for name in names if not name.endswith(".sha256")]
    for name in ("initial.safetensors", "supernet.safetensors", *contents):
        read = load_state if name.endswith(".pt") else load_file
        assert_same_values(read(left / name), read(right / name), name)
    assert not [path for path in left.rglob("*.tmp")]


def _files(run: Path) -> list[Path]:
    return sorted(path for path in (run / "checkpoints").rglob("*") if path.is_file())


def load_state(path: Path) -> dict[str, Any]:
    """The state in a checkpoint; checks that it has moments for every trained parameter."""
    state: dict[str, Any] = torch.load(path, weights_only=True)
    assert state["optimizer"]["state"]
    return state


def metrics_of(run: Path, event: str | None = None) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, or those of one event, without the speed."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert (line.pop("images_per_second", 0) > 0) == (line["event"] in ("step", "epoch"))
    return [line for line in lines if event in (None, line["event"])]


def global_states() -> list[Any]:
    """The global generators on the CPU, comparable."""
    _, keys, *rest = np.random.get_state()
    return [torch.get_rng_state().tolist(), keys.tolist(), rest, random.getstate()]


@contextmanager
def global_state_untouched() -> Iterator[None]:
    """Fails if the block advances or reseeds a global generator."""
    before = global_states()
    yield
    names = ("torch", "numpy", "numpy (position)", "random")
    changed = [
        name for name, old, new in zip(names, before, global_states(), strict=True) if old != new
    ]
    assert not changed, f"global generators were touched: {changed}"
