"""Relative attention in all fast forms equals the direct one, written literally in reference."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import functional_call, grad, vmap

from families.drawing import (
    TEST_SPACES,
    archs,
    assert_equal,
    fill_as_trained,
    images_for,
    new_supernet,
)
from prenas.families import get_space
from prenas.families.base import SearchSpace
from prenas.families.vit import attention
from prenas.families.vit import attention_in_parts as parts
from prenas.families.vit.attention import attention_at_once, grid_index, lay_out, padded_width
from prenas.families.vit.attention_in_parts import attention_in_parts, suits_parts
from prenas.families.vit.attention_with_tables import attention_with_tables, suits_tables
from prenas.families.vit.deployment import deployed
from prenas.families.vit.network import VisionTransformer
from prenas.families.vit.published import PUBLISHED
from prenas.families.vit.space import VitArch, VitSettings
from reference.vit import LiteralVit, literal_attention, relative_indices


class Case(NamedTuple):
    """Sizes of one attention call."""

    rows: int
    columns: int
    max_distance: int
    heads: int
    head_dim: int
    batch: int


cases = st.builds(
    Case,
    rows=st.integers(1, 7),
    columns=st.integers(1, 7),
    max_distance=st.integers(1, 4),
    heads=st.integers(1, 3),
    head_dim=st.integers(1, 10),
    batch=st.integers(1, 4),
)


def draw_inputs(case: Case, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """q, k, v and the four tables; large enough that attention is far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    tokens = (case.batch, case.heads, case.rows * case.columns + 1, case.head_dim)
    table = (2 * case.max_distance + 2, case.head_dim)
    return [
        torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in [tokens] * 3 + [table] * 4
    ]


Form = Callable[..., Tensor]
all_forms = pytest.mark.parametrize(
    "form", [attention_at_once, attention_in_parts, attention_with_tables]
)


@contextmanager
def parts_of(num_images: int, case: Case) -> Iterator[None]:
    """Sets a cache so small that a part has this many images."""
    before, tokens = parts._CACHE_BYTES, case.rows * case.columns + 1
    threads = torch.get_num_threads()
    parts._CACHE_BYTES = -(-num_images * case.heads * tokens**2 * 8 // threads)
    yield
    parts._CACHE_BYTES = before


def fast(form: Form, inputs: list[Tensor], case: Case, scale: float) -> Tensor:
    q, k, v, *tables = inputs
    grid = grid_index(case.rows, case.columns, case.head_dim, case.max_distance)
    laid = lay_out(tables[0], tables[1], grid), lay_out(tables[2], tables[3], grid)
    qkv = torch.stack([q, k, v]).permute(1, 3, 2, 0, 4)  # [B, N, H, 3, d]
    same_type = (x.to(q.dtype) for x in (*laid, grid.features))
    return form(qkv, *same_type, grid.shape, scale).transpose(1, 2)


def literal(inputs: list[Tensor], case: Case, scale: float) -> Tensor:
    indices = relative_indices(case.rows, case.columns, case.max_distance)
    return literal_attention(*inputs, *indices, scale)


def output_and_gradients(out: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """The output, and the gradient of every input for a random cotangent."""
    cotangent = torch.randn(
        out.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64
    )
    return [out, *torch.autograd.grad(out, inputs, cotangent.to(out.dtype))]


@settings(max_examples=20)
@given(case=cases, kinds=st.lists(st.sampled_from(["train", "no grad", "inference"]), max_size=6))
def test_kept_buffers_remember_nothing(case: Case, kinds: list[str]) -> None:
    """What came before, in whichever mode and with whichever features, changes no bit."""

    def found(kind: str, seed: int) -> list[Tensor]:
        inputs = draw_inputs(case, seed, torch.float32)
        if kind == "train":
            out = fast(attention_in_parts, inputs, case, 0.3)
            return output_and_gradients(out, inputs)
        with torch.inference_mode(kind == "inference"), torch.no_grad():
            q, k, v, *tables = inputs
            grid = grid_index(case.rows, case.columns, case.head_dim, case.max_distance)
            laid = lay_out(tables[0], tables[1], grid), lay_out(tables[2], tables[3], grid)
            qkv = torch.stack([q, k, v]).permute(1, 3, 2, 0, 4)
            features = grid.features * (seed + 1)
            return [attention_in_parts(qkv, *laid, features, grid.shape, 0.3)]

    expected = []
    for seed, kind in enumerate(kinds):
        parts._kept.cache_clear()
        expected.append([one.clone() for one in found(kind, seed)])
    actual = [found(kind, seed) for seed, kind in enumerate(kinds)]
    for ours, theirs in zip(actual, expected, strict=True):
        assert all(map(torch.equal, ours, theirs))


@all_forms
@settings(max_examples=80)
@given(case=cases, scale=st.sampled_from([None, 0.2, 1.0]), num_images=st.integers(1, 4))
def test_all_equal_the_literal_form(
    form: Form, case: Case, scale: float | None, num_images: int
) -> None:
    """Output and all gradients; grids beyond the maximum distance clip, 1 x n grids as well; with
    parts of one image or more, the last perhaps of fewer."""
    scale = scale or case.head_dim**-0.5
    inputs = draw_inputs(case)
    with parts_of(num_images, case):
        actual = output_and_gradients(fast(form, inputs, case, scale), inputs)
    expected = output_and_gradients(literal(inputs, case, scale), inputs)
    for ours, theirs in zip(actual, expected, strict=True):
        assert_equal(ours, theirs, 1e-12)


@all_forms
@pytest.mark.parametrize(
    "case",
    [
        Case(14, 14, 14, 3, 64, 1),
        Case(17, 3, 14, 2, 64, 1),
        Case(1, 20, 14, 2, 16, 2),
        Case(16, 16, 14, 1, 64, 1),
    ],
    ids=str,
)
def test_all_equal_the_literal_form_at_full_size(form: Form, case: Case) -> None:
    """The published grid, and grids that go beyond distance 14."""
    inputs = draw_inputs(case)
    actual = output_and_gradients(fast(form, inputs, case, 0.125), inputs)
    expected = output_and_gradients(literal(inputs, case, 0.125), inputs)
    for ours, theirs in zip(actual, expected, strict=True):
        assert_equal(ours, theirs, 1e-12)


@all_forms
def test_distances_beyond_the_maximum_share_a_row(form: Form) -> None:
    """The outermost rows serve all larger distances; rows that no grid needs get no gradient."""
    case = Case(6, 2, 3, 1, 4, 1)
    inputs = draw_inputs(case)
    _, *gradients = output_and_gradients(fast(form, inputs, case, 0.5), inputs)
    key_vertical, key_horizontal, value_vertical, value_horizontal = (
        gradient.abs().sum(1) > 0 for gradient in gradients[3:]
    )
    assert key_vertical.tolist() == value_vertical.tolist() == [True] * 8
    near = [True, False, False, True, True, True, False, False]  # class, -3..3: two columns
    assert key_horizontal.tolist() == value_horizontal.tolist() == near


@all_forms
@pytest.mark.parametrize("tables_in_float32", [True, False])
def test_bfloat16_is_no_worse_than_the_literal_form(form: Form, tables_in_float32: bool) -> None:
    """Error against float64 about that of the direct form (0.7 times, in fact), mean and largest.

    Tables stay in float32 under autocast and meet q, k and v in bfloat16.
    """
    case = Case(14, 14, 14, 3, 64, 2)
    for seed in range(3):
        rounded = [x.detach().bfloat16() for x in draw_inputs(case, seed)]
        truth = literal([x.double() for x in rounded], case, 0.125)
        reference = literal(rounded, case, 0.125)
        given = rounded[:3] + [x.float() if tables_in_float32 else x for x in rounded[3:]]
        ours = fast(form, given, case, 0.125)
        assert ours.dtype == torch.bfloat16
        errors = [(x.double() - truth).abs() for x in (ours, reference)]
        assert errors[0].square().mean().sqrt() <= 1.25 * errors[1].square().mean().sqrt()
        assert errors[0].max() <= 1.5 * errors[1].max()
        assert errors[0].max() <= 2**-5 * truth.abs().max()


def test_bfloat16_gradients_are_no_worse_than_those_of_the_literal_form() -> None:
    """Sums over all images stay in float32, for any type of the tables."""
    case = Case(14, 14, 14, 3, 64, 4)
    rounded = [x.detach().bfloat16() for x in draw_inputs(case)]
    doubles, halves, others = (
        [x.to(dtype, copy=True).requires_grad_() for x in rounded]
        for dtype in (torch.float64, torch.bfloat16, torch.bfloat16)
    )
    truth = output_and_gradients(literal(doubles, case, 0.125), doubles)
    reference = output_and_gradients(literal(halves, case, 0.125), halves)
    with parts_of(1, case):
        ours = output_and_gradients(fast(attention_in_parts, others, case, 0.125), others)
    for mine, theirs, true in zip(ours, reference, truth, strict=True):
        assert (mine.double() - true).norm() <= 1.25 * (theirs.double() - true).norm()


def test_nothing_of_size_n_by_n_is_kept_for_the_backward_pass() -> None:
    """In addition to queries, keys and values, only the mass per key row, class and column."""
    case = Case(14, 14, 14, 2, 16, 3)
    inputs = draw_inputs(case)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        fast(attention_in_parts, inputs, case, 0.25)
    tokens = case.batch * 197 * case.heads
    sizes = sorted((x.numel() for x in kept if x.numel() > 197 * 32), reverse=True)
    assert sizes == [3 * tokens * case.head_dim, tokens * 29]


def test_a_traced_network_takes_other_batches_and_is_saved() -> None:
    space = TEST_SPACES["vit"][0]
    network = new_supernet(space).network.eval()
    for may_learn in (False, True):
        with torch.set_grad_enabled(may_learn):
            traced = torch.jit.trace(network, images_for(space, batch=2))
        torch.jit.save(traced, BytesIO())
        images = images_for(space, batch=5)
        assert_equal(traced(images), network(images), 1e-5)


def test_gradients_per_sample_by_torch_func() -> None:
    space = TEST_SPACES["vit"][0]
    network = new_supernet(space).network.double().eval()
    weights = dict(network.named_parameters())
    images = images_for(space, batch=3).double()

    def loss(weights: dict[str, Tensor], image: Tensor) -> Tensor:
        return functional_call(network, weights, (image[None],)).square().sum()

    found = vmap(grad(loss), in_dims=(None, 0))(weights, images)
    expected = torch.autograd.grad(network(images).square().sum(), list(weights.values()))
    for name, whole in zip(weights, expected, strict=True):
        assert_equal(found[name].sum(0), whole, 1e-10)


def test_parts_are_for_processors_and_pictures_of_some_hundred_tokens() -> None:
    qkv = torch.empty(1, 197, 3, 3, 64)
    assert suits_parts(qkv)
    assert suits_parts(qkv.bfloat16())
    assert not suits_parts(qkv.half())
    assert not suits_parts(qkv.to("meta"))
    assert not suits_parts(torch.empty(1, 64 * 64 + 1, 3, 3, 1))
    assert not suits_tables(qkv)  # they are for GPUs


@given(st.integers(1, 128), st.integers(1, 40), st.integers(1, 40))
def test_padded_width(head_dim: int, rows: int, columns: int) -> None:
    """The smallest multiple of 8 with room for the head and row, class and column features."""
    width = padded_width(head_dim, rows, columns)
    needed = head_dim + rows + 1 + columns
    assert width % 8 == 0
    assert needed <= width < needed + 8


def test_padded_width_of_the_published_networks() -> None:
    assert padded_width(64, 14, 14) == 96


@given(st.integers(1, 6), st.integers(1, 6))
def test_key_features_are_one_hot(rows: int, columns: int) -> None:
    """The class key has only its own feature; every patch has its row and its column."""
    features = grid_index(rows, columns, 8, 2).features
    assert features.shape == (rows * columns + 1, padded_width(8, rows, columns) - 8)
    expected = torch.zeros_like(features)
    expected[0, rows] = 1
    for row in range(rows):
        for column in range(columns):
            place = [rows - 1 - row, rows + columns - column]  # the last ones first
            expected[1 + row * columns + column, place] = 1
    assert torch.equal(features, expected)


# --- the whole network ---------------------------------------------------------------------------


def literal_network(network: VisionTransformer) -> LiteralVit:
    """The direct form with the same state dict."""
    arch, settings_ = network.arch, network.settings
    with torch.device("meta"):
        result = LiteralVit(
            embed_dim=arch.embed_dim,
            num_heads=arch.num_heads,
            mlp_ratio=arch.mlp_ratio,
            image_size=settings_.image_size,
            patch_size=settings_.patch_size,
            in_chans=settings_.in_chans,
            num_classes=settings_.num_classes,
            head_dim=settings_.head_dim,
            max_distance=settings_.max_distance,
        )
    result.load_state_dict(network.state_dict(), strict=True, assign=True)
    return result


@pytest.mark.parametrize("space", TEST_SPACES["vit"], ids=lambda space: space.name)
@settings(max_examples=10)
@given(data=st.data())
def test_network_equals_the_literal_one(space: SearchSpace, data: st.DataObject) -> None:
    """Logits and the gradient of every parameter, in float64."""
    network = new_supernet(space, arch=data.draw(archs(space))).network.double()
    images = images_for(space).double()
    other = literal_network(network)
    cotangent = torch.linspace(-1, 1, space.settings.num_classes, dtype=torch.float64)
    actual, expected = network(images), other(images)
    assert_equal(actual, expected, 1e-12)
    names, parameters = zip(*network.named_parameters(), strict=True)
    gradients = torch.autograd.grad((actual * cotangent).sum(), parameters)
    references = dict(other.named_parameters())
    others = torch.autograd.grad((expected * cotangent).sum(), [references[name] for name in names])
    largest = max(gradient.abs().max().item() for gradient in others)
    for name, ours, theirs in zip(names, gradients, others, strict=True):
        bound = 1e-11 * max(theirs.abs().max().item(), 1e-3 * largest)
        assert (ours - theirs).abs().max().item() <= bound, name


SMALL = VitSettings(
    image_size=(8, 12), in_chans=2, num_classes=6, patch_size=2, head_dim=8, max_distance=3
)


def small_network() -> VisionTransformer:
    """Two unequal layers; weights by hand so that it needs no supernet."""
    arch = VitArch(embed_dim=20, num_heads=(1, 3), mlp_ratio=(2.5, 3.33))
    network = VisionTransformer(arch, SMALL)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def small_images(batch: int) -> Tensor:
    return torch.randn(batch, 2, 8, 12, generator=torch.Generator().manual_seed(batch))


def test_traces_as_one_graph() -> None:
    """No graph break; outputs and gradients through the traced graphs."""
    network, images = small_network(), small_images(3)
    parameters = list(network.parameters())
    expected = network(images)
    gradients = torch.autograd.grad(expected.square().sum(), parameters)
    actual = torch.compile(network, fullgraph=True, backend="aot_eager")(images)
    assert_equal(actual, expected, 1e-5)
    traced = torch.autograd.grad(actual.square().sum(), parameters)
    for ours, theirs in zip(traced, gradients, strict=True):
        assert_equal(ours, theirs, 1e-4)


def test_the_form_for_gpus_computes_the_same_in_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager, and traced as one graph with its backward pass."""
    network, images = small_network(), small_images(3)
    parameters = list(network.parameters())
    expected = network(images)
    gradients = torch.autograd.grad(expected.square().sum(), parameters)
    monkeypatch.setattr(attention, "_form_for", lambda qkv: attention_with_tables)
    torch._dynamo.reset()
    for run in (network, torch.compile(network, fullgraph=True, backend="aot_eager")):
        actual = run(images)
        assert_equal(actual, expected, 1e-5)
        found = torch.autograd.grad(actual.square().sum(), parameters)
        for ours, theirs in zip(found, gradients, strict=True):
            assert_equal(ours, theirs, 1e-4)
    torch._dynamo.reset()


@pytest.mark.slow
def test_compiles_as_one_graph() -> None:
    """The default compiler's code gives the same output."""
    network, images = small_network(), small_images(3)
    with torch.no_grad():
        assert_equal(torch.compile(network, fullgraph=True)(images), network(images), 1e-5)


def test_exports_whole() -> None:
    """One graph for any batch size."""
    network = small_network()
    exported = torch.export.export(
        network,
        (small_images(3),),
        dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}},
    )
    for batch in (1, 3, 5):
        images = small_images(batch)
        assert_equal(exported.module()(images), network(images), 1e-5)


@given(archs(get_space("digits")), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**32))
def test_the_deployed_form_computes_the_same(
    arch: VitArch, rows: int, columns: int, seed: int
) -> None:
    """On grids that are no squares, with tables that matter, for the class token and patches."""
    settings = VitSettings(image_size=(4 * rows, 4 * columns), patch_size=4, num_classes=5)
    network = fill_as_trained(VisionTransformer(arch, settings), seed)
    images = torch.randn(2, 3, *settings.image_size, generator=torch.manual_seed(seed))
    with torch.no_grad():
        expected = network.forward_features(images)
        found = deployed(network).forward_features(images)
    assert torch.allclose(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_the_deployed_form_is_hardly_larger() -> None:
    """The tables are looked up in every call, not stored for every row and column."""
    space = get_space("tiny")
    network = deployed(VisionTransformer(PUBLISHED["tiny"][0], space.settings))
    stored = {id(tensor): tensor.nbytes for tensor in network.buffers()}
    weights = sum(parameter.nbytes for parameter in network.parameters())
    assert sum(stored.values()) < 0.03 * weights
