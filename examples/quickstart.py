"""The library in ten calls, on scikit-learn's digits, on a CPU, in well under a minute.

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

# 1, 2: a recipe is a value; change any field by name
recipe = prenas.with_overrides(prenas.get_recipe("digits"), ["training.epochs=3"])

# 3: which subnets are worth having? One backward pass at initialisation, no training
preferred = prenas.search(recipe, folder)
for subnet in preferred.subnets:
    print(f"{subnet.params:>8,} parameters  score {subnet.score:8.1f}  {subnet.arch.summary}")

# 4: train one supernet on them, from the very weights that were scored
supernet = prenas.train(folder)

# 5: accuracy of each; choose by validation, report test
for row in prenas.evaluate(folder):
    print(f"{row.params:>8,} parameters  validation {row.splits['validation'].top1:.3f}")

# 6, 7: an architecture is a value too; what does one cost, and what does it say?
arch = prenas.VitArch(embed_dim=32, num_heads=(2, 3, 2), mlp_ratio=(2.0, 3.0, 2.0))
print(prenas.count(arch, recipe.space.settings))
images = torch.randn(4, 1, 8, 8)
print(supernet(images, arch).shape)

# 8, 9: hand over the best subnet below 120,000 parameters, and load it anywhere
network, transform = prenas.load(prenas.specialize(folder, max_params="120k"))

# 10: an ordinary PyTorch module and a transform for pictures
digit = Image.fromarray(np.round(load_digits().images[0] * 255 / 16).astype(np.uint8))
probabilities = network(transform(digit)[None]).softmax(dim=1)
print(f"a picture of a zero: class {int(probabilities.argmax())}, p = {probabilities.max():.2f}")
