"""Learning the features of a teacher: what its classifier gets, besides what it says.

FitNets (Romero et al., ICLR 2015, arXiv 1412.6550, equation 3) let a student's features come close
to the teacher's by their squared distance. Here both are brought to length 1 before, so that the
loss is between 0 and 2 whatever the network is.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from prenas.families import build_structure
from prenas.families.base import SearchSpace


class Answer(NamedTuple):
    """What a network says of a batch of images."""

    logits: Tensor
    """[B, num_classes]."""
    features: Tensor | None = None
    """What the classifier got, after dropout if there is any [B, width]; None if they were not
    asked for."""


def answer_of(said: Tensor | Answer) -> Answer:
    """Whatever a network says; logits alone are an answer without features."""
    return said if isinstance(said, Answer) else Answer(said)


class WithFeatures(nn.Module):
    """A network that answers with its features too.

    Raises:
        ValueError: it has no single linear classifier.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._got: Tensor | None = None
        classifier_of(network).register_forward_pre_hook(self._keep)

    def _keep(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._got = inputs[0]

    def forward(self, *inputs: Any) -> Answer:
        """Takes what the network takes."""
        logits = self.network(*inputs)
        features, self._got = self._got, None
        return Answer(logits, features)


def classifier_of(network: Any) -> nn.Linear:
    """The linear layer that makes logits of features.

    Raises:
        ValueError: the network has none, or several.
    """
    found = network.get_classifier()
    if not isinstance(found, nn.Linear):
        raise ValueError(
            f"a {type(network).__name__} has no single linear classifier, whose input are the "
            "features: set training.teacher.feature_weight to 0"
        )
    return found


def feature_widths(space: SearchSpace) -> tuple[int, int]:
    """How many features the smallest and the largest network of a space have."""
    smallest, largest = (
        classifier_of(build_structure(arch, space.settings)).in_features
        for arch in (space.smallest, space.largest)
    )
    return smallest, largest


def feature_loss(ours: Tensor, theirs: Tensor) -> Tensor:
    """Half the squared distance of features at length 1, which is 1 - cosine; mean over images.

    Args:
        ours: the student's, [B, width].
        theirs: the teacher's, [B, width].
    """
    return 1 - cosine_similarity(ours, theirs, dim=1).mean()
