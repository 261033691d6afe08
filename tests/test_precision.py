"""The precision of products: which flags hold in a block, and what runs in half precision."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from families.drawing import TEST_SPACES, images_for, new_supernet
from prenas.evaluation.accuracy import evaluate_archs
from prenas.evaluation.calibration import calibrate
from prenas.precision import Precision, autocast, computing, float32_products
from prenas.recipe import TrainingRecipe
from prenas.runs.log import read_log
from prenas.supernet import Supernet
from prenas.training.loop import _Training, train_supernet
from prenas.training.step import TrainingStep
from training.runs import MINI, SMALLEST, WHOLE, metrics_of, own_data

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def flags() -> tuple[str, bool, bool]:
    backends = torch.backends
    return (
        torch.get_float32_matmul_precision(),
        backends.cuda.matmul.allow_tf32,
        backends.cudnn.allow_tf32,
    )


def test_float32_products_are_whole_unless_asked_otherwise() -> None:
    """The flags need no accelerator; the block restores them, also after an error."""
    before = flags()
    for precision in ("fp32", "bf16", "fp16"):
        with float32_products(precision, CUDA):
            assert flags() == ("highest", False, False)
            with float32_products("tf32", CUDA):
                assert flags() == ("high", True, True)
            assert flags() == ("highest", False, False)
    with pytest.raises(ValueError, match="x"), float32_products("tf32", CUDA):
        raise ValueError("x")
    assert flags() == before


def test_on_a_processor_nothing_changes() -> None:
    before = flags()
    with float32_products("tf32", CPU):
        assert flags() == before


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("fp32", torch.float32),
        ("tf32", torch.float32),
        ("bf16", torch.bfloat16),
        ("fp16", torch.float16),
    ],
)
def test_half_precision_is_that_of_products(precision: Precision, dtype: torch.dtype) -> None:
    one = torch.ones(2, 2)
    for block in (autocast(precision, CPU), computing(precision, CPU)):
        with block:
            assert (one @ one).dtype == dtype


def test_a_step_holds_its_precision_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backward pass included, which has products of its own."""
    seen = []

    def begun(self: TrainingStep, *arguments: Any, **options: Any) -> Any:
        seen.append(flags()[0])

    monkeypatch.setattr(TrainingStep, "_begun", begun)
    supernet = new_supernet(TEST_SPACES["vit"][0])
    recipe = TrainingRecipe(epochs=1, precision="tf32")
    step = TrainingStep(supernet, lambda _: (supernet.arch,), recipe, 1)
    monkeypatch.setattr(step, "device", CUDA)
    step.begin(0, None, stop=False, late=False)  # type: ignore[arg-type]
    assert seen == ["high"]


@pytest.mark.parametrize("family", ["vit", "mobilenet"])
def test_subnets_are_evaluated_and_calibrated_in_half_precision(family: str) -> None:
    """Their products are; logits, losses and statistics are float32, and near the exact ones."""
    space = TEST_SPACES[family][0]
    supernet, archs = new_supernet(space).eval(), [space.smallest, space.largest]
    images = images_for(space, batch=16)
    labels = torch.arange(16) % space.settings.num_classes
    source = torch.utils.data.TensorDataset(images, labels)
    dtypes = set[torch.dtype]()
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, _, found: (
            dtypes.add(found.dtype) if isinstance(module, (nn.Linear, nn.Conv2d)) else None
        )
    )
    rows: dict[str, list[Any]] = {}
    try:
        for precision in ("fp32", "bf16"):
            dtypes.clear()
            statistics = calibrate(supernet, archs, [images], precision=precision)
            for one in statistics:
                assert torch.bfloat16 not in {tensor.dtype for tensor in one.values()}
            rows[precision] = evaluate_archs(
                supernet, archs, {"x": source}, statistics, precision=precision
            )
            half = torch.bfloat16 if precision == "bf16" else torch.float32
            assert half in dtypes
            assert (torch.float32 in dtypes) == (precision == "fp32")
    finally:
        hook.remove()
    for exact, near in zip(rows["fp32"], rows["bf16"], strict=True):
        assert near.splits["x"].loss == pytest.approx(exact.splits["x"].loss, rel=2e-2)
        assert near.splits["x"].loss != exact.splits["x"].loss


def test_validations_say_at_which_precision_they_ran(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a processor they are exact, whatever the training's precision."""
    recipe = TrainingRecipe(epochs=1, batch_size=16, precision="bf16")
    losses = []
    for folder in (tmp_path / "exact", tmp_path / "near"):
        supernet = Supernet(WHOLE, MINI.settings).initialize(torch.Generator().manual_seed(0))
        train_supernet(supernet, [SMALLEST, WHOLE], own_data(), recipe, folder=folder)
        losses.append([line["loss"] for line in metrics_of(folder, "validation")])
        monkeypatch.setattr(_Training, "_precision", "bf16")
    for line in metrics_of(tmp_path / "exact", "validation"):
        assert "precision" not in line
    for line in metrics_of(tmp_path / "near", "validation"):
        assert line["precision"] == "bf16"
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)
    assert losses[0] != losses[1]
    assert len(read_log(tmp_path / "near" / "metrics.jsonl").validations) == 2
