"""Recipes: checked when made, changed by name, saved whole, and read to the last field."""

import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest
import torch
from pydantic import ValidationError
from torch.utils.data import TensorDataset
from typer.testing import CliRunner

import prenas
from families.drawing import fill_as_trained, timm_space
from prenas import artifacts, pipeline
from prenas.cli import app
from prenas.data import ImageData
from prenas.families import build, get_space
from prenas.families.base import SearchSpace, Settings
from prenas.families.vit.space import VitSettings
from prenas.proxy.scores import PUBLISHED_SCORE, UNIT_SCORES
from prenas.recipe import (
    EvolutionRecipe,
    Recipe,
    SearchRecipe,
    TeacherRecipe,
    TrainingRecipe,
    differences,
    flat_fields,
    recipe_from_dict,
    with_overrides,
)
from prenas.recipe.catalogue import RECIPES, get_recipe
from prenas.recipe.data import Augmentation, DataRecipe, Preprocessing
from prenas.selection.trained import search_trained
from prenas.supernet import Supernet
from prenas.values import Value
from test_pipeline_convolutional import recipe_of as conv_recipe
from training.runs import MINI, mini_recipe

RECIPES_MADE = [get_recipe(name) for name in RECIPES]


# --- every field means something -----------------------------------------------------------------


def parts(value: Value) -> Iterator[Value]:
    """A recipe and all the values it is made of."""
    yield value
    for name in type(value).model_fields:
        field = getattr(value, name)
        if isinstance(field, Value):
            yield from parts(field)


def _is_property(owner: type, name: str) -> bool:
    return isinstance(inspect.getattr_static(owner, name), property)


def reader(frame: FrameType, owner: type) -> str | None:
    """The file of the package that reads a field for use; None where a check or a dump reads it.

    A property of the value itself only passes the field on, so its caller counts.
    """
    home = Path(prenas.__file__).parent
    is_passed_on = {"spy", *(name for name in dir(owner) if _is_property(owner, name))}
    while frame.f_code.co_name in is_passed_on:
        assert frame.f_back is not None
        frame = frame.f_back
    path = Path(frame.f_code.co_filename)
    is_validator = frame.f_back is not None and "pydantic" in frame.f_back.f_code.co_filename
    if is_validator or not path.is_relative_to(home):
        return None
    name = str(path.relative_to(home))
    return None if name.startswith("recipe/") else name


def _with_everything_on() -> DataRecipe:
    """The digits with every augmentation that has fields of its own, in the least amount."""
    digits = get_recipe("digits").data
    assert digits is not None
    augmentation = Augmentation(
        crop_scale=(0.9, 1.0), flip=0.1, crop_padding=1, erasing=0.1, mixup=0.1, cutmix=0.1
    )
    return digits.model_copy(update={"augmentation": augmentation})


def _search_in_a_trained_network() -> None:
    space = timm_space("test_resnet", 40)
    recipe = Recipe(
        name="cut", space=space, search=SearchRecipe(budgets=("params=1G",), score="weight")
    )
    network = fill_as_trained(build(space.largest, space.settings))
    supernet = Supernet.around(network, space.largest, space.settings)
    split = TensorDataset(torch.zeros(1, 3, 40, 40), torch.zeros(1).long())
    images = ImageData(train=split, validation=split, test=None, class_names=("a", "b"))
    search_trained(recipe, supernet, images, source="somewhere", sha256="0" * 64)


def test_every_field_is_read_by_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A field that nothing outside recipe/ reads promises what it does not keep."""
    # Settings unlike any other test's, so that nothing that reads them is cached yet.
    space = MINI.with_settings(head_dim=3, max_distance=1)
    recipe = mini_recipe(
        space=space,
        search={"strategy": "skeletons"},
        training={"epochs": 1},
        data=_with_everything_on(),
        evolution=EvolutionRecipe(population=3, generations=2, num_parents=2),
    )
    reads: set[tuple[str, str]] = set()

    def spy(self: Value, name: str) -> object:
        field = type(self).__name__, name
        is_new = name in type(self).model_fields and field not in reads
        if is_new and reader(sys._getframe(1), type(self)):
            reads.add(field)
        return object.__getattribute__(self, name)

    monkeypatch.setattr(Value, "__getattribute__", spy, raising=False)
    pipeline.run(recipe, tmp_path / "run")
    assert CliRunner().invoke(app, ["info", str(tmp_path / "run")]).exit_code == 0
    small = {"population": 2, "generations": 1, "num_parents": 1}
    convolutional = conv_recipe(training={"epochs": 1}, evolution=EvolutionRecipe(**small))
    pipeline.run(convolutional, tmp_path / "convolutional")
    _search_in_a_trained_network()
    monkeypatch.undo()

    promised = {
        (type(part).__name__, name)
        for whole in (recipe, *(get_recipe(name) for name in RECIPES))
        for part in parts(whole)
        for name in type(part).model_fields
    }
    assert len(promised) > 40
    assert sorted(promised - reads) == []


# --- overrides -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("training.epochs=7", lambda r: r.training.epochs == 7),
        ("training.clip_grad_norm=null", lambda r: r.training.clip_grad_norm is None),
        ("search.keep_partial=true", lambda r: r.search.keep_partial is True),
        ("search.images=data", lambda r: r.search.images == "data"),
        ('search.images="data"', lambda r: r.search.images == "data"),
        ('search.budgets=["params=60k", "macs=1M"]', lambda r: len(r.search.budgets) == 2),
        ("data.preprocessing.mean=[0.25]", lambda r: r.data.preprocessing.mean == (0.25,)),
        ("data.augmentation.shift_pixels=2.5", lambda r: r.data.augmentation.shift_pixels == 2.5),
        ("space.embed_dim=[8, 16]", lambda r: r.space.embed_dim == (8, 16)),
        ("space.settings.num_classes=12", lambda r: r.space.settings.num_classes == 12),
        ("space=tiny", None),  # three channels, one mean: refused below, by name
        ("data.test=none", lambda r: r.data.test == "none"),
        ("seed=3", lambda r: r.seed == 3),
        (" training.epochs =7", lambda r: r.training.epochs == 7),
    ],
)
def test_an_override_changes_its_field_only(override: str, read) -> None:
    recipe = get_recipe("digits")
    if read is None:
        with pytest.raises(ValueError, match=r"preprocessing\.mean has 1 values.* 3 chan"):
            with_overrides(recipe, [override])
        return
    changed = with_overrides(recipe, [override])
    assert read(changed)
    assert not read(recipe)
    field = override.partition("=")[0].strip()
    assert [line.partition(":")[0] for line in differences(recipe, changed)] == [field]


def test_none_is_a_value_of_some_fields() -> None:
    """Of others, it is no value at all."""
    recipe = get_recipe("digits")
    for field in ("training.freeze", "training.class_weights"):
        other = {"training.freeze": "backbone", "training.class_weights": "balanced"}[field]
        changed = with_overrides(recipe, [f"{field}={other}", f"{field}=none"])
        assert changed == recipe
    assert with_overrides(recipe, ["data.test=none", "data.test=null"]) == recipe
    with pytest.raises(ValueError, match="training"):
        with_overrides(recipe, ["training=5", "training.teacher.name=x"])


def test_overrides_apply_in_order_and_together() -> None:
    recipe = get_recipe("digits")
    assert with_overrides(recipe, []) == recipe
    assert with_overrides(recipe, "seed=2") == with_overrides(recipe, ["seed=2"])
    changed = with_overrides(recipe, ["seed=1", "training.epochs=9", "seed=2"])
    assert (changed.seed, changed.training and changed.training.epochs) == (2, 9)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["training.steps=2000"], (None, 2000, 0)),
        (["training.epochs=3"], (3, None, 0)),
        (["training.min_steps=70"], (60, None, 70)),
        (["training.epochs=3", "training.min_steps=70"], (3, None, 70)),
        (["training.min_steps=70", "training.epochs=3"], (3, None, 70)),
        (["training.steps=2000", "training.epochs=none"], (None, 2000, 0)),
        (["training.batch_size=8"], (60, None, 500)),
    ],
)
def test_a_given_length_replaces_the_recipes(
    overrides: list[str], expected: tuple[int | None, int | None, int]
) -> None:
    """Epochs, steps and the floor: a floor of the recipe must not lengthen what a user asks for."""
    recipe = with_overrides(get_recipe("photos"), ["training.min_steps=500"])
    training = with_overrides(recipe, overrides).training
    assert training is not None
    assert (training.epochs, training.steps, training.min_steps) == expected
    steps = with_overrides(recipe, ["training.steps=9"])  # and the other way round
    back = with_overrides(steps, ["training.epochs=4"]).training
    assert back is not None
    assert (back.epochs, back.steps) == (4, None)


def test_two_given_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"epochs is 3 and steps is 9, but only one of them"):
        with_overrides(get_recipe("photos"), ["training.epochs=3", "training.steps=9"])


@pytest.mark.parametrize(
    ("override", "field", "given"),
    [
        ("training.epochs=three", "training.epochs", "three"),
        ("training.epochs=2.5", "training.epochs", "2.5"),
        ("training.epochs=0", "training.epochs", "0"),
        ("training.epochs=null", "training.epochs", "None"),
        ("training.epochs=[1, 2]", "training.epochs", "[1, 2]"),
        ("training.label_smoothing=NaN", "training.label_smoothing", "nan"),
        ("training.drop_path=1", "training.drop_path", "1"),
        ("training.lr_per_512_images=-1e-3", "training.lr_per_512_images", "-0.001"),
        ("training.clip_grad_norm=0", "training.clip_grad_norm", "0"),
        ("seed=-1", "seed", "-1"),
        ("search.k=0", "search.k", "0"),
        ("search.num_images=0", "search.num_images", "0"),
        ("search.isomers=fancy", "search.isomers", "fancy"),
        ("search.power=0", "search.power", "0"),
        ("search.images=photos", "search.images", "photos"),
        ("search.budgets=params=40k", "search.budgets", "params=40k"),
        ("search.keep_partial=perhaps", "search.keep_partial", "perhaps"),
        ("data.preprocessing.crop_pct=0", "data.preprocessing.crop_pct", "0"),
        ("data.preprocessing.interpolation=cubic", "data.preprocessing.interpolation", "cubic"),
        ("data.preprocessing.mean=0.5", "data.preprocessing.mean", "0.5"),
        ("data.preprocessing.std=[0.0]", "data.preprocessing.std", "0.0"),
        ("data.augmentation.scale=1", "data.augmentation.scale", "1"),
        ("space.embed_dim=[16, 8]", "embed_dim", "[16, 8]"),
        ("space.settings.patch_size=3", "settings", "patch_size 3"),
    ],
)
def test_a_wrong_value_is_refused_by_name(override: str, field: str, given: str) -> None:
    """The message names the field and repeats what was given."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        with_overrides(get_recipe("digits"), [override])
    assert not isinstance(caught.value, ValidationError)
    message = str(caught.value)
    assert field in message
    assert given in message
    assert "validation error" not in message
    assert len(message) < 300


def test_the_published_rule_is_read_by_its_former_name() -> None:
    found = with_overrides(get_recipe("digits"), ["search.isomers=normalised"])
    assert found == get_recipe("digits")
    assert found.search.isomers == "published"


@pytest.mark.parametrize("score", ["entropy", "abs_sum_weight_times_gradient", *UNIT_SCORES])
def test_powers_are_refused_for_scores_that_are_no_sums_over_layers(score: str) -> None:
    with pytest.raises(ValueError, match=r"search\.power 0\.5 applies .* set search.power=1"):
        SearchRecipe(budgets=("params=6M",), score=score, power=0.5)
    assert SearchRecipe(budgets=("params=6M",), score=score, power=1).power == 1


def test_all_wrong_fields_are_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"training\.epochs") as caught:
        with_overrides(get_recipe("digits"), ["training.epochs=0", "search.k=0"])
    assert "search.k" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("training.epoch=3", "training.epochs"),
        ("epochs=3", "training.epochs"),
        ("serach.k=2", "search.k"),
        ("data.preprocessing.means=[0]", "data.preprocessing.mean"),
        ("training.epochs.more=3", "training.epochs"),
        ("sead=3", "seed"),
    ],
)
def test_an_unknown_field_offers_the_nearest(override: str, nearest: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        with_overrides(get_recipe("digits"), [override])
    message = str(caught.value)
    assert override.partition("=")[0].rpartition(".")[0] in message
    hint = message.partition("available:")[0]
    # A path below a plain value names that value; any other unknown name offers its neighbours.
    assert repr(nearest) in hint


@pytest.mark.parametrize("override", ["training.epochs=3", "data.preprocessing.mean=[0.5]"])
def test_a_path_into_a_missing_section_says_so(override: str) -> None:
    section = override.partition(".")[0]
    with pytest.raises(ValueError, match=f"'tiny' has no '{section}'"):
        with_overrides(get_recipe("tiny"), [override])


def test_a_missing_section_can_be_given_whole() -> None:
    changed = with_overrides(get_recipe("tiny"), ['training={"epochs": 3}', 'data={"name": "own"}'])
    assert changed.training == TrainingRecipe(epochs=3)
    assert changed.data == DataRecipe(name="own")


def test_what_a_whole_group_leaves_out_can_be_given_later() -> None:
    given = ['training={"epochs": 3}', "data.augmentation={}", "training.min_lr=0.5"]
    changed = with_overrides(get_recipe("photos"), [*given, "data.augmentation.flip=0.25"])
    assert changed.training == TrainingRecipe(epochs=3, min_lr=0.5)
    assert changed.data is not None
    assert changed.data.augmentation == Augmentation(flip=0.25)
    with pytest.raises(ValueError, match=r"training\.epochs.* -1"):
        with_overrides(get_recipe("digits"), ['training={"epochs": -1}'])


def test_paths_are_kept_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run goes on from another folder; names of data sets and of timm models stay names."""
    for folder in ("pictures", "teacher", "resnet18"):
        (tmp_path / folder).mkdir()
    (tmp_path / "teacher" / artifacts.MODEL_ARCH).write_text("{}")
    (tmp_path / "teacher.pth").write_text("")
    monkeypatch.chdir(tmp_path)
    recipe = get_recipe("photos")

    def kept(*overrides: str) -> tuple[str | None, ...]:
        changed = with_overrides(recipe, overrides)
        assert changed.data is not None
        assert changed.training is not None
        teacher = changed.training.teacher
        return (changed.data.root, teacher and teacher.name, teacher and teacher.weights)

    here = str(tmp_path.resolve())
    named = "training.teacher.name="
    assert kept("data.root=pictures")[0] == f"{here}/pictures"
    for nowhere in ("elsewhere", "x" * 5_000, "~nobody-of-this-name/x"):
        assert kept(f"data.root={nowhere}")[0] == nowhere
    assert kept(f"{named}./teacher")[1] == f"{here}/teacher"
    assert kept(f"{named}resnet18", "training.teacher.weights=teacher.pth")[1:] == (
        "resnet18",
        f"{here}/teacher.pth",
    )


@pytest.mark.parametrize(
    ("given", "kind"),
    [(True, "cross_entropy"), (False, None), (None, None), ("kl", "kl"), ("alpha", "alpha")],
)
def test_in_place_distillation_reads_what_older_recipes_saved(given: object, kind: object) -> None:
    fields = {"epochs": 1, "sandwich": 2, "inplace_distillation": given}
    recipe = TrainingRecipe.model_validate(fields)
    assert recipe.inplace_distillation == kind
    assert TrainingRecipe.model_validate_json(recipe.model_dump_json()) == recipe
    word = json.dumps(given) if given is None or isinstance(given, bool) else given
    words = ["training.sandwich=2", f"training.inplace_distillation={word}"]
    changed = with_overrides(get_recipe("digits"), words).training
    assert changed is not None
    assert changed.inplace_distillation == kind


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["training.inplace_distillation=alpha"], "also set sandwich"),
        (
            ["training.sandwich=2", "training.inplace_distillation=hard"],
            r"training\.inplace_distillation: .*'cross_entropy', 'kl' or 'alpha'",
        ),
        (
            ["training.drops_in=largest"],
            "without a sandwich no subnet of a step is the largest: set sandwich",
        ),
        (["training.drops_in=first"], r"training\.drops_in: .*'all' or 'largest'"),
        (
            ["training.clip_grad_value=0.5"],
            r"clip_grad_norm 1\.0 and clip_grad_value 0\.5 cannot be combined: set one .* to none",
        ),
        (["training.clip_grad_value=0"], r"training\.clip_grad_value.*0"),
        (["training.dropout=1"], r"training\.dropout.*1"),
        (["training.optimizer=rmsprop"], r"training\.optimizer.*'masked_adamw' or 'sgd'"),
    ],
)
def test_what_does_not_go_together_in_training_is_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        with_overrides(get_recipe("digits"), overrides)


@pytest.mark.parametrize(
    ("overrides", "evolution"),
    [
        (["evolution={}"], EvolutionRecipe()),
        (["evolution.generations=5"], EvolutionRecipe(generations=5)),
        (["evolution={}", "evolution.generations=5"], EvolutionRecipe(generations=5)),
        (
            ['evolution={"population": 70}', "evolution.num_images=9"],
            EvolutionRecipe(population=70, num_images=9),
        ),
        (["evolution.generations=5", "evolution=none"], None),
    ],
)
def test_evolution_is_switched_on_by_any_word_about_it(
    overrides: list[str], evolution: EvolutionRecipe | None
) -> None:
    assert get_recipe("digits").evolution is None
    assert with_overrides(get_recipe("digits"), overrides).evolution == evolution


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("evolution.generation=5", "'evolution.generations'"),
        ("evolution.generations=0", r"evolution\.generations"),
        ("evolution.num_parents=51", r"evolution: num_parents 51 .* population 50: lower it"),
        ("evolution.mutation_prob=1.5", r"evolution\.mutation_prob"),
        ("evolution=5", "evolution"),
    ],
)
def test_a_wrong_evolution_is_refused(override: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        with_overrides(get_recipe("digits"), [override])


def test_evolution_needs_training() -> None:
    with pytest.raises(ValueError, match=r"evolution searches a trained supernet, .* no training"):
        with_overrides(get_recipe("tiny"), ["evolution={}"])


def test_the_whole_space_is_not_compiled() -> None:
    with pytest.raises(
        ValueError, match=r"almost every step has a new subnet: set training\.compile"
    ):
        with_overrides(get_recipe("digits-one-shot"), ["training.compile=true"])


def test_the_rival_is_the_digits_with_evolution() -> None:
    """Nothing else differs, so that the two can be compared; the values are AutoFormer's."""
    rival = get_recipe("digits-one-shot")
    assert rival == with_overrides(get_recipe("digits"), ["evolution={}", "name=digits-one-shot"])
    assert rival.evolution == EvolutionRecipe(
        population=50,
        generations=20,
        num_parents=10,
        num_mutations=25,
        num_crossovers=25,
        mutation_prob=0.2,
        depth_mutation_prob=0.4,
        num_images=None,
    )


def test_an_override_without_a_value_says_how_to_write_one() -> None:
    with pytest.raises(ValueError, match=r"'training.epochs'.*FIELD=VALUE"):
        with_overrides(get_recipe("digits"), ["training.epochs"])


# --- as a value ----------------------------------------------------------------------------------


def test_recipes_survive_json() -> None:
    for recipe in RECIPES_MADE:
        again = recipe_from_dict(json.loads(json.dumps(recipe.model_dump(mode="json"))))
        assert again == recipe
        assert hash(again) == hash(recipe)
        assert type(again.space) is type(recipe.space)


def test_the_mini_recipe_survives_json_with_its_space() -> None:
    recipe = mini_recipe()
    again = recipe_from_dict(json.loads(json.dumps(recipe.model_dump(mode="json"))))
    assert again == recipe
    assert again.space.num_archs == recipe.space.num_archs == 40


def test_recipes_are_frozen_and_hashable() -> None:
    for recipe in RECIPES_MADE:
        for part in parts(recipe):
            name = next(iter(type(part).model_fields))
            with pytest.raises(ValidationError, match="frozen"):
                setattr(part, name, getattr(part, name))
        same, other = get_recipe(recipe.name), recipe.model_copy(update={"seed": 1})
        assert len({recipe, same, other}) == 2


def test_recipes_from_fields_are_checked_too() -> None:
    fields = get_recipe("digits").model_dump(mode="json")
    with pytest.raises(ValueError, match="colour: Extra inputs"):
        recipe_from_dict({**fields, "colour": "red"})
    with pytest.raises(ValueError, match="search: Field required"):
        recipe_from_dict({key: value for key, value in fields.items() if key != "search"})
    with pytest.raises(ValueError, match="unknown space 'tinny': did you mean 'tiny'"):
        recipe_from_dict({**fields, "space": "tinny"})
    with pytest.raises(ValueError, match=r"unknown family 'vitt'.*available: "):
        recipe_from_dict({**fields, "space": {**fields["space"], "family": "vitt"}})
    assert recipe_from_dict({**fields, "space": "digits"}) == get_recipe("digits")


def test_differences_are_one_line_per_field() -> None:
    digits, tiny = with_overrides(get_recipe("digits"), ["training.epochs=120"]), get_recipe("tiny")
    assert differences(tiny, get_recipe("tiny")) == []
    changed = with_overrides(digits, ["training.epochs=3", 'search.budgets=["params=60k"]'])
    assert differences(digits, changed) == [
        f'search.budgets: {json.dumps(digits.search.budgets)} -> ["params=60k"]',
        "training.epochs: 120 -> 3",
    ]
    assert differences(changed, digits)[1] == "training.epochs: 3 -> 120"
    with_data = with_overrides(tiny, ['data={"name": "own"}'])
    assert 'data.name: null -> "own"' in differences(tiny, with_data)
    assert 'data.name: "own" -> null' in differences(with_data, tiny)


def test_differences_say_only_what_differs_and_shorten_what_is_long() -> None:
    """Spaces of another family have other fields, and some have a list for every block."""
    digits, other = get_recipe("digits"), get_recipe("mobilenet-micro")
    lines = differences(digits, other)
    assert lines
    assert not [line for line in lines if line.endswith("null -> null")]
    budgets = [f"params={number}k" for number in range(50, 250)]
    changed = with_overrides(digits, [f"search.budgets={json.dumps(budgets)}"])
    (line,) = differences(digits, changed)
    assert line.endswith('"params=249k"]')
    assert " ... " in line
    assert len(line) < 1000


def test_flat_fields_are_what_overrides_take() -> None:
    """Every name that is listed can be set, to the value it has."""
    recipe = get_recipe("digits")
    names = [f"{name}={json.dumps(value)}" for name, value in flat_fields(recipe)]
    assert len(names) > 30
    assert with_overrides(recipe, names) == recipe


# --- fields that must agree ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mean", "std"])
@pytest.mark.parametrize("numbers", [(0.5, 0.5, 0.5), ()])
def test_one_mean_and_deviation_per_channel(name: str, numbers: tuple[float, ...]) -> None:
    values = {"mean": (0.5,), "std": (0.5,), name: numbers}
    with pytest.raises(ValueError, match=f"{name}|deviations"):
        mini_recipe(data=DataRecipe(name="digits", preprocessing=Preprocessing(**values)))


def test_without_data_the_channels_must_be_imagenets() -> None:
    with pytest.raises(ValueError, match=r"preprocessing\.mean has 3 values.* 1 channels"):
        mini_recipe(data=None)


@pytest.mark.parametrize(
    ("budgets", "words"),
    [
        ((), "no budget given"),
        (("params",), "'params'"),
        (("parms=6M",), "did you mean 'params'"),
        (("params=6X",), "'6X'"),
        (("params=6M:5M",), "'params=6M:5M' is empty"),
        (("params=1M:2M:3M",), "shorter than one step"),
        (("params=1M:2M,params=3M",), "limits params twice"),
        (("params=1M:9M:1M,macs=1G:9G:1G",), "a step on two axes"),
    ],
)
def test_bad_budgets_are_refused_with_the_recipe(budgets: tuple[str, ...], words: str) -> None:
    """Not an hour later, when the search gets to them."""
    with pytest.raises(ValidationError, match=words):
        SearchRecipe(budgets=budgets)


def test_an_unknown_score_offers_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown score 'sum_abs_weights'.*'sum_abs_weight'"):
        mini_recipe(search={"score": "sum_abs_weights"})
    assert mini_recipe(search={"score": "entropy"}).search.score == "entropy"


def test_a_search_on_data_needs_data() -> None:
    with pytest.raises(ValueError, match=r"search\.images is 'data', but the recipe has no data"):
        Recipe(
            name="no data",
            space=get_space("tiny"),
            search=SearchRecipe(budgets=("params=6M",), images="data"),
        )


def test_peak_learning_rate_grows_with_the_batch() -> None:
    """The published rule: 5e-4 * total batch / 512."""
    published = TrainingRecipe(epochs=500, batch_size=1024)
    assert published.peak_lr == pytest.approx(1e-3)
    assert TrainingRecipe(epochs=500, batch_size=64).peak_lr == pytest.approx(6.25e-5)


# --- the table of recipes ------------------------------------------------------------------------


def test_the_papers_recipes_search_the_papers_spaces() -> None:
    """Method section 1, the table of spaces."""
    budgets = {
        "tiny": "params=5M:12M:1M",
        "small": "params=13M:33M:5M",
        "base": "params=30M:70M:12M",
    }
    for name, budget in budgets.items():
        recipe = get_recipe(name)
        assert recipe.space == get_space(name)
        assert recipe.search.budgets == (budget,)
        assert recipe.search == SearchRecipe(budgets=(budget,))  # all else as published
        assert (recipe.search.k, recipe.search.num_images) == (1, 64)


@pytest.mark.parametrize("name", ["tiny", "small", "base", "mobilenet"])
def test_the_papers_recipes_name_their_rules_whatever_the_defaults_are(name: str) -> None:
    search = get_recipe(name).search
    assert (search.score, search.isomers) == (PUBLISHED_SCORE, "published")
    assert {"score", "isomers"} <= search.model_fields_set
    if name != "mobilenet":
        assert search == get_recipe(f"imagenet-{name}").search


def test_a_recipe_stands_under_its_name() -> None:
    for recipe in RECIPES_MADE:
        assert RECIPES[recipe.name]() == recipe
        assert isinstance(recipe.space, SearchSpace)
        assert isinstance(recipe.space.settings, (Settings, VitSettings))


def test_an_unknown_recipe_offers_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown recipe 'digit': did you mean 'digits'"):
        get_recipe("digit")
    with pytest.raises(ValueError, match=f"available: {', '.join(sorted(RECIPES))}$"):
        get_recipe("zzz")


# --- the published recipes (docs/method.md; the paper's released settings) ----------------------

PUBLISHED = {
    "training.epochs": 500,
    "training.warmup_epochs": 20,
    "training.warmup_lr": 1e-6,
    "training.weight_decay": 0.05,
    "training.batch_size": 8 * 128,
    "training.lr_per_512_images": 5e-4,
    "training.label_smoothing": 0.1,
    "training.drop_path": 0.1,
    "training.clip_grad_norm": None,
    "data.augmentation.mixup": 0.8,
    "data.augmentation.cutmix": 1.0,
    "data.augmentation.mixing_mode": "elem",
    "data.augmentation.mixing_switch": 0.5,
    "data.augmentation.mixing_prob": 1.0,
    "data.augmentation.color_jitter": 0.4,
    "data.augmentation.erasing": 0.25,
    "data.augmentation.erasing_mode": "pixel",
    "data.augmentation.repeats": 3,
    "data.augmentation.crop_scale": [0.08, 1.0],
    "data.augmentation.flip": 0.5,
    "data.preprocessing.interpolation": "bicubic",
    "data.preprocessing.crop_pct": 224 / 256,
    "space.settings.image_size": [224, 224],
    "space.settings.num_classes": 1000,
}
WHERE_THEY_DIFFER = {
    "imagenet-tiny": ("rand-n3-m10-mstd0.5-inc1", 2, 1e-7),
    "imagenet-small": ("v0r-mstd0.5", 1, 1e-5),
    "imagenet-base": ("rand-n3-m10-mstd0.5-inc1", 2, 1e-7),
}


@pytest.mark.parametrize("name", WHERE_THEY_DIFFER)
def test_imagenet_recipes_are_the_published_ones(name: str) -> None:
    fields = dict(flat_fields(get_recipe(name)))
    policy, erasing_count, min_lr = WHERE_THEY_DIFFER[name]
    own = {
        "data.augmentation.auto_augment": policy,
        "data.augmentation.erasing_count": erasing_count,
        "training.min_lr": min_lr,
        "space.name": name.removeprefix("imagenet-"),
    }
    for field, value in {**PUBLISHED, **own}.items():
        assert fields[field] == value, field


def test_every_recipe_states_source_or_data_cost_and_command() -> None:
    for recipe in RECIPES_MADE:
        text = " ".join((RECIPES[recipe.name].__doc__ or "").split())
        assert "Cost:" in text, recipe.name
        command = "search" if recipe.training is None else "run"
        assert f"Command: `prenas {command} {recipe.name} " in text
        if recipe.training is not None:
            assert "Source:" in text or "Data:" in text or recipe.name == "photos", recipe.name


def test_a_teacher_is_named_field_by_field() -> None:
    words = ["training.teacher.name=runs/a/subnets/05", "training.teacher.loss=soft"]
    recipe = with_overrides(mini_recipe(), words)
    assert recipe.training is not None
    assert recipe.training.teacher == TeacherRecipe(name="runs/a/subnets/05", loss="soft")
    with pytest.raises(ValueError, match=r"training\.teacher\.name"):
        with_overrides(mini_recipe(), ["training.teacher.loss=soft"])
