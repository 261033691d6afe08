"""Steps as CUDA graphs, repeated here without a GPU: nothing of a training changes."""

import gc
import sys
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.torch_version import TorchVersion
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import TensorDataset

from prenas.data import Batch, ImageData
from prenas.families import get_space
from prenas.families.base import Arch, SearchSpace
from prenas.families.vit import attention
from prenas.families.vit.attention_with_tables import attention_with_tables
from prenas.randomness import numpy_generator
from prenas.recipe import TrainingRecipe, with_overrides
from prenas.recipe.catalogue import get_recipe
from prenas.supernet import Supernet
from prenas.training import graphs, loop, step
from prenas.training.estimate import estimate_training
from prenas.training.graphs import STEPS_BEFORE, StepGraphs, require_graphs
from prenas.training.loop import train_supernet
from prenas.training.step import TrainingStep
from prenas.training.stopping import Stopped, StopRequest
from prenas.training.subnets import BoundSubnets
from prenas.training.teacher import answering
from training.recording import Recorder
from training.runs import MINI, SMALLEST, WHOLE, assert_same_values, load_state, metrics_of

MICRO = get_space("mobilenet-micro").with_settings(image_size=(12, 12), in_chans=1)
RECIPE = TrainingRecipe(
    epochs=3, batch_size=8, lr_per_512_images=0.3, drop_path=0.2, log_steps=5, cuda_graphs=True
)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Makes trainings on this device record their steps."""
    steps = list[TrainingStep]()

    def noted(*arguments: Any, **options: Any) -> TrainingStep:
        steps.append(TrainingStep(*arguments, **options))
        return steps[-1]

    def state() -> list[Tensor]:
        moments = [each for one in steps[-1].optimizer.state.values() for each in one.values()]
        return [*steps[-1].supernet.state_dict().values(), *moments]

    found = Recorder(state)
    monkeypatch.setattr(TrainingStep, "may_be_late", True)
    monkeypatch.setattr(loop, "TrainingStep", noted)
    monkeypatch.setattr(step, "recorder_for", lambda device: found)
    return found


def data(settings: Any, num_images: int = 50, bad: Sequence[int] = ()) -> ImageData:
    """Noise with labels, of which the last batch of an epoch has two; some are not numbers."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(num_images, settings.in_chans, *settings.image_size, generator=generator)
    labels = torch.arange(num_images) % 10
    whole = TensorDataset(images.clone(), labels)
    images[list(bad)] = torch.nan
    return ImageData(TensorDataset(images, labels), whole, None, tuple("0123456789"))


def trained(
    folder: Path,
    recipe: TrainingRecipe = RECIPE,
    archs: Sequence[Arch] = (SMALLEST, WHOLE),
    space: SearchSpace = MINI,
    bad: Sequence[int] = (),
    **options: Any,
) -> dict[str, Tensor]:
    largest = max(archs, key=lambda arch: arch == space.largest or arch == WHOLE)
    supernet = Supernet(largest, space.settings, drop_path=recipe.drop_path)
    supernet.initialize(torch.Generator().manual_seed(0))
    train_supernet(supernet, archs, data(space.settings, bad=bad), recipe, folder=folder, **options)
    return {name: one.clone() for name, one in supernet.state_dict().items()}


def assert_same_results(ours: Path, theirs: Path) -> None:
    """Logs and checkpoints, with moments."""
    assert metrics_of(ours) == metrics_of(theirs)
    states = [sorted(folder.rglob("state.pt")) for folder in (ours, theirs)]
    assert len(states[0]) == len(states[1]) > 0
    for one, other in zip(*states, strict=True):
        assert_same_values(load_state(one), load_state(other), one.parent.name)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"grad_accum_steps": 2, "clip_grad_value": 0.1},
        {"clip_grad_norm": 1.0, "layer_decay": 0.7},
        {"sandwich": 1, "inplace_distillation": "kl", "drops_in": "largest"},
        {"precision": "bf16"},
    ],
    ids=str,
)
def test_graphs_end_with_the_same_bits(
    fields: dict[str, Any],
    recorder: Recorder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the same steps computed one by one: weights, moments, log; the rates have moved, batches
    of another size came between, and steps that are not finite were left out."""
    recipe = TrainingRecipe.model_validate({**RECIPE.model_dump(), **fields})
    repeated = trained(tmp_path / "graphs", recipe, bad=[3, 17])
    assert recorder.num_recorded >= (2 if recipe.sandwich is None else 1)
    assert recorder.num_replayed >= 5
    assert any(one["event"] == "skipped" for one in metrics_of(tmp_path / "graphs"))
    monkeypatch.setattr(graphs, "STEPS_BEFORE", 1_000)
    assert_same_values(repeated, trained(tmp_path / "eager", recipe, bad=[3, 17]))
    assert_same_results(tmp_path / "graphs", tmp_path / "eager")


def test_rates_as_tensors_change_nothing_but_rounding(recorder: Recorder, tmp_path: Path) -> None:
    ours = trained(tmp_path / "graphs")
    plain = trained(tmp_path / "plain", RECIPE.model_copy(update={"cuda_graphs": False}))
    assert recorder.num_replayed > 0
    for name, one in ours.items():
        torch.testing.assert_close(one, plain[name], rtol=1e-3, atol=1e-5)


def test_convolutional_subnets_with_a_teacher(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"teacher": {"name": "x", "loss": "soft"}, "class_weights": "balanced"}
    recipe = TrainingRecipe.model_validate({**RECIPE.model_dump(), **fields})
    assert recipe.teacher is not None
    network = nn.Sequential(nn.Flatten(), nn.Linear(144, 10)).requires_grad_(False)
    with torch.no_grad():
        for number, one in enumerate(network.parameters()):
            one.normal_(generator=torch.Generator().manual_seed(number))
    given = {"teacher": torch.no_grad()(answering(network, recipe.teacher))}
    of_micro = {"archs": (MICRO.smallest, MICRO.largest), "space": MICRO, **given}
    repeated = trained(tmp_path / "graphs", recipe, **of_micro)
    assert recorder.num_replayed > 5
    monkeypatch.setattr(graphs, "STEPS_BEFORE", 1_000)
    assert_same_values(repeated, trained(tmp_path / "eager", recipe, **of_micro))


def test_a_stopped_training_goes_on_with_the_same_bits(recorder: Recorder, tmp_path: Path) -> None:
    """It records its steps again, at other places than the unbroken one."""
    whole = trained(tmp_path / "whole")
    request = StopRequest()

    def stop_at(progress: loop.Progress) -> None:
        if progress.step == 10:
            request.signal_number = 2

    with pytest.raises(Stopped):
        trained(tmp_path / "broken", stop=request, watch=stop_at)
    before = recorder.num_recorded
    assert_same_values(whole, trained(tmp_path / "broken"))
    assert recorder.num_recorded > before


def test_a_step_that_cannot_be_recorded_goes_on_eagerly(
    recorder: Recorder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole = trained(tmp_path / "whole")

    def reading(self: TrainingStep, *arguments: Any, **options: Any) -> Tensor:
        numbers = computed(self, *arguments, **options)
        assert float(numbers[1]) == 0  # a graph would have no number to read
        return numbers

    computed = TrainingStep._computed
    monkeypatch.setattr(TrainingStep, "_computed", reading)
    recorded = recorder.num_recorded
    assert_same_values(whole, trained(tmp_path / "eager"))
    assert recorder.num_recorded == recorded
    (warning,) = [one for one in caplog.messages if "cannot be recorded as a CUDA graph" in one]
    assert "(operation not permitted when stream is capturing):" in warning


# --- which graphs are kept -----------------------------------------------------------------------


class _Counting:
    """A recorder that counts, and repeats nothing."""

    def __init__(self) -> None:
        self.num_recorded = self.num_replayed = self.num_first = 0

    def aside(self) -> Any:
        return nullcontext()

    def __call__(self, work: Callable[[], None], *, is_first: bool) -> Callable[[], None]:
        self.num_recorded += 1
        self.num_first += is_first

        def replay() -> None:
            self.num_replayed += 1

        return replay


class _Kept:
    """Graphs of steps that compute nothing."""

    def __init__(self) -> None:
        self.recorder, self.addresses, self.num_eager = _Counting(), [1, 2], 0
        self.steps = StepGraphs(
            lambda: list(self.addresses),
            torch.optim.AdamW([nn.Parameter(torch.zeros(1))]),
            self.recorder,
            torch.device("cpu"),
        )

    def _compute(self, *_: object) -> Tensor:
        self.num_eager += 1
        return torch.zeros(3)

    def take(self, arch: Arch, times: int = 1, *, size: int = 4) -> None:
        batch = Batch(torch.zeros(size, 1, 8, 8), torch.zeros(size, dtype=torch.long), [], size)
        for _ in range(times):
            noise = torch.zeros(1, size, 2)
            self.steps(self._compute, lambda: (), (arch,), batch, noise, stop=False)


def test_a_graph_is_recorded_after_eager_steps_and_then_repeated() -> None:
    kept = _Kept()
    kept.take(WHOLE, STEPS_BEFORE)
    assert (kept.num_eager, kept.recorder.num_recorded) == (STEPS_BEFORE, 0)
    kept.take(WHOLE, 5)
    assert (kept.num_eager, kept.recorder.num_recorded) == (STEPS_BEFORE, 1)
    assert kept.recorder.num_replayed == kept.steps.num_replayed == 5
    kept.take(WHOLE, 2, size=3)
    assert kept.num_eager == STEPS_BEFORE + 2
    kept.take(WHOLE)
    assert kept.recorder.num_replayed == 6


@pytest.mark.parametrize("what", ["weights", "images"])
def test_graphs_are_recorded_anew_if_their_memory_has_moved(what: str) -> None:
    """All of them: the first of the new ones gets memory of its own."""
    kept, size = _Kept(), 4
    for arch in (WHOLE, SMALLEST):
        kept.take(arch, STEPS_BEFORE + 1)
    assert (kept.recorder.num_recorded, kept.recorder.num_first) == (2, 1)
    if what == "weights":
        kept.addresses[1] = 3
    else:
        size = 5  # a training that went on with the small last batch of an epoch
    kept.take(WHOLE, STEPS_BEFORE, size=size)
    assert (kept.num_eager, kept.recorder.num_recorded) == (3 * STEPS_BEFORE, 2)
    kept.take(WHOLE, size=size)
    kept.take(SMALLEST, STEPS_BEFORE, size=size)
    assert (kept.num_eager, kept.recorder.num_recorded) == (4 * STEPS_BEFORE, 3)
    assert kept.recorder.num_first == 2


def test_no_graph_is_given_up_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 1)
    kept = _Kept()
    kept.take(WHOLE, STEPS_BEFORE + 1)
    kept.take(SMALLEST, STEPS_BEFORE + 4)
    assert (kept.recorder.num_recorded, kept.num_eager) == (1, 2 * STEPS_BEFORE + 4)
    kept.take(WHOLE)
    assert kept.recorder.num_replayed == 2


def test_sets_of_subnets_that_seldom_return_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "_MOST_COUNTED", 1)
    kept = _Kept()
    for _ in range(STEPS_BEFORE + 1):
        kept.take(WHOLE)
        kept.take(SMALLEST)
    assert kept.recorder.num_recorded == 0


def a_step(recipe: TrainingRecipe, device: str = "cpu") -> TrainingStep:
    supernet = Supernet(WHOLE, MINI.settings, drop_path=recipe.drop_path, dropout=recipe.dropout)
    supernet.initialize(torch.Generator().manual_seed(0)).to(device).train()
    archs = (WHOLE,) if recipe.sandwich is None else (WHOLE, SMALLEST)
    return TrainingStep(supernet, lambda _: archs, recipe, 10)


def test_a_step_is_freed_with_its_last_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Garbage that is collected while a graph is recorded would free other graphs, and spoil it."""
    monkeypatch.setattr(step, "recorder_for", lambda device: _Counting())
    monkeypatch.setattr(TrainingStep, "may_be_late", True)
    one = a_step(RECIPE)
    generators = [numpy_generator(0, "x", number) for number in range(8)]
    batch = Batch(torch.zeros(8, 1, 8, 8), torch.zeros(8, dtype=torch.long), generators, 8)
    gc.collect()
    gc.disable()
    try:
        for _ in range(STEPS_BEFORE + 2):
            one.begin(0, batch, stop=False, late=True)
        assert one.num_replayed == 2
        found = weakref.ref(one), weakref.ref(one.supernet)
        del one
        assert [each() for each in found] == [None, None]
    finally:
        gc.enable()


def test_an_estimate_measures_recorded_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--time` would otherwise fit a fraction of the steps."""
    recorder = _Counting()
    monkeypatch.setattr(step, "recorder_for", lambda device: recorder)
    monkeypatch.setattr(TrainingStep, "may_be_late", True)
    supernet = Supernet(WHOLE, MINI.settings).initialize(torch.Generator().manual_seed(0))
    estimate_training(supernet, [SMALLEST, WHOLE], data(MINI.settings), RECIPE)
    assert (recorder.num_recorded, recorder.num_replayed) == (2, 2 + 2 * 2)  # and two timed each


class _Watching(TorchDispatchMode):
    """Notes the operators that touch the processor or read a number; updates nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.num_updates, self.found = 0, list[str]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        if "_fused_adamw_" in str(func):  # which has no form without a device
            assert kwargs["found_inf"] is not None
            self.num_updates += 1
            result = None
        else:
            result = func(*args, **(kwargs or {}))
        made = [one for one in tree_leaves(result) if isinstance(one, Tensor)]
        if any(one.device.type == "cpu" for one in [*given, *made]) or "local_scalar" in str(func):
            self.found.append(str(func))
        return result


@pytest.mark.parametrize("device", ["cuda", "meta"])
@pytest.mark.parametrize(
    "fields",
    [
        {"clip_grad_norm": 1.0, "drop_path": 0.2, "dropout": 0.1},
        {"clip_grad_value": 0.1, "grad_accum_steps": 2, "layer_decay": 0.7},
        {"sandwich": 0, "inplace_distillation": "alpha", "drops_in": "largest"},
        {"freeze": "backbone"},
    ],
    ids=str,
)
def test_a_step_never_leaves_its_device(
    fields: dict[str, Any], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy from or to the processor would end a recording, and makes a step wait for all before
    it. A GPU is feigned, which shows each of them but has no backward pass; the meta device has."""
    monkeypatch.setattr(step, "autocast", lambda *_: nullcontext())
    # Not by its path: torch.optim hides its module of this name.
    module = sys.modules["torch.optim.adam"]
    monkeypatch.setattr(module, "_device_dtype_check_for_fused", lambda *_: None)
    monkeypatch.setattr(attention, "_form_for", lambda qkv: attention_with_tables)
    if device == "cuda":
        monkeypatch.setattr(Tensor, "backward", lambda *_: None)
        monkeypatch.setattr(BoundSubnets, "addresses", lambda _: [])
    recipe = TrainingRecipe.model_validate({**RECIPE.model_dump(), "cuda_graphs": False, **fields})
    archs = (WHOLE,) if recipe.sandwich is None else (WHOLE, SMALLEST)
    num_dropping = len(archs) if recipe.drops_in == "all" else 1
    supernet = Supernet(WHOLE, MINI.settings, drop_path=recipe.drop_path).train()
    feigned = FakeTensorMode(allow_non_fake_inputs=True) if device == "cuda" else nullcontext()
    with feigned, torch.device(device):
        supernet.to_empty(device=device)
        one = TrainingStep(supernet, lambda _: archs, recipe, 10)
        batch = Batch(torch.zeros(8, 1, 8, 8), torch.zeros(8).long(), [None] * 8, 8)  # type: ignore[list-item]
        noise, vote = torch.zeros(num_dropping, 8, supernet.num_draws), torch.zeros(())
    for number, stop in enumerate((vote, vote, 0.0)):
        with feigned, _Watching() as watching:
            one._computed(archs, batch, noise, stop, late=True)
        if number:  # the first step builds the subnets
            assert watching.found == []
        assert watching.num_updates > 0


# --- recipes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "shown"),
    [
        ("optimizer=masked_adamw", "optimizer=masked_adamw"),
        ("optimizer=sgd", "optimizer=sgd"),
        ("precision=fp16", "precision=fp16"),
        ("ema_decay=0.9", "ema_decay=0.9"),
    ],
)
def test_what_python_has_to_look_at_is_refused(field: str, shown: str) -> None:
    recipe = get_recipe("digits")
    with pytest.raises(ValueError, match=f"{shown} does not allow: change it, or set cuda_graphs"):
        with_overrides(recipe, ["training.cuda_graphs=true", f"training.{field}"])


def test_several_processes_and_an_older_pytorch_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = torch.device("cuda")
    require_graphs(cuda, 1)
    require_graphs(torch.device("cpu"), 2)
    with pytest.raises(ValueError, match="is for one process, but there are 2, which reduce"):
        require_graphs(cuda, 2)
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.9.1+cu130"))
    with pytest.raises(ValueError, match=r"needs PyTorch 2\.14 or newer, and this is 2\.9\.1"):
        require_graphs(cuda, 1)


def test_a_whole_space_is_refused() -> None:
    with pytest.raises(ValueError, match=r"training.cuda_graphs records each subnet separately"):
        with_overrides(get_recipe("digits"), ["training.cuda_graphs=true", "evolution={}"])


def test_elsewhere_nothing_is_recorded(tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain", RECIPE.model_copy(update={"cuda_graphs": False}))
    assert_same_values(plain, trained(tmp_path / "asked"))
