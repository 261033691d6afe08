"""Prediction: classifies pictures with a handed-over model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from prenas.data.folders import list_pictures
from prenas.data.opening import open_picture, read_file, warnings_named
from prenas.data.pictures import reason_of
from prenas.models.export import load_described
from prenas.processes import resolve_device


class Prediction(NamedTuple):
    """The classes that a model predicts for one picture."""

    path: Path
    classes: tuple[tuple[str, float], ...]
    """(name, probability) of the most likely classes, the most likely first."""
    error: str | None = None
    """Why the picture could not be read; `classes` is then empty."""

    def as_dict(self) -> dict[str, Any]:
        """The prediction in plain values, for JSON."""
        if self.error:
            return {"picture": str(self.path), "error": self.error}
        classes = [{"name": name, "probability": share} for name, share in self.classes]
        return {"picture": str(self.path), "classes": classes}


def predict(
    model: str | Path, pictures: Sequence[str | Path], *, top: int = 3, device: str = "auto"
) -> Iterator[Prediction]:
    """Classifies pictures one after the other; probabilities are the softmax of the logits.

    An unreadable picture yields a prediction with an error and does not stop the others.

    Args:
        model: the folder of a handed-over model.
        pictures: picture files, and folders of them. Of a folder, all pictures at any depth are
            classified, by the same rules as in training data: other and hidden files are skipped.
        top: number of classes per picture; at most the number of classes of the model.

    Raises:
        FileNotFoundError: the model, or one of the pictures, does not exist.
        ValueError: the model is damaged, or a folder has no pictures.
    """
    (network, transform), description = load_described(model)
    class_names = description.class_names
    paths = [path for picture in pictures for path in _files(Path(picture))]
    where = resolve_device(device)
    network.to(where)
    for path in paths:
        try:
            with warnings_named(str(path)):
                image = transform(open_picture(read_file(path)))
        except Exception as error:  # decoders fail in many ways on broken files
            yield Prediction(path, (), reason_of(error))
            continue
        with torch.inference_mode():
            probabilities = network(image[None].to(where))[0].float().softmax(dim=0).cpu()
        if not torch.isfinite(probabilities).all():
            raise ValueError(
                f"the output of {model} for {path} is not finite: its weights are damaged; hand "
                "the subnet over again"
            )
        named = probabilities[: len(class_names)]  # the network may have spare outputs
        best = named.topk(min(top, len(class_names)))
        yield Prediction(
            path,
            tuple(
                (class_names[number], probability)
                for number, probability in zip(best.indices, best.values.tolist(), strict=True)
            ),
        )


def _files(path: Path) -> list[Path]:
    """The pictures that a path stands for: itself, or those in a folder."""
    if path.is_dir():
        return [path / name for name in list_pictures(path).sizes]
    if not path.is_file():
        what = "is not a picture file" if path.exists() else "does not exist"
        raise FileNotFoundError(f"{path} {what}: nothing was classified")
    return [path]
