"""Steps whose results are read several at once, as on an accelerator: nothing else differs."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from prenas.data import ImageData, training_batches
from prenas.families.vit.space import VitArch
from prenas.recipe import TrainingRecipe
from prenas.supernet import Supernet
from prenas.training import loop
from prenas.training.loop import Progress, train_supernet
from prenas.training.step import Begun, Outcome, TrainingStep, read
from prenas.training.stopping import Stopped, StopRequest
from training.runs import MINI, SMALLEST, WHOLE, assert_same_values, load_state, metrics_of

ARCHS: tuple[VitArch, ...] = (SMALLEST, WHOLE)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Makes steps late; how many were read at a time."""
    found = list[int]()

    def counted(steps: Sequence[Begun]) -> list[Outcome]:
        found.append(len(steps))
        return read(steps)

    monkeypatch.setattr(TrainingStep, "may_be_late", True)
    monkeypatch.setattr(loop, "read", counted)
    return found


def data(num_images: int, bad: Sequence[int] = ()) -> ImageData:
    """Noise with labels; some images are not numbers."""
    images = torch.randn(num_images, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(num_images) % 10
    whole = TensorDataset(images.clone(), labels)
    images[list(bad)] = math.nan
    return ImageData(TensorDataset(images, labels), whole, None, tuple("0123456789"))


def trained(
    recipe: TrainingRecipe, images: ImageData, folder: Path, **options: Any
) -> list[Progress]:
    supernet = Supernet(WHOLE, MINI.settings, drop_path=recipe.drop_path)
    supernet.initialize(torch.Generator().manual_seed(0))
    seen = list[Progress]()
    train_supernet(supernet, ARCHS, images, recipe, folder=folder, watch=seen.append, **options)
    torch.save(supernet.state_dict(), folder / "weights.pt")
    return seen


RECIPE = TrainingRecipe(
    epochs=2,
    batch_size=2,
    lr_per_512_images=0.1,
    drop_path=0.2,
    clip_grad_norm=1.0,
    checkpoint_steps=9,
    log_steps=7,
    validate_all_epochs=1,
)


def first_image() -> int:
    """An image of the very first batch."""
    images = data(50)
    batch = next(training_batches(images, MINI.settings, 2, 0, 0))
    assert isinstance(images.train, TensorDataset)
    every = images.train.tensors[0]
    return int((every == batch.images[0]).flatten(1).all(dim=1).nonzero())


@pytest.mark.parametrize("is_spoilt", [False, True])
def test_late_steps_end_with_the_same_bits(
    is_spoilt: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Weights, moments, log, checkpoints, and what a watcher is told; steps that are not finite
    change none of them, the very first included."""
    bad = (first_image(), 3, 17) if is_spoilt else ()
    seen = [trained(RECIPE, data(50, bad), tmp_path / "now")]
    reads = request.getfixturevalue("reads")
    seen.append(trained(RECIPE, data(50, bad), tmp_path / "late"))
    assert repr(seen[0]) == repr(seen[1])
    assert sum(reads) == 50
    assert len(reads) < 16  # 14 records and checkpoints, and the ends of the epochs
    assert max(reads) <= 7
    now, late = metrics_of(tmp_path / "now"), metrics_of(tmp_path / "late")
    assert now == late
    skipped = [one["step"] for one in now if one["event"] == "skipped"]
    assert len(skipped) >= 2 * is_spoilt
    assert (1 in skipped) == is_spoilt
    assert_same_weights(tmp_path / "now", tmp_path / "late")
    states = [sorted((tmp_path / name).rglob("state.pt")) for name in ("now", "late")]
    for ours, theirs in zip(*states, strict=True):
        assert ours.parent.name == theirs.parent.name
        assert_same_values(load_state(ours), load_state(theirs), ours.parent.name)


def assert_same_weights(*folders: Path) -> None:
    assert_same_values(
        *(torch.load(folder / "weights.pt", weights_only=True) for folder in folders)
    )


def test_results_wait_for_ten_steps_at_most(tmp_path: Path, reads: list[int]) -> None:
    recipe = RECIPE.model_copy(update={"log_steps": 1000, "checkpoint_steps": None, "epochs": 1})
    trained(recipe, data(50), tmp_path)
    assert reads == [10, 10, 5]


def test_too_many_steps_that_are_not_finite_end_it_before_a_checkpoint(
    tmp_path: Path, reads: list[int]
) -> None:
    """Noticed later, but told as for a step at a time; the last checkpoint is from before."""
    recipe = RECIPE.model_copy(update={"skipped_steps_limit": 3})
    with pytest.raises(ValueError, match="in 3 steps in a row") as caught:
        trained(recipe, data(50, range(50)), tmp_path)
    assert re.search("the last of them step 3 .*no checkpoint was written", str(caught.value))


def test_a_request_to_stop_is_heard_at_once(tmp_path: Path, reads: list[int]) -> None:
    """And the training that continues ends like one that was never stopped."""
    stop = StopRequest()

    def ask(progress: Progress) -> None:
        if progress.step == 7:
            stop.signal_number = 15

    supernet = Supernet(WHOLE, MINI.settings, drop_path=RECIPE.drop_path)
    supernet.initialize(torch.Generator().manual_seed(0))
    with pytest.raises(Stopped, match="step 8"):
        train_supernet(
            supernet, ARCHS, data(50), RECIPE, folder=tmp_path / "broken", stop=stop, watch=ask
        )
    trained(RECIPE, data(50), tmp_path / "broken")
    trained(RECIPE, data(50), tmp_path / "whole")
    assert metrics_of(tmp_path / "broken") == metrics_of(tmp_path / "whole")
    assert_same_weights(tmp_path / "broken", tmp_path / "whole")


@pytest.mark.parametrize(
    "fields", [{"optimizer": "sgd"}, {"optimizer": "masked_adamw"}, {"ema_decay": 0.9}], ids=str
)
def test_steps_that_cannot_be_left_out_on_the_device_are_read_at_once(
    fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = RECIPE.model_copy(update=fields)
    for update, expected in (({}, False), (dict.fromkeys(fields), True)):
        other = recipe.model_copy(update={**update, "optimizer": "adamw"} if update else {})
        step = TrainingStep(Supernet(WHOLE, MINI.settings), lambda _: ARCHS[:1], other, 5)
        assert not step.may_be_late  # on a processor
        monkeypatch.setattr(step, "device", torch.device("cuda"))
        assert step.may_be_late == expected
