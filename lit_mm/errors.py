"""The exception for errors that a user can cause and cure."""


class UserError(ValueError):
    """Something in the config, the data or the machine is wrong, and the message says what, where and what to do.

    The command line prints it without a traceback and exits with code 2.
    """
