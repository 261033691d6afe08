"""Preferred one-shot training: the supernet learns on its preferred subnets only."""
