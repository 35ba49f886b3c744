"""The dataset: files, batches, augmentation, a person's photos."""
