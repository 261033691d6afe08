"""Handed-over models: a folder with weights and everything needed to use them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from PIL.Image import Image
from torch import Tensor, nn

from prenas import artifacts
from prenas.data.augmentation import evaluation_transform, normalized
from prenas.data.pictures import with_channels
from prenas.families import build, family_of, get_family, require_stored
from prenas.families.base import Arch, Family, Settings
from prenas.files import exists
from prenas.models.image_size import at_image_size
from prenas.models.timm_config import describe_to_timm, timm_config
from prenas.recipe.data import Preprocessing
from prenas.values import parse_within

Transform = Callable[[Image], Tensor]


class Model(NamedTuple):
    """A specialised model and the transform from a picture to its input."""

    network: nn.Module
    """In evaluation mode: images [B, in_chans, height, width] -> logits [B, num_classes]."""
    transform: Transform
    """PIL image of any size, of 8 bits per channel -> tensor [in_chans, height, width]."""


def write_model(
    folder: Path,
    network: nn.Module,
    arch: Arch,
    settings: Settings,
    *,
    family: str,
    class_names: tuple[str, ...],
    preprocessing: Preprocessing,
    provenance: dict[str, Any],
) -> None:
    """Writes `model.safetensors`, `config.json` for timm, then `arch.json`, which marks the folder
    as complete."""
    artifacts.require_writable(folder)
    stock = _described_for_timm(get_family(family), arch, settings)
    digest = artifacts.write_tensors(folder / artifacts.MODEL, network.state_dict())
    licence = _fact_of_source(provenance, "licence")
    description = Description(arch, settings, preprocessing, class_names, digest, licence)
    write_timm_config(folder, network, description)
    artifacts.write_json(
        folder / artifacts.MODEL_ARCH,
        {
            "family": family,
            "arch": arch.model_dump(mode="json"),
            "settings": settings.model_dump(mode="json"),
            "class_names": class_names,
            "preprocessing": preprocessing.model_dump(mode="json"),
            "weights_sha256": digest,
            "provenance": provenance,
            **({"timm": stock} if stock else {}),
        },
    )


def _described_for_timm(
    family: Family[Arch, Settings], arch: Arch, settings: Settings
) -> Mapping[str, object] | None:
    """What timm needs to build the network without this package; None if it has no such network."""
    other = None if family.rebuilding is None else family.rebuilding.describe
    for describe in (family.describe_stock, other):
        if describe is not None:
            with suppress(ValueError):
                return describe(arch, settings)
    return None


def write_timm_config(folder: Path, network: nn.Module, description: Description) -> None:
    """Writes `config.json`, with which timm loads the folder."""
    config = timm_config(network, description)
    artifacts.write_plain_json(folder / artifacts.MODEL_CONFIG, config)


def run_folder_of(model: Path) -> Path | None:
    """The run that a handed-over model lies in; None if it lies in no run."""
    folder = model.resolve().parent
    is_inside = folder.name == artifacts.SUBNETS and (folder.parent / artifacts.RECIPE).exists()
    return folder.parent if is_inside else None


ImageSize = int | tuple[int, int]
"""Side in pixels, or (height, width)."""


def load(folder: str | Path, *, image_size: ImageSize | None = None) -> Model:
    """Loads a handed-over model: the network and its transform.

    Example:
        network, transform = prenas.load("runs/digits/subnets/00")
        logits = network(transform(Image.open("three.png"))[None])

    Args:
        image_size: side in pixels, or (height, width), of the images that the network takes; None:
            the size that it was trained with. Convolutional networks take any. The transform makes
            images of this size, cropped and resized in the same proportions as before. A network
            that resizes its images itself then computes at this size instead.

    Raises:
        FileNotFoundError: the folder or one of its files is missing.
        ValueError: a file is damaged, was not written by prenas, or does not match the
            architecture; or the network takes images of one size only.
    """
    return load_described(folder, image_size=image_size).model


def load_timm(folder: str | Path, *, image_size: ImageSize | None = None) -> Model:
    """Like `load`, but as timm's own network class, if timm has this architecture.

    Raises:
        FileNotFoundError: as `load`.
        ValueError: as `load`, or timm has no such network.
    """
    description = read_description(folder, image_size=image_size)
    arch, settings = description.arch, description.settings
    family = family_of(arch)
    if family.stock is None:
        raise ValueError(
            f"{folder} contains a network of the family {family.name}, which timm does not have: "
            "load it with prenas.load"
        )
    path = Path(folder) / artifacts.MODEL
    require_stored(path, arch, settings, shared=False)
    network = None
    if family.rebuilding is not None:
        with suppress(ValueError):  # then `stock` can build it, or says why not
            network = family.rebuilding.build(arch, settings)
    if network is not None and family.rebuilding is not None:
        tensors = load_network(folder, description).state_dict()
        network.load_state_dict(family.rebuilding.tensors(tensors, settings))
    else:
        network = family.stock(arch, settings)
        _load_weights(network, path, description)
    return Model(network.eval(), EvaluationTransform(settings, description.preprocessing))


class Described(NamedTuple):
    """A model and its description."""

    model: Model
    description: Description


def load_described(folder: str | Path, *, image_size: ImageSize | None = None) -> Described:
    """Like `load`, with the description: class names in the order of the logits, and so on."""
    description = read_description(folder, image_size=image_size)
    network = load_network(folder, description)
    transform = EvaluationTransform(description.settings, description.preprocessing)
    describe_to_timm(network, description)
    return Described(Model(network.eval(), transform), description)


class Description(NamedTuple):
    """The content of a handed-over model's `arch.json`."""

    arch: Arch
    settings: Settings
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    weights_sha256: str | None
    """Digest of the weights, as stored in their file; None in models written by 0.1.0."""
    licence: str | None
    """The licence of the trained weights that the model was made from, if there were any."""
    supernet_sha256: str | None = None
    """Digest of the supernet that it was cut from; None if it was not handed over by a run."""
    origin: str | None = None
    """Where those weights were published, if that is known."""


def read_description(folder: str | Path, *, image_size: ImageSize | None = None) -> Description:
    """Reads `arch.json` of a handed-over model; arguments and errors as in `load`."""
    folder = Path(folder)
    path = folder / artifacts.MODEL_ARCH
    if not exists(path):
        there = folder / artifacts.SUBNETS
        raise FileNotFoundError(
            f"{path} does not exist: give a model folder that `prenas specialize` wrote"
            + (f", such as {there}/00" if there.is_dir() else "")
        )
    description = artifacts.parse_json(path, parse_description)
    if image_size is None:
        return description
    arch, settings = at_image_size(description.arch, description.settings, image_size)
    return description._replace(arch=arch, settings=settings)


def load_network(folder: str | Path, description: Description) -> nn.Module:
    """The network of a handed-over model with its weights.

    Raises:
        FileNotFoundError: as `load`.
        ValueError: as `load`, or the weights are not those in the description.
    """
    path = Path(folder) / artifacts.MODEL
    require_stored(path, description.arch, description.settings, shared=False)
    network = build(description.arch, description.settings)
    _load_weights(network, path, description)
    return network


def _load_weights(network: nn.Module, path: Path, description: Description) -> None:
    expected = description.weights_sha256
    artifacts.load_weights(network, path)
    if expected is not None and artifacts.carried_digest(path) != expected:
        raise ValueError(
            f"{path} does not contain the weights described by the {artifacts.MODEL_ARCH} next to "
            "it: hand the subnet over again"
        )


def parse_description(document: dict[str, Any]) -> Description:
    """The content of an `arch.json`; raises as a wrong value does."""
    family = get_family(document["family"])
    settings = parse_within(family.settings_type, document["settings"], "settings")
    preprocessing = parse_within(Preprocessing, document["preprocessing"], "preprocessing")
    preprocessing.check_channels(settings.in_chans)
    return Description(
        arch=parse_within(family.arch_type, document["arch"], "arch"),
        settings=settings,
        preprocessing=preprocessing,
        class_names=_parse_names(document["class_names"], settings.num_classes),
        weights_sha256=document.get("weights_sha256"),
        licence=_fact_of_source(document.get("provenance"), "licence"),
        supernet_sha256=_supernet_in(document.get("provenance")),
        origin=_fact_of_source(document.get("provenance"), "origin"),
    )


def _supernet_in(provenance: object) -> str | None:
    digest = provenance.get("supernet_sha256") if isinstance(provenance, dict) else None
    return digest if isinstance(digest, str) else None


def _fact_of_source(provenance: object, name: str) -> str | None:
    """What is known of the source, which only models made from pretrained weights have."""
    source = provenance.get("source") if isinstance(provenance, dict) else None
    fact = source.get(name) if isinstance(source, dict) else None
    return fact if isinstance(fact, str) else None


def _parse_names(names: object, num_classes: int) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"class_names is {names!r}: it should be a list of names")
    if not 1 <= len(names) <= num_classes:
        raise ValueError(
            f"class_names has {len(names)} names, but the network has {num_classes} outputs"
        )
    return tuple(names)


class EvaluationTransform:
    """timm's evaluation transform, for 8-bit pictures of any size; first converts the channels.

    It can be pickled, as processes that read pictures need it.
    """

    def __init__(self, settings: Settings, preprocessing: Preprocessing) -> None:
        self._in_chans, self._preprocessing = settings.in_chans, preprocessing
        self._pixels = evaluation_transform(preprocessing, settings)

    def __call__(self, image: Image) -> Tensor:
        """PIL image -> [in_chans, height, width], normalised.

        Raises:
            TypeError: it is no PIL image.
            ValueError: the picture has more than 8 bits per channel, or the model has other than 1
                or 3 input channels.
        """
        if not isinstance(image, Image):
            raise TypeError(
                f"a transform takes a PIL image, not a {type(image).__name__}: open files with "
                "PIL.Image.open, or give them to prenas.predict"
            )
        return normalized(self._pixels(with_channels(image, self._in_chans)), self._preprocessing)

    def __repr__(self) -> str:
        mean, std = self._preprocessing.mean, self._preprocessing.std
        return f"{type(self).__name__}({self._pixels}, mean={mean}, std={std})"
