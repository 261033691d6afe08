"""One step: gradients of every strategy against sums written out, precisions, moving averages."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from prenas.data import Batch, ImageData, training_batches
from prenas.data.augmentation import Mixing
from prenas.families.vit.network import VisionTransformer
from prenas.families.vit.space import VitArch
from prenas.recipe import TeacherRecipe, TrainingRecipe
from prenas.recipe.data import Augmentation
from prenas.supernet import Supernet
from prenas.training.loop import train_supernet
from prenas.training.sampler import make_sampler
from prenas.training.step import Outcome, TrainingStep
from training.runs import MINI, SMALLEST, WHOLE, assert_same_tensors, own_data

INNER = VitArch(embed_dim=8, num_heads=(1, 2), mlp_ratio=(2.0, 1.0))
ARCHS = (SMALLEST, INNER, WHOLE)
SANDWICH = {"sandwich": 2}
IN_PLACE = {"sandwich": 2, "inplace_distillation": "cross_entropy"}


def recipe_of(**fields: Any) -> TrainingRecipe:
    plain = {"epochs": 2, "batch_size": 8, "lr_per_512_images": 0.32, "label_smoothing": 0.1}
    return TrainingRecipe(**{**plain, **fields})


def new_supernet(drop_path: float = 0.0, dropout: float = 0.0) -> Supernet:
    supernet = Supernet(WHOLE, MINI.settings, drop_path=drop_path, dropout=dropout)
    supernet.initialize(torch.Generator().manual_seed(0))
    with torch.no_grad():  # biases at zero would hide mistakes
        for parameter in supernet.parameters():
            parameter += 0.05
    return supernet.train()


def teach(images: Tensor) -> Tensor:
    """Stands for a teacher: ten sums of pixels."""
    return images.flatten(1)[:, :60].reshape(-1, 6, 10).sum(dim=1)


def new_step(training: TrainingRecipe, drop_path: float = 0.0, **options: Any) -> TrainingStep:
    supernet, sampler = new_supernet(drop_path, training.dropout), make_sampler(ARCHS, training, 0)
    return TrainingStep(supernet, sampler, training, 5, **options)


def batches(data: ImageData | None = None, size: int = 8, epoch: int = 0) -> Iterator[Batch]:
    return iter(training_batches(data or own_data(), MINI.settings, size, 0, epoch))


def gradient_of(step: TrainingStep, batch: Batch, number: int = 0) -> tuple[Tensor, Outcome]:
    """The gradient that the optimiser saw; the weights stay, as nothing is learnt from it."""
    kept: list[Tensor] = []
    before = {n: p.detach().clone() for n, p in step.supernet.network.named_parameters()}
    handle = step.optimizer.register_step_pre_hook(
        lambda *_: kept.append(step._gradients.flat.clone())
    )
    outcome = step(number, batch)
    handle.remove()
    step.supernet.network.load_state_dict(before)
    return kept[0], outcome


def flat(gradients: tuple[Tensor | None, ...], parameters: list[Tensor]) -> Tensor:
    return torch.cat(
        [
            (torch.zeros_like(p) if g is None else g).flatten()
            for g, p in zip(gradients, parameters, strict=True)
        ]
    )


def literal(
    supernet: Supernet, archs: tuple[VitArch, ...], batch: Batch, training: TrainingRecipe
) -> tuple[Tensor, float]:
    """Gradient and loss: every subnet computed alone, its loss written out, then summed."""
    parameters = list(supernet.network.parameters())
    total, loss_sum = torch.zeros(sum(p.numel() for p in parameters)), 0.0
    largest = supernet(batch.images, archs[0]).detach()
    told = teach(batch.images)
    for number, arch in enumerate(archs):
        logits = supernet(batch.images, arch)
        if training.inplace_distillation and number:
            p = largest.softmax(1)
            loss = -(p * logits.log_softmax(1)).sum(dim=1).mean()
            if training.inplace_distillation == "kl":
                loss += (p * p.log()).sum(dim=1).mean()
        else:
            loss = cross_entropy(logits, batch.labels, label_smoothing=training.label_smoothing)
            if training.teacher is not None:
                loss = (loss + cross_entropy(logits, told.argmax(dim=1))) / 2
        total += flat(torch.autograd.grad(loss, parameters, allow_unused=True), parameters)
        loss_sum += loss.item()
    over = len(archs) if training.sandwich_loss == "mean" else 1
    return total / over, loss_sum / over


@pytest.mark.parametrize(
    ("strategy", "loss"),
    [
        pytest.param({}, "mean", id="single"),
        pytest.param(SANDWICH, "mean", id="sandwich-mean"),
        pytest.param(SANDWICH, "sum", id="sandwich-sum"),
        pytest.param(IN_PLACE, "mean", id="in-place-mean"),
        pytest.param(IN_PLACE, "sum", id="in-place-sum"),
        pytest.param({**IN_PLACE, "inplace_distillation": "kl"}, "sum", id="in-place-kl-sum"),
        pytest.param({"teacher": TeacherRecipe(name="x")}, "mean", id="teacher"),
        pytest.param({**IN_PLACE, "teacher": TeacherRecipe(name="x")}, "mean", id="both-mean"),
        pytest.param({**IN_PLACE, "teacher": TeacherRecipe(name="x")}, "sum", id="both-sum"),
    ],
)
def test_the_gradient_is_the_sum_of_the_subnets_own(strategy: dict[str, Any], loss: Any) -> None:
    recipe = recipe_of(sandwich_loss=loss, **strategy)
    step = new_step(recipe, teacher=teach if recipe.teacher else None)
    for number, batch in enumerate(batches()):
        found, outcome = gradient_of(step, batch, number)
        expected, expected_loss = literal(new_supernet(), outcome.archs, batch, recipe)
        assert len(outcome.archs) == (4 if recipe.sandwich else 1)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        assert outcome.loss == pytest.approx(expected_loss, rel=1e-5)
        assert outcome.grad_norm == pytest.approx(expected.norm().item(), rel=1e-4)


def alpha_literal(logits: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
    """Adaptive alpha-divergence: (what is followed, what is recorded), means over the images."""
    q, p = logits.softmax(1), largest.detach().softmax(1)
    u = (q / p).clamp(max=5).detach()
    over, under = (q * (u - 1)).sum(1) / 2, (p * (p / q).log()).sum(1)
    left = -(q.detach() * (0.5 - u) * q.log()).sum(1)
    right = -(p * q.log()).sum(1)
    followed = torch.where(over > under, left, right)
    return followed.mean(), torch.maximum(over, under).mean()


@pytest.mark.parametrize("drops_in", ["all", "largest"])
@pytest.mark.parametrize("parts", [1, 3])
def test_everything_of_alphanet_at_once(drops_in: Any, parts: int) -> None:
    """The sum over four subnets, each with its own draws, then clipped element by element."""
    recipe = recipe_of(
        **SANDWICH, sandwich_loss="sum", inplace_distillation="alpha", optimizer="sgd",
        clip_grad_value=0.05, dropout=0.2, drops_in=drops_in, grad_accum_steps=parts,
    )  # fmt: skip
    step = new_step(recipe, drop_path=0.3)
    for number, (batch, again) in enumerate(zip(batches(), batches(), strict=True)):
        found, outcome = gradient_of(step, batch, number)
        total, recorded, largest = torch.zeros(len(found)), 0.0, torch.empty(0)
        for place, arch in enumerate(outcome.archs):
            drops = place == 0 or drops_in == "all"
            supernet = new_supernet(0.3, 0.2) if drops else new_supernet()
            draws = [torch.from_numpy(g.random(4 + 16)) for g in again.generators] if drops else []
            noise = torch.stack(draws).float() if drops else None
            logits = supernet(again.images, arch, noise)
            if place:
                loss, value = alpha_literal(logits, largest)
            else:
                largest = logits
                loss = value = cross_entropy(logits, again.labels, label_smoothing=0.1)
            parameters = list(supernet.network.parameters())
            total += flat(torch.autograd.grad(loss, parameters, allow_unused=True), parameters)
            recorded += value.item()
        assert len(outcome.archs) == 4
        assert (total.abs() > 0.05).sum() > 20
        # Where both divergences of an image are equal up to rounding, either may be followed.
        torch.testing.assert_close(found, total.clamp(-0.05, 0.05), rtol=1e-4, atol=2e-5)
        assert outcome.grad_norm == pytest.approx(total.norm().item(), rel=1e-4)
        assert outcome.loss == pytest.approx(recorded, rel=1e-5)


def test_every_step_has_the_rate_of_its_number() -> None:
    """A line from `warmup_lr` over the first epoch of five steps, then half a cosine to the end."""
    recipe = recipe_of(
        epochs=4, warmup_epochs=1, lr_per_512_images=0.64, warmup_lr=0.001, min_lr=0.002
    )
    step, found = new_step(recipe), []
    for number in range(20):
        found.append(step(number, next(batches())).lr)
    rising = [0.001 + number / 5 * (0.01 - 0.001) for number in range(5)]
    falling = [
        0.002 + (0.01 - 0.002) * (1 + math.cos(math.pi * number / 20)) / 2
        for number in range(5, 20)
    ]
    assert found == pytest.approx(rising + falling, rel=1e-12)


def moved_by(training: TrainingRecipe) -> tuple[Tensor, Outcome]:
    """How far one step moves the weights, [all of them]."""
    step = new_step(training)
    before = torch.nn.utils.parameters_to_vector(step.supernet.parameters()).detach().clone()
    outcome = step(0, next(batches()))
    after = torch.nn.utils.parameters_to_vector(step.supernet.parameters()).detach()
    return after - before, outcome


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("strategy", [{}, SANDWICH], ids=["single", "sandwich"])
def test_a_gradient_beyond_the_limit_is_scaled_to_it(
    precision: Any, strategy: dict[str, Any]
) -> None:
    """By its norm, keeping its direction; below the limit nothing changes.

    Without decay SGD moves along the gradient, so the weights show what it was scaled by.
    """
    recipe = recipe_of(
        optimizer="sgd", weight_decay=0, warmup_epochs=0, clip_grad_norm=None,
        precision=precision, **strategy,
    )  # fmt: skip
    free, outcome = moved_by(recipe)
    limit = outcome.grad_norm / 4
    clipped, again = moved_by(recipe.model_copy(update={"clip_grad_norm": limit}))
    assert again.grad_norm == outcome.grad_norm  # as it was before
    torch.testing.assert_close(clipped, free / 4, rtol=1e-4, atol=2e-7)  # weights are rounded
    assert clipped.norm().item() == pytest.approx(free.norm().item() / 4, rel=1e-3)
    loose, _ = moved_by(recipe.model_copy(update={"clip_grad_norm": 2 * outcome.grad_norm}))
    assert torch.equal(loose, free)


def test_values_are_clipped_after_they_are_unscaled() -> None:
    recipe = recipe_of(optimizer="sgd", clip_grad_value=0.05)
    single, _ = gradient_of(new_step(recipe), next(batches()))
    half, _ = gradient_of(
        new_step(recipe.model_copy(update={"precision": "fp16"})), next(batches())
    )
    assert half.abs().max() == single.abs().max() == torch.tensor(0.05)
    assert (half - single).norm() < 2e-2 * single.norm()


def test_subnets_of_a_step_have_noise_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    forward = VisionTransformer.forward
    monkeypatch.setattr(
        VisionTransformer,
        "forward",
        lambda self, *args: seen.append(args[-1]) or forward(self, *args),
    )
    new_step(recipe_of(**SANDWICH), drop_path=0.3)(0, next(batches()))
    assert len(seen) == 4
    assert all(not torch.equal(seen[0], other) for other in seen[1:])


# --- accumulation --------------------------------------------------------------------------------


def mixed_data() -> ImageData:
    mixing = Mixing(Augmentation(mixup=0.8, cutmix=1.0, mixing_mode="elem"), 10)
    return replace(own_data(num_images=37), mixing=mixing)


@pytest.mark.parametrize("parts", [2, 3, 8, 50])
@pytest.mark.parametrize("strategy", [{}, IN_PLACE], ids=["single", "in-place"])
def test_parts_of_a_batch_add_up_to_the_batch(parts: int, strategy: dict[str, Any]) -> None:
    """Mixed images, drop path, odd sizes; the last batch has five images."""
    whole = new_step(recipe_of(**strategy), drop_path=0.3)
    divided = new_step(recipe_of(grad_accum_steps=parts, **strategy), drop_path=0.3)
    ours, theirs = batches(mixed_data()), batches(mixed_data())
    for number, (left, right) in enumerate(zip(ours, theirs, strict=True)):
        expected, before = gradient_of(whole, left, number)
        found, after = gradient_of(divided, right, number)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        assert after.loss == pytest.approx(before.loss, rel=1e-5)
    assert number == 4
    assert len(left.labels) == 5


@pytest.mark.parametrize("size", range(1, 10))
def test_parts_are_all_of_the_batch_and_nearly_equal(size: int) -> None:
    batch = next(batches(size=size))
    for number in range(1, 12):
        parts = list(batch.parts(number))
        sizes = [len(part.labels) for part in parts]
        assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
        assert [g for part in parts for g in part.generators] == batch.generators
        assert {part.total for part in parts} == {size}
        assert len(sizes) <= number
        assert min(sizes) > 0
        assert max(sizes) == math.ceil(size / number)


# --- precision -----------------------------------------------------------------------------------


def losses_of(training: TrainingRecipe, **options: Any) -> tuple[list[float], TrainingStep]:
    step = new_step(training, **options)
    source, number, losses = own_data(), 0, []
    for epoch in range(3):
        for batch in batches(source, epoch=epoch):
            losses.append(step(number, batch).loss)
            number += 1
    return losses, step


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize(
    "strategy",
    [
        {},
        {**IN_PLACE, "grad_accum_steps": 2, "optimizer": "masked_adamw", "ema_decay": 0.9},
        {**SANDWICH, "inplace_distillation": "alpha", "optimizer": "sgd"},
    ],
    ids=["single", "everything", "alpha-sgd"],
)
def test_half_precision_trains_near_single(precision: Any, strategy: dict[str, Any]) -> None:
    strategy = {"epochs": 3, "clip_grad_norm": 1.0, **strategy}
    single, _ = losses_of(recipe_of(**strategy))
    half, step = losses_of(recipe_of(precision=precision, **strategy))
    assert sum(half[-5:]) < sum(half[:5])
    assert half != single
    assert half == pytest.approx(single, rel=0.05)
    kept = [*step.supernet.parameters(), step._gradients.message]
    kept += [t for state in step.optimizer.state.values() for t in state.values()]
    kept += [] if step.ema is None else list(step.ema.module.parameters())
    assert {tensor.dtype for tensor in kept} == {torch.float32}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("strategy", [{}, {**IN_PLACE, "grad_accum_steps": 3}])
def test_half_precision_computes_the_same_gradient(
    precision: Any, strategy: dict[str, Any]
) -> None:
    """All parts are scaled and unscaled alike: one that was not would be 65,536 times too small."""
    expected, _ = gradient_of(new_step(recipe_of(**strategy)), next(batches()))
    found, _ = gradient_of(new_step(recipe_of(precision=precision, **strategy)), next(batches()))
    tolerance = 2e-2 if precision == "fp16" else 0.1
    assert (found - expected).norm() < tolerance * expected.norm()


def test_networks_really_run_in_half_precision() -> None:
    seen = []
    step = new_step(recipe_of(precision="bf16"))
    teacher = torch.nn.Linear(64, 10)

    def spying(images: Tensor) -> Tensor:
        seen.append(teacher(images.flatten(1)).dtype)
        return torch.zeros(len(images), 10)

    step = new_step(recipe_of(precision="bf16", teacher=TeacherRecipe(name="x")), teacher=spying)
    step(0, next(batches()))
    assert seen == [torch.bfloat16]


def test_an_overflow_halves_the_scale_and_moves_nothing() -> None:
    step = new_step(recipe_of(precision="fp16", ema_decay=0.9))
    (first, second, *_) = batches()
    step(0, first)
    before = {name: t.clone() for name, t in step.supernet.state_dict().items()}
    assert step.ema is not None
    average = {name: t.clone() for name, t in step.ema.module.state_dict().items()}
    scale = step._scaler.get_scale()
    step._scaler._scale.fill_(2.0**60)  # type: ignore[union-attr]
    assert step(1, second).is_skipped
    assert step._scaler.get_scale() == 2.0**59
    assert_same_tensors(dict(step.supernet.state_dict()), before)
    assert_same_tensors(dict(step.ema.module.state_dict()), average)
    step._scaler._scale.fill_(scale)  # type: ignore[union-attr]
    assert not step(2, second).is_skipped


def test_the_scale_goes_on_where_it_was() -> None:
    step = new_step(recipe_of(precision="fp16"))
    step._scaler._scale.fill_(1024.0)  # type: ignore[union-attr]
    step(0, next(batches()))
    again = new_step(recipe_of(precision="fp16"))
    again.load_state_dict(step.state_dict())
    assert again._scaler.state_dict() == step._scaler.state_dict()
    assert again._scaler.get_scale() == 1024.0


def test_a_share_without_images_may_come_first() -> None:
    """As in a run that is continued where fewer images than processes are left."""
    empty = Batch(torch.empty(0, 1, 8, 8), torch.empty(0, dtype=torch.long), [], 1)
    outcome = new_step(recipe_of(precision="fp16"))(0, empty)
    assert (outcome.loss, outcome.grad_norm, outcome.is_skipped) == (0.0, 0.0, False)


def test_numbers_that_are_not_finite_move_nothing_in_single_precision_either() -> None:
    step = new_step(recipe_of(ema_decay=0.9, optimizer="masked_adamw"))
    batch = next(batches())
    before = {name: t.clone() for name, t in step.supernet.state_dict().items()}
    batch.images[3] = math.inf
    assert step(0, batch).is_skipped
    assert_same_tensors(dict(step.supernet.state_dict()), before)
    assert not step.optimizer.state


# --- moving average ------------------------------------------------------------------------------


def test_the_average_is_the_literal_recursion() -> None:
    step = new_step(recipe_of(ema_decay=0.9))
    expected = {n: p.detach().double() for n, p in step.supernet.network.named_parameters()}
    for number, batch in enumerate(batches()):
        step(number, batch)
        for name, parameter in step.supernet.network.named_parameters():
            expected[name] = 0.9 * expected[name] + 0.1 * parameter.detach().double()
    assert step.ema is not None
    for name, average in step.ema.module.named_parameters():
        torch.testing.assert_close(average.double(), expected[name], rtol=1e-5, atol=1e-7)


def trained(tmp_path: Any, **fields: Any) -> tuple[Supernet, list[dict[str, Any]]]:
    """A training that gets better and worse, and the records of its validations."""
    supernet, records = new_supernet(), []
    recipe = recipe_of(lr_per_512_images=0.64, epochs=4, min_lr=0.0, **fields)
    train_supernet(
        supernet, ARCHS, own_data(), recipe, folder=tmp_path, follow=lambda _: [records.append]
    )
    return supernet, [r for r in records if r["event"] == "validation"]


def saved(path: Any) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


@pytest.mark.parametrize(
    ("fields", "chosen"),
    [
        ({}, "supernet"),
        ({"ema_decay": 0.9}, "ema"),
        ({"ema_decay": 0.9, "final_weights": "ema"}, "ema"),
        ({"ema_decay": 0.9, "final_weights": "last"}, "supernet"),
    ],
)
def test_what_is_handed_over(fields: dict[str, Any], chosen: str, tmp_path: Any) -> None:
    supernet, _ = trained(tmp_path, **fields)
    last = max((tmp_path / "checkpoints").glob("step-*"))
    expected = saved(last / f"{chosen}.safetensors")
    assert_same_tensors(dict(supernet.network.state_dict()), expected)
    if "ema_decay" in fields:
        both = [
            saved(last / name)["head.weight"]
            for name in ("supernet.safetensors", "ema.safetensors")
        ]
        assert not torch.equal(*both)


@pytest.mark.parametrize("ema", [None, 0.5])
def test_the_best_weights_are_those_of_the_best_validation(ema: Any, tmp_path: Any) -> None:
    supernet, records = trained(
        tmp_path, ema_decay=ema, final_weights="best", validate_all_epochs=1
    )
    weights = "trained" if ema is None else "ema"
    means = {}
    for epoch in range(4):
        rows = [r for r in records if r["epoch"] == epoch and r["weights"] == weights]
        assert [row["subnet"] for row in rows] == [0, 1, 2]
        means[epoch] = sum(row["top1"] for row in rows) / 3
    assert {r["weights"] for r in records} == ({"trained"} if ema is None else {"trained", "ema"})
    best = max(means, key=lambda epoch: means[epoch])  # the first of equals

    step = new_step(recipe_of(lr_per_512_images=0.64, epochs=4, min_lr=0.0, ema_decay=ema))
    everything = (batch for epoch in range(best + 1) for batch in batches(epoch=epoch))
    for number, batch in enumerate(everything):
        step(number, batch)
    network = step.supernet.network if step.ema is None else step.ema.module
    assert_same_tensors(dict(supernet.network.state_dict()), dict(network.state_dict()))


def test_best_weights_without_a_folder_are_refused() -> None:
    with pytest.raises(ValueError, match="give a folder"):
        train_supernet(new_supernet(), ARCHS, own_data(), recipe_of(final_weights="best"))
