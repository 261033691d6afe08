"""Zero-cost scores, isomer rule and selection of PreNAS, one candidate at a time.

``weights`` and ``gradients`` are dicts of full-size native supernet tensors (a gradient is zero
outside the scored subnet; layers outside it may be absent). Every tensor is sliced anew for every
candidate and every sum is taken in float64. Written after the PreNAS paper and its original code.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .original import slice_state

ATTENTION_AND_MLP_SUFFIXES = (
    ".attn.qkv.weight",
    ".attn.qkv.bias",
    ".attn.proj.weight",
    ".attn.proj.bias",
    ".mlp.fc1.weight",
    ".mlp.fc1.bias",
    ".mlp.fc2.weight",
    ".mlp.fc2.bias",
)
LAYER_NORM_SUFFIXES = (".norm1.weight", ".norm1.bias", ".norm2.weight", ".norm2.bias")
GLOBAL_SCORED = (
    "patch_embed.proj.weight",
    "patch_embed.proj.bias",
    "norm.weight",
    "norm.bias",
    "head.weight",
    "head.bias",
)


def is_scored(name: str) -> bool:
    """Whether S sums this tensor: not the class token, position embedding or relative tables."""
    return name in GLOBAL_SCORED or name.endswith(ATTENTION_AND_MLP_SUFFIXES + LAYER_NORM_SUFFIXES)


def _scored_slices(
    tensors: Mapping[str, Tensor],
    embed_dim: int,
    num_heads: Sequence[int],
    mlp_ratio: Sequence[float],
    head_dim: int,
    head_bias_quirk: bool,
) -> dict[str, Tensor]:
    """Cut the scored tensors to the subnet; the quirk cuts ``head.bias`` at ``embed_dim`` too."""
    scored = {name: tensor for name, tensor in tensors.items() if is_scored(name)}
    owned = slice_state(scored, embed_dim, num_heads, mlp_ratio, head_dim)
    if head_bias_quirk:
        owned["head.bias"] = owned["head.bias"][:embed_dim]
    return owned


def left_super_taylor6(
    weights: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    *,
    embed_dim: int,
    num_heads: Sequence[int],
    mlp_ratio: Sequence[float],
    head_bias_quirk: bool,
    head_dim: int = 64,
) -> float:
    """S: the sum of |w * g| over the scored weights that the subnet owns.

    ``head_bias_quirk=True`` repeats the original's slip: head.bias counts up to ``embed_dim`` only.
    """
    arch = (embed_dim, num_heads, mlp_ratio, head_dim)
    w = _scored_slices(weights, *arch, head_bias_quirk)
    g = _scored_slices(gradients, *arch, head_bias_quirk)
    return sum((w[name].double() * g[name].double()).abs().sum().item() for name in w)


def left_super_taylor5(
    weights: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    *,
    embed_dim: int,
    num_heads: Sequence[int],
    mlp_ratio: Sequence[float],
    head_bias_quirk: bool,
    head_dim: int = 64,
) -> float:
    """|sum of w * g| over the weights of S, with one absolute value at the end."""
    arch = (embed_dim, num_heads, mlp_ratio, head_dim)
    w = _scored_slices(weights, *arch, head_bias_quirk)
    g = _scored_slices(gradients, *arch, head_bias_quirk)
    return abs(sum((w[name].double() * g[name].double()).sum().item() for name in w))


def left_super_l1norm(
    weights: Mapping[str, Tensor],
    *,
    embed_dim: int,
    num_heads: Sequence[int],
    mlp_ratio: Sequence[float],
    head_bias_quirk: bool,
    head_dim: int = 64,
) -> float:
    """Sum of |w| over the weights of S; needs no gradient."""
    w = _scored_slices(weights, embed_dim, num_heads, mlp_ratio, head_dim, head_bias_quirk)
    return sum(tensor.double().abs().sum().item() for tensor in w.values())


def left_attn_mlp_taylor6(
    weights: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    *,
    embed_dim: int,
    num_heads: Sequence[int],
    mlp_ratio: Sequence[float],
    head_dim: int = 64,
) -> float:
    """Sum of |w * g| over weights and biases of qkv, proj, fc1 and fc2 only."""
    arch = (embed_dim, num_heads, mlp_ratio, head_dim)
    w = slice_state(weights, *arch)
    g = slice_state(gradients, *arch)
    total = 0.0
    for name in w:
        if name.endswith(ATTENTION_AND_MLP_SUFFIXES):
            total += (w[name].double() * g[name].double()).abs().sum().item()
    return total


def entropy(
    *,
    embed_dim: int,
    num_heads: Sequence[int],
    mlp_ratio: Sequence[float],
    head_dim: int = 64,
) -> float:
    """Sum over layers of log(hidden) + log(d * heads) + log(196) + 4 log(width).

    196 is the original's constant, whatever the image size.
    """
    total = 0.0
    for heads, ratio in zip(num_heads, mlp_ratio, strict=True):
        hidden = int(embed_dim * ratio)
        total += math.log(hidden) + math.log(head_dim * heads)
        total += math.log(196) + 4 * math.log(embed_dim)
    return total


class BlockScores(NamedTuple):
    """Gains per layer: ``heads[j - 1][layer]`` is the gain of option j over option j - 1."""

    heads: list[list[float]]
    mlp: list[list[float]]


def block_scores(
    weights: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    *,
    embed_dim: int,
    largest_embed_dim: int,
    num_heads_options: Sequence[int],
    mlp_ratio_options: Sequence[float],
    head_dim: int = 64,
    normalised: bool = True,
) -> BlockScores:
    """Gains of the larger options in every layer at width e = ``embed_dim``; options ascending.

    Heads: |w g| summed over qkv rows of the added heads, columns [:e]. MLP: over the added hidden
    units int(e r_prev)..int(e r), of fc1 with columns [:e] and of fc2 with rows [:e]. Normalised,
    each matrix divides its sum by |w|_1 * |g|_1 over that matrix with all heads or hidden units of
    the supernet and its embed axis cut to the largest width E of the space. Biases take no part.
    """
    e, largest = embed_dim, largest_embed_dim
    head_gains: list[list[float]] = [[] for _ in num_heads_options[1:]]
    mlp_gains: list[list[float]] = [[] for _ in mlp_ratio_options[1:]]
    layer = 0
    while f"blocks.{layer}.attn.qkv.weight" in gradients:
        qkv, qkv_grad = _pair(weights, gradients, f"blocks.{layer}.attn.qkv.weight")
        fc1, fc1_grad = _pair(weights, gradients, f"blocks.{layer}.mlp.fc1.weight")
        fc2, fc2_grad = _pair(weights, gradients, f"blocks.{layer}.mlp.fc2.weight")
        qkv_norm = fc1_norm = fc2_norm = 1.0
        if normalised:
            qkv_norm = _l1(qkv[:, :largest]) * _l1(qkv_grad[:, :largest])
            fc1_norm = _l1(fc1[:, :largest]) * _l1(fc1_grad[:, :largest])
            fc2_norm = _l1(fc2[:largest, :]) * _l1(fc2_grad[:largest, :])
        for j in range(1, len(num_heads_options)):
            first = 3 * head_dim * num_heads_options[j - 1]
            last = 3 * head_dim * num_heads_options[j]
            added = _l1(qkv[first:last, :e] * qkv_grad[first:last, :e])
            head_gains[j - 1].append(added / qkv_norm)
        for j in range(1, len(mlp_ratio_options)):
            first = int(e * mlp_ratio_options[j - 1])
            last = int(e * mlp_ratio_options[j])
            added_fc1 = _l1(fc1[first:last, :e] * fc1_grad[first:last, :e])
            added_fc2 = _l1(fc2[:e, first:last] * fc2_grad[:e, first:last])
            mlp_gains[j - 1].append(added_fc1 / fc1_norm + added_fc2 / fc2_norm)
        layer += 1
    return BlockScores(head_gains, mlp_gains)


def _pair(
    weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], name: str
) -> tuple[Tensor, Tensor]:
    """One tensor and its gradient in float64."""
    return weights[name].double(), gradients[name].double()


def _l1(tensor: Tensor) -> float:
    """Sum of absolute values."""
    return tensor.abs().sum().item()


def allocate(gains: Sequence[Sequence[float]], counts: Sequence[int]) -> list[int]:
    """Isomer rule: return the option index of each layer, given how many layers have each option.

    ``counts`` goes from the smallest option up and sums to the depth; ``gains[j - 1][layer]`` is
    the gain of option j. From the largest option down, each option goes to the free layers with
    the highest gain for it; the smallest takes the rest. Only the first ``depth`` layers take part.
    Ties: the earlier layer.
    """
    depth = sum(counts)
    options = [0] * depth
    free = list(range(depth))
    for option in range(len(counts) - 1, 0, -1):
        for _ in range(counts[option]):
            best = free[0]
            for layer in free[1:]:
                if gains[option - 1][layer] > gains[option - 1][best]:
                    best = layer
            options[best] = option
            free.remove(best)
    return options


def enumerate_counts(
    num_layers: int, num_options: int, published: bool
) -> Iterator[tuple[int, ...]]:
    """Yield every vector of counts per option (smallest option first), summing to ``num_layers``.

    Order: cut points 0 <= c1 <= c2 <= ... <= num_layers, lexicographically ascending, where c_j
    layers have one of the j smallest options; so the first has every layer at the largest option.
    ``published=True`` keeps strictly increasing cut points only, as the original does: every
    vector that gives a middle option no layer is skipped.
    """
    for cuts in itertools.product(range(num_layers + 1), repeat=num_options - 1):
        edges = (0, *cuts, num_layers)
        if any(low > high for low, high in itertools.pairwise(edges)):
            continue
        if published and any(low == high for low, high in itertools.pairwise(cuts)):
            continue
        yield tuple(high - low for low, high in itertools.pairwise(edges))


def count_params(
    state: Mapping[str, Tensor],
    *,
    embed_dim: int,
    num_heads: Sequence[int],
    mlp_ratio: Sequence[float],
    head_dim: int = 64,
) -> int:
    """Parameters of a subnet: the sizes of everything it owns of a native supernet, summed.

    ``state`` may live on the meta device: only shapes are read.
    """
    owned = slice_state(state, embed_dim, num_heads, mlp_ratio, head_dim)
    return sum(tensor.numel() for tensor in owned.values())


class Candidate(NamedTuple):
    """One scored class of isomers, represented by its allocated architecture."""

    embed_dim: int
    num_heads: tuple[int, ...]
    mlp_ratio: tuple[float, ...]
    num_params: int
    score: float


def enumerate_archs(
    head_gains: Sequence[Sequence[float]],
    mlp_gains: Sequence[Sequence[float]],
    *,
    embed_dim_options: Sequence[int],
    depth_options: Sequence[int],
    num_heads_options: Sequence[int],
    mlp_ratio_options: Sequence[float],
    published: bool,
) -> Iterator[tuple[int, tuple[int, ...], tuple[float, ...]]]:
    """Yield (embed_dim, num_heads, mlp_ratio) of every class of isomers, allocated.

    Order: widths, then depths, then head counts, then MLP counts, each as given or enumerated.
    """
    for embed_dim in embed_dim_options:
        for depth in depth_options:
            for head_counts in enumerate_counts(depth, len(num_heads_options), published):
                heads = tuple(num_heads_options[j] for j in allocate(head_gains, head_counts))
                for mlp_counts in enumerate_counts(depth, len(mlp_ratio_options), published):
                    ratios = tuple(mlp_ratio_options[j] for j in allocate(mlp_gains, mlp_counts))
                    yield embed_dim, heads, ratios


def select_literal(
    weights: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    *,
    embed_dim_options: Sequence[int],
    depth_options: Sequence[int],
    num_heads_options: Sequence[int],
    mlp_ratio_options: Sequence[float],
    min_params: int,
    max_params: int,
    interval: int,
    top_k: int,
    published: bool,
    head_bias_quirk: bool,
    keep_partial: bool = False,
    head_dim: int = 64,
) -> dict[int, list[Candidate]]:
    """Keep the ``top_k`` best by S in every parameter interval; keys are upper edges, ascending.

    Intervals are [lo, hi) with lo_i = min_params + i * interval, in whole parameters, so that the
    edges are exact; a last partial interval is dropped unless ``keep_partial``, and empty ones are
    left out. The block scores of the largest width serve all widths. Ties in S: the fewer
    parameters, then the first in the order of ``enumerate_archs``.

    |w * g| is formed once and then sliced and summed for every candidate; with values whose sums
    are exact in float64 (small integers, say) so are the ties.
    """
    gains = block_scores(
        weights,
        gradients,
        embed_dim=max(embed_dim_options),
        largest_embed_dim=max(embed_dim_options),
        num_heads_options=num_heads_options,
        mlp_ratio_options=mlp_ratio_options,
        head_dim=head_dim,
    )
    importance = {
        name: (weights[name].double() * gradients[name].double()).abs()
        for name in gradients
        if is_scored(name)
    }
    lows = list(range(min_params, max_params, interval))
    if not keep_partial:
        lows = [low for low in lows if low + interval <= max_params]
    intervals = [(low, min(low + interval, max_params)) for low in lows]
    members: dict[int, list[Candidate]] = {high: [] for _, high in intervals}
    for embed_dim, heads, ratios in enumerate_archs(
        gains.heads,
        gains.mlp,
        embed_dim_options=embed_dim_options,
        depth_options=depth_options,
        num_heads_options=num_heads_options,
        mlp_ratio_options=mlp_ratio_options,
        published=published,
    ):
        num_params = count_params(
            weights, embed_dim=embed_dim, num_heads=heads, mlp_ratio=ratios, head_dim=head_dim
        )
        for low, high in intervals:
            if low <= num_params < high:
                owned = _scored_slices(
                    importance, embed_dim, heads, ratios, head_dim, head_bias_quirk
                )
                score = sum(tensor.sum(dtype=torch.float64).item() for tensor in owned.values())
                members[high].append(Candidate(embed_dim, heads, ratios, num_params, score))
    selected = {}
    for high, candidates in members.items():
        if candidates:
            ranked = sorted(candidates, key=lambda each: (-each.score, each.num_params))
            selected[high] = ranked[:top_k]
    return selected
