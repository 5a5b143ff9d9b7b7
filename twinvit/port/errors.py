"""The error that a user of `twinvit.port` can meet."""


class PortError(Exception):
    """The two models cannot be judged: the message says what was wrong, where, and what to do.

    The command line turns it into exit status 3.
    """
