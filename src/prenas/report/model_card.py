"""The model card of a published model: `README.md`, as the Hugging Face Hub shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ConfigDict, Field

from prenas import artifacts
from prenas.cost import AXES, shown_axes
from prenas.recipe.data import FOLDER, OWN_DATA
from prenas.recipe.fields import names_a_file
from prenas.report.classes import MOST_ROWS, ClassResult, class_results
from prenas.report.forms import NONE, percent
from prenas.report.markdown import code, escape, table
from prenas.report.sections import folded_recipe, how_it_was_made, images_in_words
from prenas.values import Amount, Value, plural

if TYPE_CHECKING:
    from prenas.evaluation.accuracy import Metrics
    from prenas.models.export import Description
    from prenas.recipe import Recipe
    from prenas.runs.images import RecordedImages
    from prenas.selection.preferred import PreferredSet

_HUB_LICENCES = frozenset(
    {
        "apache-2.0",
        "bsd-2-clause",
        "bsd-3-clause",
        "cc-by-4.0",
        "cc-by-nc-4.0",
        "cc-by-sa-4.0",
        "cc-by-nc-sa-4.0",
        "cc0-1.0",
        "mit",
    }
)
"""Licences that the Hub knows by these names; any other is declared as `other`, with its name."""

_TASK = "image-classification"

_OF_A_FILE = (
    "The weights were given as a file; licence and origin are those that timm states for the model."
)


class OfRun(NamedTuple):
    """What a run knows about one of its models, beyond the model folder."""

    name: str
    """Of the run's folder."""
    preferred: PreferredSet
    number: int
    """Of the subnet."""
    splits: Mapping[str, Metrics]
    """Results by split; empty before the evaluation."""
    images: RecordedImages | None


class _Recorded(Value):
    """What a model's folder says about it, as far as the card needs it."""

    model_config = ConfigDict(extra="ignore")


class _Accuracy(_Recorded):
    top1: float
    top5: float | None = None
    loss: float
    num_images: Amount


class _Source(_Recorded):
    name: str | None = None
    origin: str | None = None


class Provenance(_Recorded):
    """Where a model comes from, as `arch.json` has it."""

    recipe: str | None = None
    seed: int | None = None
    costs: dict[str, Amount] = Field(default_factory=dict)
    evaluation: dict[str, _Accuracy] = Field(default_factory=dict)
    """By split, when it was handed over."""
    source: _Source | None = None
    commit: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)


class Published(NamedTuple):
    """A model, and where it will be found."""

    repo: str
    description: Description
    provenance: Provenance
    run: OfRun | None
    """None if the model lies in no run."""


def model_card(model: Published) -> str:
    """The whole page: what the Hub reads, then what people read."""
    from huggingface_hub import ModelCardData

    licence = model.description.licence
    known = licence is not None and licence.lower() in _HUB_LICENCES
    header = ModelCardData(
        library_name="timm",
        pipeline_tag=_TASK,
        tags=[_TASK, "timm", "prenas"],
        license=None if licence is None else licence.lower() if known else "other",
        license_name=None if licence is None or known else licence,
        model_name=model.repo.rpartition("/")[2],
        eval_results=_results_for_hub(model) or None,
    )
    sections = (_summary, _use, _accuracy, _classes, _budget, _data, _making, _licence)
    text = "\n\n".join(part for section in sections for part in section(model))
    return f"---\n{header.to_yaml()}\n---\n\n{text}\n"


def _splits(model: Published) -> dict[str, Mapping[str, Any]]:
    """Split -> top-1, loss and so on: of the run, or as they were when it was handed over."""
    if model.run is not None and model.run.splits:
        return {name: metrics.summary for name, metrics in model.run.splits.items()}
    return {name: found.model_dump() for name, found in model.provenance.evaluation.items()}


def _results_for_hub(model: Published) -> list[Any]:
    from huggingface_hub import EvalResult

    data = "unknown" if model.run is None else _name_of_data(model.run.preferred.recipe)
    return [
        EvalResult(
            task_type=_TASK,
            dataset_type=data.replace(" ", "-"),
            dataset_name=data,
            dataset_split=name,
            metric_type="accuracy",
            metric_name="top-1 accuracy",
            metric_value=round(numbers["top1"], 4),
        )
        for name, numbers in _splits(model).items()
    ]


def _name_of_data(recipe: Recipe) -> str:
    if recipe.data is None:
        return "no data"
    return "own pictures" if recipe.data.name in (FOLDER, OWN_DATA) else recipe.data.name


def _summary(model: Published) -> list[str]:
    arch, settings = model.description.arch, model.description.settings
    costs = model.provenance.costs
    known = {name: costs[name] for name in AXES if name in costs}
    height, width = settings.image_size
    rows = [["architecture", escape(arch.summary)]]
    rows += [["cost", escape(axis.in_words(known[axis.name]))] for axis in shown_axes([known])]
    rows += [
        ["input", f"{settings.in_chans} x {height} x {width}"],
        ["classes", f"{settings.num_classes:,}"],
    ]
    return [
        f"# {escape(model.repo.rpartition('/')[2])}",
        "An image classifier, made with prenas, which implements PreNAS ([Wang et al., ICML "
        "2023](https://arxiv.org/abs/2304.14636)).",
        table(["item", "value"], rows, left=["item", "value"]),
    ]


def _use(model: Published) -> list[str]:
    name = f"hf-hub:{model.repo}"
    mode = "L" if model.description.settings.in_chans == 1 else "RGB"
    return [
        "## Use",
        code(
            "import prenas  # adds its networks to timm\n"
            "import timm\n\n"
            f'network = timm.create_model("{name}", pretrained=True).eval()\n'
            "config = timm.data.resolve_model_data_config(network)\n"
            "transform = timm.data.create_transform(**config, is_training=False)\n"
            f'logits = network(transform(picture.convert("{mode}"))[None])  # a PIL image',
            "python",
        ),
        f"`prenas.load(FOLDER)` loads the same from a downloaded copy. `{artifacts.MODEL_ARCH}` "
        "has the names of the classes, in the order of the logits.",
    ]


def _accuracy(model: Published) -> list[str]:
    found = _splits(model)
    if not found:
        return ["## Accuracy", "Not measured."]
    with_top5 = any(numbers.get("top5") is not None for numbers in found.values())
    rows = [
        [
            escape(name),
            f"{numbers['num_images']:,}",
            percent(numbers["top1"]),
            *([_share(numbers.get("top5"))] if with_top5 else []),
            f"{numbers['loss']:.3f}",
        ]
        for name, numbers in found.items()
    ]
    heads = ["split", "images", "top-1, %", *(["top-5, %"] if with_top5 else []), "loss"]
    return [
        "## Accuracy",
        table(heads, rows, left=["split"]),
        "Subnets are chosen by validation; a test split chose nothing.",
    ]


def _share(share: float | None) -> str:
    return NONE if share is None else percent(share)


def _classes(model: Published) -> list[str]:
    """Right answers per class and split, the weakest classes of the last split first."""
    if model.run is None:
        return []
    names = model.description.class_names
    results = {
        split: {one.name: one for one in class_results(metrics, names)}
        for split, metrics in model.run.splits.items()
    }
    results = {split: found for split, found in results.items() if found}
    if not results:
        return []
    of_last = [*results.values()][-1]
    order = dict.fromkeys([*of_last, *(name for found in results.values() for name in found)])
    shown = [*order][:MOST_ROWS]
    rows = [
        [escape(name), *(_of_class(found.get(name)) for found in results.values())]
        for name in shown
    ]
    heads = ["class", *(f"{escape(split)}, % right (images)" for split in results)]
    left_out = len(order) - len(shown)
    more = plural(left_out, "class that does", "classes that do")
    return [
        "### By class",
        table(heads, rows, left=["class"]),
        *([f"{more} better not shown."] if left_out else []),
    ]


def _of_class(found: ClassResult | None) -> str:
    return NONE if found is None else f"{percent(found.accuracy)} ({found.num_images:,})"


def _budget(model: Published) -> list[str]:
    if model.run is None:
        return []
    preferred = model.run.preferred
    budgets = [
        escape(preferred.budgets[choice.budget])
        for choice in preferred.choices
        if choice.subnet == model.run.number
    ]
    return ["## Budget", f"{'; '.join(budgets) or 'none'}."]


def _data(model: Published) -> list[str]:
    if model.run is None:
        return ["## Data", "Not recorded with this model."]
    images = model.run.images
    lines = [f"Images: {escape(_name_of_data(model.run.preferred.recipe))}."]
    if images is not None:
        lines.append(f"{images_in_words(images)}.")
        lines += [f"{escape(note)}." for note in images.notes]
        if images.fingerprint is not None:
            lines.append(f"Fingerprint of names, labels and sizes: `{images.fingerprint}`.")
    return ["## Data", " ".join(lines)]


def _making(model: Published) -> list[str]:
    made = model.provenance
    rows = [
        ["recipe", escape(made.recipe or "not recorded")],
        ["seed", "not recorded" if made.seed is None else str(made.seed)],
        ["commit of prenas", escape(made.commit or "not recorded")],
        *([escape(name), escape(number)] for name, number in made.versions.items()),
    ]
    parts = ["## How it was made", table(["item", "value"], rows, left=["item", "value"])]
    if model.run is not None:
        parts.append(how_it_was_made(model.run.preferred, model.run.name))
        parts.append(folded_recipe(model.run.preferred.recipe))
    return parts


def _licence(model: Published) -> list[str]:
    source = model.provenance.source
    imported = model.run.preferred.origin if model.run is not None else None
    if source is not None:
        licence = escape(model.description.licence or "not stated by their source")
        origin = f", from {escape(source.origin)}" if source.origin else ""
        text = (
            f"Made from the weights of {escape(source.name or 'a source')}{origin}. "
            f"Licence of these source weights: {licence}."
        )
        if names_a_file(source.name or ""):
            text += f" {_OF_A_FILE}"
    elif imported is not None:
        text = f"{escape(imported.summary)}. The licence of these source weights is not recorded."
    elif model.run is not None:
        text = "Trained from random weights, so there are no source weights with a licence."
    else:
        text = "Whether there were source weights is not recorded with this model."
    return ["## Licence of the source weights", text]


def missing_facts(model: Published) -> Sequence[str]:
    """What a reader would expect on the page and nobody recorded, in words."""
    commit = model.provenance.commit
    found = []
    if model.run is None:
        found.append("the model lies in no run, so budget, data and classes are not on its card")
    if commit is None:
        found.append("the commit of prenas is not known")
    elif commit.endswith("-dirty"):
        found.append("prenas had changes that were not committed when the model was handed over")
    if model.description.licence is None and model.provenance.source is not None:
        found.append("the source of the weights states no licence")
    return found
