"""The server that a command is about, reached through the official SDK.

Every base URL of the SDK is set to that server, and no proxy of the environment is used for it, so
that a token never goes anywhere else.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import httpx
from unikraft_cloud import UnikraftCloud
from unikraft_cloud.core.errors import UnikraftCloudError
from unikraft_cloud.core.metro import is_url, metro_base_url

from torpor.cli.output import say
from torpor.cli.server import URL_FILE, process_of
from torpor.cli.wording import in_words
from torpor.controller.errors import Code
from torpor.datadir import data_dir
from torpor.errors import TorporError
from torpor.settings import MAX_PORT

T = TypeVar("T")
LISTS = {
    "instance": ("/v1/instances", "instances"),
    "template": ("/v1/instances/templates", "instances"),
    "checkpoint": ("/v1/instances/checkpoints", "instances"),
    "service": ("/v1/services", "service_groups"),
}
"""Where the objects of a kind are listed, and the member of the answer that has them."""
LOOKED_AT = 1000
SHOWN = 3
"""Names of others, where one is not found."""


class NotAnsweringError(TorporError):
    """There is no server at that address."""


class Address(NamedTuple):
    """Where a server is."""

    url: str
    token: str
    directory: Path | None
    """Its data directory; None for the one that UKC_METRO names."""


class Server:
    """A connection to one server, for the length of one command."""

    def __init__(self, sdk: UnikraftCloud, address: Address) -> None:
        self.sdk: Any = sdk
        self.directory = address.directory
        self._http = httpx.AsyncClient(
            base_url=address.url,
            headers={"Authorization": f"Bearer {address.token}"},
            trust_env=False,
            timeout=httpx.Timeout(None, connect=10),
        )

    async def own(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        """An operation that the SDK does not have; the answer's data. Raises TorporError."""
        document = await self._document(method, path, **more)
        if document["status"] == "error":
            raise _failure(document)
        return dict(document["data"])

    async def _document(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        """An answer with its envelope, which has data unless all failed. Raises TorporError."""
        response = await self._http.request(method, path, **more)
        try:
            document = dict(response.json())
            if document["status"] != "error":
                dict(document["data"])
        except (ValueError, LookupError, TypeError) as error:
            raise TorporError(
                f"{self._http.base_url} answered {response.status_code} and not as Torpor does: "
                "another program listens there"
            ) from error
        return document

    async def resolve(
        self, kind: str, references: Sequence[str], *, undone: str = ""
    ) -> list[dict[str, str]]:
        """Names, uuids, or unique beginnings of uuids as `{uuid: ...}`.

        Raises TorporError, which says of several that none of them is `undone`.
        """
        parameters = [("kind", kind), *(("ref", reference) for reference in references)]
        document = await self._document("GET", "/torpor/v1/resolve", params=parameters)
        if "data" not in document:
            raise _failure(document)
        objects: list[dict[str, Any]] = document["data"]["objects"]
        for item in objects:
            if item["status"] == "error":
                missing = item["error"] == Code.NOT_FOUND
                hint = await self._hint(kind, item["name"]) if missing else ""
                others = f"; none is {undone}" if undone and len(references) > 1 else ""
                raise TorporError(f"{item['message']}{hint}{others}")
        return [{"uuid": item["uuid"]} for item in objects]

    async def _hint(self, kind: str, reference: str) -> str:
        """What there is of a kind, where there is none called `reference`: what looks like that,
        else the first ones.
        """
        path, key = LISTS[kind]
        answer = await self.own("GET", path, params={"count": LOOKED_AT, "details": "false"})
        names = [each["name"] for each in answer[key]]
        shown = get_close_matches(reference, names, SHOWN) or names[:SHOWN]
        if not shown:
            return ": there is none"
        more = ", ..." if len(names) > len(shown) else ""
        quoted = ", ".join(f"'{name}'" for name in shown)
        return f": there {'is' if len(names) == 1 else 'are'} {quoted}{more}"

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._http.aclose()


def _failure(document: Mapping[str, Any]) -> TorporError:
    return TorporError(in_words(document.get("message", "the server reported an error")))


def run(data: str | None, work: Callable[[Server], Awaitable[T]], *, here: bool = False) -> T:
    """Does `work` with the server of the data directory, or of UKC_METRO and UKC_TOKEN.

    `here`: with that of the data directory, whatever the environment says. Raises TorporError.
    """
    address = _address(data, here=here)
    url = address.url

    async def connected() -> T:
        async with UnikraftCloud(
            token=address.token,
            base_url=url,
            control_plane_url=url,
            build_url=url,
            trust_env=False,
        ) as sdk:
            server = Server(sdk, address)
            try:
                return await work(server)
            finally:
                await server.aclose()

    try:
        return asyncio.run(connected())
    except UnikraftCloudError as error:
        if error.kind == "network":
            raise _not_answering(address) from error
        raise TorporError(in_words(str(error))) from error
    except httpx.TransportError as error:
        raise _not_answering(address) from error


def _address(data: str | None, *, here: bool) -> Address:
    environment = {} if here else os.environ
    metro, token = environment.get("UKC_METRO", ""), environment.get("UKC_TOKEN", "")
    if not (token.isascii() and token.isprintable()):
        raise TorporError("UKC_TOKEN must be a token as `torpor token create` prints it: ASCII")
    if metro:
        url = _url_of(metro)
        if not token:
            raise TorporError("UKC_METRO names a server: give its token in UKC_TOKEN")
        return Address(url, token, None)
    directory = data_dir(data)
    try:
        url = (directory / URL_FILE).read_text().strip()
        token = token or (directory / "token").read_text().strip()
    except FileNotFoundError as error:
        raise NotAnsweringError(f"no server runs on {directory}: `torpor up` starts one") from error
    return Address(url, token, directory)


def _url_of(metro: str) -> str:
    """The server that UKC_METRO names. Raises TorporError."""
    with suppress(httpx.InvalidURL):
        url = httpx.URL(metro)
        if is_url(metro) and url.host and (url.port or 0) <= MAX_PORT:
            return metro_base_url(metro)
    raise TorporError(
        f"UKC_METRO is {metro!r}: must be the URL of a server, as http://127.0.0.1:7400, since a "
        "metro's code leads to none of Torpor's; without it the data directory's own is meant"
    )


def _not_answering(address: Address) -> TorporError:
    url, directory = address.url, address.directory
    if directory is None:
        return NotAnsweringError(f"no server answers at {url}, which UKC_METRO names")
    pid = process_of(directory)
    if pid is None:
        return NotAnsweringError(f"no server answers at {url}: `torpor up` starts one")
    return NotAnsweringError(
        f"torpord does not answer at {url}, though process {pid} of its server is there: "
        f"see {directory}/logs; `torpor down --now` ends that, and leaves VMs to the next one"
    )


def report(items: Iterable[Any], words: Callable[[Any], str]) -> int:
    """Prints a line for each object that came off well, and errors; the exit status."""
    status = 0
    for item in items or ():
        if item.status == "error":
            say(f"torpor: {item.name or item.uuid or 'request'}: {in_words(item.message)}")
            status = 1
        else:
            print(words(item))  # noqa: T201 -- the command's output
    return status
