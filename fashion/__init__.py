"""Train, tune and honestly report an image classifier on Fashion-MNIST."""
