"""The library in ten calls, on scikit-learn's digits: runs on a CPU in well under a minute.

Usage: python examples/quickstart.py [folder]
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits

import prenas

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()) / "run"

# 1, 2: a recipe holds every setting of a run; change any field by its name
recipe = prenas.with_overrides(prenas.get_recipe("digits"), ["training.epochs=3"])

# 3: choose the subnets worth training: one backward pass at random weights, no training
preferred = prenas.search(recipe, folder)
for subnet in preferred.subnets:
    size, score = subnet.costs["params"], subnet.score
    print(f"{size:>8,} parameters  score {score:8.1f}  {subnet.arch.summary}")

# 4: train one supernet on them, starting from the weights that were scored
supernet = prenas.train(folder)

# 5: measure each subnet; choose by validation accuracy, report test accuracy
for row in prenas.evaluate(folder):
    size, validation = row.costs["params"], row.splits["validation"]
    print(f"{size:>8,} parameters  validation {validation.top1:.3f}")

# 6, 7: an architecture is a value: count what it costs, or run it inside the supernet
arch = prenas.VitArch(embed_dim=32, num_heads=(2, 3, 2), mlp_ratio=(2.0, 3.0, 2.0))
print(prenas.count(arch, recipe.space))
images = torch.randn(4, 1, 8, 8)
print(supernet(images, arch).shape)

# 8, 9: write the best subnet with at most 120,000 parameters to a folder, and load it anywhere
network, transform = prenas.load(prenas.specialize(folder, limits="params=120k"))

# 10: it is an ordinary PyTorch module; the transform prepares a PIL image for it
digit = Image.fromarray(np.round(load_digits().images[0] * 255 / 16).astype(np.uint8))
probabilities = network(transform(digit)[None]).softmax(dim=1)
print(f"a picture of a zero: class {int(probabilities.argmax())}, p = {probabilities.max():.2f}")
