"""`python -m benchmarks gpu`: what a step costs on an accelerator, and what keeps it waiting."""
