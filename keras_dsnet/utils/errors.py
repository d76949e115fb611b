"""The error that stands for a mistake of the person who typed the command."""


class UserError(ValueError):
    """A mistake in a flag, a path or a file, with a one-line message that says what would be right.

    A program prints the message, without a traceback, and exits with code 1.
    """
