"""Errors that a person caused or can mend: one line that names the input, the rule and the remedy.

TorporError             anything below, printed as `torpor: MESSAGE`, exit status 125
├── UsageError          a command line that cannot be understood
├── ImageNotFoundError  no image of that name in the store, no file of that path
└── PackError           a directory that cannot be made into a root file system image
"""

EXIT_TORPOR_FAILED = 125
"""`docker run`'s exit status for 'the command itself failed, no program was run'."""


class TorporError(Exception):
    """Base of all errors that are reported as one line."""


class UsageError(TorporError):
    """The command line breaks a rule."""


class ImageNotFoundError(TorporError):
    """What the command line names as image does not exist."""


class PackError(TorporError):
    """A directory could not be packed into an image."""
