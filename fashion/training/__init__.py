"""Networks, optimizers, the LightningModule, callbacks, checkpoints and the training process."""
