"""Hyperparameter search: space, study, workers, confirmation."""
