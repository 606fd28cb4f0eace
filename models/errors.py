"""What is wrong with a model folder, in one line."""


class ModelError(ValueError):
    """A model folder or repository that cannot be used; the text is the one line users see."""
