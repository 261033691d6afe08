"""Slow, literal forms of the paper's formulas; the production code is compared with them."""
