"""Makes a LiteRT file (`model.tflite`) of an exported model, runs it, and compares it.

LiteRT's converter needs other versions of some packages than `prenas` does, so it runs in an
environment of its own, which needs PyTorch but not `prenas`:

    prenas export runs/photos/subnets/00 --format torch --batch 1    # where prenas is installed

    python -m venv litert
    litert/bin/pip install litert-torch==0.10.0
    litert/bin/python examples/litert/convert.py runs/photos/subnets/00/torch

The file is kept only if its logits are those of the exported program, to 1e-4 of the largest, on
random images. The card beside the program (`export.json`) also describes the new file: class names,
and how pictures must be prepared.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import litert_torch
import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter

ALLOWED = 1e-4
NUM_COMPARED = 8


def main(folder: Path) -> None:
    """Converts, compares and keeps the file."""
    card = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    if card["format"] != "torch" or card["batch"] is None:
        sys.exit(f"{folder} takes any number of images: export it with --format torch --batch 1")
    program = torch.export.load(folder / card["file"]).module()
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(card["input_shape"], generator=generator) for _ in range(NUM_COMPARED)]
    made, kept = folder / "unverified.tflite", folder / "model.tflite"
    litert_torch.convert(program, (images[0],)).export(str(made))
    difference = compared(made, program, images)
    if not difference <= ALLOWED:
        made.unlink()
        sys.exit(f"the logits differ by {difference:.1e} of the largest: nothing was kept")
    made.replace(kept)
    print(f"{kept}: {kept.stat().st_size / 1e6:.2f} MB, logits differ by {difference:.1e}")


def compared(file: Path, program: torch.nn.Module, images: list[torch.Tensor]) -> float:
    """The largest difference of logits, relative to the largest logit."""
    interpreter = Interpreter(str(file))
    interpreter.allocate_tensors()
    (taken,), (returned,) = interpreter.get_input_details(), interpreter.get_output_details()
    differences, largest = [], []
    for each in images:
        interpreter.set_tensor(taken["index"], each.numpy())
        interpreter.invoke()
        with torch.inference_mode():
            expected = program(each).numpy()
        found = interpreter.get_tensor(returned["index"])
        differences.append(np.abs(found - expected).max())
        largest.append(np.abs(expected).max())
    return float(max(differences) / max(largest))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
