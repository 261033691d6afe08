"""An image alone in a step, for which BatchNorm would have one value per channel, is refused."""

import pytest
import torch

from families.drawing import new_supernet
from prenas.families import get_space
from prenas.families.base import SearchSpace
from prenas.processes import Processes
from prenas.recipe import TrainingRecipe
from prenas.training.loop import train_supernet
from prenas.training.single_images import require_normalisable
from training.runs import never, own_data

MICRO = get_space("mobilenet-micro")
TO_ONE_PIXEL = MICRO.with_settings(image_size=(8, 8), in_chans=1)
VIT = get_space("digits")


def recipe(batch_size: int, parts: int = 1) -> TrainingRecipe:
    return TrainingRecipe(
        epochs=1, batch_size=batch_size, lr_per_512_images=1e-3, grad_accum_steps=parts
    )


@pytest.mark.parametrize(
    ("num_images", "batch_size", "parts", "world_size"),
    [(17, 8, 1, 1), (1, 8, 1, 1), (16, 7, 3, 1), (18, 16, 1, 2), (16, 4, 4, 1)],
    ids=["rest", "one-image", "rest-of-parts", "processes", "parts"],
)
def test_one_image_over_one_pixel_is_refused(
    num_images: int, batch_size: int, parts: int, world_size: int
) -> None:
    supernet = new_supernet(TO_ONE_PIXEL).eval()
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="change training"):
        require_normalisable(
            supernet,
            [TO_ONE_PIXEL.smallest],
            num_images,
            recipe(batch_size, parts),
            Processes(0, world_size),
        )
    assert not supernet.training
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("space", "num_images"),
    [
        pytest.param(TO_ONE_PIXEL, 16, id="whole-batches"),
        pytest.param(TO_ONE_PIXEL, 18, id="a-rest-of-two"),
        pytest.param(MICRO, 17, id="larger-maps"),
        pytest.param(VIT, 17, id="no-statistics"),
    ],
)
def test_everything_else_is_taken(space: SearchSpace, num_images: int) -> None:
    supernet = new_supernet(space).eval()
    require_normalisable(supernet, [space.smallest], num_images, recipe(8), Processes(0, 1))


def test_a_training_is_refused_before_its_first_step() -> None:
    supernet = new_supernet(TO_ONE_PIXEL)
    with pytest.raises(
        ValueError, match="17 images in batches of 8 leave one process a single image"
    ):
        train_supernet(
            supernet,
            [TO_ONE_PIXEL.smallest],
            own_data(num_images=17),
            recipe(8),
            watch=never,
        )
