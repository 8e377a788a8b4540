"""Errors that end a script with one line instead of a traceback."""

import difflib


class UserError(Exception):
    """A mistake in a file, key, name or folder that the user can correct. Exit status 2."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged or unsuitable.

    path: the file, if training the experiment in its folder would make a suitable one; else None. name: what the
    message calls the file.
    """

    def __init__(self, problem, path, name):
        super().__init__(f"{name}: {problem}")
        self.path = path


class Busy(UserError):
    """Another process is training in the same run folder."""


class Diverged(Exception):
    """The loss is NaN or infinite. Exit status 1."""


def suggest(word, choices):
    """'; did you mean "x"?' for the choice closest to `word`, or '' if none is close."""
    close = difflib.get_close_matches(word, choices, n=1)
    return f'; did you mean "{close[0]}"?' if close else ""
