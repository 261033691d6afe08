"""Evolution against brute force, its rules one by one, and one-shot NAS from run to report."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from edits import write_edited
from families.drawing import ALL_SPACES, choices
from prenas import pipeline
from prenas.cost import count
from prenas.data import num_samples
from prenas.evaluation import accuracy as evaluation
from prenas.evaluation.accuracy import evaluate_archs, top1_of_archs
from prenas.families import get_space
from prenas.families.base import Arch, SearchSpace, StageChoice
from prenas.models.export import load
from prenas.recipe import EvolutionRecipe, with_overrides
from prenas.recipe.budgets import Budget, parse_budgets
from prenas.recipe.catalogue import get_recipe
from prenas.report.reproduction import command_of
from prenas.rivals import one_shot
from prenas.rivals.evolution import Generation, _Breeding, evolve, remembering
from prenas.runs.run import Run
from prenas.selection.within import Genes, Within
from prenas.steps import choosing, measuring, training
from training.runs import (
    MINI,
    StoppedError,
    contents,
    hearing,
    mini_recipe,
    never,
    other_data,
    own_data,
    own_recipe,
    stop_at,
)

pytest_plugins = "training.runs"

DIGITS = get_space("digits")
SMALL = EvolutionRecipe(
    population=6, generations=5, num_parents=3, num_mutations=2, num_crossovers=2
)


def budget_of(text: str) -> Budget:
    (budget,) = parse_budgets([text]).kept
    return budget


def fits(arch: Arch, budget: Budget, space: SearchSpace) -> bool:
    cost = count(arch, space.settings)
    return all(lo <= cost[axis] < hi for axis, (lo, hi) in budget.intervals.items())


def priced(costs: dict[str, int]) -> tuple[int, int]:
    """The order of cheaper and dearer where a budget bounds parameters."""
    return costs["params"], costs["macs"]


def every_arch(space: SearchSpace) -> set[Arch]:
    """All of a small space, by drawing until none is missing."""
    generator, found = np.random.default_rng(0), set()
    while len(found) < space.num_archs:
        found.add(space.sample(generator))
    return found


class Additive:
    """An accuracy that is a sum over choices, with all that it was asked."""

    def __init__(self, space: SearchSpace, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.weights = {
            axis.name: [
                [
                    dict(zip(axis.options, generator.random(9), strict=False))
                    for _ in range(stage.depths[-1])
                ]
                for stage in space.chain
                if stage.axes
            ]
            for axis in space.layer_axes
        }
        self.asked: list[list[Arch]] = []

    def of(self, arch: Arch) -> float:
        worth = [
            self.weights[axis][number][layer][option]
            for axis, stages in arch.layer_options.items()
            for number, options in enumerate(stages)
            for layer, option in enumerate(options)
        ]
        return sum(worth) * len(arch.layer_options) / len(worth)

    def __call__(self, archs: Sequence[Arch]) -> list[float]:
        self.asked.append(list(archs))
        return [self.of(arch) for arch in archs]


# --- the search ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("text", ["params=1200:1900", "params=1900:2600", "params=9k"])
def test_the_best_of_a_small_space_is_found(text: str, seed: int) -> None:
    """Brute force over all 40; ties go to the cheaper."""
    accuracy, budget = Additive(MINI, seed), budget_of(text)
    found = evolve(MINI, budget, accuracy, EvolutionRecipe(generations=3), seed=seed)
    fitting = [arch for arch in every_arch(MINI) if fits(arch, budget, MINI)]
    best = min(fitting, key=lambda arch: (-accuracy.of(arch), priced(count(arch, MINI))))
    assert (found.arch, found.accuracy) == (best, accuracy.of(best))
    assert found.costs == count(best, MINI)
    assert found.num_evaluated == len(fitting)


def test_the_best_of_a_large_space_is_found_by_looking_at_a_few() -> None:
    """199,017 architectures, 1,000 looked at; as many random ones are far from it."""
    accuracy = Additive(DIGITS)
    found = evolve(DIGITS, budget_of("params=250k"), accuracy, EvolutionRecipe(), seed=0)
    optimum = max(
        sum(
            max(layer.values()) for (stage,) in accuracy.weights.values() for layer in stage[:depth]
        )
        / depth
        for depth in (3, 4, 5)
    )
    generator = np.random.default_rng(0)
    by_chance = max(accuracy.of(DIGITS.sample(generator)) for _ in range(1000))
    assert found.num_evaluated == 1000
    assert by_chance < found.accuracy == pytest.approx(optimum)


def test_equal_accuracies_go_to_the_cheaper() -> None:
    for text in ("params=9k", "params=2k:3400"):
        budget = budget_of(text)
        found = evolve(MINI, budget, lambda archs: [0.5] * len(archs), EvolutionRecipe(), seed=0)
        fitting = [a for a in every_arch(MINI) if fits(a, budget, MINI)]
        assert found.costs == min((count(a, MINI) for a in fitting), key=priced)


def test_the_cheaper_is_so_on_the_axis_that_the_budget_bounds() -> None:
    costs = [count(arch, MINI) for arch in every_arch(MINI)]

    def cheapest(low: int, first: str, second: str) -> dict[str, int]:
        return min(
            (one for one in costs if one["macs"] >= low), key=lambda one: (one[first], one[second])
        )

    low = next(
        one["macs"]
        for one in costs
        if cheapest(one["macs"], "macs", "params") != cheapest(one["macs"], "params", "macs")
    )
    budget = budget_of(f"macs={low}:{2 * max(one['macs'] for one in costs)}")
    found = evolve(MINI, budget, lambda archs: [0.5] * len(archs), EvolutionRecipe(), seed=0)
    assert found.costs == cheapest(low, "macs", "params")


@given(st.integers(40_000, 240_000), st.integers(2_000, 40_000), st.integers(0, 9))
@settings(max_examples=10, deadline=None)
def test_all_candidates_are_within_the_budget_and_new(low: int, width: int, seed: int) -> None:
    """Narrow or wide; no more are asked for than there are, and none twice."""
    accuracy, budget = Additive(DIGITS), Budget({"params": (low, low + width)})
    found = evolve(DIGITS, budget, accuracy, SMALL, seed=seed)
    asked = [arch for archs in accuracy.asked for arch in archs]
    assert asked
    assert len(set(asked)) == len(asked) == found.num_evaluated
    assert all(fits(arch, budget, DIGITS) for arch in asked)
    assert found.accuracy == max(map(accuracy.of, asked)) == found.history[-1]


@pytest.mark.parametrize(
    ("evolution", "sizes"),
    [
        (SMALL, [6, 6, 6, 6, 6]),  # two mutants, two crossovers, two random ones
        (SMALL.model_copy(update={"num_mutations": 5, "generations": 3}), [6, 7, 7]),
        (EvolutionRecipe(generations=2), [50, 50]),
        (EvolutionRecipe(generations=1), [50]),
    ],
)
def test_generations_have_their_sizes_and_are_asked_for_at_once(
    evolution: EvolutionRecipe, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[str, list[Genes]] = {"mutant": [], "crossover": []}
    for name, genes in made.items():
        original = getattr(_Breeding, name)

        def spy(*args: Any, original: Any = original, genes: list[Genes] = genes) -> Genes:
            genes.append(original(*args))
            return genes[-1]

        monkeypatch.setattr(_Breeding, name, spy)
    accuracy, seen = Additive(DIGITS), list[Generation]()
    budget = budget_of("params=40k:250k")
    found = evolve(DIGITS, budget, accuracy, evolution, seed=0, watch=seen.append)
    assert [len(archs) for archs in accuracy.asked] == sizes
    assert found.num_evaluated == sum(sizes)
    for archs in accuracy.asked[1:]:  # mutants, crossovers, then random ones
        mutants, crossovers = (
            {DIGITS.compose(*genes) for genes in made[name]} for name in ("mutant", "crossover")
        )
        end = evolution.num_mutations + evolution.num_crossovers
        assert set(archs[: evolution.num_mutations]) <= mutants
        assert set(archs[evolution.num_mutations : end]) <= crossovers
    assert [each.number for each in seen] == list(range(1, len(sizes) + 1))
    assert [each.num_evaluated for each in seen] == np.cumsum(sizes).tolist()
    assert tuple(each.accuracy for each in seen) == found.history
    assert list(found.history) == sorted(found.history)
    assert {(str(e.budget), e.num_generations) for e in seen} == {(str(budget), len(sizes))}


def test_parents_are_the_best_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all generations, not of the last one only."""
    accuracy, parents = Additive(DIGITS), list[list[Genes]]()
    original = _Breeding.mutant

    def spy(self: _Breeding, parent: Genes, generator: np.random.Generator) -> Genes:
        while len(parents) < len(accuracy.asked):
            parents.append([])
        parents[-1].append(parent)
        return original(self, parent, generator)

    monkeypatch.setattr(_Breeding, "mutant", spy)
    recipe = SMALL.model_copy(update={"num_mutations": 30, "population": 3})
    evolve(DIGITS, budget_of("params=40k:250k"), accuracy, recipe, seed=0)
    for number, used in enumerate(parents, start=1):
        before = [arch for archs in accuracy.asked[:number] for arch in archs]
        best = sorted(map(accuracy.of, before))[-recipe.num_parents :]
        assert {accuracy.of(DIGITS.compose(*genes)) for genes in used} == set(best)


def test_equal_arguments_give_equal_searches() -> None:
    """Other seeds and budgets look elsewhere, and no budget depends on those before it."""
    budgets = [budget_of("params=40k:120k"), budget_of("params=120k:250k")]

    def search(budget: Budget, seed: int, accuracy: Additive) -> list[list[Arch]]:
        first = len(accuracy.asked)
        evolve(DIGITS, budget, accuracy, SMALL, seed=seed)
        return accuracy.asked[first:]

    accuracy = Additive(DIGITS)
    found = [search(budget, 0, accuracy) for budget in budgets]
    assert search(budgets[1], 0, Additive(DIGITS)) == found[1]
    assert search(budgets[1], 1, Additive(DIGITS)) != found[1]


def test_no_architecture_is_evaluated_twice_whatever_the_budgets() -> None:
    accuracy = Additive(MINI)
    known = remembering(accuracy)
    for text in ("params=1200:2600", "params=9k", "params=9k"):
        found = evolve(MINI, budget_of(text), known, EvolutionRecipe(generations=2), seed=0)
        assert found.arch in {arch for archs in accuracy.asked for arch in archs}
    asked = [arch for archs in accuracy.asked for arch in archs]
    assert sorted(arch.id for arch in asked) == sorted(arch.id for arch in every_arch(MINI))
    assert known([MINI.largest, MINI.smallest, MINI.largest]) == [
        accuracy.of(arch) for arch in (MINI.largest, MINI.smallest, MINI.largest)
    ]


def test_a_budget_of_few_gives_fewer_candidates_and_one_of_none_says_so() -> None:
    accuracy = Additive(MINI)
    largest = count(MINI.largest, MINI.settings)["params"]
    found = evolve(MINI, Budget({"params": (largest, largest + 1)}), accuracy, SMALL, seed=0)
    assert accuracy.asked == [[MINI.largest]]
    assert (found.arch, found.num_evaluated, len(found.history)) == (MINI.largest, 1, 5)
    with pytest.raises(ValueError, match=r"fits the budget params in \[10k, 11k\)"):
        evolve(MINI, budget_of("params=10k:11k"), never, SMALL, seed=0)


# --- mutation and crossover ----------------------------------------------------------------------


@st.composite
def genes(draw: st.DrawFn, space: SearchSpace) -> Genes:
    return Genes(draw(choices(space)), draw(st.sampled_from(space.resolutions)))


def assert_legal(space: SearchSpace, child: Genes) -> None:
    """Options that exist, one per layer and axis; the layers of a tied stage agree."""
    assert child.resolution in space.resolutions
    for stage, (width, depth, options) in zip(space.chain, child.choices, strict=True):
        assert 0 <= width < len(stage.widths)
        assert depth in stage.depths
        for axis, of_layers in zip(stage.axes, options, strict=True):
            assert len(of_layers) == depth
            assert set(of_layers) <= set(range(len(axis.options)))
            assert not stage.tied or len(set(of_layers)) <= 1
    space.compose(*child)


@pytest.mark.parametrize("space", ALL_SPACES)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_a_child_has_its_parents_genes(space: SearchSpace, data: st.DataObject) -> None:
    """Where they have any, at the same place, whatever their depths; and it is legal."""
    left, right = data.draw(genes(space)), data.draw(genes(space))
    right = right._replace(resolution=left.resolution)
    breeding, generator = _Breeding(space, EvolutionRecipe()), np.random.default_rng(0)
    for _ in range(5):
        child = breeding.crossover(left, right, generator)
        assert_legal(space, child)
        assert child.resolution == left.resolution
        for stage, ours, *parents in zip(
            space.chain, child.choices, left.choices, right.choices, strict=True
        ):
            assert ours.width in [parent.width for parent in parents]
            assert ours.depth in [parent.depth for parent in parents]
            for axis, options in enumerate(ours.options):
                for layer, option in enumerate(options):
                    place = 0 if stage.tied else layer
                    assert option in [o.options[axis][place] for o in parents if place < o.depth]
    assert breeding.crossover(left, left, generator) == left


@pytest.mark.parametrize("space", ALL_SPACES)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_a_mutant_is_legal_and_keeps_its_resolution(
    space: SearchSpace, data: st.DataObject
) -> None:
    parent = data.draw(genes(space))
    often = EvolutionRecipe(mutation_prob=0.7, depth_mutation_prob=0.7)
    breeding, generator = _Breeding(space, often), np.random.default_rng(0)
    for _ in range(5):
        mutant = breeding.mutant(parent, generator)
        assert_legal(space, mutant)
        assert mutant.resolution == parent.resolution
    still = _Breeding(space, EvolutionRecipe(mutation_prob=0, depth_mutation_prob=0))
    assert still.mutant(parent, generator) == parent


def digits_genes(width: int, heads: tuple[int, ...], ratios: tuple[int, ...]) -> Genes:
    return Genes((StageChoice(width, len(heads), (heads, ratios)),))


def test_crossover_takes_from_both_and_from_the_deeper_what_it_alone_has() -> None:
    shallow, deep = digits_genes(0, (0,) * 3, (0,) * 3), digits_genes(2, (2,) * 5, (2,) * 5)
    breeding, generator = _Breeding(DIGITS, EvolutionRecipe()), np.random.default_rng(0)
    children = [breeding.crossover(shallow, deep, generator).choices[0] for _ in range(2000)]
    depths = [child.depth for child in children]
    assert abs(depths.count(5) - 1000) < 5 * 500**0.5
    firsts = [child.options[0][0] for child in children]
    assert set(firsts) == {0, 2}
    assert abs(firsts.count(2) - 1000) < 5 * 500**0.5
    assert {child.options[1][3:] for child in children} == {(), (2, 2)}


def test_mutants_change_as_often_as_the_recipe_says() -> None:
    """A redrawn gene keeps its value one time in three; new layers are drawn."""
    (parent,) = (genes := digits_genes(0, (0, 0, 0), (2, 2, 2))).choices
    breeding, generator = _Breeding(DIGITS, EvolutionRecipe()), np.random.default_rng(0)
    mutants = [breeding.mutant(genes, generator).choices[0] for _ in range(3000)]

    def share(changes: Callable[[StageChoice], bool]) -> float:
        return float(np.mean([changes(mutant) for mutant in mutants]))

    assert share(lambda m: m.depth != 3) == pytest.approx(0.4 * 2 / 3, abs=0.04)
    assert share(lambda m: m.width != 0) == pytest.approx(0.4 * 2 / 3, abs=0.04)
    for axis in range(2):
        for layer in range(3):
            kept = parent.options[axis][layer]
            changed = share(lambda m, a=axis, i=layer, k=kept: m.options[a][i] != k)  # type: ignore[misc]
            assert changed == pytest.approx(0.2 * 2 / 3, abs=0.03)
    fourths = [mutant.options[0][3] for mutant in mutants if mutant.depth > 3]
    assert all(fourths.count(o) / len(fourths) == pytest.approx(1 / 3, abs=0.08) for o in range(3))


def test_a_tied_stage_mutates_as_one_gene() -> None:
    """As often as a single layer that is free, however deep it is."""
    space = get_space("mobilenet-micro")
    parent = Genes(space.extreme(0))
    breeding, generator = _Breeding(space, EvolutionRecipe()), np.random.default_rng(0)
    mutants = [breeding.mutant(parent, generator).choices for _ in range(3000)]
    expand = [choices[3].options[1] for choices in mutants if choices[3].depth == 4]
    assert len(expand) > 200  # parents have one layer there
    changed = np.mean([options[0] != 0 for options in expand])
    assert changed == pytest.approx(0.2 * 2 / 3, abs=0.07)


def test_one_of_the_best_of_a_chain_of_tied_stages_is_found_by_looking_at_a_few() -> None:
    """120 of 2,580: as good as one in a hundred, where a tied stage is one gene per axis."""
    space = get_space("mobilenet-micro")
    accuracy, budget = Additive(space), budget_of("macs=500k:900k")
    recipe = EvolutionRecipe(
        population=20, generations=6, num_parents=5, num_mutations=8, num_crossovers=8
    )
    found = evolve(space, budget, accuracy, recipe, seed=0)
    asked = [arch for archs in accuracy.asked for arch in archs]
    assert len(set(asked)) == len(asked) == found.num_evaluated == 120
    assert all(fits(arch, budget, space) for arch in asked)
    generator, within = np.random.default_rng(0), Within(space, budget)
    drawn = [accuracy.of(space.compose(*within.draw(generator))) for _ in range(1000)]
    assert found.accuracy >= np.quantile(drawn, 0.99)


# --- in a run folder -----------------------------------------------------------------------------

RECIPE = mini_recipe(evolution=EvolutionRecipe(population=40, generations=2))
"""Large enough a population that every one of the 40 architectures is compared."""


@pytest.fixture(scope="module")
def evolved_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All steps of one-shot NAS, done. Copy it, do not change it."""
    out = tmp_path_factory.mktemp("evolved") / "run"
    pipeline.run(RECIPE, out)
    return out


@pytest.fixture
def evolved(evolved_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(evolved_run, tmp_path / "evolved")


@pytest.fixture
def trained(evolved: Path) -> Path:
    """A copy that is trained and not evolved."""
    for name in ("evolution.json", "evaluation.json", "evaluation.csv", "accuracy.png"):
        (evolved / name).unlink()
    shutil.rmtree(evolved / "subnets")
    return evolved


def test_one_shot_hands_over_the_best_of_every_budget(evolved_run: Path) -> None:
    """By brute force over the whole space, each architecture cut out as it is handed over."""
    supernet = pipeline.read_supernet(evolved_run)
    assert supernet.arch == MINI.largest
    validation = {"validation": other_data(evolved_run).validation}
    every = evaluate_archs(supernet, sorted(every_arch(MINI), key=lambda a: a.id), validation)
    budgets = parse_budgets(RECIPE.search.budgets).kept[:3]  # the fourth is empty
    found = pipeline.evolve(evolved_run)
    assert [each.budget for each in found] == list(map(str, budgets))
    for each, budget in zip(found, budgets, strict=True):
        fitting = [row for row in every if fits(row.arch, budget, MINI)]
        assert each.num_evaluated == len(fitting)
        best = min(fitting, key=lambda r: (-r.splits["validation"].top1, priced(r.costs)))
        assert (each.arch, each.costs) == (best.arch, best.costs)
        assert each.accuracy == best.splits["validation"].top1

    rows = pipeline.evaluate(evolved_run)
    assert [row.arch for row in rows] == [each.arch for each in found]
    for number, row in enumerate(rows):
        assert row.splits["validation"].top1 == found[number].accuracy
        model = load(evolved_run / "subnets" / f"{number:02d}")
        images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        expected = supernet(images, row.arch)
        torch.testing.assert_close(model.network(images), expected, rtol=0, atol=1e-5)
    chosen = pipeline.specialize(evolved_run, limits={"params": rows[1].costs["params"]})
    assert chosen.parent == evolved_run / "subnets"


def test_the_report_tells_of_evolution(evolved_run: Path) -> None:
    text = (evolved_run / "report.md").read_text()
    found = pipeline.evolve(evolved_run)
    assert text.startswith("# mini: 3 evolved subnets")
    assert "## Evolved subnets" in text
    assert f"trained on the whole space, then {found[0].num_evaluated}, " in text
    assert "Preferred" not in text
    assert "preferred" not in text
    assert "## Block scores" not in text


@pytest.mark.parametrize(
    ("name", "override"),
    [
        ("digits", "evolution.generations=5"),
        ("digits-one-shot", "evolution.generations=5"),
        ("digits-one-shot", "evolution=null"),
    ],
)
def test_the_report_knows_the_command_of_one_shot(name: str, override: str) -> None:
    command = command_of(with_overrides(get_recipe(name), [override]), "runs/x")
    assert command is not None
    assert command.startswith(f"prenas run {name} ")
    assert f"--set {override}" in command


def test_evolution_is_written_once_for_all_and_read_again(
    evolved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(evolved)
    document = json.loads((evolved / "evolution.json").read_text())
    assert document["schema_version"] == 2
    assert set(document["budgets"][0]) == {
        *("budget", "arch", "costs", "accuracy", "history", "num_evaluated")
    }
    monkeypatch.setattr(Run, "supernet", property(never))
    monkeypatch.setattr(training, "train_supernet", never)
    for name in ("evolve_budgets", "evaluate_archs"):
        monkeypatch.setattr(measuring, name, never)
    assert [each.model_dump(mode="json") for each in pipeline.evolve(evolved)] == document[
        "budgets"
    ]
    assert [subnet.score for subnet in Run(evolved).subnets.subnets] == [None] * 3
    assert contents(evolved).keys() == before.keys()
    assert contents(evolved)["evolution.json"] == before["evolution.json"]


def test_a_killed_evolution_goes_on_with_the_next_budget(
    trained: Path, evolved_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And ends as one that was left alone, to the byte."""
    second = str(parse_budgets(RECIPE.search.budgets).kept[1])

    def kill(generation: Generation) -> None:
        if str(generation.budget) == second:
            raise StoppedError

    with pytest.raises(StoppedError):
        pipeline.evolve(trained, observer=hearing(generations=kill))
    assert len(json.loads((trained / "evolution.json").read_text())["budgets"]) == 1
    for step in (pipeline.evaluate, lambda out: pipeline.specialize(out, 0)):
        with pytest.raises(ValueError, match=f"run `prenas evolve {trained}` first"):
            step(trained)
    budgets: list[str] = []
    pipeline.evolve(
        trained,
        observer=hearing(generations=lambda generation: budgets.append(str(generation.budget))),
    )
    assert budgets[0] == second
    assert len(set(budgets)) == 2
    for name in ("evolution.json", "evaluation.json", "evaluation.csv"):
        if name != "evolution.json":
            pipeline.evaluate(trained)
        assert (trained / name).read_bytes() == (evolved_run / name).read_bytes()


def test_the_report_of_an_unfinished_run_says_what_is_next(trained: Path) -> None:
    text = pipeline.report(trained).read_text()
    assert "3 preferred subnets; not evolved yet" in text
    assert "Not evolved yet. Run `prenas evolve evolved`" in text


def test_evaluate_of_given_architectures_needs_no_evolution(trained: Path) -> None:
    (row,) = pipeline.evaluate(trained, MINI.smallest)
    assert row.arch == MINI.smallest


def test_every_candidate_is_compared_on_the_same_drawn_validation_images(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = with_overrides(RECIPE, ["evolution.num_images=50"])
    document = json.loads((trained / "recipe.json").read_text())
    document["recipe"]["evolution"]["num_images"] = 50
    write_edited(trained / "recipe.json", document)
    sources = []
    original = one_shot.top1_of_archs

    def spy(supernet: Any, archs: Any, source: Any, *rest: Any, **options: Any) -> list[float]:
        sources.append(source)
        return original(supernet, archs, source, *rest, **options)

    monkeypatch.setattr(one_shot, "top1_of_archs", spy)
    found = pipeline.evolve(trained)
    assert found[0].accuracy * 50 == pytest.approx(round(found[0].accuracy * 50))
    assert len({id(source) for source in sources}) == 1
    assert num_samples(sources[0]) == 50
    data = other_data(trained)
    again = one_shot.comparison_images(few, data)
    drawn = [int(label) for _, label in again]  # type: ignore[attr-defined]
    assert drawn == [int(label) for _, label in sources[0]]
    assert drawn != [int(data.validation[number][1]) for number in range(50)]  # type: ignore[index]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda data: data, "but the validation split has only 20 images: lower it"),
        (
            lambda data: data.__class__(
                data.train, DataLoader(data.validation, batch_size=5), None, data.class_names
            ),
            "but the validation split is a DataLoader",
        ),
    ],
)
def test_too_many_images_are_refused_before_anything_is_spent(
    make: Callable[[Any], Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "zero_cost_search", never)
    recipe = own_recipe(evolution=EvolutionRecipe(num_images=21))
    with pytest.raises(ValueError, match=f"evolution.num_images is 21, {words}"):
        pipeline.run(recipe, tmp_path / "run", data=make(own_data()))
    assert not (tmp_path / "run").exists()


def test_steps_out_of_order_name_the_command(tmp_path: Path, finished_run: Path) -> None:
    with pytest.raises(ValueError, match=f"the recipe of {finished_run} has no evolution"):
        pipeline.evolve(finished_run)
    out = tmp_path / "run"
    with pytest.raises(StoppedError):
        pipeline.run(RECIPE, out, observer=hearing(steps=stop_at(3)))
    for step in (pipeline.evolve, pipeline.evaluate):
        with pytest.raises(ValueError, match=f"run `prenas train {out}` first"):
            step(out)


def test_evolution_of_other_weights_is_refused(evolved: Path) -> None:
    path = evolved / "evolution.json"
    document = json.loads(path.read_text())
    write_edited(path, {**document, "supernet_sha256": "0" * 64})
    (evolved / "evaluation.json").unlink()
    steps = (pipeline.evolve, pipeline.evaluate, lambda out: Run(out).subnets, pipeline.report)
    for step in steps:
        with pytest.raises(ValueError, match=r"evolution\.json belongs to other weights than"):
            step(evolved)


def test_the_envelope_of_one_shot_is_the_whole_space(evolved_run: Path) -> None:
    preferred = pipeline.read_preferred(evolved_run)
    assert preferred.envelope == MINI.largest
    without = preferred.model_copy(
        update={"recipe": preferred.recipe.model_copy(update={"evolution": None})}
    )
    assert without.envelope != MINI.largest


def test_comparing_on_shared_weights_equals_evaluating_cut_networks(evolved_run: Path) -> None:
    """And reads the images once for all, leaving the weights as they are."""
    supernet = pipeline.read_supernet(evolved_run)
    source = other_data(evolved_run).validation
    archs = [MINI.smallest, MINI.largest, *list(every_arch(MINI))[:5]]
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    none = [{}] * len(archs)  # these networks keep no statistics
    found = top1_of_archs(supernet, archs, source, none, batch_size=100)
    rows = evaluate_archs(supernet, archs, {"validation": source})
    assert found == [row.splits["validation"].top1 for row in rows]
    assert all(torch.equal(before[name], t) for name, t in supernet.state_dict().items())
    readings = []
    original = evaluation.evaluation_batches
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            evaluation,
            "evaluation_batches",
            lambda *args, **options: readings.append(1) or original(*args, **options),
        )
        top1_of_archs(supernet, archs, source, none)
    assert len(readings) == 1
