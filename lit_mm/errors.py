"""The exception for errors that a user can cause and cure."""


class UserError(ValueError):
    """Something in the config, the data or the machine is wrong, and the message says what, where and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


class LostRankError(UserError):
    """Another rank of the job has ended or does not answer. The command line prints one line and exits with code 1."""
