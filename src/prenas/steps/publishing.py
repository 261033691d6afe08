"""Publishing a handed-over model: a folder in the form of the Hugging Face Hub, with a card."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import timm
import torch

from prenas import artifacts
from prenas.evaluation.accuracy import Evaluation
from prenas.models.choice import choose, pick
from prenas.models.export import (
    Described,
    Description,
    load,
    load_described,
    run_folder_of,
    write_timm_config,
)
from prenas.recipe.budgets import Limits
from prenas.recipe.fields import names_a_file
from prenas.report.model_card import OfRun, Provenance, Published, missing_facts, model_card
from prenas.runs.run import Run
from prenas.selection.preferred import PreferredSet
from prenas.steps.delivering import hand_over_subnet
from prenas.steps.measuring import evaluated
from prenas.values import Value, error_in_words, parse_within

V = TypeVar("V", bound=Value)

CARD = "README.md"
_FOLDERS = re.compile(r"(?<![\w/:.])/(?:[^\s\"'`|/]+/)+")
"""The folders of an absolute path."""
_NAMES = ("timm/", "hf-hub:")
"""What names of models begin with that are no paths."""
_FILES = (CARD, artifacts.MODEL_CONFIG, artifacts.MODEL, artifacts.MODEL_ARCH)
_PATIENCE = 20.0  # seconds until the Hub must have answered


class Pushed(NamedTuple):
    """A model that was published."""

    model: Path
    """The folder of the handed-over model."""
    place: str
    """The folder that was written, or the address on the Hub."""
    notes: Sequence[str]
    """What is missing on the card."""


def push(
    target: Path,
    repo: str,
    *,
    index: int | None = None,
    limits: Limits | None = None,
    to: Path | None = None,
    replace: bool = False,
    private: bool = False,
) -> Pushed:
    """Publishes a handed-over model, or a subnet of a run, which is handed over first.

    Args:
        target: the folder of the model or of the run.
        repo: name on the Hub, `OWNER/NAME`.
        index: number of the subnet of a run; or
        limits: the best within these limits. With neither, the best by validation.
        to: a folder to write instead; nothing is sent to the Hub.
        replace: whether to replace files of these names that are there already.
        private: whether a new repository on the Hub is private.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: the name or the target is unusable, something is in the way, or the Hub cannot
            be reached. Nothing was written then.
    """
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(repo)
    if to is not None:
        _require_free(to, replace)
    else:
        _require_free_on_hub(repo, replace)
    model = _model(target, index, limits)
    described = load_described(model)
    published = Published(
        repo,
        described.description,
        artifacts.parse_json(model / artifacts.MODEL_ARCH, _provenance_in),
        _of_run(model, described.description),
    )
    parent = Path(tempfile.gettempdir()) if to is None else to.parent
    artifacts.require_writable(parent)
    with artifacts.temporary_folder(parent, "push") as made:
        folder = made / "model"
        _write(folder, model, described, published)
        place = _send(folder, repo, private) if to is None else str(_placed(folder, to))
    return Pushed(model, place, missing_facts(published))


def _provenance_in(document: dict[str, Any]) -> Provenance:
    described = _description_to_publish(document)
    return parse_within(Provenance, described.get("provenance") or {}, "provenance")


def _require_free(to: Path, replace: bool) -> None:
    """Raises ValueError for a folder in which something would be overwritten."""
    if to.is_symlink() or (to.exists() and not to.is_dir()):
        raise ValueError(f"{to} is not a folder: choose another --to. Nothing was written")
    if (to / artifacts.RECIPE).exists() or run_folder_of(to) is not None:
        raise ValueError(
            f"{to} is a run, or a model in one, which the files would replace: choose another "
            "--to. Nothing was written"
        )
    if to.exists() and any(to.iterdir()) and not replace:
        raise ValueError(
            f"{to} is not empty: choose another --to, or give --replace to replace "
            f"{', '.join(_FILES)} in it. Nothing was written"
        )


def _require_free_on_hub(repo: str, replace: bool) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        # One request, without the half-minute of attempts that listing files would make.
        there_now = HfApi(library_name="prenas").model_info(repo, timeout=_PATIENCE).siblings
        found = {one.rfilename for one in there_now or ()}
    except RepositoryNotFoundError:
        return  # it is created later
    except Exception as error:  # no network, no login, a Hub that is down: each has its own class
        raise _not_sent(repo, error) from None
    if (there := sorted(found & set(_FILES))) and not replace:
        raise ValueError(
            f"{repo} on the Hub already has {', '.join(there)}: choose another --repo, or give "
            "--replace to replace them. Nothing was sent"
        )


def _not_sent(repo: str, error: Exception) -> ValueError:
    return ValueError(
        f"cannot send to {repo} on the Hub ({error_in_words(error)}): "
        "check the network and `hf auth login`, or write the folder with --to FOLDER and send it "
        f"later (hf upload {repo} FOLDER)"
    )


def _model(target: Path, index: int | None, limits: Limits | None) -> Path:
    """The folder of the model; that of a run's subnet is handed over if it is not there yet."""
    if not (target / artifacts.RECIPE).exists():
        if index is not None or limits:
            raise ValueError(f"{target} is one model, of which no subnet can be chosen")
        return target
    run = Run(target)
    rows = evaluated(run)
    chosen = choose(rows, index, limits) if index is not None or limits else pick(rows, {})
    return hand_over_subnet(run, chosen, rows[chosen])


def _of_run(model: Path, description: Description) -> OfRun | None:
    """What the run of a model knows about it."""
    folder = run_folder_of(model)
    if folder is None:
        return None
    run = Run(folder, device="cpu")
    run.results.require_current_model(model, description.supernet_sha256)
    if description.arch not in run.subnets.archs:  # was cut out of its supernet by other means
        return None
    number = run.subnets.archs.index(description.arch)
    rows: Sequence[Evaluation] = run.evaluations if run.is_evaluated else ()
    splits = rows[number].splits if rows else {}
    return OfRun(folder.name, without_folders(run.subnets), number, splits, run.images.recorded)


def without_folders(preferred: PreferredSet) -> PreferredSet:
    """The same, with the last part of every path on this machine."""
    recipe = preferred.recipe
    data, source, training = recipe.data, recipe.source, recipe.training
    if data is not None:
        data = _changed(data, "root", "train", "validation", "test")
    if source is not None:
        rivals = tuple(_changed(one, "name") for one in source.rivals)
        source = _changed(source, "name").model_copy(update={"rivals": rivals})
    if training is not None and training.teacher is not None:
        teacher = _changed(training.teacher, "name", "weights")
        training = training.model_copy(update={"teacher": teacher})
    space = _changed(recipe.space, "name")  # that of a cut is named after its source
    parts = {"space": space, "data": data, "source": source, "training": training}
    return preferred.model_copy(
        update={
            "recipe": recipe.model_copy(update=parts),
            "imported": preferred.imported and _changed(preferred.imported, "file"),
            "adapted": preferred.adapted and _changed(preferred.adapted, "source"),
        }
    )


def _changed(value: V, *fields: str) -> V:
    found = {name: getattr(value, name) for name in fields}
    texts = {name: text for name, text in found.items() if isinstance(text, str)}
    return value.model_copy(update={name: _last_part(text) for name, text in texts.items()})


def _last_part(text: str) -> str:
    """The last part of a path; of `timm/NAME=FILE`, that of the file; other names as they are."""
    if names_a_file(text):
        name, _, file = text.partition("=")
        return f"{name}={Path(file).name}"
    return text if text.startswith(_NAMES) else Path(text).name


def _description_to_publish(document: dict[str, Any]) -> dict[str, Any]:
    """The content of `arch.json`, without folders of this machine."""
    match document:
        case {"provenance": {"source": {"name": str(name), **facts}, **others}}:
            source = {"name": _last_part(name), **facts}
            return {**document, "provenance": {**others, "source": source}}
    return document


def _write(folder: Path, model: Path, described: Described, published: Published) -> None:
    """Writes all files, then reads them back, here and through timm.

    Of paths on this machine, to images or weights, only the last part is published.
    """
    folder.mkdir()
    shutil.copyfile(model / artifacts.MODEL, folder / artifacts.MODEL)
    document = artifacts.read_json(model / artifacts.MODEL_ARCH)
    if (published_as := _description_to_publish(document)) == document:
        shutil.copyfile(model / artifacts.MODEL_ARCH, folder / artifacts.MODEL_ARCH)
    else:
        artifacts.write_json(folder / artifacts.MODEL_ARCH, published_as)
    # Notes about the images may name folders, too.
    artifacts.write_bytes(folder / CARD, _FOLDERS.sub("", model_card(published)).encode())
    write_timm_config(folder, described.model.network, described.description)
    settings = described.description.settings
    images = torch.linspace(-1, 1, 2 * settings.in_chans * settings.image_size[0]).view(
        2, settings.in_chans, -1, 1
    )
    images = images.expand(-1, -1, -1, settings.image_size[1])
    networks = {
        "timm": timm.create_model(f"local-dir:{folder}", pretrained=True).eval(),
        "prenas": load(folder).network,
    }
    with torch.inference_mode():
        expected = described.model.network(images)
        for name, network in networks.items():
            if not torch.equal(network(images), expected):
                raise ValueError(
                    f"{name} does not compute the same from what would be published as from "
                    f"{model}: nothing was written. This is a bug in prenas: please report it"
                )


def _placed(folder: Path, to: Path) -> Path:
    """Moves the files to their folder; what else is there stays."""
    if not to.exists() or not any(to.iterdir()):
        if to.exists():
            to.rmdir()
        folder.rename(to)
        return to
    for name in _FILES:
        (folder / name).replace(to / name)
    return to


def _send(folder: Path, repo: str, private: bool) -> str:
    from huggingface_hub import HfApi

    hub = HfApi(library_name="prenas")
    try:
        created = hub.create_repo(repo, private=private, exist_ok=True)
        hub.upload_folder(
            repo_id=created.repo_id, folder_path=folder, commit_message="Add the model"
        )
    except Exception as error:  # as above
        raise _not_sent(repo, error) from None
    return str(created)
