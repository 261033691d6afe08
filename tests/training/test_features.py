"""Learning a teacher's features: the formula, the gradient, resuming, and what is refused."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from families.drawing import TEST_SPACES, cut, images_for, new_supernet, noise_for
from prenas import pipeline
from prenas.families.vit.space import VitArch
from prenas.recipe import TeacherRecipe, TrainingRecipe
from prenas.supernet import Supernet
from prenas.training.features import (
    Answer,
    WithFeatures,
    classifier_of,
    feature_loss,
    feature_widths,
)
from prenas.training.loop import train_supernet
from prenas.training.sampler import make_sampler
from prenas.training.step import TrainingStep
from training.runs import (
    MINI,
    WHOLE,
    StoppedError,
    mini_recipe,
    own_data,
    stop_at,
)
from training.test_step import batches, gradient_of, recipe_of, teach

SMALL = VitArch(embed_dim=16, num_heads=(1,), mlp_ratio=(1.0,))
LEARNT = TeacherRecipe(name="x", loss="soft", share=0.3, feature_weight=0.7)
WIDTH = 16  # of all subnets here


def teach_both(images: Tensor) -> Answer:
    """Stands for a teacher: sums of pixels, and pixels, one of them moved."""
    return Answer(teach(images), images.flatten(1)[:, :WIDTH] + 0.1)


def test_the_loss_is_half_the_squared_distance_at_length_one() -> None:
    ours, theirs = torch.randn(2, 5, 7, dtype=torch.float64)
    each = [
        0.5 * float((a / (a @ a) ** 0.5 - b / (b @ b) ** 0.5).square().sum())
        for a, b in zip(ours, theirs, strict=True)
    ]
    assert float(feature_loss(ours, theirs)) == pytest.approx(sum(each) / 5)
    assert float(feature_loss(ours, 3 * ours)) == pytest.approx(0, abs=1e-12)
    assert float(feature_loss(ours, -ours)) == pytest.approx(2)


@pytest.mark.parametrize("family", TEST_SPACES)
def test_features_are_what_the_classifier_gets(family: str) -> None:
    """The logits stay what they are, to the bit, and the classifier makes them of the features."""
    space = TEST_SPACES[family][0]
    network = cut(new_supernet(space).eval(), space.largest)
    images = images_for(space)
    with torch.no_grad():
        expected = network(images)
        logits, features = WithFeatures(network)(images)
        assert features is not None
        assert torch.equal(logits, expected)
        assert torch.equal(classifier_of(network)(features), expected)
    assert features.shape == (len(images), feature_widths(space)[1])


@pytest.mark.parametrize("family", TEST_SPACES)
def test_features_are_those_after_dropout(family: str) -> None:
    space = TEST_SPACES[family][0]
    supernet = Supernet(space.largest, space.settings, dropout=0.5).train()
    supernet.initialize(torch.Generator().manual_seed(0))
    for tensor in supernet.parameters():
        tensor.grad = torch.zeros_like(tensor)
    network = supernet.bound(space.largest)
    logits, features = WithFeatures(network)(images_for(space), noise_for(supernet))
    assert features is not None
    assert (features == 0).any()
    head = classifier_of(network)
    assert torch.equal(linear(features, head.weight, head.bias), logits)


def literal(archs: tuple[VitArch, ...], images: Tensor, labels: Tensor) -> Tensor:
    """The gradient of plain networks, all losses written out, laid into the supernet's."""
    whole = new_shared()
    total = {name: torch.zeros_like(p) for name, p in whole.network.named_parameters()}
    told = teach_both(images)
    assert told.features is not None
    for arch in archs:
        network: Any = whole.cut(arch)
        features = network.forward_head(network.forward_features(images), pre_logits=True)
        logits = network.head(features)
        p, q = (told.logits / 3).softmax(1), (logits / 3).log_softmax(1)
        soft = 9 * (p * (p.log() - q)).sum(1).mean()
        loss = 0.7 * cross_entropy(logits, labels, label_smoothing=0.1) + 0.3 * soft
        cosines = [
            a @ b / (a.norm() * b.norm()) for a, b in zip(features, told.features, strict=True)
        ]
        loss = loss + 0.7 * (1 - torch.stack(cosines).mean())
        names, parameters = zip(*network.named_parameters(), strict=True)
        boxes = whole.owned_boxes(arch)
        for name, gradient in zip(names, torch.autograd.grad(loss, parameters), strict=True):
            total[name][boxes[name]] += gradient / len(archs)
    return torch.cat([one.flatten() for one in total.values()])


def new_shared() -> Supernet:
    supernet = Supernet(WHOLE, MINI.settings)
    supernet.initialize(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter += 0.05
    return supernet.train()


def new_step(
    teacher: TeacherRecipe, archs: tuple[VitArch, ...] = (SMALL, WHOLE), **fields: Any
) -> TrainingStep:
    recipe = recipe_of(teacher=teacher, **fields)
    sampler = make_sampler(archs, recipe, 0)
    return TrainingStep(new_shared(), sampler, recipe, 5, teacher=teach_both)


def without(teacher: TeacherRecipe) -> TeacherRecipe:
    return teacher.model_copy(update={"feature_weight": 0.0})


@pytest.mark.parametrize("fields", [{}, {"sandwich": 1}, {"grad_accum_steps": 2}], ids=str)
def test_the_gradient_is_that_of_the_losses_written_out(fields: dict[str, Any]) -> None:
    step = new_step(LEARNT, **fields)
    for number, batch in enumerate(batches()):
        found, outcome = gradient_of(step, batch, number)
        expected = literal(outcome.archs, batch.images, batch.labels)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_weight_of_zero_is_the_step_without_features() -> None:
    """To the bit; a small weight is not."""
    batch, small = next(batches()), LEARNT.model_copy(update={"feature_weight": 0.01})
    recipe = recipe_of(teacher=without(LEARNT))
    sampler = make_sampler([SMALL, WHOLE], recipe, 0)
    logits_alone = TrainingStep(new_shared(), sampler, recipe, 5, teacher=teach)
    expected, _ = gradient_of(logits_alone, batch)
    assert torch.equal(gradient_of(new_step(without(LEARNT)), batch)[0], expected)
    assert not torch.equal(gradient_of(new_step(small), batch)[0], expected)


def test_only_the_subnet_that_hears_the_teacher_learns_its_features() -> None:
    """In a sandwich with in-place distillation, the others learn from the largest alone."""
    batch = next(batches())
    in_place = {"sandwich": 1, "inplace_distillation": "kl", "sandwich_loss": "sum"}

    def share_of_features(**fields: Any) -> Tensor:
        with_them, plain = (
            gradient_of(new_step(teacher, **fields), batch)[0]
            for teacher in (LEARNT, without(LEARNT))
        )
        return with_them - plain

    expected = share_of_features(archs=(WHOLE,))
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(share_of_features(**in_place), expected, rtol=1e-3, atol=1e-6)


def test_an_interrupted_training_continues_bit_exactly(tmp_path: Path) -> None:
    recipe = recipe_of(teacher=LEARNT, checkpoint_steps=2, precision="bf16")
    train = partial(train_from_start, recipe)
    unbroken = train(tmp_path / "unbroken")
    with pytest.raises(StoppedError):
        train(tmp_path / "broken", watch=stop_at(7))
    broken = train(tmp_path / "broken")
    for left, right in zip(unbroken.parameters(), broken.parameters(), strict=True):
        assert torch.equal(left, right)


def train_from_start(recipe: TrainingRecipe, folder: Path, watch: Any = None) -> Supernet:
    supernet = new_shared()
    folder.mkdir(exist_ok=True)
    train_supernet(
        supernet, [SMALL, WHOLE], own_data(), recipe, teacher=teach_both, folder=folder, watch=watch
    )
    return supernet


@pytest.mark.usefixtures("fresh_graphs")
def test_compiled_subnets_learn_features_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    batch = next(batches())
    plain, compiled = (
        gradient_of(new_step(LEARNT, compile=compiles), batch)[0] for compiles in (False, True)
    )
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-6)


@pytest.fixture
def fresh_graphs() -> None:
    torch._dynamo.reset()


# --- runs ----------------------------------------------------------------------------------------


def test_a_teacher_of_other_features_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    """timm's model has 96 features, the networks of the space 8 to 16."""
    network = timm.create_model("test_resnet", num_classes=10, in_chans=1)
    save_file(network.state_dict(), tmp_path / "teacher.safetensors")
    teacher = {
        "name": "test_resnet", "weights": str(tmp_path / "teacher.safetensors"),
        "mean": (0.1,), "std": (0.2,), "feature_weight": 1.0,
    }  # fmt: skip
    words = "96 features, but networks that learn from it have 8 to 16.*feature_weight"
    with pytest.raises(ValueError, match=words):
        pipeline.run(mini_recipe(training={"teacher": teacher}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_network_without_a_single_classifier_is_refused() -> None:
    network = timm.create_model("test_resnet", num_classes=0)
    with pytest.raises(ValueError, match="a ResNet has no single linear classifier"):
        WithFeatures(network)


def test_features_cannot_change_where_only_the_classifier_is_trained() -> None:
    with pytest.raises(ValueError, match=r"feature_weight is 0\.7.*freeze='backbone'"):
        recipe_of(teacher=LEARNT, freeze="backbone")
