"""Exporting a handed-over model: write a file, run it, compare it, measure it, then keep it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from prenas import artifacts
from prenas.cost import count
from prenas.data import CENTRE_CROP, ImageData, drawn_subset, evaluation_batches, num_samples
from prenas.devices.card import Card, files_of_export, is_export
from prenas.devices.formats import INPUT, OUTPUT, Format, Pixels, Plan, Written, get_format
from prenas.devices.timing import MOST_PACE, MOST_SPREAD, Latency, latencies
from prenas.devices.verification import Agreement, Labelled, agreement
from prenas.families import family_of
from prenas.models.export import (
    Described,
    Description,
    ImageSize,
    load_described,
    read_description,
    run_folder_of,
)
from prenas.models.measurement import read_images, read_splits
from prenas.proxy.importance import noise_images
from prenas.runs.run import Run
from prenas.values import unknown_name

MOST_DROP = 0.01
"""How much accuracy (0 to 1) an int8 file may lose."""
_BATCH_SIZE = 32
_NUM_NOISE = 32
_NUM_CALIBRATION = 256
_SMALLER = 0.8  # above this ratio, an int8 file is called badly suited
_SLOWER = 1.02  # beyond this ratio, an int8 file is called slower
_NDIM_WITH_CROPS = 5
_ROUNDING = 1e-9  # of the difference of two accuracies


class Exported(NamedTuple):
    """An exported file."""

    folder: Path
    card: Card


def export(
    model: str | Path,
    format: str = "onnx",
    *,
    int8: str | None = None,
    batch: int | None = None,
    opset: int | None = None,
    image_size: ImageSize | None = None,
    out: str | Path | None = None,
    data: Sequence[str] = (),
    most_drop: float = MOST_DROP,
    threads: int = 1,
) -> Exported:
    """Writes a handed-over model as a file that runs without this package.

    The file is run in its engine on the validation images of the run that the model lies in, or on
    those in `data`, and compared with the model. It is kept only if it computes the same: logits to
    1e-5 of the largest in float32, or to what the network itself loses by rounding; for int8, an
    accuracy that is at most `most_drop` lower.

    Args:
        model: the folder of a handed-over model.
        format: one of `prenas.devices.formats.FORMATS`.
        int8: a quantised form that the format has, such as `static`; None for float32.
        batch: images per call of the file; None for any number, or for one if the format takes
            a fixed number only.
        opset: version of ONNX's operators; None for the exporter's.
        image_size: of the images that the file takes, as in `prenas.load`.
        out: a new folder, or that of an earlier export; None for one inside the model's folder.
        data: images to compare on, as `prenas.with_data` takes them.
        most_drop: accuracy (0 to 1) that an int8 file may lose.
        threads: of the engine.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: the model or an option is unusable, something is not installed, or the file
            does not compute what the model does. Nothing is kept then.
    """
    found = get_format(format)
    if int8 is not None and int8 not in found.quantizers:
        raise unknown_name(f"int8 form of the format {format}", int8, tuple(found.quantizers))
    plan = found.plan(batch, opset)
    described = load_described(model, image_size=image_size)
    folder = Path(model) / _name(format, int8, image_size) if out is None else Path(out)
    _require_free(folder)
    images = _images(Path(model), described, data, is_resized=image_size is not None)
    if int8 is not None and images is None:
        raise ValueError(
            f"an int8 file must be judged on labelled images, and {model} lies in no run that has "
            "some: give them with --data PATH"
        )
    artifacts.require_writable(folder.parent)
    with artifacts.temporary_folder(folder.parent, folder.name) as made:
        work = _Export(Path(model), described, images, found, plan, int8, made, threads)
        card = work.card(most_drop)
        artifacts.write_json(work.kept / artifacts.EXPORT, card.model_dump(mode="json"))
        _put(work.kept, card, folder)
    return Exported(folder, card)


def _put(kept: Path, card: Card, folder: Path) -> None:
    """Moves an export to its folder, in place of the files of an earlier one; others stay."""
    if not folder.exists():
        kept.rename(folder)
        return
    earlier = files_of_export(folder)
    for name in (*card.files_sha256, artifacts.EXPORT):  # the card last: until then it is refused
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (kept / name).replace(folder / name)
    for name in earlier - {*card.files_sha256}:
        (folder / name).unlink(missing_ok=True)


def _name(format: str, int8: str | None, image_size: ImageSize | None) -> str:
    """Name of the folder inside a model's, such as `onnx-288px-int8-static`."""
    sides = [image_size] if isinstance(image_size, int) else [*(image_size or ())]
    size = "x".join(map(str, sides))
    return format + f"-{size}px" * bool(sides) + f"-int8-{int8}" * bool(int8)


def _require_free(folder: Path) -> None:
    """Raises ValueError for a folder with something else than an earlier export."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ValueError(f"{folder} is not a folder: choose another --to. Nothing was written")
    if folder.exists() and any(folder.iterdir()) and not is_export(folder):
        raise ValueError(
            f"{folder} is not empty and is no earlier export: choose another --to. Nothing was "
            "written"
        )


def _images(
    model: Path, described: Described, texts: Sequence[str], *, is_resized: bool
) -> ImageData | None:
    """The images that are named, or those of the run that the model lies in; None without any.

    Raises:
        ValueError: those of the run have changed, so that training images may be among the ones
            that it would be judged on.
    """
    if texts:
        return read_images(model, described.description, texts)
    run = run_folder_of(model)
    if run is None:
        return None
    opened = Run(run, device="cpu")
    if opened.recipe.data is None:
        return None
    images = (
        read_splits(model, described.description, opened.recipe.data)
        if is_resized
        else opened.images.read(hold=())
    )
    opened.images.require_own(images, "name labelled images with --data PATH")
    return images


@dataclass(frozen=True)
class _Export:
    """One export on its way, in a folder that is removed at the end."""

    model: Path
    described: Described
    images: ImageData | None
    format: Format
    plan: Plan
    int8: str | None
    folder: Path
    threads: int

    @property
    def kept(self) -> Path:
        """Where the files are that are handed over."""
        return self.folder / "kept"

    def card(self, most_drop: float) -> Card:
        """Writes the file, runs it, compares it and measures it.

        Raises:
            ValueError: the file does not compute what the model does.
        """
        network, name = self.described.model.network, self.format.file
        example = next(iter(self._compared())).images
        once = _of_size(example, self.plan.batch or 1)
        path = (self.folder if self.int8 else self.kept) / name
        self.kept.mkdir()
        deployed = family_of(self.described.description.arch).deployed(network)
        examples = _of_size(example, self.plan.batch or 2)
        self.format.write(deployed, examples, path, self.plan)
        run = self.format.open(path, self.threads)
        found = agreement(run, network, self._compared(), self.plan.batch)
        self._require_equal(found)
        calls: dict[str, Callable[[], object]] = {
            "torch": partial(_applied, network, once),
            "float32": partial(run, once.numpy()),
        }
        if self.int8 is not None:
            source = Written(path, deployed, examples)
            self.format.quantizers[self.int8](source, self.kept / name, self._calibration)
            run = self.format.open(self.kept / name, self.threads)
            found = agreement(run, network, self._compared(), self.plan.batch)
            self._require_accurate(found, most_drop)
            calls["int8"] = partial(run, once.numpy())
        times = latencies(calls, threads=self.threads)
        files = sorted(one for one in self.kept.rglob("*") if one.is_file())
        return Card(
            format=self.format.name,
            engine=self.format.engine,
            file=name,
            files_sha256={str(one.relative_to(self.kept)): artifacts.sha256(one) for one in files},
            size_bytes=sum(one.stat().st_size for one in files),
            int8=self.int8,
            batch=self.plan.batch,
            input=INPUT,
            input_shape=(self.plan.batch, *example.shape[1:]),
            output=OUTPUT,
            agreement=found,
            compared_on=self._compared_on,
            threads=self.threads,
            milliseconds={what: round(1000 * one.median, 4) for what, one in times.items()},
            spread=round([*times.values()][-1].spread, 4),
            notes=tuple(self._notes(times, sum(one.stat().st_size for one in files))),
            versions={one: version(one) for one in ("prenas", "torch", *self.format.modules)},
            model=self._described_model(),
        )

    def _described_model(self) -> dict[str, Any]:
        """The model's `arch.json`, for the images that the file takes."""
        document = artifacts.read_json(self.model / artifacts.MODEL_ARCH)
        if not self._is_resized:
            return document
        arch, settings, *_ = self.described.description
        values = {"arch": arch, "settings": settings}
        changed = {name: value.model_dump(mode="json") for name, value in values.items()}
        known = document.get("provenance")
        provenance = {**(known if isinstance(known, dict) else {}), "costs": count(arch, settings)}
        return {**document, **changed, "provenance": provenance}

    @property
    def _is_resized(self) -> bool:
        """Whether the network computes at another size than it was trained at."""
        return read_description(self.model)[:2] != self.described.description[:2]

    def _compared(self) -> Iterator[Labelled]:
        """The validation images, or noise."""
        description = self.described.description
        if self.images is None:
            prepared, settings = description.preprocessing, description.settings
            shape = (_NUM_NOISE, settings.in_chans, settings.image_size)
            yield Labelled(noise_images(*shape, prepared.mean, prepared.std, seed=0), None)
            return
        split, *_ = self.images.splits.values()
        for images, labels in evaluation_batches(split, description.settings, _BATCH_SIZE):
            one = images[:, CENTRE_CROP] if images.ndim == _NDIM_WITH_CROPS else images
            yield Labelled(one, labels)

    @property
    def _compared_on(self) -> str:
        return "noise" if self.images is None else next(iter(self.images.splits))

    def _calibration(self) -> Iterator[Pixels]:
        """Training images without augmentation; those that are compared if there are no others."""
        assert self.images is not None, "checked before the export"
        source = self.images.train if self.images.unchanged is None else self.images.unchanged
        if num_samples(source) > _NUM_CALIBRATION:
            source = drawn_subset(source, _NUM_CALIBRATION, 0, "int8 calibration")
        size = self.plan.batch or _BATCH_SIZE
        for images, _ in evaluation_batches(source, self.described.description.settings, size):
            full = images if self.plan.batch is None else _of_size(images, self.plan.batch)
            yield full.numpy()

    def _require_equal(self, found: Agreement) -> None:
        if not found.difference <= found.allowed:
            raise ValueError(
                f"the {self.format.name} file does not compute what {self.model} does: its logits "
                f"differ by {found.difference:.1e} of the largest, where {found.allowed:.0e} is "
                f"allowed, and {100 * found.same_class:.2f} % of {found.num_images:,} images get "
                "the same class. Nothing was kept: try another --format"
            )

    def _require_accurate(self, found: Agreement, most_drop: float) -> None:
        assert found.top1 is not None, "an int8 file is judged on labelled images"
        assert found.top1_of_network is not None
        drop = found.top1_of_network - found.top1
        if drop > most_drop + _ROUNDING:
            raise ValueError(
                f"as int8 {self.int8}, {self.model} is right about {100 * found.top1:.2f} % of "
                f"{found.num_images:,} {self._compared_on} images instead of "
                f"{100 * found.top1_of_network:.2f} %: {100 * drop:.2f} points less, and at most "
                f"{100 * most_drop:g} are allowed. Nothing was kept: choose another form or "
                "format, or allow more with --most-drop"
            )

    def _notes(self, times: Mapping[str, Latency], size: int) -> Iterator[str]:
        if self.images is None:
            yield (
                "Compared on noise only: the model lies in no run whose images are known. Give "
                "labelled images with --data to compare accuracies."
            )
        if self._is_resized:
            yield (
                f"The file computes at {_computed_size(self.described.description)} pixels; the "
                f"model was trained at {_computed_size(read_description(self.model))}, and the "
                "accuracies in its description were measured there."
            )
        if self.int8 is not None:
            whole = sum(one.stat().st_size for one in self.folder.iterdir() if one.is_file())
            if size > _SMALLER * whole:
                others = [name for name in self.format.quantizers if name != self.int8]
                yield (
                    f"The int8 file takes {size / whole:.2f} times the space of the float32 file: "
                    f"the form {self.int8} suits this network badly. Try {' or '.join(others)}."
                )
            ratio = times["int8"].median / times["float32"].median
            if ratio > _SLOWER:
                yield (
                    f"The int8 file takes {ratio:.2f} times as long as the float32 file on this "
                    "machine: it is only smaller."
                )
        unsteady = max(one.spread for one in times.values())
        pace = max(one.pace for one in times.values())
        if unsteady > MOST_SPREAD or pace > MOST_PACE:
            yield (
                f"The times spread by {100 * unsteady:.0f} % around their medians, and the pace of "
                f"the machine varied by {100 * pace:.0f} %: it was busy, so measure again before "
                "relying on them."
            )


def _computed_size(description: Description) -> str:
    """Height and width at which a network computes, which may resize its images itself."""
    side = description.arch.resized_to
    size = description.settings.image_size if side is None else (side, side)
    return " x ".join(map(str, size))


def _of_size(images: Tensor, size: int) -> Tensor:
    """So many of the images, which are repeated if there are fewer."""
    return images.repeat(-(-size // len(images)), 1, 1, 1)[:size].contiguous()


def _applied(network: nn.Module, images: Tensor) -> None:
    with torch.inference_mode():
        network(images)
