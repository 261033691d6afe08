"""The search from recipe to preferred set: repeatable, within budgets, with correct scores."""

import json
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest
import scipy
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from prenas import pipeline
from prenas.cli.tables import print_preferred
from prenas.cost import count
from prenas.data import ImageData, load_data
from prenas.data.pictures import Pixels
from prenas.families import family_of
from prenas.families.base import Arch, check_contains, envelope
from prenas.families.vit.space import VitArch
from prenas.proxy.importance import Importance, measure_importance, noise_images
from prenas.proxy.scores import COUNT_SCORE, WEIGHT_SCORES, Scope
from prenas.recipe import IsomerRule, Recipe, SearchRecipe, with_overrides
from prenas.recipe.budgets import parse_budgets
from prenas.recipe.catalogue import get_recipe
from prenas.selection import search as searching
from prenas.selection.preferred import PreferredSet
from prenas.selection.ranking import Fronts
from prenas.selection.search import Search, new_supernet, zero_cost_search
from prenas.selection.window import Windows
from prenas.steps import training
from prenas.supernet import Supernet
from reference.scores import ATTENTION_AND_MLP_SUFFIXES
from training.runs import (
    MINI,
    assert_same_tensors,
    global_state_untouched,
    mini_recipe,
    own_data,
    own_recipe,
)

pytest_plugins = "training.runs"

RULES = get_args(IsomerRule)
SCORES = (*WEIGHT_SCORES, COUNT_SCORE, "entropy")


def found(recipe: Recipe, data: ImageData | None = None) -> PreferredSet:
    return zero_cost_search(recipe, data).preferred


@pytest.fixture(scope="module")
def mini_search() -> Search:
    return zero_cost_search(mini_recipe())


# --- repeatable ----------------------------------------------------------------------------------


def test_the_same_recipe_gives_the_same_bytes(searched_run: Path, tmp_path: Path) -> None:
    torch.rand(5)  # whatever ran before
    pipeline.search(mini_recipe(), tmp_path / "again")
    for name in ("preferred.json", "initial.safetensors", "recipe.json"):
        assert (tmp_path / "again" / name).read_bytes() == (searched_run / name).read_bytes()


def test_a_search_leaves_global_generators_alone() -> None:
    with global_state_untouched():
        zero_cost_search(mini_recipe(search={"further_seeds": 1}))


def test_another_seed_is_another_initialisation(mini_search: Search) -> None:
    other = zero_cost_search(mini_recipe(seed=1))
    ours, theirs = mini_search.supernet.network, other.supernet.network
    assert not torch.equal(ours.head.weight, theirs.head.weight)
    left, right = mini_search.preferred, other.preferred
    assert left.subnets[0].score != right.subnets[0].score
    assert (left.budgets, left.reachable, left.num_archs) == (
        right.budgets,
        right.reachable,
        right.num_archs,
    )


def test_budgets_that_hold_nothing_are_told_before_the_backward_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(searching, "measure_importance")
    with pytest.raises(
        ValueError, match=r"no subnet fits the budget .*over params.*Change a budget"
    ):
        zero_cost_search(mini_recipe(search={"budgets": ("params=1M:2M",)}))


@pytest.mark.parametrize("rule", ["published", "random"])
def test_further_seeds_only_add_their_agreement(rule: str) -> None:
    plain = found(mini_recipe(search={"isomers": rule})).model_dump()
    more = found(mini_recipe(search={"isomers": rule, "further_seeds": 2})).model_dump()
    agreement = more.pop("agreement")
    assert plain.pop("agreement") == ()
    assert more.pop("recipe")["search"].pop("further_seeds") == 2
    plain.pop("recipe")
    assert more == plain
    assert [seed["seed"] for seed in agreement] == [1, 2]
    for seed in agreement:
        assert -1 <= seed["score_tau"] <= 1
        assert seed["block_score_tau"].keys() == {axis.name for axis in MINI.layer_axes}
        assert all(-1 <= tau <= 1 for tau in seed["block_score_tau"].values())
        assert len(seed["same_class"]) == len(seed["changed_options"]) == len(plain["budgets"])
        for results in (seed["same_class"], seed["changed_options"], seed["scores"]):
            assert results[-1] is None  # the empty budget
        assert all(score > 0 for score in seed["scores"][:-1])


def test_agreement_reports_what_the_other_seed_would_find() -> None:
    """If a score uses no images, the second seed's best equal those of a run with that seed."""
    choice = {"score": "sum_abs_weight", "isomers": "front"}
    first = found(mini_recipe(search={**choice, "further_seeds": 1}))
    second = found(mini_recipe(seed=1, search=choice))
    (agreement,) = first.agreement
    best = {choice.budget: choice.subnet for choice in second.choices}
    expected = [
        second.subnets[best[number]].score if number in best else None for number in range(4)
    ]
    assert list(agreement.scores) == pytest.approx(expected)
    ours = {choice.budget: first.subnets[choice.subnet].arch for choice in first.choices}
    for number, changed in enumerate(agreement.changed_options[:3]):
        left, right = ours[number], second.subnets[best[number]].arch
        assert isinstance(left, VitArch)
        assert isinstance(right, VitArch)
        if (left.embed_dim, left.depth) == (right.embed_dim, right.depth):
            differing = sum(
                a != b
                for axis in ("num_heads", "mlp_ratio")
                for a, b in zip(getattr(left, axis), getattr(right, axis), strict=True)
            )
            assert changed == differing
            same = all(
                sorted(getattr(left, axis)) == sorted(getattr(right, axis))
                for axis in ("num_heads", "mlp_ratio")
            )
            assert agreement.same_class[number] is same
        else:
            assert changed is None
            assert not agreement.same_class[number]


# --- scored as it says ---------------------------------------------------------------------------


def score_of(
    arch: Arch, name: str, supernet: Supernet, importance: Importance, scope: Scope = "all"
) -> float:
    """The definition (method section 2): a sum over the scored weights that the subnet owns."""
    family, total = family_of(arch), 0.0
    weights, gradients = importance
    for tensor, box in supernet.owned_boxes(arch).items():
        if tensor not in weights or not family.is_scored(tensor):
            continue
        if name.endswith("of_layer_choices") and not tensor.endswith(ATTENTION_AND_MLP_SUFFIXES):
            continue
        if scope == "blocks" and not tensor.startswith(family.layers(arch)):
            continue
        weight, gradient = weights[tensor][box].double(), gradients[tensor][box].double()
        if name == "sum_abs_weight":
            total += float(weight.abs().sum())
        elif name == "abs_sum_weight_times_gradient":
            total += float((weight * gradient).sum())
        else:
            total += float((weight * gradient).abs().sum())
    return abs(total)


@pytest.mark.parametrize("score", list(WEIGHT_SCORES))
def test_reported_scores_are_the_definition(score: str) -> None:
    """Sliced tensor by tensor, from the stored weights and the generated images."""
    recipe = mini_recipe(search={"score": score})
    search = zero_cost_search(recipe)
    preprocessing = recipe.preprocessing
    images = noise_images(8, 1, (8, 8), preprocessing.mean, preprocessing.std, recipe.seed)
    importance = measure_importance(search.supernet, MINI.largest, images)
    for subnet in search.preferred.subnets:
        assert isinstance(subnet.arch, VitArch)
        expected = score_of(subnet.arch, score, search.supernet, importance)
        assert subnet.score == pytest.approx(expected, rel=1e-4)


def micro_recipe(*overrides: str) -> Recipe:
    """A convolutional search that takes a second or two."""
    small = SearchRecipe(budgets=("macs=400k:1M:200k",), num_images=16, batch_size=16)
    recipe = get_recipe("mobilenet-micro").model_copy(update={"search": small})
    return with_overrides(recipe, overrides)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("scope", ["all", "blocks"])
def test_scopes_of_a_convolutional_search(scope: Scope, tied: bool) -> None:
    """Sliced tensor by tensor; the score without stem and head is reported too."""
    recipe = micro_recipe(f"search.scope={scope}", f"space.tied={str(tied).lower()}")
    search, preprocessing = zero_cost_search(recipe), recipe.preprocessing
    images = noise_images(16, 3, (28, 28), preprocessing.mean, preprocessing.std, recipe.seed)
    importance = measure_importance(search.supernet, recipe.space.scored, images, batch_size=16)
    budgets = parse_budgets(recipe.search.budgets).kept
    assert [choice.budget for choice in search.preferred.choices] == [0, 1, 2]
    for choice in search.preferred.choices:
        subnet = search.preferred.subnets[choice.subnet]
        low, high = budgets[choice.budget].intervals["macs"]
        assert low <= subnet.costs["macs"] < high
        both = {
            one: score_of(subnet.arch, "", search.supernet, importance, one)
            for one in ("all", "blocks")
        }
        assert both["blocks"] < 0.9 * both["all"]
        assert subnet.score == pytest.approx(both[scope], rel=1e-4)
        assert subnet.score_of_blocks == pytest.approx(both["blocks"], rel=1e-4)
    gains = search.preferred.block_scores
    layers = [len(stage) for stage in gains["expand"]]
    assert layers == ([0] * 5 if tied else [0, 1, 3, 4, 0])


def test_scope_blocks_has_no_need_of_the_largest_head() -> None:
    """A larger head costs more and adds no score, so only the smallest is chosen."""
    heads = {
        scope: [
            subnet.arch.network_options["head"]
            for subnet in found(micro_recipe(f"search.scope={scope}")).subnets
        ]
        for scope in ("all", "blocks")
    }
    assert set(heads["blocks"]) == {64}
    assert 96 in heads["all"]


def test_the_best_of_a_budget_is_the_best_there_is() -> None:
    """Compared with the score of every class, by brute force, with the isomer rule `front`."""
    recipe = mini_recipe(search={"isomers": "front", "k": 1})
    search = zero_cost_search(recipe)
    preprocessing = recipe.preprocessing
    images = noise_images(8, 1, (8, 8), preprocessing.mean, preprocessing.std, recipe.seed)
    importance = measure_importance(search.supernet, MINI.largest, images)
    every = [
        VitArch(embed_dim=width, num_heads=heads, mlp_ratio=ratios)
        for width, depth in product(MINI.embed_dim, MINI.depth)
        for heads in product(reversed(MINI.num_heads), repeat=depth)
        for ratios in product(reversed(MINI.mlp_ratio), repeat=depth)
        if list(heads) == sorted(heads, reverse=True)
        and list(ratios) == sorted(ratios, reverse=True)
    ]
    assert len(every) == search.preferred.num_classes_of_isomers == 26
    chosen = {choice.budget: choice for choice in search.preferred.choices}
    for number, budget in enumerate(parse_budgets(recipe.search.budgets).kept):
        (low, high) = budget.intervals["params"]
        inside = [a for a in every if low <= count(a, MINI.settings)["params"] < high]
        scores = sorted(
            (score_of(arch, "", search.supernet, importance) for arch in inside), reverse=True
        )
        assert (number in chosen) is bool(inside)
        if inside:
            best = search.preferred.subnets[chosen[number].subnet]
            assert best.arch in inside
            assert best.score == pytest.approx(scores[0], rel=1e-4)
            margin = (scores[0] - scores[1]) / scores[0]
            assert chosen[number].margin == pytest.approx(margin, abs=1e-4)


@pytest.mark.parametrize("is_stopped", [True, False])
def test_a_choice_that_is_not_proven_is_recorded_as_such(
    is_stopped: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The first solution is the best, but is called good enough; or it is proven to be the best."""
    solve = scipy.optimize.milp

    def stopped(*arguments: Any, **options: Any) -> Any:
        solution = solve(*arguments, **options)
        solution.status = 1 if is_stopped else 0
        return solution

    monkeypatch.setattr(scipy.optimize, "milp", stopped)
    for kind in (Fronts, Windows):  # leave the budgets to the program
        monkeypatch.setattr(kind, "best", lambda self, budget: None)
    budgets = ['search.budgets=["macs=1M:1.25M", "macs=1.25M:1.5M"]']
    recipe = with_overrides(get_recipe("mobilenet-micro"), budgets)
    run = tmp_path / "run"
    pipeline.search(recipe.model_copy(update={"training": None}), run)
    preferred = pipeline.read_preferred(run)
    assert [choice.proven for choice in preferred.choices] == [not is_stopped] * 2
    assert preferred.unproven_budgets == [*preferred.budgets] * is_stopped
    print_preferred(preferred)
    words = f"A better subnet may exist for {'; '.join(preferred.budgets)}: the search was stopped"
    assert (words in capsys.readouterr().out) is is_stopped
    page = pipeline.report(run).read_text()
    assert ("A better subnet may exist for macs in" in page) is is_stopped


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_and_score_gives_subnets_in_their_budgets(rule: IsomerRule, score: str) -> None:
    preferred = found(mini_recipe(search={"isomers": rule, "score": score}))
    budgets = parse_budgets(preferred.recipe.search.budgets).kept
    assert {choice.budget for choice in preferred.choices} == {0, 1, 2}
    for choice in preferred.choices:
        subnet = preferred.subnets[choice.subnet]
        low, high = budgets[choice.budget].intervals["params"]
        assert low <= subnet.costs["params"] < high
        assert choice.margin is not None
        assert choice.margin >= 0
    for subnet in preferred.subnets:
        cost = count(subnet.arch, MINI.settings)
        assert subnet.costs == cost


def test_the_front_rule_gives_larger_options_to_earlier_layers() -> None:
    preferred = found(mini_recipe(search={"isomers": "front", "k": 3}))
    assert len(preferred.subnets) > 5
    for subnet in preferred.subnets:
        for options in (subnet.arch.num_heads, subnet.arch.mlp_ratio):  # type: ignore[attr-defined]
            assert list(options) == sorted(options, reverse=True)


@pytest.mark.parametrize("rule", ["published", "raw", "random"])
def test_options_follow_the_gains_that_are_reported(rule: str) -> None:
    """Two layers, two options: the larger goes to the layer with the larger gain."""
    preferred = found(mini_recipe(search={"isomers": rule, "k": 9}))
    seen = 0
    for subnet in preferred.subnets:
        for axis in ("num_heads", "mlp_ratio"):
            options = getattr(subnet.arch, axis)
            (stage,) = preferred.block_scores[axis]
            gains = [layer[1] for layer in stage]
            assert len(gains) == 2
            if len(set(options)) == 2:
                seen += 1
                assert (options[0] > options[1]) is (gains[0] >= gains[1])
    assert seen > 3


# --- budgets -------------------------------------------------------------------------------------


def test_empty_and_partial_budgets_are_named(mini_search: Search) -> None:
    preferred = mini_search.preferred
    assert preferred.budgets == (
        "params in [1.2k, 1.9k)",
        "params in [1.9k, 2.6k)",
        "params in [2.6k, 3.3k)",
        "params in [10k, 11k)",
    )
    assert preferred.empty_budgets == (3,)
    assert preferred.partial_budgets == ("params in [3.3k, 3.4k)",)
    assert preferred.budgets_of(0) == ["params in [1.2k, 1.9k)"]
    assert (preferred.num_archs, preferred.num_classes_of_isomers) == (40, 26)
    smallest, largest = (count(arch, MINI.settings) for arch in (MINI.smallest, MINI.largest))
    assert preferred.reachable.startswith(f"params {smallest['params']:,} to {largest['params']:,}")


def test_a_partial_interval_can_be_kept(mini_search: Search) -> None:
    kept = found(mini_recipe(search={"keep_partial": True}))
    assert kept.partial_budgets == ()
    assert "params in [3.3k, 3.4k)" in kept.budgets
    assert len(kept.subnets) == len(mini_search.preferred.subnets) + 1
    assert 3300 <= kept.subnets[-1].costs["params"] < 3400
    assert kept.choices[3].margin is None  # nothing else fits there


def test_budgets_that_hold_nothing_name_what_the_space_reaches() -> None:
    smallest, largest = (count(arch, MINI.settings) for arch in (MINI.smallest, MINI.largest))
    with pytest.raises(ValueError, match="no subnet fits any of the 2 budgets") as caught:
        found(mini_recipe(search={"budgets": ("params=100", "params=1M:2M")}))
    message = str(caught.value)
    assert "params <= 100; params in [1M, 2M)" in message
    assert f"params {smallest['params']:,} to {largest['params']:,}" in message
    assert "macs " in message


def test_a_search_that_finds_nothing_does_not_claim_the_folder(tmp_path: Path) -> None:
    """After a typing error in the budget, the corrected command works."""
    with pytest.raises(ValueError, match="no subnet fits"):
        pipeline.search(mini_recipe(search={"budgets": ("params=100",)}), tmp_path / "run")
    assert pipeline.search(mini_recipe(), tmp_path / "run").subnets


def test_k_subnets_per_budget() -> None:
    preferred = found(mini_recipe(search={"k": 2}))
    third = found(mini_recipe(search={"k": 3}))
    for budget in range(3):
        pair = [choice for choice in preferred.choices if choice.budget == budget]
        triple = [choice for choice in third.choices if choice.budget == budget]
        assert [choice.rank for choice in pair] == [0, 1]
        assert [choice.rank for choice in triple] == [0, 1, 2]
        scores = [preferred.subnets[choice.subnet].score for choice in pair]
        assert scores == sorted(scores, reverse=True)
        # Both lead over the best that was not chosen.
        next_best = third.subnets[triple[2].subnet].score
        for choice, score in zip(pair, scores, strict=True):
            assert choice.margin == pytest.approx((score - next_best) / score)
            assert choice.margin >= 0
    assert len(preferred.subnets) == 6


def test_cheapest_is_by_what_the_budgets_bound() -> None:
    """The last is the largest of a sandwich, from which the others learn.

    At a smaller resolution fewer multiply-accumulates buy more parameters.
    """
    budgets = '["macs=1300k:1500k,resolution=40","macs=1M:1200k,resolution=20"]'
    recipe = micro_recipe("space.resolution=[20,40]", f"search.budgets={budgets}")
    small, large = found(recipe).subnets
    assert small.costs["macs"] < large.costs["macs"]
    assert small.costs["params"] > large.costs["params"]


def test_subnets_are_listed_once_from_the_cheapest_on() -> None:
    overlapping = ("params=2k", "params=1k:2k", "params=3500", "params=4k,macs=20k", "macs=9k")
    preferred = found(mini_recipe(search={"budgets": overlapping}))
    costs = [(subnet.costs["params"], subnet.costs["macs"]) for subnet in preferred.subnets]
    assert costs == sorted(costs)
    assert len({subnet.arch for subnet in preferred.subnets}) == len(preferred.subnets) < 5
    assert len(preferred.choices) == 5
    assert all(0 <= choice.subnet < len(preferred.subnets) for choice in preferred.choices)
    both = preferred.subnets[preferred.choices[3].subnet]
    assert both.costs["params"] <= 4000
    assert both.costs["macs"] <= 20_000


def test_the_envelope_contains_all_and_nothing_more(mini_search: Search) -> None:
    preferred = mini_search.preferred
    largest = preferred.envelope
    assert isinstance(largest, VitArch)
    for arch in preferred.archs:
        check_contains(largest, arch)
    assert largest != MINI.largest
    smaller = [largest.model_copy(update={"embed_dim": largest.embed_dim - 1})]
    for axis, step in (("num_heads", 1), ("mlp_ratio", 0.5)):
        options = getattr(largest, axis)
        for layer in range(largest.depth):
            less = (*options[:layer], options[layer] - step, *options[layer + 1 :])
            if less[layer] > 0:
                smaller.append(largest.model_copy(update={axis: less}))
    assert len(smaller) > 3
    for candidate in smaller:
        with pytest.raises(ValueError, match="does not fit"):
            [check_contains(candidate, arch) for arch in preferred.archs]
    assert max(arch.depth for arch in preferred.archs) == largest.depth  # type: ignore[attr-defined]
    assert envelope([MINI.smallest]) == MINI.smallest


# --- weights -------------------------------------------------------------------------------------


def test_the_scored_weights_are_kept_whole(mini_search: Search, searched_run: Path) -> None:
    kept = load_file(searched_run / "initial.safetensors")
    assert_same_tensors(kept, mini_search.supernet.network.state_dict())
    assert_same_tensors(kept, new_supernet(mini_recipe(), 0).network.state_dict())
    assert mini_search.supernet.arch == MINI.supernet
    assert kept["cls_token"].shape[-1] == 20  # the space's supernet is wider than its options


def test_training_starts_from_the_scored_weights(
    searched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The envelope's part of them, to the bit: the order of isomers belongs to these weights."""
    seen: list[Supernet] = []

    def record(supernet: Supernet, *args: object, **kwargs: object) -> None:
        seen.append(supernet)

    monkeypatch.setattr(training, "train_supernet", record)
    pipeline.train(searched, device="cpu")
    (supernet,) = seen
    preferred = pipeline.read_preferred(searched)
    assert supernet.arch == preferred.envelope
    scored = load_file(searched / "initial.safetensors")
    largest = Supernet(MINI.supernet, MINI.settings)
    started = supernet.network.state_dict()
    boxes = largest.owned_boxes(preferred.envelope)
    for name, tensor in started.items():
        assert torch.equal(tensor, scored[name][boxes[name]]), name
    assert sum(t.numel() for t in started.values()) < sum(t.numel() for t in scored.values())
    assert max(supernet.drop_path_rates.values()) == pytest.approx(0.2)


# --- images --------------------------------------------------------------------------------------


def test_a_search_on_data_uses_images_and_labels() -> None:
    """The gradient of the loss on training images; drawn from the seed, so repeatable."""
    recipe = mini_recipe(search={"images": "data"})
    assert recipe.data is not None
    digits = load_data(recipe.data, recipe.space.settings)
    preferred = found(recipe, digits)
    assert preferred == found(recipe, load_data(recipe.data, recipe.space.settings))
    noise = found(mini_recipe())
    assert len(preferred.subnets) == 3
    assert preferred.subnets[0].score != pytest.approx(noise.subnets[0].score, rel=1e-3)
    # Labels count: the same images under turned labels score otherwise.
    assert isinstance(digits.train, Pixels)
    images, labels = digits.train[list(range(len(digits.train)))]
    turned = torch.utils.data.TensorDataset(images, (labels + 1) % 10)
    other = found(recipe, ImageData(turned, turned, None, digits.class_names))
    assert other.subnets[0].score != pytest.approx(preferred.subnets[0].score, rel=1e-6)


def test_a_search_on_own_data(tmp_path: Path) -> None:
    recipe = own_recipe(search={"images": "data"})
    preferred = pipeline.search(recipe, tmp_path / "run", data=own_data())
    assert preferred == found(recipe, own_data())
    with pytest.raises(ValueError, match=r"pass data=prenas\.ImageData"):
        pipeline.search(recipe, tmp_path / "other")


def test_a_search_on_an_own_loader() -> None:
    recipe, data = own_recipe(search={"images": "data"}), own_data()
    loader = DataLoader(data.train, batch_size=3)  # type: ignore[arg-type]
    preferred = found(recipe, ImageData(loader, data.validation, None, data.class_names))
    assert len(preferred.subnets) == 3


def test_more_images_than_there_are_is_refused(tmp_path: Path) -> None:
    recipe = own_recipe(search={"images": "data", "num_images": 41})
    with pytest.raises(ValueError, match=r"num_images is 41, .* only 40 images: use 40 or fewer"):
        pipeline.search(recipe, tmp_path / "run", data=own_data())


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_batches_only_bound_the_memory(batch_size: int, mini_search: Search) -> None:
    preferred = found(mini_recipe(search={"batch_size": batch_size}))
    scores = [subnet.score for subnet in preferred.subnets]
    expected = [subnet.score for subnet in mini_search.preferred.subnets]
    assert scores == pytest.approx(expected, rel=1e-4)


def test_a_preferred_set_says_where_it_comes_from(searched_run: Path) -> None:
    document = json.loads((searched_run / "preferred.json").read_text())
    assert document["versions"]["torch"] == version("torch")
    assert document["num_threads"] == torch.get_num_threads()
    assert pipeline.read_preferred(searched_run).recipe == mini_recipe()


def test_a_score_that_is_zero_everywhere_chooses_nothing() -> None:
    """No layer has an option, so a score of the options sees nothing."""
    fixed = MINI.model_copy(update={"num_heads": (2,), "mlp_ratio": (2.0,)})
    recipe = mini_recipe(search={"score": "sum_abs_weight_times_gradient_of_layer_choices"})
    with pytest.raises(ValueError, match="every subnet of the space 'mini' the score 0"):
        zero_cost_search(recipe.model_copy(update={"space": fixed}))
