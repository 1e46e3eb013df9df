"""The one exception family. A message is one sentence: what is wrong, the value, what to do next."""


class GopherError(Exception):
    """A run or command failed; the command line exits with `exit_code`."""

    exit_code = 1


class UsageError(GopherError):
    """The configuration, a file or a value given by the user is wrong (exit code 2, never retried)."""

    exit_code = 2


class SetupError(GopherError):
    """The machine or a service is not able: no space, port in use, server unreachable (exit code 3)."""

    exit_code = 3


def require(ok: bool, message: str) -> None:
    """Raise `UsageError` with the message unless `ok`."""
    if not ok:
        raise UsageError(message)


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something, or the error's type."""
    return next((line for line in map(str.strip, str(error).splitlines()) if line), type(error).__name__)


def did_you_mean(word: str, known: list[str] | tuple[str, ...]) -> str:
    """`; did you mean 'x'?` for the closest of `known`, or an empty string when nothing is close."""
    import difflib

    close = difflib.get_close_matches(word, known, 1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""
