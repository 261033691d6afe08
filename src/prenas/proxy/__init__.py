"""Zero-cost proxy: how important every weight is at initialisation, before any training."""
