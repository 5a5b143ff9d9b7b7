"""The error that `twinvit.port` raises for wrong models, inputs or files."""


class PortError(Exception):
    """The two models cannot be compared: the message says what was wrong, where, and what to do.

    The command line turns it into exit status 3.
    """


class OtherNumbers(PortError):
    """An operation of a recording that was recorded by its value has other operands than those."""


def article(name: str) -> str:
    """A name with its article, "an Encoder"."""
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
