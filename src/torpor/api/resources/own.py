"""Torpor's own operations, below /torpor/v1: tokens, users, quotas, counts."""

from typing import Annotated, Any, Literal
from uuid import uuid4

import msgspec

from torpor.api.auth import SCOPES, TokenScope, new_token
from torpor.api.dispatch import failed
from torpor.api.operations import Call, operation
from torpor.api.wire import Item, TokenAnswer, moment
from torpor.controller import Code, ItemError
from torpor.controller.errors import from_store
from torpor.controller.events import now_ms
from torpor.controller.model import Service
from torpor.controller.quotas import Quotas, checked_quotas
from torpor.controller.requests import Reference, Request
from torpor.controller.rules import check_name
from torpor.store import Owner, StoreError, Token

GROUP = "Torpor"
QUIESCE_S = 10.0


class CreateToken(Request, frozen=True):
    """A new token. `user` other than one's own needs the scope admin; a new one is made."""

    name: str
    scopes: tuple[TokenScope, ...] = ("read", "write")
    expires_s: Annotated[int, msgspec.Meta(ge=1, le=100 * 366 * 86400)] | None = None
    user: str | None = None


class TokenName(Request, frozen=True):
    """A token to revoke."""

    name: str


class SetQuotas(Request, frozen=True):
    """What differs from the default quotas of a user."""

    user: str
    quotas: dict[str, int]


@operation("GET", "/torpor/v1/tokens", "list_tokens", "List tokens", group=GROUP, key="tokens",
           answer=TokenAnswer)  # fmt: skip
async def list_tokens(call: Call) -> list[Any]:
    return [_answer(token) for token in call.service.store.owners.tokens(call.principal.owner.id)]


@operation("POST", "/torpor/v1/tokens", "create_token", "Make tokens", group=GROUP, form="each",
           key="tokens", answer=TokenAnswer, body=CreateToken, array=True, body_needed=True,
           scope="admin")  # fmt: skip
async def create_token(call: Call, item: CreateToken) -> TokenAnswer:
    check_name(item.name)
    if not item.scopes:
        raise ItemError(Code.INVALID, f"'scopes' must be some of {', '.join(SCOPES)}")
    owner = await _owner(call, item.user)
    expires_ms = None if item.expires_s is None else now_ms() + item.expires_s * 1000
    scopes = tuple(dict.fromkeys(item.scopes))
    record = Token(str(uuid4()), owner.id, item.name, scopes, now_ms(), expires_ms)
    secret, hash_ = new_token()
    await call.service.store.owners.add_token(record, hash_)
    answer = _answer(record)
    answer.token = secret
    return answer


@operation("DELETE", "/torpor/v1/tokens", "delete_tokens", "Revoke tokens", group=GROUP,
           form="each", key="tokens", answer=Item, body=TokenName, array=True, body_needed=True,
           scope="admin")  # fmt: skip
async def delete_token(call: Call, item: TokenName) -> Item:
    await call.service.store.owners.remove_token(call.principal.owner.id, item.name)
    return Item(status="success", name=item.name)


@operation("PUT", "/torpor/v1/quotas", "set_quotas", "Set a user's quotas", group=GROUP,
           form="each", key="quotas", answer=Item, body=SetQuotas, array=True, body_needed=True,
           scope="admin")  # fmt: skip
async def set_quotas(call: Call, item: SetQuotas) -> Item:
    owner = call.service.store.owners.find(name=item.user)
    await call.service.store.owners.set_quotas(owner.id, checked_quotas(item.quotas))
    return Item(status="success", uuid=owner.uuid, name=owner.name)


@operation("GET", "/torpor/v1/status", "get_status", "How many there are", group=GROUP)
async def get_status(call: Call) -> dict[str, Any]:
    owner = call.principal.owner
    counts: dict[str, dict[str, int]] = {}
    lives = call.service.controller.lifecycle.lives.all()
    mine = [live for live in lives if live.row.owner_id == owner.id]
    ids = [live.row.id for live in mine]
    for total in call.service.store.instances.totals_besides(owner.id, ids):
        counts.setdefault(total.kind, {})[total.state] = total.instances
    for live in mine:
        states = counts.setdefault(live.row.kind, {})
        states[live.state] = states.get(live.state, 0) + 1
    return {
        "counts": counts,
        "quotas": msgspec.to_builtins(Quotas.of(owner)),
        "public_ports": call.service.controller.links.public_ports(),
        "proxy": "connected" if call.service.controller.links.connected() else "absent",
    }


@operation("POST", "/torpor/v1/prepare", "prepare", "Have templates of configurations made",
           group=GROUP, form="each", key="instances", answer=Item, body=Reference, array=True,
           body_needed=True)  # fmt: skip
async def prepare(call: Call, item: Reference) -> Item:
    """The next start of an instance like this one makes its template, if there is none."""
    controller = call.service.controller
    row = controller.find(call.principal.owner, "instance", item)
    controller.prepare(row)
    return Item(status="success", uuid=row.uuid, name=row.name)


class Replacement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An instance, the uuid of the one whose place it takes, and the services there then."""

    uuid: str | None = None
    name: str | None = None
    former: str
    services: list[Service] = []


@operation("POST", "/torpor/v1/replace", "replace", "Delete an instance, and give its name on",
           group=GROUP, form="each", key="instances", answer=Item, body=Replacement, array=True,
           body_needed=True)  # fmt: skip
async def replace(call: Call, item: Replacement) -> Item:
    """The next requests go to the new instance; those in flight are waited for."""
    controller, owner = call.service.controller, call.principal.owner
    row = controller.find(owner, "instance", item)
    former = controller.find(owner, "instance", Reference(uuid=item.former))
    await controller.replace(row, former, item.services)
    return Item(status="success", uuid=row.uuid, name=former.name)


class ResolveQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Names, uuids or beginnings of uuids of one kind of object."""

    kind: Literal["instance", "template", "checkpoint", "service"] = "instance"
    ref: list[str] = []


@operation("GET", "/torpor/v1/resolve", "resolve", "Find by name, uuid or beginning of a uuid",
           group=GROUP, key="objects", answer=Item, query=ResolveQuery)  # fmt: skip
async def resolve(call: Call) -> list[Any]:
    store, owner_id = call.service.store, call.principal.owner.id
    answers = []
    for reference in call.query.ref:
        if call.query.kind == "service":
            found = store.services.matching(owner_id, reference)
        else:
            found = store.instances.matching(owner_id, call.query.kind, reference)
        if len(found) == 1:
            uuid, name = found[0]
            answers.append(Item(status="success", uuid=uuid, name=name))
        else:
            code = Code.CONFLICTING if found else Code.NOT_FOUND
            words = "several begin with" if found else f"No {call.query.kind} is"
            answers.append(failed(ItemError(code, f"{words} '{reference}'", name=reference)))
    return answers


@operation("POST", "/torpor/v1/quiesce", "quiesce", "Standby for stateful VMs, end others",
           group=GROUP, scope="admin")  # fmt: skip
async def quiesce(call: Call) -> dict[str, Any]:
    """Nothing is started or woken any more, until another torpord runs."""
    return {"left_running": await call.service.controller.quiesce(QUIESCE_S)}


async def _owner(call: Call, name: str | None) -> Owner:
    if name is None or name == call.principal.owner.name:
        return call.principal.owner
    check_name(name, "user")
    owners = call.service.store.owners
    try:
        for owner in owners.all():
            if owner.name == name:
                return owner
        return await owners.add(name)
    except StoreError as error:
        raise from_store(error) from error


def _answer(token: Token) -> TokenAnswer:
    return TokenAnswer(
        status="success",
        uuid=token.uuid,
        name=token.name,
        scopes=list(token.scopes),
        created_at=moment(token.created_ms),
        expires_at=moment(token.expires_ms or 0),
    )
