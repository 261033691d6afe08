"""Prediction: classifies pictures with a handed-over model, or with an exported file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prenas import artifacts
from prenas.data.folders import list_pictures
from prenas.data.opening import open_picture, read_file, warnings_named
from prenas.data.pictures import reason_of
from prenas.devices.card import Card, is_export, read_card
from prenas.devices.formats import Runner, get_format, logits_of
from prenas.files import exists
from prenas.models.export import EvaluationTransform, Transform, load_described
from prenas.precision import computing
from prenas.processes import resolve_device
from prenas.values import error_in_words


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
    pictures: Sequence[str | Path] | str | Path,
    *,
    top: int = 3,
    batch_size: int | None = None,
    image_size: int | None = None,
    device: str = "auto",
    threads: int = 1,
) -> Iterator[Prediction]:
    """Classifies pictures in their order; probabilities are the softmax of the logits.

    An unreadable picture yields a prediction with an error and does not stop the others. Only the
    pictures of one batch are in memory at a time.

    Args:
        model: the folder of a handed-over model, or one that `prenas.export` wrote.
        pictures: picture files, and folders of them, or one. Of a folder, all at any depth are
            classified, by the same rules as in training data: other and hidden files are skipped.
        top: number of classes per picture; at most the number of classes of the model.
        batch_size: pictures that the network gets at once. It changes the probabilities by no more
            than rounding, except those of an exported file of the int8 form `dynamic`. None: the
            fixed number of an exported file, otherwise one.
        image_size: as in `prenas.load`; exported files take images of one size only.
        device: of a handed-over model; the engine of an exported file runs on the processor.
        threads: of that engine.

    Raises:
        FileNotFoundError: the model, or one of the pictures, does not exist.
        ValueError: the model is damaged or takes images of one size only, a folder has no pictures,
            or the batch size is below one.
    """
    classifier = open_classifier(model, image_size=image_size, device=device, threads=threads)
    return classify(classifier, find_pictures(pictures), top=top, batch_size=batch_size)


class Classifier(NamedTuple):
    """A model that is ready to classify pictures."""

    model: Path
    logits: Callable[[Tensor], Tensor]
    """[B, in_chans, height, width] -> [B, num_classes], for any B."""
    transform: Transform
    class_names: tuple[str, ...]
    batch: int | None
    """Images per call of an exported file for a fixed number; None for any number."""


def open_classifier(
    model: str | Path, *, image_size: int | None = None, device: str = "auto", threads: int = 1
) -> Classifier:
    """Opens a handed-over model or an exported file; arguments and errors as in `predict`."""
    model = Path(model)
    if not is_export(model):
        (network, transform), description = load_described(model, image_size=image_size)
        where = resolve_device(device)
        network.to(where)

        def applied(images: Tensor) -> Tensor:
            with torch.inference_mode(), computing("fp32", where):
                logits: Tensor = network(images.to(where)).cpu()
            return logits

        return Classifier(model, applied, transform, description.class_names, None)
    card = read_card(model)
    if image_size is not None:
        height, width = card.input_shape[2:]
        raise ValueError(
            f"{model} is an exported file, which takes images of {height} x {width} pixels only: "
            "leave out image_size, or give the model that it was exported from"
        )
    description = card.description
    run = _opened(model, card, threads)
    return Classifier(
        model,
        lambda images: logits_of(run, images, card.batch),
        EvaluationTransform(description.settings, description.preprocessing),
        description.class_names,
        card.batch,
    )


def _opened(model: Path, card: Card, threads: int) -> Runner:
    """The file of an export in its engine; errors as in `predict`."""
    found = get_format(card.format)
    if card.file != found.file:
        raise ValueError(
            f"{model / artifacts.EXPORT} names the file {card.file}, but the format {found.name} "
            f"has {found.file}: export the model again"
        )
    try:
        return found.open(model / card.file, threads)
    except Exception as error:  # every engine has errors of its own
        raise ValueError(
            f"{found.engine} cannot open {model / card.file} ({error_in_words(error)}): export the "
            "model again"
        ) from None


def find_pictures(pictures: Sequence[str | Path] | str | Path) -> list[Path]:
    """The files that are meant; arguments and errors as in `predict`."""
    if isinstance(pictures, (str, Path)):  # else every character would be a path
        pictures = [pictures]
    return [path for picture in pictures for path in _files(Path(picture))]


def classify(
    classifier: Classifier, paths: Sequence[Path], *, top: int = 3, batch_size: int | None = None
) -> Iterator[Prediction]:
    """Classifies picture files; arguments and errors as in `predict`."""
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: give at least 1")
    size = batch_size or classifier.batch or 1
    return _classified(classifier, paths, top, size)


def _classified(
    classifier: Classifier, paths: Sequence[Path], top: int, size: int
) -> Iterator[Prediction]:
    names = classifier.class_names
    num_shown = min(top, len(names))

    def read(path: Path) -> Tensor | Prediction:
        try:
            with warnings_named(str(path)):
                return classifier.transform(open_picture(read_file(path)))
        except Exception as error:  # decoders fail in many ways on broken files
            return Prediction(path, (), reason_of(error))

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for start in range(0, len(paths), size):
            batch = paths[start : start + size]
            found = list(pool.map(read, batch))
            images = [one for one in found if isinstance(one, Tensor)]
            rows = iter(classifier.logits(torch.stack(images)).float() if images else ())
            for path, one in zip(batch, found, strict=True):
                if isinstance(one, Prediction):
                    yield one
                    continue
                probabilities = next(rows).softmax(dim=0)
                if not torch.isfinite(probabilities).all():
                    raise ValueError(
                        f"the output of {classifier.model} for {path} is not finite: its weights "
                        "are damaged; hand the subnet over again"
                    )
                best = probabilities[: len(names)].topk(num_shown)  # there may be spare outputs
                numbers, shares = best.indices.tolist(), best.values.tolist()
                classes = zip((names[number] for number in numbers), shares, strict=True)
                yield Prediction(path, tuple(classes))


def _files(path: Path) -> list[Path]:
    """The pictures that a path stands for: itself, or those in a folder."""
    if path.is_dir():
        return [path / name for name in list_pictures(path).sizes]
    if not path.is_file():
        what = "is not a picture file" if exists(path) else "does not exist"
        raise FileNotFoundError(f"{path} {what}: nothing was classified")
    return [path]
