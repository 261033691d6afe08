"""Writes the loss curves of `tests/golden/losses` anew: all that there are data for, or some.

python tests/golden/regenerate.py [NAME ...]
"""

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from training.curves import BIG_CURVES, CURVES, missing_data, write_golden

logging.basicConfig(level=logging.INFO, format="%(message)s")
torch.set_num_threads(1)
for name in sys.argv[1:] or [*CURVES, *BIG_CURVES]:
    if reason := missing_data(name):
        logging.info("%s: left as it is, %s", name, reason)
    else:
        write_golden(name)
        logging.info("%s: written", name)
