"""What names and values may be. Each check raises ItemError with the field and the rule."""

import os
import re
import secrets
from collections.abc import Iterable, Mapping

from torpor.controller.errors import Code, ItemError, invalid
from torpor.controller.model import Autokill

MAX_NAME = 255
MAX_TAGS = 16
MAX_ENV_BYTES = 128 << 10
MAX_ARGS_BYTES = 128 << 10
HOST_MEMORY_MB = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
MEMORY_MB = (16, min(14 << 10, HOST_MEMORY_MB))
"""What a VM may have: crates/abi/src/layout.rs has the bounds of its address space."""
MAX_AUTOKILL_MS = 10 * 366 * 86_400_000
MAX_AUTOKILL_REQUESTS = 1 << 48

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?\Z")
_TAG = re.compile(r"[A-Za-z0-9\-+_.:=]{1,256}\Z")
_HOSTNAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\Z")
_ENV_NAME = re.compile(r"[^=\0]+\Z")
_ANNOTATION = re.compile(
    r"(?:[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?\Z"
)
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\Z")
_ADJECTIVES = (
    "amber",
    "bold",
    "calm",
    "dusty",
    "early",
    "gentle",
    "misty",
    "quiet",
    "still",
    "warm",
)
_NOUNS = ("brook", "cloud", "dune", "fern", "fog", "harbor", "leaf", "moon", "pine", "river")
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


def random_suffix(length: int = 8) -> str:
    """Letters and digits nobody can guess."""
    return "".join(secrets.choice(_LETTERS) for _ in range(length))


def random_name() -> str:
    """A name for what was given none; also good as a part of a domain."""
    return f"{secrets.choice(_ADJECTIVES)}-{secrets.choice(_NOUNS)}-{random_suffix()}"


def check_name(name: str, field: str = "name") -> None:
    """Names of instances, templates, checkpoints, services and tokens."""
    if len(name) > MAX_NAME or _NAME.match(name) is None:
        raise invalid(
            field,
            f"must have 1 to {MAX_NAME} letters, digits, '.', '_' or '-', and begin and end with "
            "a letter or digit",
        )


def check_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Tags without repetitions, in the order given."""
    unique = tuple(dict.fromkeys(tags))
    if len(unique) > MAX_TAGS:
        raise invalid("tags", f"must be at most {MAX_TAGS}")
    for tag in unique:
        if _TAG.match(tag) is None:
            raise invalid("tags", "must be 1 to 256 letters, digits, '-', '+', '_', '.', ':', '='")
    return unique


def check_env(env: Mapping[str, str]) -> None:
    """Environment variables."""
    for name, value in env.items():
        if _ENV_NAME.match(name) is None or "\0" in value:
            raise invalid("env", "names must not be empty or contain '=', and nothing a NUL")
    if sum(len(name) + len(value) for name, value in env.items()) > MAX_ENV_BYTES:
        raise invalid("env", f"must have at most {MAX_ENV_BYTES} characters in all")


def check_autokill(autokill: Autokill | None, *, takes_requests: bool = False) -> None:
    """When something is deleted by itself; only instances take requests."""
    if autokill is None:
        return
    if not 0 <= autokill.time_ms <= MAX_AUTOKILL_MS:
        raise invalid("autokill.time_ms", f"must be 0 to {MAX_AUTOKILL_MS}")
    if autokill.num_requests and not takes_requests:
        raise invalid("autokill.num_requests", "is for instances only")
    if not 0 <= autokill.num_requests <= MAX_AUTOKILL_REQUESTS:
        raise invalid("autokill.num_requests", f"must be 0 to {MAX_AUTOKILL_REQUESTS}")


def check_args(args: Iterable[str]) -> None:
    """A command line."""
    words = list(args)
    if any("\0" in word for word in words):
        raise invalid("args", "must not contain a NUL")
    if sum(map(len, words)) > MAX_ARGS_BYTES:
        raise invalid("args", f"must have at most {MAX_ARGS_BYTES} characters in all")


def is_hostname(name: str) -> bool:
    """Whether a VM may call itself so."""
    return len(name) <= 63 and _HOSTNAME.match(name) is not None


def check_hostname(name: str) -> None:
    """A host name inside a VM."""
    if not is_hostname(name):
        raise invalid("hostname", "must have 1 to 63 letters, digits or '-' within")


def check_annotations(annotations: Mapping[str, str]) -> None:
    """Annotations: keys as in Kubernetes, values without control characters."""
    if len(annotations) > 256:
        raise invalid("annotations", "must be at most 256")
    for key, value in annotations.items():
        if _ANNOTATION.match(key) is None:
            raise invalid("annotations", "keys must be [PREFIX/]NAME as in Kubernetes")
        if any(ord(letter) < 32 or ord(letter) == 127 for letter in value):
            raise invalid("annotations", "values must not contain control characters")


def check_memory(memory_mb: int, low: int, high: int) -> None:
    """The memory of a VM."""
    if not low <= memory_mb <= high:
        raise invalid("memory_mb", f"must be {low} to {high}")


def check_vcpus(vcpus: int) -> None:
    """Virtual CPUs: a VM has one."""
    if vcpus != 1:
        raise invalid("vcpus", f"is {vcpus}: must be 1, as a VM has one virtual CPU")


def full_domain(name: str, suffix: str) -> str:
    """The host name that a domain means: as it is with a trailing dot, else below `suffix`."""
    name = name.lower()
    fqdn = name[:-1] if name.endswith(".") else f"{name}.{suffix}"
    labels = fqdn.split(".")
    if labels[0] == "*":
        labels = labels[1:]
    if len(fqdn) > 253 or not labels or any(_LABEL.match(label) is None for label in labels):
        raise ItemError(Code.INVALID, f"'domains' holds '{name}': not a host name")
    return fqdn
