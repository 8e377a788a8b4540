"""What a script ends with, in one line and without a traceback."""

import difflib


class UserError(Exception):
    """A mistake in a file, key, name or folder, which a user can mend: exit status 2."""


class Diverged(Exception):
    """The loss is not finite any more: exit status 1."""


def suggest(word, choices):
    """'; did you mean "x"?' for the choice closest to `word`, or '' where none is close."""
    close = difflib.get_close_matches(word, choices, n=1)
    return f'; did you mean "{close[0]}"?' if close else ""
