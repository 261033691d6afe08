"""`python -m benchmarks gpu`: the cost of a training step on an accelerator, and what delays it."""
