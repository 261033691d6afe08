"""Teachers: trained networks in evaluation mode, from timm or from `prenas specialize`."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from timm.models import load_checkpoint
from torch import Tensor, nn

from prenas import artifacts
from prenas.data.naming import default_class_names
from prenas.families.base import Settings
from prenas.families.timm_weights import description_of, trained_model
from prenas.files import exists
from prenas.models.export import load_described
from prenas.recipe import TeacherRecipe
from prenas.recipe.data import Preprocessing
from prenas.training.features import Answer, WithFeatures, answer_of, classifier_of

_UNREADABLE = (
    RuntimeError, OSError, ValueError, TypeError, KeyError, AttributeError, EOFError,
    pickle.UnpicklingError, SafetensorError,
)  # fmt: skip

Teacher = Callable[[Tensor], Tensor | Answer]
"""Images [B, C, H, W], normalised like the training data -> logits [B, num_classes], with the
features if the students learn them."""


def load_teacher(
    teacher: TeacherRecipe,
    settings: Settings,
    ours: Preprocessing,
    device: torch.device,
    *,
    feature_widths: Sequence[int] = (),
    class_names: Sequence[str] = (),
) -> LoadedTeacher:
    """Loads the teacher and tries it on one image.

    It sees the same images as the students, renormalised with its own mean and deviation.

    Args:
        settings: image size and classes of the students.
        ours: mean and deviation of the images that the teacher will receive.
        feature_widths: how many features the students have, if they learn those of the teacher.
        class_names: those of the images, in the order of the logits; empty if unknown.

    Raises:
        ValueError: the model does not exist, its weights do not fit, or it has other classes,
            channels, features or another image size.
    """
    network, mean, std, known = _network(teacher, settings)
    _require_same_classes(teacher, known, class_names)
    network = network.to(device).eval().requires_grad_(False)
    if teacher.feature_weight:
        _require_as_many_features(network, feature_widths)
    network = answering(network, teacher)
    mean, std = teacher.mean or mean, teacher.std or std
    if not len(mean) == len(std) == settings.in_chans:
        raise ValueError(
            f"the teacher {teacher.name!r} is normalised with mean {mean} and deviation {std}, but "
            f"the images have {settings.in_chans} channels: choose another teacher, or set "
            "training.teacher.mean and training.teacher.std"
        )
    theirs, own = (
        (torch.tensor(m), torch.tensor(s)) for m, s in ((mean, std), (ours.mean, ours.std))
    )
    # (x * own_std + own_mean - mean) / std
    scale = (own[1] / theirs[1])[:, None, None].to(device)
    shift = ((own[0] - theirs[0]) / theirs[1])[:, None, None].to(device)

    @torch.no_grad()
    def teach(images: Tensor) -> Tensor | Answer:
        return network(images * scale + shift)  # type: ignore[no-any-return]

    blank = torch.zeros(1, settings.in_chans, *settings.image_size, device=device)
    try:
        logits = answer_of(teach(blank)).logits
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ValueError(
            f"the teacher {teacher.name!r} does not accept images of shape "
            f"{tuple(blank.shape[1:])} ({error}): choose a teacher for this image size"
        ) from None
    if logits.shape != (1, settings.num_classes):
        raise ValueError(
            f"the teacher {teacher.name!r} has outputs of shape {tuple(logits.shape)}, but "
            f"{settings.num_classes} classes are trained: choose a teacher with the same classes"
        )
    return LoadedTeacher(teach, _digest(network))


@dataclass(frozen=True)
class LoadedTeacher:
    """A teacher, and what its weights are known by."""

    teach: Teacher
    sha256: str
    """Digest of all its tensors, under their names."""

    def __call__(self, images: Tensor) -> Tensor | Answer:
        """What it answers: see `Teacher`."""
        return self.teach(images)


def _digest(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def answering(network: nn.Module, teacher: TeacherRecipe) -> nn.Module:
    """The network as a teacher runs it: with its features if they are to be learnt."""
    return WithFeatures(network) if teacher.feature_weight else network


def _require_as_many_features(network: nn.Module, of_students: Sequence[int]) -> None:
    """Raises ValueError unless the students have as many features as the teacher."""
    number = classifier_of(network).in_features
    if differing := sorted({*of_students} - {number}):
        raise ValueError(
            f"the teacher has {number} features, but networks that learn from it have "
            f"{' to '.join(map(str, differing))}, and training.teacher.feature_weight compares "
            "them one by one: set it to 0, or choose another teacher"
        )


def _require_same_classes(
    teacher: TeacherRecipe, theirs: Sequence[str], ours: Sequence[str]
) -> None:
    """Raises ValueError if a teacher is known to know other classes than those of the images."""
    if not ours or not theirs or tuple(theirs) == tuple(ours):
        return
    if tuple(theirs) == default_class_names(len(theirs)):  # it has no names of its own
        return
    differing = sorted({*theirs} ^ {*ours}) or ["their order"]
    raise ValueError(
        f"the teacher {teacher.name!r} knows other classes than those of the images (differing: "
        f"{', '.join(differing[:10])}): choose a teacher of the same classes"
    )


def _network(
    teacher: TeacherRecipe, settings: Settings
) -> tuple[nn.Module, tuple[float, ...], tuple[float, ...], tuple[str, ...]]:
    """The network, the mean and deviation of each channel that it was trained with, and the names
    of its classes, which are empty if they are unknown."""
    if (Path(teacher.name) / artifacts.MODEL_ARCH).exists():
        model, description = load_described(teacher.name)
        preprocessing = description.preprocessing
        return model.network, preprocessing.mean, preprocessing.std, description.class_names
    if not timm.is_model(teacher.name):
        near = timm.list_models(f"*{teacher.name.split('.')[0][:12]}*")[:5]
        raise ValueError(
            f"teacher {teacher.name!r} does not exist: give the name of a timm model "
            f"({', '.join(near) or 'timm.list_models() lists them'}) or the folder of a model "
            "written by `prenas specialize`"
        )
    if teacher.weights is not None and not exists(teacher.weights):
        raise ValueError(
            f"{teacher.weights} does not exist: give the weights of teacher {teacher.name!r} as "
            "training.teacher.weights"
        )
    try:
        if teacher.weights is None:
            network = trained_model(teacher.name)
        else:
            sizes: dict[str, Any] = {
                "num_classes": settings.num_classes,
                "in_chans": settings.in_chans,
            }
            known = description_of(teacher.name)
            if known.fixed_input_size and known.input_size[1:] != settings.image_size:
                sizes["img_size"] = settings.image_size
            network = timm.create_model(teacher.name, **sizes)
            if Path(teacher.weights).suffix not in (".safetensors", ".npz"):
                artifacts.read_pickle(Path(teacher.weights))  # for errors of our own
            # Never timm's default, which can run code from a pickle.
            load_checkpoint(network, teacher.weights, weights_only=True)
    except _UNREADABLE as error:
        raise ValueError(
            f"the weights of teacher {teacher.name!r} are not available ({error}): give a file "
            "with them, for this model and these classes, as training.teacher.weights"
        ) from None
    described: Any = network.pretrained_cfg
    return network, tuple(described["mean"]), tuple(described["std"]), ()
