"""The two errors that the command line turns into exit statuses.

Messages name the thing (file, row, key), say what is wrong and what to do about it.
"""


class InputError(Exception):
    """What the user gave cannot be used: params, paths, data. Exit status 2."""


class StageError(Exception):
    """Good input, but the work failed: a diverged training, a broken artifact. Exit status 1."""
