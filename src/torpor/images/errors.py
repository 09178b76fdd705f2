"""What can go wrong with images, beside torpor.errors.ImageNotFoundError.

ImageError                  a TorporError: the message is complete
├── BadArchiveError         an archive, layer or manifest that breaks a rule
├── LimitExceededError      an input larger than the limits allow
├── RegistryError           a registry refused, failed or misbehaved
│   └── RegistryUnreachableError   it could not be reached at all, or did not answer in time
├── BuildError              a Dockerfile that does not parse or a step that failed
└── ToolMissingError        a system tool is not installed, or needs root
"""

from torpor.errors import TorporError


class ImageError(TorporError):
    """An image operation failed; the message names the input, the rule and the remedy."""


class BadArchiveError(ImageError):
    """An archive, layer or manifest breaks a rule."""


class LimitExceededError(ImageError):
    """An input is larger than the limits allow."""


class RegistryError(ImageError):
    """A registry refused, failed or misbehaved."""


class RegistryUnreachableError(RegistryError):
    """A registry could not be reached, or did not answer in time."""


class BuildError(ImageError):
    """A Dockerfile does not parse, or one of its steps failed."""


class ToolMissingError(ImageError):
    """A system tool is missing, or may not be used by this user."""
