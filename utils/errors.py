"""The one exception for what a user can mend."""

import difflib


class UserError(Exception):
    """A mistake in a file, key, name or folder. Scripts print it without a traceback and exit with status 2."""


def suggest(word, choices):
    """'; did you mean "x"?' for the choice closest to `word`, or '' where none is close."""
    close = difflib.get_close_matches(word, choices, n=1)
    return f'; did you mean "{close[0]}"?' if close else ""
