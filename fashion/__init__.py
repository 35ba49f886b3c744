"""Train, tune and honestly report an image classifier on Fashion-MNIST."""


class UserError(Exception):
    """A mistake its user can mend: every command prints the message alone, without a traceback."""
