"""The error for what a user gave: a file, a key, a value."""


class InputError(ValueError):
    """What was given is not what was expected.

    The message names the file or key, what was expected and what was found. Entry points print it without a traceback.
    """
