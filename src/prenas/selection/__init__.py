"""Preferred set: the few subnets to train, chosen from tables before any training."""
