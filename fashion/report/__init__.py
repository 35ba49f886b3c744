"""Evaluation, statistics, figures, the HTML report and TensorBoard."""
