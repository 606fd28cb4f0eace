"""The error of everything that reads models."""


class ModelError(ValueError):
    """A model folder or repository cannot be used; the message is the one line that users see."""
