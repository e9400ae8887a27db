"""The one exception that means: the user's input is wrong."""


class InputError(ValueError):
    """Input that cannot be used. The message is one line: it names the value and the remedy.

    The command line prints the message and exits with code 2; library callers can catch it as a `ValueError`.
    """
