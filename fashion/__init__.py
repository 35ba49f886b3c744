"""Train, tune and honestly report an image classifier on Fashion-MNIST."""


class UserError(Exception):
    """A mistake its user can mend: every command prints the message alone, without a traceback."""


class DivergenceError(UserError):
    """The loss or the weights of a training are no longer finite."""
