"""Zero-cost scores compared with accuracies that are known from trainings."""
