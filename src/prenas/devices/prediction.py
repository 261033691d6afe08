"""Prediction: classifies pictures with a handed-over model, or with an exported file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prenas.data.folders import list_pictures
from prenas.data.opening import open_picture, read_file, warnings_named
from prenas.data.pictures import reason_of
from prenas.devices.card import is_export, read_card
from prenas.devices.formats import get_format
from prenas.models.export import Transform, load_described, make_transform
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
    model: str | Path,
    pictures: Sequence[str | Path],
    *,
    top: int = 3,
    device: str = "auto",
    threads: int = 1,
) -> Iterator[Prediction]:
    """Classifies pictures one after the other; probabilities are the softmax of the logits.

    An unreadable picture yields a prediction with an error and does not stop the others.

    Args:
        model: the folder of a handed-over model, or one that `prenas.export` wrote.
        pictures: picture files, and folders of them. Of a folder, all pictures at any depth are
            classified, by the same rules as in training data: other and hidden files are skipped.
        top: number of classes per picture; at most the number of classes of the model.
        device: of a handed-over model; the engine of an exported file runs on the processor.
        threads: of that engine.

    Raises:
        FileNotFoundError: the model, or one of the pictures, does not exist.
        ValueError: the model is damaged, or a folder has no pictures.
    """
    classify = _classifier(Path(model), device, threads)
    class_names = classify.class_names
    paths = [path for picture in pictures for path in _files(Path(picture))]
    for path in paths:
        try:
            with warnings_named(str(path)):
                image = classify.transform(open_picture(read_file(path)))
        except Exception as error:  # decoders fail in many ways on broken files
            yield Prediction(path, (), reason_of(error))
            continue
        probabilities = classify.logits(image[None])[0].float().softmax(dim=0)
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


class _Classifier(NamedTuple):
    logits: Callable[[Tensor], Tensor]
    """[1, in_chans, height, width] -> [1, num_classes]."""
    transform: Transform
    class_names: tuple[str, ...]


def _classifier(model: Path, device: str, threads: int) -> _Classifier:
    if not is_export(model):
        (network, transform), description = load_described(model)
        where = resolve_device(device)
        network.to(where)

        def applied(images: Tensor) -> Tensor:
            with torch.inference_mode():
                logits: Tensor = network(images.to(where)).cpu()
            return logits

        return _Classifier(applied, transform, description.class_names)
    card = read_card(model)
    description = card.description
    run = get_format(card.format).open(model / card.file, threads)

    def run_file(images: Tensor) -> Tensor:
        given = images.expand(card.batch or 1, -1, -1, -1).contiguous()
        return torch.from_numpy(run(given.numpy())[:1])

    transform = make_transform(description.settings, description.preprocessing)
    return _Classifier(run_file, transform, description.class_names)


def _files(path: Path) -> list[Path]:
    """The pictures that a path stands for: itself, or those in a folder."""
    if path.is_dir():
        return [path / name for name in list_pictures(path).sizes]
    if not path.is_file():
        what = "is not a picture file" if path.exists() else "does not exist"
        raise FileNotFoundError(f"{path} {what}: nothing was classified")
    return [path]
