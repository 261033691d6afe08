"""What each of two processes does for `test_several_processes.py`; started once, for all checks."""

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset, IterableDataset

from prenas.data import ImageData
from prenas.evaluation.accuracy import evaluate_archs
from prenas.families.vit.space import VitArch
from prenas.processes import ALONE, Processes, join
from prenas.recipe import TrainingRecipe
from prenas.supernet import Supernet
from prenas.training.loop import train_supernet
from prenas.training.sampler import make_sampler
from prenas.training.step import TrainingStep
from training.curves import losses_of
from training.runs import MINI, SMALLEST, WHOLE, own_data

INNER = VitArch(embed_dim=8, num_heads=(1, 2), mlp_ratio=(2.0, 1.0))
ARCHS = (SMALLEST, INNER, WHOLE)


class Stream(IterableDataset[Any]):
    """A data set that only iterates."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self._dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        return (self._dataset[number] for number in range(len(self)))

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]


def loader_data() -> ImageData:
    data = own_data(num_images=41)
    assert isinstance(data.train, Dataset)
    shuffled = DataLoader(data.train, batch_size=8, shuffle=True)
    validation = DataLoader(data.train, batch_size=8)
    return replace(data, train=shuffled, validation=validation)


def stream_data() -> ImageData:
    data = own_data(num_images=41)
    assert isinstance(data.train, Dataset)
    return replace(data, train=Stream(data.train), validation=Stream(data.train))


EVERYTHING: dict[str, Any] = {
    "sandwich": 1, "inplace_distillation": True, "grad_accum_steps": 2, "ema_decay": 0.9,
    "optimizer": "masked_adamw", "clip_grad_norm": 0.5,
}  # fmt: skip
ALPHANET: dict[str, Any] = {
    "sandwich": 2, "sandwich_loss": "sum", "inplace_distillation": "alpha", "grad_accum_steps": 2,
    "optimizer": "sgd", "clip_grad_value": 0.1, "weight_decay": 1e-5, "dropout": 0.2,
    "drops_in": "largest",
}  # fmt: skip
CASES: dict[str, tuple[ImageData, dict[str, Any]]] = {
    "plain": (own_data(num_images=40), {}),
    "one image in the last batch": (own_data(num_images=41), {}),
    "repeats": (replace(own_data(num_images=41), repeats=3), {}),
    "accumulation": (own_data(num_images=43), {"grad_accum_steps": 3}),
    "sandwich": (own_data(num_images=41), {"sandwich": 2}),
    "moving average": (own_data(num_images=41), {"ema_decay": 0.9}),
    "masked": (own_data(num_images=41), {"optimizer": "masked_adamw"}),
    "clipping": (own_data(num_images=41), {"clip_grad_norm": 0.1}),
    "loader": (loader_data(), {}),
    "stream": (stream_data(), {}),
    "everything": (own_data(num_images=41), EVERYTHING),
    "as AlphaNet": (own_data(num_images=41), ALPHANET),
}
"""Name -> data, and fields of the training recipe; two epochs of batches of eight."""


def new_supernet(dropout: float = 0.0) -> Supernet:
    supernet = Supernet(WHOLE, MINI.settings, drop_path=0.2, dropout=dropout)
    return supernet.initialize(torch.Generator().manual_seed(0))


def trained(name: str, processes: Processes = ALONE) -> dict[str, Any]:
    """Weights and losses of a case, and its validation."""
    data, fields = CASES[name]
    plain = {"epochs": 2, "batch_size": 8, "lr_per_512_images": 0.32}
    supernet, losses = new_supernet(fields.get("dropout", 0.0)), []
    train_supernet(
        supernet,
        ARCHS,
        data,
        TrainingRecipe(**{**plain, **fields}),
        processes=processes,
        watch=lambda progress: losses.append(progress.loss),
    )
    rows = evaluate_archs(supernet, ARCHS, {"split": data.validation}, processes=processes)
    evaluated = [row.splits["split"].model_dump() for row in rows]
    return {
        "weights": dict(supernet.network.state_dict()),
        "losses": losses,
        "evaluated": evaluated,
    }


def overflown(processes: Processes) -> dict[str, Any]:
    """fp16: of the second of three steps one image, which the last process has, is too large."""
    from prenas.data import training_batches

    recipe = TrainingRecipe(epochs=1, batch_size=8, precision="fp16", lr_per_512_images=0.32)
    step = TrainingStep(
        new_supernet().train(), make_sampler(ARCHS, recipe, 0), recipe, 5, processes=processes
    )
    batches = training_batches(own_data(), MINI.settings, 8, 0, 0, processes=processes)
    skipped, scales = [], []
    for number, batch in zip(range(3), batches, strict=False):
        if number == 1 and processes.rank == processes.world_size - 1:
            batch.images[-1] = 1e6
        skipped.append(step(number, batch).is_skipped)
        scales.append(step._scaler.get_scale())
    weights = dict(step.supernet.network.state_dict())
    return {"skipped": skipped, "scales": scales, "weights": weights}


def counted(processes: Processes) -> dict[str, int]:
    """How many reductions a training of five steps takes, and how many its steps alone."""
    calls, reduce = [], dist.all_reduce
    dist.all_reduce = lambda *args, **options: (
        calls.append(args[0].numel()) or reduce(*args, **options)
    )
    try:
        recipe = TrainingRecipe(
            epochs=1, batch_size=8, validate_epochs=0, validate_all_epochs=0, **EVERYTHING
        )
        supernet = new_supernet()
        train_supernet(supernet, ARCHS, own_data(), recipe, processes=processes)
    finally:
        dist.all_reduce = reduce
    num_params = sum(parameter.numel() for parameter in supernet.parameters())
    return {"all": len(calls), "gradients": sum(call >= num_params for call in calls)}


def main(folder: Path) -> None:
    """Runs everything in this process, one of two; each writes its results to a separate file."""
    torch.set_num_threads(1)
    processes = join()
    results = {name: trained(name, processes) for name in CASES}
    results["digits"] = losses_of("digits", processes)
    results["overflow"] = overflown(processes)
    results["reductions"] = counted(processes)
    order: list[int] = []
    with processes.main_first():
        (folder / f"first-{processes.rank}").touch()
        order.append(len(list(folder.glob("first-*"))))
    results["order"] = {"place": order[0], "pid": os.getpid()}
    torch.save(results, folder / f"rank-{processes.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
