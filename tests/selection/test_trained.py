"""Search in a trained network: tables of unit scores, and the choice that follows from them."""

from itertools import product

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from families.drawing import assert_equal, fill_as_trained, images_for, timm_space
from prenas.cost import count
from prenas.data import ImageData
from prenas.families import build, get_space
from prenas.families.base import StageChoice
from prenas.families.timm_cut.space import TimmSpace
from prenas.proxy.unit_scores import unit_scores
from prenas.recipe import Recipe, SearchRecipe
from prenas.recipe.budgets import parse_budgets
from prenas.recipe.data import DataRecipe
from prenas.selection.select import Candidates
from prenas.selection.trained import scored_batches, scores_units, search_trained, unit_tables
from prenas.supernet import Supernet


def small_space(num_options: int = 3) -> TimmSpace:
    """Few options, so that all cuts can be listed."""
    space = timm_space("test_resnet", 40)
    blocks = [
        block.model_copy(update={"options": tuple(one[-num_options:] for one in block.options)})
        for block in space.blocks
    ]
    return space.model_copy(update={"blocks": tuple(blocks)})


def recipe_for(space: TimmSpace, *budgets: str, score: str = "gate") -> Recipe:
    search = SearchRecipe(budgets=budgets, score=score, images="data", num_images=12, batch_size=5)
    return Recipe(name="cut", space=space, search=search, data=DataRecipe(name="own"))


def images_of(space: TimmSpace, number: int = 16) -> ImageData:
    labels = torch.arange(number) % space.settings.num_classes
    split = TensorDataset(images_for(space, number), labels)
    names = tuple("abcde"[: space.settings.num_classes])
    return ImageData(train=split, validation=split, test=None, class_names=names)


def trained_supernet(space: TimmSpace) -> Supernet:
    network = fill_as_trained(build(space.largest, space.settings), seed=8)
    return Supernet.around(network, space.largest, space.settings).eval()


@pytest.mark.parametrize("seed", range(3))
def test_the_choice_is_the_best_of_all_cuts(seed: int) -> None:
    space = small_space()
    generator = torch.Generator().manual_seed(seed)
    in_order = [
        [
            torch.rand(group.num_units, generator=generator, dtype=torch.float64).sort(
                descending=True
            )[0]
            for group in block.groups
        ]
        for block in space.blocks
    ]
    tables = unit_tables(space, in_order)
    every = []
    stages = space.chain[:-1]
    options = [range(len(axis.options)) for stage in stages for axis in stage.axes]
    for numbers in product(*options):
        left = iter(numbers)
        choices = tuple(
            StageChoice(0, 1, tuple((next(left),) for _ in stage.axes)) for stage in stages
        )
        choices = (*choices, StageChoice(0, 0))
        kept = [
            float(scores[: int(axis.options[choice.options[place][0]])].sum())
            for choice, stage, layer in zip(choices, stages, in_order, strict=False)
            for place, (axis, scores) in enumerate(zip(stage.axes, layer, strict=True))
        ]
        every.append((sum(kept), tables.cost(choices).tolist(), choices))
    assert every[-1][1][0] == count(space.largest, space.settings)["params"]
    costs = np.array([cost for _, cost, _ in every])
    for share in (0.3, 0.6, 0.9):
        low, high = costs[:, 1].min(), costs[:, 1].max()
        budget = parse_budgets([f"macs={int(low + share * (high - low))}"]).kept[0]
        (found,) = Candidates(tables).best([budget], 1)[0]
        best = max(score for score, cost, _ in every if budget.contains(np.array(cost)))
        assert found.score == pytest.approx(best, rel=1e-12)
        assert tables.score(found.choices) == pytest.approx(best, rel=1e-12)


def test_a_search_reorders_the_units_and_keeps_the_best() -> None:
    space = timm_space("test_resnet", 40)
    supernet, data = trained_supernet(space), images_of(space)
    images = images_for(space, seed=4)
    with torch.no_grad():
        before = supernet.network(images)
    least, most = (count(arch, space)["macs"] for arch in (space.smallest, space.largest))
    half = (least + most) // 2
    recipe = recipe_for(space, f"macs={half}", f"macs={most}")
    assert scores_units(recipe)
    groups = [group for block in space.blocks for group in block.groups]
    found = search_trained(recipe, supernet, data, source="somewhere", sha256="0" * 64)
    with torch.no_grad():
        assert_equal(found.supernet.network(images), before, 1e-5)
    preferred = found.preferred
    assert preferred.trained is not None
    assert preferred.trained.source == "somewhere"
    assert preferred.archs[-1] == space.largest
    assert preferred.subnets[0].costs["macs"] <= half
    assert preferred.subnets[-1].score == pytest.approx(100)  # the whole network keeps everything
    assert preferred.subnets[0].score is not None
    assert 0 < preferred.subnets[0].score < 100
    for group in groups:
        order = torch.tensor(preferred.trained.units[group.consumer])
        assert sorted(order.tolist()) == list(range(group.num_units))
    batches = scored_batches(recipe, data, "cpu")
    for scores in unit_scores(found.supernet.network, groups, batches, score="gate").scores:
        assert (scores.diff() <= 1e-4 * scores.max()).all()


def test_budgets_out_of_reach_are_refused_before_anything_is_scored() -> None:
    space = small_space()
    with pytest.raises(ValueError, match="no subnet fits any of the 1 budgets"):
        search_trained(recipe_for(space, "macs=1"), None, images_of(space), source="x", sha256="")


def test_only_families_with_unit_groups_have_these_scores() -> None:
    with pytest.raises(ValueError, match="unknown score 'gate'"):
        Recipe(
            name="digits",
            space=get_space("digits"),
            search=SearchRecipe(budgets=("params=100k",), score="gate"),
        )
