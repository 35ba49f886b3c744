"""Networks, optimizers, the LightningModule and what surrounds its training loop."""
