"""Preferred set: the few subnets worth having, chosen from tables before any training."""
