"""Trains a small Vision Transformer: a source for `python -m benchmarks pretrained`.

    python -m benchmarks vit --data cifar10-train.tar --test cifar10-test.tar

No package holds the weights of a Vision Transformer, so this one is trained here: timm's
`test_vit3` (96 channels, 9 layers, 3 heads, an MLP of twice the width), from random weights, on
the 50,000 pictures at 96 pixels. It is a training like that of any source, only longer, and is
continued where it stopped.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from timm import create_model

from benchmarks.paired import ROOT
from prenas import artifacts, pipeline
from prenas.sources.cutting import cut_plan
from prenas.sources.transfer import read_source

MODEL = "test_vit3"
FOLDER = "vit"
"""Of the training, inside the `--home` of both commands."""


def main(words: Sequence[str] | None = None) -> int:
    """Trains the network and prints its accuracy on the test pictures."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks vit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", required=True, help="folder or tar of class folders")
    parser.add_argument("--test", required=True, help="likewise")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--home", type=Path, default=ROOT / "runs" / "pretrained")
    given = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(given.threads)
    given.home.mkdir(parents=True, exist_ok=True)
    plan = cut_plan(
        read_source(f"timm/{MODEL}={_random_weights(given.home)}"),
        (f"train={given.data}", f"test={given.test}"),
        ["macs=50%"],  # a plan wants a budget; only its first training is run
        image_size=given.image_size,
        overrides=[
            f"adaptation.epochs={given.epochs}",
            "adaptation.batch_size=128",
            "adaptation.lr_per_512_images=0.004",
            "data.num_workers=1",
        ],
    )
    (row,) = pipeline.run(plan.adaptation, given.home / FOLDER, source=plan.source, device="cpu")
    logging.info("%s: %.1f %% on test", MODEL, 100 * row.splits["test"].top1)
    return 0


def model_of(home: Path) -> Path:
    """Folder of the trained network.

    Raises:
        FileNotFoundError: it is not trained yet.
    """
    folder = home / FOLDER / artifacts.SUBNETS / "00"
    if not (folder / artifacts.MODEL_ARCH).exists():
        raise FileNotFoundError(f"{folder} holds no trained network: run python -m benchmarks vit")
    return folder


def _random_weights(home: Path) -> Path:
    file = home / f"{MODEL}.safetensors"
    if not file.exists():
        torch.manual_seed(0)
        save_file(create_model(MODEL).state_dict(), file)
    return file
