"""Fine-tuning: what a source gives, how its weights are adapted, and the runs made of it."""

import dataclasses
import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import prenas
from families.test_vit_released import ARCH, SETTINGS, mini, random_native, to_original
from prenas import artifacts, pipeline
from prenas.artifacts import read_tensors
from prenas.cost import count
from prenas.evaluation.accuracy import Evaluation
from prenas.families.vit.space import VitArch
from prenas.proxy.importance import noise_images
from prenas.recipe import TransferRecipe, flat_fields, with_overrides
from prenas.recipe.catalogue import RECIPES, TRANSFER_RECIPES, get_transfer_recipe
from prenas.recipe.data import Augmentation
from prenas.runs.images import RunImages
from prenas.runs.status import read_status
from prenas.sources.transfer import Source, adapt_source, finetuning_recipe, read_source
from prenas.steps import choosing
from training.runs import (
    StoppedError,
    assert_same_tensors,
    assert_same_training,
    contents,
    hearing,
    mini_recipe,
    never,
    other_data,
    own_data,
    stop_at,
)

pytest_plugins = "training.runs"

SHORT = ["training.epochs=1", "training.batch_size=256"]
TWO_EPOCHS = ["training.epochs=2", "training.batch_size=128"]  # of nine steps each


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of grey pictures, twenty of each."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for label, name in enumerate(("ant", "bee", "cow")):
        (folder / name).mkdir()
        for number in range(20):
            pixels = generator.integers(60 * label, 60 * label + 100, (10, 10))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture
def source(finished_run: Path) -> Source:
    return read_source(finished_run)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.save({"model": mini()}, tmp_path / "released.pth")
    return tmp_path / "released.pth"


def assert_same_backbone(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    """To the bit, the heads apart."""
    assert_same_tensors(
        *({k: v for k, v in one.items() if not k.startswith("head.")} for one in (left, right))
    )


# --- whole runs ----------------------------------------------------------------------------------


def test_other_classes_from_run_to_models(
    finished_run: Path, pictures: Path, tmp_path: Path
) -> None:
    """All preferred subnets go along; the run made of them is a run like any other."""
    source = read_source(finished_run)
    recipe = finetuning_recipe(source, data=str(pictures), overrides=SHORT)
    out = tmp_path / "fine"
    preferred = prenas.finetune(source, recipe, out)
    assert preferred == pipeline.read_preferred(out)
    assert preferred.archs == pipeline.read_preferred(finished_run).archs == source.archs
    assert [subnet.score for subnet in preferred.subnets] == [None] * 3
    for subnet, budget in zip(preferred.subnets, recipe.search.budgets, strict=True):
        assert budget == f"params={count(subnet.arch, recipe.space.settings)['params']}"
    initial = read_tensors(out / "initial.safetensors")
    assert_same_backbone(initial, read_tensors(finished_run / "supernet.safetensors"))
    assert initial["head.weight"].shape == (3, preferred.envelope.network_options["embed_dim"])

    trained = pipeline.train(out)
    assert not torch.equal(trained.network.state_dict()["head.weight"], initial["head.weight"])
    rows = pipeline.evaluate(out)
    assert [row.arch for row in rows] == list(preferred.archs)
    assert rows == pipeline.evaluate(out)
    folder = pipeline.specialize(out, limits="params=1M")
    network, transform = prenas.load(folder)
    picture = Image.open(pictures / "ant" / "0.png")
    assert network(transform(picture)[None]).shape == (1, 3)
    description = json.loads((folder / "arch.json").read_text())
    assert description["class_names"] == ["ant", "bee", "cow"]
    page = pipeline.report(out).read_text()
    assert "fine-tuned from" in page
    assert "1 of 1 epoch trained" in page
    assert "Nothing was chosen here" in page
    assert preferred.adapted.sha256 in page
    assert "The score ranks" not in page


def test_a_fine_tuning_without_its_weights_is_never_continued_as_a_search(
    source: Source, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a disk that was full: the random weights of a search would take their place."""
    recipe, out = finetuning_recipe(source, data=str(pictures), overrides=SHORT), tmp_path / "fine"

    def full(*arguments: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(prenas.Run, "record_initial", full)
        with pytest.raises(OSError, match="No space"):
            prenas.finetune(source, recipe, out)
    assert read_status(out).next_command == (
        f"prenas finetune {shlex.quote(source.name)} --data PATH --out {out}"
    )
    assert read_status(out).finish_command is None
    before = contents(out)
    for act in (pipeline.search, pipeline.run):
        with pytest.raises(ValueError, match=r"was started to fine-tune .*the command again"):
            act(prenas.Run(out).recipe, out)
    with pytest.raises(ValueError, match=r"no finished search .*prenas finetune "):
        pipeline.report(out)
    assert contents(out) == before
    again = prenas.finetune(source, recipe, out)
    assert again.adapted is not None
    assert prenas.Run(out).fine_tunes == source.name
    (out / "preferred.json").unlink()
    with pytest.raises(ValueError, match="was started to fine-tune"):
        pipeline.search(recipe, out)


def test_a_run_of_a_fine_tuned_run(finished_run: Path, pictures: Path, tmp_path: Path) -> None:
    """And of a model that it handed over."""
    first = read_source(finished_run)
    pipeline.finetune(
        first, finetuning_recipe(first, data=[str(pictures)], overrides=SHORT), tmp_path / "a"
    )
    with pytest.raises(ValueError, match=r"supernet\.safetensors is missing.*prenas train"):
        read_source(tmp_path / "a")
    pipeline.train(tmp_path / "a")
    pipeline.evaluate(tmp_path / "a")
    second = read_source(tmp_path / "a")
    assert second.class_names == ("ant", "bee", "cow")
    recipe = finetuning_recipe(second, image_size=12, overrides=SHORT)
    assert recipe.data.root == str(pictures)
    assert pipeline.finetune(second, recipe, tmp_path / "b").adapted.head == "kept"
    pipeline.train(tmp_path / "b")
    model = read_source(pipeline.specialize(tmp_path / "b", 0))
    assert model.supernet.settings.image_size == (12, 12)
    assert model.class_names == ("ant", "bee", "cow")


@pytest.mark.parametrize("extend", [False, True])
def test_a_larger_image(source: Source, extend: bool, tmp_path: Path) -> None:
    """Where the tables are extended the logits are the same, yet there is more to train."""
    recipe = finetuning_recipe(source, image_size=24, extend_distances=extend, overrides=SHORT)
    assert recipe.space.settings.image_size == (24, 24)
    preferred = pipeline.finetune(source, recipe, tmp_path / "fine")
    assert preferred.adapted.head == "kept"
    assert preferred.adapted.image_size == (8, 8)
    clipped = finetuning_recipe(source, image_size=24)
    names = source.class_names
    images = noise_images(4, 1, (24, 24), (0.0,), (1.0,), seed=0)
    expected = adapt_source(source, clipped, names).supernet
    found = adapt_source(source, recipe, names).supernet
    for arch in source.archs:
        assert torch.equal(found(images, arch), expected(images, arch))
    fields = dict(flat_fields(recipe))
    assert fields["space.settings.max_distance"] == (5 if extend else 2)
    tables = 4 * len(source.supernet.network.blocks) * 2 * 3 * 4
    sizes = [sum(p.numel() for p in net.parameters()) for net in (expected, found)]
    assert sizes[1] - sizes[0] == (tables if extend else 0)
    pipeline.train(tmp_path / "fine")
    assert len(pipeline.evaluate(tmp_path / "fine")) == 3


def test_a_run_of_one_shot_nas_gives_its_evolved_subnets(tmp_path: Path) -> None:
    evolution = {"population": 4, "generations": 2, "num_parents": 2, "num_mutations": 2}
    out = tmp_path / "rival"
    pipeline.search(mini_recipe(training={"epochs": 1}, evolution=evolution), out)
    pipeline.train(out)
    with pytest.raises(ValueError, match=f"no finished evolution.*prenas evolve {out}"):
        read_source(out)
    evolved = tuple(found.arch for found in pipeline.evolve(out))
    source = read_source(out)
    assert set(source.archs) == set(evolved)
    assert read_source(out, 1).archs == source.archs[1:2]
    pipeline.finetune(source, finetuning_recipe(source, overrides=SHORT), tmp_path / "fine")
    supernet = pipeline.train(tmp_path / "fine")
    assert supernet.arch == source.supernet.arch


def test_one_subnet_by_number_or_limit(
    finished_run: Path, finished_rows: list[Evaluation], pictures: Path, tmp_path: Path
) -> None:
    """The run trains it alone, from the weights that the model handed over has."""
    source = read_source(finished_run, 1)
    recipe = finetuning_recipe(source, data=str(pictures), overrides=SHORT)
    preferred = pipeline.finetune(source, recipe, tmp_path / "fine")
    arch = finished_rows[1].arch
    assert preferred.archs == (arch,)
    assert preferred.envelope == arch
    model = read_tensors(finished_run / "subnets" / "01" / "model.safetensors")
    assert_same_backbone(read_tensors(tmp_path / "fine" / "initial.safetensors"), model)
    assert "one subnet" in preferred.adapted.summary
    pipeline.train(tmp_path / "fine")
    assert [row.arch for row in pipeline.evaluate(tmp_path / "fine")] == [arch]

    limit = finished_rows[1].costs["params"]
    best = max(
        finished_rows[:2], key=lambda row: (row.splits["validation"].top1, -row.costs["params"])
    )
    assert read_source(finished_run, limits={"params": limit}).archs == (best.arch,)
    with pytest.raises(ValueError, match="no subnet of this run satisfies macs <= 1"):
        read_source(finished_run, limits="macs=1")
    with pytest.raises(ValueError, match="subnet 3 does not exist: this run has subnets 0 to 2"):
        read_source(finished_run, 3)
    with pytest.raises(ValueError, match="say which subnet: give either"):
        read_source(finished_run, 1, limits={"params": limit})


def test_a_model_that_was_handed_over(finished_run: Path, pictures: Path, tmp_path: Path) -> None:
    folder = finished_run / "subnets" / "02"
    source = read_source(folder)
    assert source.archs == pipeline.read_preferred(finished_run).archs[2:]
    assert source.class_names == tuple(map(str, range(10)))
    network, _ = prenas.load(folder)
    images = noise_images(4, 1, (8, 8), (0.0,), (1.0,), seed=0)
    assert torch.equal(source.supernet(images, source.archs[0]), network(images))
    recipe = finetuning_recipe(source, data=str(pictures), overrides=SHORT)
    assert recipe.data.preprocessing == mini_recipe().data.preprocessing
    assert recipe.data.augmentation == Augmentation()
    pipeline.finetune(source, recipe, tmp_path / "fine")
    pipeline.train(tmp_path / "fine")
    assert len(pipeline.evaluate(tmp_path / "fine")) == 1
    with pytest.raises(ValueError, match=r"no images given for fine-tuning .*02: add"):
        finetuning_recipe(source)


def test_a_released_checkpoint(checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    """Directly, or as the run that it was imported as: the same weights to train."""
    small = VitArch(embed_dim=8, num_heads=(1,), mlp_ratio=(1.5,))
    pipeline.import_released(checkpoint, tmp_path / "imported", [small, ARCH])
    direct, imported = read_source(checkpoint), read_source(tmp_path / "imported")
    assert direct.archs == (ARCH,)
    assert imported.archs == (small, ARCH)
    assert direct.class_names is None
    assert read_source(tmp_path / "imported", limits="params=1M").archs == (ARCH,)
    recipe = finetuning_recipe(direct, "transfer-photos", str(pictures), overrides=SHORT)
    assert recipe.space.settings == SETTINGS.changed(num_classes=3)
    assert recipe.data.augmentation == get_transfer_recipe("transfer-photos").augmentation
    preferred = pipeline.finetune(direct, recipe, tmp_path / "fine")
    assert preferred.imported is None
    assert preferred.adapted.source == str(checkpoint)
    pipeline.train(tmp_path / "fine")
    assert len(pipeline.evaluate(tmp_path / "fine")) == 1
    assert_same_tensors(
        direct.supernet.network.state_dict(), imported.supernet.network.state_dict()
    )


def test_subnets_of_equal_size(checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    """Isomers have one budget each, with the same words."""
    twins = [
        VitArch(embed_dim=8, num_heads=(1, 1), mlp_ratio=ratios)
        for ratios in ((1.0, 1.5), (1.5, 1.0))
    ]
    pipeline.import_released(checkpoint, tmp_path / "imported", twins)
    source = read_source(tmp_path / "imported")
    recipe = finetuning_recipe(source, data=str(pictures), overrides=SHORT)
    preferred = pipeline.finetune(source, recipe, tmp_path / "fine")
    assert set(preferred.archs) == set(twins)
    assert len(set(preferred.budgets)) == 1
    assert [preferred.budgets_of(number) for number in (0, 1)] == [[preferred.budgets[0]]] * 2


def test_imagenets_classes_are_known(tmp_path: Path) -> None:
    """A released network of 1000 classes has names; others of that number keep it if asked to."""
    settings = SETTINGS.changed(num_classes=1000)
    tensors = to_original(random_native(ARCH, settings), ARCH.depth, settings.head_dim)
    torch.save(tensors, tmp_path / "x.pth")
    source = read_source(tmp_path / "x.pth")
    assert source.class_names[0].startswith("tench")
    data = dataclasses.replace(own_data(3, 3), class_names=tuple(map(str, range(1000))))
    recipe = finetuning_recipe(source, data=data)
    for head, what in (("auto", "fresh"), ("keep", "kept")):
        adapted = adapt_source(source, recipe, data.class_names, head).preferred.adapted
        assert adapted.head == what


# --- the head ------------------------------------------------------------------------------------


def test_the_same_classes_keep_the_head(source: Source) -> None:
    """Then nothing is changed at all: the logits are the source's."""
    recipe = finetuning_recipe(source)
    preferred, supernet = adapt_source(source, recipe, source.class_names)
    assert preferred.adapted.head == "kept"
    assert_same_tensors(supernet.state_dict(), source.supernet.state_dict())
    fresh = adapt_source(source, recipe, source.class_names, "fresh")
    assert fresh.preferred.adapted.head == "fresh"
    assert not torch.equal(
        fresh.supernet.network.state_dict()["head.weight"],
        source.supernet.network.state_dict()["head.weight"],
    )


def test_the_order_of_the_classes_matters(source: Source) -> None:
    recipe, names = finetuning_recipe(source), source.class_names[::-1]
    assert adapt_source(source, recipe, names).preferred.adapted.head == "fresh"
    assert adapt_source(source, recipe, names, "keep").preferred.adapted.head == "kept"


def test_a_fresh_head_is_the_seeds(source: Source) -> None:
    heads = [
        adapt_source(
            source, finetuning_recipe(source, overrides=[f"seed={seed}"]), ("a",)
        ).supernet.network.state_dict()["head.weight"]
        for seed in (0, 0, 1)
    ]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"overrides": ["space.settings.patch_size=2"]}, "patch_size is 4, not 2"),
        ({"overrides": ["space.settings.head_dim=8"]}, "head_dim is 4, not 8"),
        ({"overrides": ["space.settings.in_chans=3"]}, "1 values, but the images have 3 channels"),
        ({"overrides": ["space.settings.max_distance=1"]}, "max_distance 1 would discard"),
        ({"overrides": ["space.depth=[1]"]}, "subnets of a fine-tuning are those of its source"),
        ({"overrides": ["search.k=2"]}, "only space.settings, data, training and seed"),
        ({"overrides": ["evolution={}"]}, "only space.settings, data, training and seed"),
        ({"overrides": ["data.preprocessing.mean=[0.5]"]}, "whose weights depend on it"),
        ({"overrides": ["training.epoch=2"]}, "did you mean 'training.epochs'"),
        ({"image_size": 10}, r"image_size \(10, 10\) is not a multiple of patch_size 4"),
        ({"transfer": "transfer-flower"}, "did you mean 'transfer-flowers'"),
        ({"transfer": "transfer-flowers"}, "no images given for fine-tuning"),
        ({"data": "nowhere"}, "neither an existing folder or tar"),
    ],
)
def test_a_recipe_that_is_not_for_these_weights(
    options: dict[str, object], words: str, source: Source
) -> None:
    with pytest.raises(ValueError, match=words):
        finetuning_recipe(source, **options)


@pytest.mark.parametrize("kind", ["nothing", "folder", "text", "searched"])
def test_what_is_no_source(kind: str, searched_run: Path, tmp_path: Path) -> None:
    places = {name: tmp_path / name for name in ("nothing", "folder", "text")}
    places["folder"].mkdir()
    places["text"].write_text("hello")
    words = {
        "nothing": "nothing does not exist: give a trained run",
        "folder": "folder is not such a folder: give a trained run",
        "text": "not a complete torch.save file",
        "searched": "has no trained supernet.*prenas train",
    }
    with pytest.raises((ValueError, FileNotFoundError), match=words[kind]):
        read_source({**places, "searched": searched_run}[kind])


def test_the_best_within_a_limit_needs_an_evaluation(finished: Path) -> None:
    (finished / "evaluation.json").unlink()
    with pytest.raises(ValueError, match=r"has not been evaluated.*prenas evaluate"):
        read_source(finished, limits="params=10k")
    assert len(read_source(finished, 0).archs) == 1


def test_an_unknown_wish_for_the_head(source: Source) -> None:
    with pytest.raises(ValueError, match="did you mean 'keep'"):
        adapt_source(source, finetuning_recipe(source), source.class_names, "kep")
    fewer = finetuning_recipe(source, data=own_data(3))
    with pytest.raises(ValueError, match="cannot be kept for 3 classes"):
        adapt_source(source, fewer, ("a", "b", "c"), "keep")


def test_a_recipe_of_another_source(source: Source, finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not made for the subnets of .*finetuning_recipe"):
        pipeline.finetune(source, mini_recipe(), tmp_path / "fine")
    recipe = finetuning_recipe(read_source(finished_run, 0))
    with pytest.raises(ValueError, match="not made for the subnets of"):
        pipeline.finetune(source, recipe, tmp_path / "fine")
    assert not (tmp_path / "fine").exists()


def test_a_run_goes_on_with_the_classes_it_was_made_for(
    finished_run: Path, source: Source, pictures: Path, tmp_path: Path
) -> None:
    data = own_data(3)
    recipe = finetuning_recipe(source, data=data, overrides=SHORT)
    assert recipe.data.name == "own"
    pipeline.finetune(source, recipe, tmp_path / "own", data=data)
    before = contents(tmp_path / "own")
    other = dataclasses.replace(data, class_names=("class 0", "class 2", "class 1"))
    with pytest.raises(
        ValueError, match=r"these images have other classes than those.*their order"
    ):
        pipeline.train(tmp_path / "own", data=other)
    assert contents(tmp_path / "own") == before
    pipeline.train(tmp_path / "own", data=data)

    again = finetuning_recipe(source, data=str(pictures))
    pipeline.finetune(source, again, tmp_path / "folder")
    with pytest.raises(ValueError, match="have other classes than those of"):
        other_data(tmp_path / "folder", ["digits"])


def test_there_is_no_search_in_it(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = finetuning_recipe(source)
    pipeline.finetune(source, recipe, tmp_path / "fine")
    monkeypatch.setattr(choosing, "zero_cost_search", never)
    with pytest.raises(ValueError, match=r"fine-tuned from .*, so there is nothing to search"):
        pipeline.search(recipe, tmp_path / "fine")


# --- once, and whole -----------------------------------------------------------------------------


@pytest.mark.parametrize(("owner", "step"), [(artifacts, "write_tensors"), (RunImages, "record")])
def test_an_interrupted_preparation_leaves_nothing_half_done(
    owner: Any, step: str, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object, **kwargs: object) -> None:
        raise StoppedError

    recipe, out = finetuning_recipe(source, overrides=SHORT), tmp_path / "fine"
    pipeline.finetune(source, recipe, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(owner, step, stop)
        with pytest.raises(StoppedError):
            pipeline.finetune(source, recipe, out)
    with pytest.raises(ValueError, match="has no finished search"):
        pipeline.train(out)
    pipeline.finetune(source, recipe, out)
    pipeline.train(out)
    pipeline.train(tmp_path / "whole")
    assert_same_training(out, tmp_path / "whole")


def test_the_same_again_continues_and_another_is_refused(
    source: Source, finished: Path, tmp_path: Path
) -> None:
    recipe, out = finetuning_recipe(source, overrides=TWO_EPOCHS), tmp_path / "fine"
    first = pipeline.finetune(source, recipe, out)
    with pytest.raises(StoppedError):
        pipeline.train(out, observer=hearing(steps=stop_at(12)))
    before = contents(out)
    assert pipeline.finetune(source, recipe, out) == first
    for other, head, words in (
        (with_overrides(recipe, ["seed=1"]), "auto", "was made with another recipe"),
        (recipe, "fresh", "already contains another run"),
    ):
        with pytest.raises(ValueError, match=words):
            pipeline.finetune(source, other, out, head=head)
    changed = dataclasses.replace(source, sha256="0" * 64)
    with pytest.raises(ValueError, match="already contains another run: choose another folder"):
        pipeline.finetune(changed, recipe, out)
    with pytest.raises(ValueError, match="was made with another recipe"):
        pipeline.finetune(source, recipe, finished)
    after = contents(out)
    assert {n: v for n, v in after.items() if n != ".lock"} == {
        n: v for n, v in before.items() if n != ".lock"
    }
    elsewhere = dataclasses.replace(source, name="by another path")
    assert pipeline.finetune(elsewhere, recipe, out) == first
    more = with_overrides(recipe, ["data.memory_gib=0.5"])
    assert pipeline.finetune(source, more, out).recipe == more
    pipeline.train(out)
    pipeline.finetune(source, recipe, tmp_path / "whole")
    pipeline.train(tmp_path / "whole")
    assert_same_training(out, tmp_path / "whole")


def test_the_source_is_left_as_it_was(finished_run: Path, tmp_path: Path) -> None:
    before = contents(finished_run)
    source = read_source(finished_run)
    tensors = {name: t.clone() for name, t in source.supernet.state_dict().items()}
    pipeline.finetune(source, finetuning_recipe(source, image_size=12), tmp_path / "fine")
    assert contents(finished_run) == before
    assert_same_tensors(tensors, source.supernet.state_dict())


def test_a_dry_run_writes_nothing(source: Source, tmp_path: Path) -> None:
    recipe = finetuning_recipe(source, image_size=12)
    plan = pipeline.dry_run(recipe, source=source)
    assert plan.preferred.archs == source.archs
    assert plan.estimate.training_seconds > 0


# --- recipes -------------------------------------------------------------------------------------


def test_images_and_augmentation_are_the_sources_where_none_are_named(
    source: Source, pictures: Path
) -> None:
    digits = mini_recipe().data
    assert finetuning_recipe(source).data == digits
    named = finetuning_recipe(source, data=[str(pictures), "test=none"]).data
    assert (named.root, named.test) == (str(pictures), "none")
    assert named.augmentation == digits.augmentation
    own = TransferRecipe(
        name="x", augmentation=Augmentation(flip=0.5), training=mini_recipe().training
    )
    recipe = finetuning_recipe(source, own)
    assert recipe.data.augmentation == Augmentation(flip=0.5)
    assert (recipe.name, recipe.training) == ("x", own.training)
    from_file = TransferRecipe.model_validate_json(own.model_dump_json())
    assert from_file == own


@pytest.mark.parametrize("name", TRANSFER_RECIPES)
def test_every_recipe_states_source_cost_and_command(name: str) -> None:
    text = " ".join((TRANSFER_RECIPES[name].__doc__ or "").split())
    assert "Source:" in text
    assert "Cost:" in text
    recipe = get_transfer_recipe(name)
    option = "" if name == "transfer" else f" --recipe {name}"
    data = " --data " if not recipe.images else " --out "
    assert re.search(rf"Command: `prenas finetune \w+{option}{data}", text)
    assert recipe.name == name
    assert name not in RECIPES
    assert f"{recipe.training.epochs:,} epochs" in text


@pytest.mark.parametrize("name", ["transfer-inat2018", "transfer-inat2019"])
def test_inaturalist_is_trained_as_deit_is(name: str) -> None:
    recipe = get_transfer_recipe(name)
    training, augmentation = recipe.training, recipe.augmentation
    assert training.peak_lr == pytest.approx(7.5e-5)
    fields = ("epochs", "batch_size", "weight_decay", "warmup_epochs", "drop_path")
    assert [getattr(training, field) for field in fields] == [360, 768, 0.05, 5, 0.1]
    assert training.label_smoothing == 0.1
    assert augmentation.auto_augment == "rand-m9-mstd0.5-inc1"
    shares = (augmentation.mixup, augmentation.cutmix, augmentation.erasing, augmentation.repeats)
    assert shares == (0.8, 1.0, 0.1, 3)


@pytest.mark.parametrize("name", TRANSFER_RECIPES)
def test_every_recipe_suits_a_released_network(name: str, checkpoint: Path, pictures: Path) -> None:
    recipe = finetuning_recipe(read_source(checkpoint), name, str(pictures))
    assert recipe.space.settings == SETTINGS.changed(num_classes=3)
    assert recipe.training == get_transfer_recipe(name).training
    assert recipe.data.augmentation == (get_transfer_recipe(name).augmentation or Augmentation())
