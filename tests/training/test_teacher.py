"""Teachers: from timm with the user's weights, or from `prenas specialize`; clear refusals."""

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import prenas
from edits import write_edited
from models.handed_over import NAMES, model_of
from prenas import artifacts, pipeline
from prenas.models.export import read_description
from prenas.recipe import TeacherRecipe, with_overrides
from prenas.recipe.data import Preprocessing
from prenas.steps.training import prepared
from prenas.supernet import Supernet
from prenas.training import teacher as room
from prenas.training.sampler import make_sampler
from prenas.training.step import TrainingStep
from prenas.training.teacher import load_teacher
from training.runs import (
    MINI,
    SMALLEST,
    WHOLE,
    StoppedError,
    contents,
    hearing,
    mini_recipe,
    own_data,
    own_recipe,
    stop_at,
    value_error_of,
)
from training.test_step import batches, recipe_of

pytest_plugins = "training.runs"

NETWORK = "test_resnet"
CPU = torch.device("cpu")
OURS = Preprocessing(mean=(0.3,), std=(0.4,), crop_pct=1.0)
THEIRS: dict[str, Any] = {"mean": (0.1,), "std": (0.2,)}
IMAGES = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def timms(name: str = NETWORK, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    network = timm.create_model(name, **{"num_classes": 10, "in_chans": 1, **options}).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network


@pytest.fixture
def weights(tmp_path: Path) -> str:
    path = tmp_path / "teacher.safetensors"
    save_file(timms().state_dict(), path)
    return str(path)


def loaded(**fields: Any) -> Any:
    return load_teacher(TeacherRecipe(**fields), MINI.settings, OURS, CPU)


def refusal(**fields: Any) -> str:
    message = value_error_of(lambda: loaded(**fields))
    assert message is not None
    return message


# --- what it says --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_timms_network_with_own_weights_sees_its_own_normalisation(
    kind: str, tmp_path: Path
) -> None:
    network, path = timms(), tmp_path / f"teacher.{kind}"
    if kind == "pth":
        torch.save({"state_dict": network.state_dict()}, path)
    else:
        save_file(network.state_dict(), path)
    teach = loaded(name=NETWORK, weights=str(path), **THEIRS)
    pixels = IMAGES * 0.4 + 0.3
    with torch.no_grad():
        expected = network((pixels - 0.1) / 0.2)
    torch.testing.assert_close(teach(IMAGES), expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.01


def test_a_transformer_is_made_for_the_images(tmp_path: Path) -> None:
    """This network's size in timm is 160 pixels; the weights here are of 32."""
    settings = MINI.with_settings(image_size=(32, 32), in_chans=3, num_classes=7).settings
    network = timms("test_vit", num_classes=7, in_chans=3, img_size=32)
    save_file(network.state_dict(), tmp_path / "vit.safetensors")
    recipe = TeacherRecipe(name="test_vit", weights=str(tmp_path / "vit.safetensors"))
    images, ours = torch.randn(2, 3, 32, 32), Preprocessing()
    teach: Any = load_teacher(recipe, settings, ours, CPU)
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (ours.mean, ours.std))
    with torch.no_grad():
        expected = network((images * std + mean - 0.5) / 0.5)  # timm's for this network
    torch.testing.assert_close(teach(images), expected, rtol=1e-4, atol=1e-4)


def test_a_handed_over_model_teaches(finished: Path) -> None:
    """Of the same normalisation as the run: its logits on the run's images, to the bit."""
    folder = pipeline.specialize(finished, 0)
    ours = mini_recipe().preprocessing
    recipe = TeacherRecipe(name=str(folder))
    teach: Any = load_teacher(recipe, MINI.settings, ours, CPU)
    with torch.no_grad():
        expected = prenas.load(folder).network(IMAGES)
    assert torch.equal(teach(IMAGES), expected)


def test_a_teacher_is_never_trained(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No gradient, evaluation mode, the same numbers before and after."""
    kept: list[nn.Module] = []
    network = room._network

    def keep(*args: Any) -> Any:
        kept.append(network(*args)[0])
        return kept[0], (0.1,), (0.2,), ()

    monkeypatch.setattr(room, "_network", keep)
    teach = loaded(name=NETWORK, weights=weights)
    before = {name: tensor.clone() for name, tensor in kept[0].state_dict().items()}
    recipe = recipe_of(teacher=TeacherRecipe(name=NETWORK), precision="bf16")
    supernet = Supernet(WHOLE, MINI.settings).initialize(torch.Generator().manual_seed(0)).train()
    step = TrainingStep(
        supernet, make_sampler([SMALLEST, WHOLE], recipe, 0), recipe, 5, teacher=teach
    )
    for number, batch in enumerate(batches()):
        step(number, batch)
    assert not any(module.training for module in kept[0].modules())
    assert all(p.grad is None and not p.requires_grad for p in kept[0].parameters())
    assert all(torch.equal(t, before[name]) for name, t in kept[0].state_dict().items())
    assert not teach(IMAGES).requires_grad


def test_a_run_learns_from_its_teacher(weights: str, tmp_path: Path) -> None:
    teacher = {"name": NETWORK, "weights": weights, "share": 1.0, **THEIRS}
    losses = []
    for name, fields in (("taught", {"teacher": teacher}), ("plain", {})):
        recipe = mini_recipe(training={"epochs": 1, **fields})
        pipeline.search(recipe, tmp_path / name)
        seen: list[float] = []
        pipeline.train(
            tmp_path / name,
            observer=hearing(steps=lambda progress, seen=seen: seen.append(progress.loss)),
        )
        losses.append(seen)
    assert losses[0] != losses[1]


def test_a_training_goes_on_with_the_same_teacher_only(weights: str, tmp_path: Path) -> None:
    teacher = {"name": NETWORK, "weights": weights, **THEIRS}
    out, recipe = tmp_path / "run", mini_recipe(training={"epochs": 2, "teacher": teacher})
    pipeline.search(recipe, out)
    with pytest.raises(StoppedError):
        pipeline.train(out, observer=hearing(steps=stop_at(2)))
    known, others = Path(weights).read_bytes(), timms().state_dict()
    name = next(name for name, tensor in others.items() if tensor.is_floating_point())
    save_file({**others, name: others[name] + 1}, weights)
    before = contents(out)
    with pytest.raises(ValueError, match="began with a teacher of other weights: restore them"):
        pipeline.train(out)
    assert contents(out) == before
    Path(weights).write_bytes(known)
    pipeline.train(out)
    save_file({**others, name: others[name] + 1}, weights)
    assert len(pipeline.run(recipe, out)) == 3  # nothing is left to teach


# --- what is refused -----------------------------------------------------------------------------


def test_an_unknown_name_offers_near_ones() -> None:
    assert "test_resnet" in refusal(name="test_resnets")
    assert "prenas specialize" in refusal(name="no/such/folder")


def test_other_classes_are_refused(tmp_path: Path, weights: str) -> None:
    save_file(timms(num_classes=7).state_dict(), tmp_path / "seven.safetensors")
    message = refusal(name=NETWORK, weights=str(tmp_path / "seven.safetensors"), **THEIRS)
    assert "training.teacher.weights" in message
    assert "10" in message


def test_a_model_of_other_classes_is_refused(finished: Path) -> None:
    folder = str(pipeline.specialize(finished, 0))
    settings = MINI.with_settings(num_classes=7).settings
    with pytest.raises(ValueError, match="7 classes are trained"):
        load_teacher(TeacherRecipe(name=folder), settings, mini_recipe().preprocessing, CPU)


def test_a_model_that_knows_other_classes_is_refused(tmp_path: Path) -> None:
    """Also the same ones in another order: class i teaches class i."""
    folder = str(model_of(tmp_path / "model"))
    description = read_description(folder)

    def load(names: Sequence[str]) -> object:
        recipe = TeacherRecipe(name=folder)
        return load_teacher(
            recipe, description.settings, description.preprocessing, CPU, class_names=names
        )

    assert load(NAMES)
    with pytest.raises(ValueError, match=r"knows other classes .*differing: eel, fox\)"):
        load((*NAMES[:3], "fox"))
    with pytest.raises(ValueError, match=r"differing: their order\)"):
        load(NAMES[::-1])
    unnamed = str(model_of(tmp_path / "unnamed", names=("0", "1", "2", "3")))
    settings, ours = description.settings, description.preprocessing
    assert load_teacher(TeacherRecipe(name=unnamed), settings, ours, CPU, class_names=NAMES)


def test_a_training_compares_the_classes_of_its_images(finished: Path) -> None:
    folder = pipeline.specialize(finished, 0)
    recipe, data = own_recipe(training={"teacher": {"name": str(folder)}}), own_data()
    assert prepared(recipe, data, CPU).teacher
    path = folder / artifacts.MODEL_ARCH
    write_edited(path, {**json.loads(path.read_text()), "class_names": [*"abcdefghij"]})
    with pytest.raises(ValueError, match="knows other classes than those of the images"):
        prepared(recipe, data, CPU)


def test_a_model_of_other_images_is_refused(finished: Path) -> None:
    folder = str(pipeline.specialize(finished, 0))
    settings = MINI.with_settings(image_size=(12, 12)).settings
    with pytest.raises(ValueError, match=r"does not accept images of shape \(1, 12, 12\)"):
        load_teacher(TeacherRecipe(name=folder), settings, mini_recipe().preprocessing, CPU)


def test_an_image_size_that_timm_cannot_make_is_refused(tmp_path: Path) -> None:
    save_file(timms().state_dict(), tmp_path / "any.safetensors")
    message = refusal(name="test_vit", weights=str(tmp_path / "any.safetensors"), **THEIRS)
    assert "'test_vit'" in message


def test_a_mean_of_other_channels_is_refused(weights: str) -> None:
    message = refusal(name=NETWORK, weights=weights)  # timm's has three numbers
    assert "training.teacher.mean" in message
    assert "1 channels" in message


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    message = refusal(name=NETWORK, weights=str(tmp_path / "none.safetensors"))
    assert "none.safetensors" in message
    assert "training.teacher.weights" in message


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path(self.__dict__["path"]),))

    def __init__(self, path: Path) -> None:
        self.path = str(path)


def test_weights_that_carry_code_are_refused_and_never_run(tmp_path: Path) -> None:
    path, proof = tmp_path / "bomb.pth", tmp_path / "exploded"
    torch.save({"state_dict": timms().state_dict(), "more": Bomb(proof)}, path)
    assert "are not available" in refusal(name=NETWORK, weights=str(path), **THEIRS)
    path.write_bytes(pickle.dumps(Bomb(proof)))
    assert "are not available" in refusal(name=NETWORK, weights=str(path), **THEIRS)
    assert not proof.exists()
    pickle.loads(path.read_bytes())
    assert proof.exists()  # it would have worked


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pth", "empty.pth", "list.pth"])
def test_damaged_weights_are_refused(name: str, weights: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "list.pth":
        torch.save([1, 2], path)
    elif name == "cut.pth":
        torch.save(timms().state_dict(), path)
        path.write_bytes(path.read_bytes()[:5000])
    else:
        path.write_bytes(Path(weights).read_bytes()[:5000] if "cut" in name else b"")
    assert "are not available" in refusal(name=NETWORK, weights=str(path), **THEIRS)


def test_own_data_stay_out_of_it() -> None:
    """The images that a teacher sees are the step's own, after augmentation and mixing."""
    seen: list[torch.Tensor] = []
    recipe = recipe_of(teacher=TeacherRecipe(name=NETWORK), grad_accum_steps=2)

    def teach(images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return torch.zeros(len(images), 10)

    supernet = Supernet(WHOLE, MINI.settings).initialize(torch.Generator().manual_seed(0)).train()
    step = TrainingStep(supernet, make_sampler([WHOLE], recipe, 0), recipe, 5, teacher=teach)
    batch = next(batches(own_data()))
    step(0, batch)
    assert torch.equal(torch.cat(seen), batch.images)


def test_a_wrong_teacher_is_found_before_anything_is_written(tmp_path: Path) -> None:
    recipe = with_overrides(mini_recipe(), ["training.teacher.name=nobody"])
    with pytest.raises(ValueError, match="teacher 'nobody' does not exist"):
        pipeline.run(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()
