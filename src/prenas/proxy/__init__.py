"""Zero-cost proxy: what every weight is worth at initialisation, before any training."""
