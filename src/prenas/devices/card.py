"""The card of an exported file: what it takes and returns, and what was measured of it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path, PurePath
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from prenas import artifacts
from prenas.devices.verification import Agreement
from prenas.files import exists
from prenas.models.export import Description, parse_description
from prenas.values import Value

MOST_IMAGES = 4096
"""Per call of a file."""


def _inside(name: str) -> str:
    parts = PurePath(name).parts
    if not parts or PurePath(name).is_absolute() or ".." in parts:
        raise ValueError(f"{name!r} must be the name of a file in the folder of the export")
    return name


class Card(Value):
    """Everything about an exported file that its user needs; stored beside it as `export.json`."""

    format: str
    engine: str
    """What ran the file for this card."""
    file: str
    files_sha256: dict[Annotated[str, AfterValidator(_inside)], str]
    """Name of every file of the export -> its digest."""
    size_bytes: int
    """Of all files together."""
    int8: str | None
    """The int8 form; None for float32."""
    batch: int | None = Field(default=None, ge=1, le=MOST_IMAGES)
    """Images per call; None for any number."""
    input: str
    input_shape: tuple[int | None, ...]
    """[B, in_chans, height, width]; None for any number. The values are float32, normalised as
    `model.preprocessing` says."""
    output: str
    agreement: Agreement
    """On the images that `compared_on` names."""
    compared_on: str
    threads: int = Field(ge=1)
    milliseconds: dict[str, float]
    """Median time of one call with `batch` images, or with one: of the file, of the float32 file of
    an int8 form, and of PyTorch."""
    spread: float
    """Half the distance between the quartiles of the file's times, relative to the median."""
    notes: tuple[str, ...]
    """What a user should know before using the file."""
    versions: dict[str, str]
    model: dict[str, Any]
    """The `arch.json` of the model: class names in the order of the logits, preprocessing, costs,
    accuracy, licence of the source."""

    @model_validator(mode="after")
    def _belongs_together(self) -> Card:
        if self.file not in self.files_sha256:
            raise ValueError(f"files_sha256 lacks the digest of {self.file}")
        settings = self.description.settings
        expected = (self.batch, settings.in_chans, *settings.image_size)
        if self.input_shape != expected:
            raise ValueError(
                f"input_shape is {list(self.input_shape)}, but the model takes {list(expected)}"
            )
        return self

    @property
    def description(self) -> Description:
        """The description of the model that was exported."""
        return parse_description(self.model)


def is_export(folder: Path) -> bool:
    """Whether a folder holds an exported file."""
    return (folder / artifacts.EXPORT).is_file()


def files_of_export(folder: Path) -> set[str]:
    """Names of the files of an earlier export; none if its card cannot be read."""
    with suppress(OSError, ValueError):
        return {*_parsed(folder / artifacts.EXPORT).files_sha256}
    return set()


def _parsed(path: Path) -> Card:
    return artifacts.parse_json(path, Card.model_validate)


def read_card(folder: str | Path) -> Card:
    """Reads the card of an exported file, and checks that its files are the ones described.

    Raises:
        FileNotFoundError: there is no card.
        ValueError: the card is damaged, or a file is not the one that it describes.
    """
    folder = Path(folder)
    path = folder / artifacts.EXPORT
    if not exists(path):
        raise FileNotFoundError(f"{path} does not exist: give a folder that `prenas export` wrote")
    card = _parsed(path)
    for name, digest in card.files_sha256.items():
        if not (folder / name).is_file() or artifacts.sha256(folder / name) != digest:
            raise ValueError(
                f"{folder / name} is missing or is not the file that {path} describes: export the "
                "model again"
            )
    return card
