"""Search in a trained network: tables of unit scores, and the choice that follows from them."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from families.drawing import assert_equal, fill_as_trained, images_for, timm_space
from prenas.cost import count
from prenas.data import ImageData
from prenas.families import build, get_space
from prenas.families.base import Arch, StageChoice
from prenas.families.timm_cut.arch import TimmArch
from prenas.families.timm_cut.space import TimmSpace, cuts
from prenas.families.units import UnitGroup
from prenas.proxy.unit_scores import UnitScores, unit_scores
from prenas.recipe import Recipe, SearchRecipe, with_overrides
from prenas.recipe.budgets import parse_budgets
from prenas.recipe.catalogue import get_recipe
from prenas.recipe.data import DataRecipe
from prenas.selection import trained
from prenas.selection.preferred import HalvesAgreement, PreferredSet
from prenas.selection.rules import equal_shares, uniform_numbers
from prenas.selection.select import Candidates
from prenas.selection.trained import (
    Judge,
    check_search,
    num_judged,
    scored_batches,
    scores_units,
    search_trained,
    unit_tables,
)
from prenas.supernet import Supernet


def small_space(num_options: int = 3) -> TimmSpace:
    """Few options, so that all cuts can be listed; one branch may be left out."""
    space = timm_space("test_resnet", 40, absent_branches=True)
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


def chosen(recipe: Recipe, judge: Judge | None = None) -> PreferredSet:
    """What a search in a new trained network prefers."""
    space = recipe.space
    assert isinstance(space, TimmSpace)
    supernet, images = trained_supernet(space), images_of(space)
    return search_trained(recipe, supernet, images, source="x", sha256="", judge=judge).preferred


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


def with_resolutions() -> TimmSpace:
    return timm_space("test_resnet", 40).model_copy(update={"resolution": (32, 36, 40)})


@pytest.mark.parametrize("winner", [32, 36, 40])
def test_the_resolution_is_that_of_a_much_more_accurate_cut_before_training(winner: int) -> None:
    """Every resolution at which more than the whole network fits; a budget may name its own."""
    space = with_resolutions()
    macs = {side: count(space.compose(space.extreme(-1), side), space)["macs"] for side in (32, 40)}
    judged: list[TimmArch] = []

    def judge(supernet: Supernet, archs: Sequence[Arch]) -> list[float]:
        judged.extend(arch for arch in archs if isinstance(arch, TimmArch))
        return [0.9 if arch.resized_to == winner else 0.4 for arch in archs]

    texts = [f"macs={macs[32] - 1}", f"macs={macs[40]}", f"macs={macs[32] - 1},resolution=36"]
    found = chosen(recipe_for(space, *texts), judge)
    sides = {
        choice.budget: found.subnets[choice.subnet].arch.resized_to for choice in found.choices
    }
    assert sides == {0: winner, 1: 40, 2: 36}
    for choice in found.choices:
        costs = found.subnets[choice.subnet].costs
        assert costs["macs"] <= (macs[40] if choice.budget == 1 else macs[32] - 1)
    assert len(judged) == len({*judged}) == 4  # three sides, and the whole network at the largest
    assert found.trained is not None
    tried = [(one.budget, one.resolution, one.top1) for one in found.trained.tried]
    assert tried == [(0, side, 0.9 if side == winner else 0.4) for side in (40, 36, 32)]
    assert found.trained.top1_untrained == tuple(
        0.9 if arch.resized_to == winner else 0.4 for arch in found.archs
    )
    assert f"resolution {winner}" in found.budgets[0]


@pytest.mark.parametrize(
    ("top1", "taken"),
    [
        ({40: 0.5, 36: 0.8, 32: 0.85}, 36),  # of 16 images, a standard error is 0.093
        ({40: 0.77, 36: 0.8, 32: 0.85}, 40),
        ({40: 0.75, 36: 0.75, 32: 0.85}, 32),
        ({40: 15 / 16, 36: 1.0, 32: 1.0}, 40),  # one picture is no difference
        ({40: 14 / 16, 36: 1.0, 32: 1.0}, 36),
        ({40: 0.0, 36: 0.0, 32: 0.0}, 40),
    ],
)
def test_the_largest_images_within_a_standard_error_are_taken(
    top1: dict[int, float], taken: int
) -> None:
    space = with_resolutions()
    macs = count(space.compose(space.extreme(-1), 32), space)["macs"]
    found = chosen(
        recipe_for(space, f"macs={macs - 1}"),
        lambda _, archs: [top1[arch.resized_to or 0] for arch in archs],
    )
    assert [subnet.arch.resized_to for subnet in found.subnets] == [taken]


def test_without_a_judge_images_stay_as_large_as_fits() -> None:
    space = with_resolutions()
    least = count(space.compose(space.extreme(0), 40), space)["macs"]
    found = chosen(recipe_for(space, f"macs={least}", f"macs={least - 1}"))
    sides = {found.budgets[c.budget][-2:]: found.subnets[c.subnet].arch for c in found.choices}
    assert {side: arch.resized_to for side, arch in sides.items()} == {"40": 40, "36": 36}
    assert found.trained is not None
    assert (found.trained.tried, found.trained.top1_untrained) == ((), None)


# --- several scores ------------------------------------------------------------------------------


def squares_of(groups: Sequence[UnitGroup]) -> list[torch.Tensor]:
    """Scores of units, which fall much faster in every second layer."""
    return [
        torch.linspace(1, 0.02, group.num_units).double() ** (1 + 3 * (number % 2))
        for number, group in enumerate(groups)
    ]


def kept_by_gate(arch: Arch) -> float:
    """The score of a cut in %, by the roots of those squares."""
    assert isinstance(arch, TimmArch)
    groups, units = zip(*arch.kept(), strict=True)
    roots = [one.sqrt() for one in squares_of(groups)]
    kept = sum(float(one[:n].sum()) for one, n in zip(roots, units, strict=True))
    return 100 * kept / sum(float(one.sum()) for one in roots)


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def scored(network: nn.Module, groups: Sequence[UnitGroup], *_: object, **fields: str) -> Any:
        squares = squares_of(groups)
        found = UnitScores(squares, (squares, [one.flip(0) for one in squares]))
        return found if fields["score"] == "fisher" else found.roots

    monkeypatch.setattr(trained, "unit_scores", scored)


def judged_by(top1: Mapping[Arch, float]) -> Judge:
    return lambda _, archs: [top1.get(arch, 0.2) for arch in archs]


def shares_of(space: TimmSpace, *shares: int) -> list[str]:
    macs = count(space.largest, space)["macs"]
    return [f"macs={macs * share // 100}" for share in shares]


@pytest.mark.usefixtures("made_up")
def test_of_two_scores_the_one_with_the_more_accurate_cut_chooses() -> None:
    """For each budget by itself; the cut is the one that this score alone chooses."""
    space, winners = timm_space("test_resnet", 40), ("fisher", "gate", "fisher")
    budgets = shares_of(space, 84, 75, 67)
    alone = {
        name: {choice.budget: found.subnets[choice.subnet] for choice in found.choices}
        for name in ("gate", "fisher")
        for found in [chosen(recipe_for(space, *budgets, score=name))]
    }
    assert all(alone["gate"][n].arch != alone["fisher"][n].arch for n in range(3))
    top1 = {alone[name][n].arch: 0.7 for n, name in enumerate(winners)}
    recipe = recipe_for(space, *budgets, score="gate_or_fisher")
    found = chosen(recipe, judged_by(top1))
    assert [choice.budget for choice in found.choices] == [0, 1, 2]
    for choice, name in zip(found.choices, winners, strict=True):
        subnet, expected = found.subnets[choice.subnet], alone[name][choice.budget]
        assert (subnet.arch, subnet.costs) == (expected.arch, expected.costs)
        assert subnet.score == pytest.approx(kept_by_gate(subnet.arch), rel=1e-9)
        assert choice.margin is None  # of which score would it be?
    assert found.trained is not None
    assert found.trained.chosen_by == winners
    assert [(one.budget, one.score, one.top1) for one in found.trained.tried] == [
        (number, name, 0.7 if name == winner else 0.2)
        for number, winner in enumerate(winners)
        for name in ("gate", "fisher")
    ]
    assert found.trained.tried_in_words[0] == (
        "gate: 20.0, fisher: 70.0 (untrained validation top-1, %); taken: fisher"
    )
    assert num_judged(recipe) == 6


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize("judge", [None, judged_by({})], ids=["no judge", "equals"])
def test_without_a_difference_the_gate_chooses(judge: Judge | None) -> None:
    space = timm_space("test_resnet", 40)
    found, gate, fisher = (
        chosen(recipe_for(space, *shares_of(space, 75), score=score), judge)
        for score in ("gate_or_fisher", "gate", "fisher")
    )
    assert found.archs == gate.archs != fisher.archs
    assert found.trained is not None
    assert found.trained.chosen_by == ("gate",)


@pytest.mark.usefixtures("made_up")
def test_the_better_score_counts_at_every_resolution() -> None:
    """The largest images at which either cut is within a standard error (here 0.093)."""
    space = with_resolutions()
    budget = f"macs={count(space.compose(space.extreme(-1), 32), space)['macs'] - 1}"
    by_side = {side: iter(top1) for side, top1 in ((40, (0.4, 0.5)), (36, (0.3, 0.8)))}
    found = chosen(
        recipe_for(space, budget, score="gate_or_fisher"),
        lambda _, archs: [next(by_side.get(arch.resized_to or 0, iter([0.85]))) for arch in archs],
    )
    assert [subnet.arch.resized_to for subnet in found.subnets] == [36]
    assert found.trained is not None
    assert found.trained.chosen_by == ("fisher",)
    assert found.trained.tried_in_words[0] == (
        "40 px by fisher: 50.0, 36 px by fisher: 80.0, 32 px by gate and fisher: 85.0 "
        "(untrained validation top-1, %, by the better score at each size)"
    )


@pytest.mark.usefixtures("made_up")
def test_halves_are_compared_by_the_score_that_chose() -> None:
    space = timm_space("test_resnet", 40)
    budgets = shares_of(space, 85, 75)
    alone = [chosen(recipe_for(space, *budgets, score=name)) for name in ("fisher", "gate")]
    top1 = {alone[0].archs[1]: 0.7, alone[1].archs[0]: 0.7}
    found = chosen(recipe_for(space, *budgets, score="gate_or_fisher"), judged_by(top1))
    assert found.trained is not None
    assert found.trained.chosen_by == ("fisher", "gate")
    halves = [one.trained.halves for one in (*alone, found) if one.trained is not None]
    fisher, gate, both = (one.kept_in_common for one in halves if one is not None)
    assert fisher != gate
    assert both == (fisher[0], gate[1])


@pytest.mark.usefixtures("made_up")
def test_a_cut_that_both_scores_choose_is_named_once() -> None:
    space = timm_space("test_resnet", 40)
    budgets = shares_of(space, 100, 75)
    found = chosen(recipe_for(space, *budgets, score="gate_or_fisher"), judged_by({}))
    assert found.trained is not None
    assert found.trained.tried_in_words == {
        0: "gate and fisher: 20.0 (untrained validation top-1, %)",
        1: "gate: 20.0, fisher: 20.0 (untrained validation top-1, %); taken: gate",
    }
    assert found.subnets[-1].score == pytest.approx(100)


@pytest.mark.usefixtures("made_up")
def test_of_several_subnets_per_budget_the_best_decide() -> None:
    """The accuracy of the first of each score; then all of them are by that score."""
    space = timm_space("test_resnet", 40)
    (budget,) = shares_of(space, 75)
    by_fisher = with_overrides(recipe_for(space, budget, score="fisher"), ["search.k=3"])
    expected = chosen(by_fisher)
    best = expected.subnets[expected.choices[0].subnet].arch
    recipe = with_overrides(by_fisher, ["search.score=gate_or_fisher"])
    assert chosen(recipe, judged_by({best: 0.3})).archs == expected.archs


@pytest.mark.usefixtures("made_up")
def test_equal_shares_are_the_same_by_either_score() -> None:
    space = timm_space("test_resnet", 40)
    either, gate = (
        chosen(
            with_overrides(
                recipe_for(space, *shares_of(space, 75), score=score), ["search.allocation=equal"]
            ),
            judged_by({}),
        )
        for score in ("gate_or_fisher", "gate")
    )
    assert either.subnets == gate.subnets
    assert either.trained is not None
    assert [one.score for one in either.trained.tried] == ["gate and fisher"]


@pytest.mark.parametrize("score", ["gate", "gate_or_fisher"])
@pytest.mark.parametrize(
    "change", ["exact_optimum=true", "further_seeds=1", "isomers=even", "scope=blocks"]
)
def test_what_is_about_random_weights_is_refused(score: str, change: str) -> None:
    recipe = recipe_for(small_space(), "macs=1G", score=score)
    asked = with_overrides(recipe, [f"search.{change}"])
    name = change.partition("=")[0]
    with pytest.raises(ValueError, match=f"{score}' scores the units .*: leave out {name}"):
        check_search(asked)


def test_a_branch_may_be_left_out_and_stays_so() -> None:
    """No units score nothing; a network without a branch is searched as any other."""
    space = timm_space("test_resnet", 40, absent_branches=True)
    ends = [
        tuple((0 if first else len(axis.options) - 1,) for axis in stage.axes)
        for first, stage in zip([True, *[False] * len(space.blocks)], space.chain, strict=True)
    ]
    choices = tuple(StageChoice(0, 1 if options else 0, options) for options in ends)
    without = space.compose(choices, None)
    layers = [[torch.ones(group.num_units).double() for group in b.groups] for b in space.blocks]
    total = sum(len(scores) for layer in layers for scores in layer)
    tables = unit_tables(space, layers)
    missing = space.blocks[0].groups[0].num_units
    assert tables.score(choices) == pytest.approx(total - missing)

    consumer = space.blocks[0].groups[0].consumer
    budget = f"macs={count(without, space)['macs']}"
    supernet, data = trained_supernet(space), images_of(space)
    with torch.no_grad():
        supernet.network.get_submodule(consumer).weight.zero_()  # nothing is lost without it
    recipe = recipe_for(space, budget)
    found = search_trained(recipe, supernet, data, source="somewhere", sha256="0" * 64)
    assert found.preferred.archs == (without,)

    again = cuts(without, space.settings, "again")
    assert again.blocks[0].options == ((0,),)
    supernet = trained_supernet(again)
    recipe = recipe_for(again, budget)
    found = search_trained(recipe, supernet, data, source="somewhere", sha256="0" * 64)
    assert found.preferred.archs == (without,)
    assert found.preferred.trained is not None
    assert found.preferred.trained.units[consumer] == ()


def test_equal_shares_are_the_most_that_fit() -> None:
    """Each layer keeps the share to within half a step, and the next larger subnet costs more."""
    space = timm_space("test_resnet", 40)
    layers = [[torch.ones(group.num_units).double() for group in b.groups] for b in space.blocks]
    tables = unit_tables(space, layers)
    least, most = (count(arch, space)["macs"] for arch in (space.smallest, space.largest))
    found = []
    for budget in parse_budgets(
        [f"macs={most * share // 100}" for share in range(30, 101, 2)]
    ).kept:
        subnet = equal_shares(space, tables, budget)
        if subnet is None:
            assert least > budget.bounds[1, 1] - 1
            continue
        assert budget.contains(np.array([*subnet.cost.values()]))
        found.append(subnet)
        arch = space.compose(subnet.choices, None)
        assert subnet.cost["macs"] == count(arch, space)["macs"]
        steps = [b.options[0][1] - b.options[0][0] for b in space.blocks]
        of_all = [units / group.num_units for group, units in arch.kept()]
        widest = max(
            step / b.groups[0].num_units for step, b in zip(steps, space.blocks, strict=True)
        )
        assert max(of_all) - min(of_all) <= widest
    assert found[-1].cost["macs"] == most
    assert len({subnet.cost["macs"] for subnet in found}) > 5


def test_an_equal_share_of_every_layer_is_chosen_on_request() -> None:
    space = timm_space("test_resnet", 40)
    half = count(space.largest, space)["macs"] * 3 // 4
    recipe = with_overrides(recipe_for(space, f"macs={half}"), ["search.allocation=equal"])
    (subnet,) = chosen(recipe).subnets
    best = chosen(recipe_for(space, f"macs={half}")).subnets[0]
    assert subnet.score is not None
    assert best.score is not None
    assert subnet.score < best.score
    assert subnet.costs["macs"] <= half
    uneven = count(space.sample(np.random.default_rng(1)), space)["macs"]
    tight = recipe_for(space, f"macs={uneven}:{uneven + 1}")
    search = tight.search.model_copy(update={"allocation": "equal"})
    with pytest.raises(ValueError, match=r"keeps the same share of every layer fits any"):
        search_trained(
            tight.model_copy(update={"search": search}),
            trained_supernet(space),
            images_of(space),
            source="x",
            sha256="",
        )


@pytest.mark.parametrize("seed", range(3))
def test_uniform_numbers_are_the_best_of_all_cuts_that_are_uniform(seed: int) -> None:
    """Every pair of a number of heads and of units is tried as an architecture of its own."""
    space = timm_space("test_vit", 64, absent_branches=True)
    generator = torch.Generator().manual_seed(seed)
    layers = [
        [torch.rand(group.num_units, generator=generator).double() for group in block.groups]
        for block in space.blocks
    ]
    tables = unit_tables(space, layers)
    every: list[tuple[float, int, TimmArch]] = []
    for numbers in product(*(axis.options[1:] for axis in space.chain[0].axes)):
        blocks = [block.model_copy(update={"units": numbers}) for block in space.largest.blocks]
        arch = space.largest.model_copy(update={"blocks": tuple(blocks)})
        score = sum(
            float(scores[:number].sum())
            for layer in layers
            for number, scores in zip(numbers, layer, strict=True)
        )
        every.append((score, count(arch, space)["macs"], arch))
    least, most = (end(macs for _, macs, _ in every) for end in (min, max))
    for share in (0.0, 0.3, 0.7, 1.0):
        limit = int(least + share * (most - least))
        found = uniform_numbers(space, tables, parse_budgets([f"macs={limit}"]).kept[0])
        assert found is not None
        best = max((one for one in every if one[1] <= limit), key=lambda one: one[0])
        assert space.compose(found.choices) == best[2]
        assert found.score == pytest.approx(best[0])
        assert found.cost["macs"] == best[1]
    too_small = parse_budgets([f"macs={least - 1}"]).kept[0]
    assert uniform_numbers(space, tables, too_small) is None


def test_uniform_cuts_need_layers_of_one_size() -> None:
    recipe = recipe_for(small_space(), "macs=1G")
    with pytest.raises(ValueError, match="channels at most, so they cannot all keep equally many"):
        with_overrides(recipe, ["search.allocation=uniform"])
    vit = recipe_for(timm_space("test_vit", 64), "macs=1G")
    assert with_overrides(vit, ["search.allocation=uniform"]).search.allocation == "uniform"


def test_an_allocation_is_only_for_scores_of_units() -> None:
    with pytest.raises(ValueError, match=r"search.score is 'entropy'"):
        with_overrides(get_recipe("digits"), ["search.score=entropy", "search.allocation=equal"])
    with pytest.raises(ValueError, match=r"search.k is 2: set it to 1"):
        with_overrides(
            recipe_for(small_space(), "macs=1G"), ["search.allocation=equal", "search.k=2"]
        )


def test_agreement_counts_the_units_that_both_halves_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal halves agree wholly; reversed ones have in common what fits into both ends."""
    space = timm_space("test_resnet", 40)
    macs = count(space.largest, space)["macs"]
    recipe = with_overrides(
        recipe_for(space, f"macs={macs * 3 // 4}", "macs=1:2:1"), ["search.allocation=equal"]
    )
    groups = [group for block in space.blocks for group in block.groups]
    rising = [torch.arange(1, group.num_units + 1).double() for group in groups]
    falling = [one.flip(0) for one in rising]

    def agreement(one: list[torch.Tensor], other: list[torch.Tensor]) -> HalvesAgreement:
        monkeypatch.setattr(
            trained, "unit_scores", lambda *_, **fields: UnitScores(rising, (one, other))
        )
        found = search_trained(
            recipe, trained_supernet(space), images_of(space), source="x", sha256=""
        )
        assert found.preferred.trained is not None
        assert found.preferred.trained.halves is not None
        kept = [units for _, units in found.preferred.archs[0].kept()]
        overlap = sum(max(0, 2 * n - g.num_units) for n, g in zip(kept, groups, strict=True))
        expected.append(overlap / sum(kept))
        return found.preferred.trained.halves

    expected: list[float] = []
    same, reverse = agreement(rising, rising), agreement(rising, falling)
    assert same == HalvesAgreement(rank_correlation=1.0, kept_in_common=(1.0, None))
    assert reverse.rank_correlation == pytest.approx(-1)
    assert reverse.kept_in_common[0] == pytest.approx(expected[1])
    assert 0 < expected[1] < 1


def test_budgets_out_of_reach_are_refused_before_anything_is_scored() -> None:
    space = small_space()
    with pytest.raises(ValueError, match="no subnet fits the budget "):
        search_trained(recipe_for(space, "macs=1"), None, images_of(space), source="x", sha256="")


def test_only_families_with_unit_groups_have_these_scores() -> None:
    with pytest.raises(ValueError, match="unknown score 'gate'"):
        Recipe(
            name="digits",
            space=get_space("digits"),
            search=SearchRecipe(budgets=("params=100k",), score="gate"),
        )
