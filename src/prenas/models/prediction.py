"""Prediction: a handed-over model names the classes of pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from prenas.data.opening import open_picture, read_file
from prenas.data.pictures import reason_of
from prenas.models.export import load_described
from prenas.processes import resolve_device


class Prediction(NamedTuple):
    """What a model says about one picture."""

    path: Path
    classes: tuple[tuple[str, float], ...]
    """(name, probability) of the likeliest classes, the likeliest first."""
    error: str | None = None
    """Why the picture could not be read; then there are no classes."""

    def as_dict(self) -> dict[str, Any]:
        """The same in plain values, for JSON."""
        if self.error:
            return {"picture": str(self.path), "error": self.error}
        classes = [{"name": name, "probability": share} for name, share in self.classes]
        return {"picture": str(self.path), "classes": classes}


def predict(
    model: str | Path, pictures: Sequence[str | Path], *, top: int = 3, device: str = "auto"
) -> Iterator[Prediction]:
    """Classifies pictures, one after the other; probabilities are the softmax of the logits.

    Pictures that cannot be read give a prediction with an error, and do not stop the others.

    Args:
        model: a folder that `prenas specialize` wrote.
        top: classes per picture, at most as many as there are.

    Raises:
        FileNotFoundError: the model, or one of the pictures, is missing.
        ValueError: the model is damaged.
    """
    (network, transform), description = load_described(model)
    class_names = description.class_names
    paths = [Path(picture) for picture in pictures]
    for path in paths:
        if path.is_dir():
            raise ValueError(f"{path} is a folder: give pictures, such as {path}/*.jpg")
        if not path.is_file():
            raise FileNotFoundError(
                f"there is no picture {path}: give files, nothing was classified"
            )
    where = resolve_device(device)
    network.to(where)
    for path in paths:
        try:
            image = transform(open_picture(read_file(path)))
        except Exception as error:  # decoders fail in many ways on broken files
            yield Prediction(path, (), reason_of(error))
            continue
        with torch.inference_mode():
            probabilities = network(image[None].to(where))[0].float().softmax(dim=0).cpu()
        if not torch.isfinite(probabilities).all():
            raise ValueError(
                f"{model} gives {path} an output that is not finite: its weights are damaged, hand "
                "the subnet over again"
            )
        named = probabilities[: len(class_names)]  # a head may have spare outputs
        best = named.topk(min(top, len(class_names)))
        yield Prediction(
            path,
            tuple(
                (class_names[number], probability)
                for number, probability in zip(best.indices, best.values.tolist(), strict=True)
            ),
        )
