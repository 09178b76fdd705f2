"""Service groups: which host names and ports lead to which instances."""

import contextlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, get_args
from uuid import uuid4

import msgspec
from msgspec.structs import replace

from torpor.controller.errors import Code, ItemError, from_store, invalid, not_supported
from torpor.controller.events import now_ms
from torpor.controller.links import Links
from torpor.controller.model import Autokill, Handler, Service, ServiceConfig, encode, service_of
from torpor.controller.requests import Domain
from torpor.controller.rules import check_autokill, check_name, full_domain, random_name
from torpor.store import InUseError, NewService, PortClaim, ServiceRow, Store, StoreError

MAX_SERVICES = 64
MAX_DOMAINS = 64
HTTP, HTTPS = 80, 443
KNOWN_MAX = 4096
"""Groups and routes that are kept in memory; a group takes about 2 KB."""


Write = Callable[[ServiceRow, int, tuple[PortClaim, ...]], Awaitable[ServiceRow]]
"""Writes a group, with the number of its services and the ports that it has, and gives its row."""


@dataclass(slots=True)
class _Known:
    """A group that is kept in memory."""

    uuid: str
    ports: frozenset[int]
    document: dict[str, Any]
    """In the words of the proxy's socket."""
    told: bool = False
    """The proxy was told of it as it is."""


class ServiceGroups:
    """The service groups of all owners."""

    def __init__(self, store: Store, domain_suffix: str, links: Links) -> None:
        self._store = store
        self._suffix = domain_suffix
        self._links = links
        self._groups: dict[int, _Known] = {}
        self.switching: set[int] = set()
        """Ids of groups whose instance another one is about to replace: nobody is woken there."""
        self._routes: dict[str, int] = {}
        """Ids of groups by host name, as far as they were asked for."""

    async def create(self, owner_id: int, new: NewService, quota: int | None = None) -> ServiceRow:
        """Records a service group that `planned` made. Raises ItemError."""
        try:
            row = await self._store.services.add(owner_id, new, quota)
        except StoreError as error:
            self.close_unused(new.claims)
            raise from_store(error, name=new.name) from error
        await self.created([row])
        return row

    async def planned(
        self,
        *,
        name: str | None,
        services: Sequence[Service],
        domains: Sequence[Domain] | None,
        soft_limit: int | None = None,
        hard_limit: int | None = None,
        autokill: Autokill | None = None,
        persistent: bool = True,
    ) -> NewService:
        """A service group that is in order, and whose ports are listened on.

        Without domains it gets a generated one. Raises ItemError.
        """
        generated = name or random_name()
        check_name(generated)
        config = ServiceConfig(
            services=checked_services(services),
            persistent=persistent,
            soft_limit=1 if soft_limit is None else soft_limit,
            hard_limit=65535 if hard_limit is None else hard_limit,
            autokill=autokill,
        )
        check_limits(config)
        fqdns = self.fqdns(domains or [Domain(name=_domain_of(generated, own=name is not None))])
        claims = _claims(config)
        await self._open(claims)
        return NewService(
            str(uuid4()),
            generated,
            now_ms(),
            fqdns,
            len(config.services),
            encode(config),
            claims,
            _kill_ms(config),
            ephemeral=not persistent,
        )

    async def created(self, rows: Sequence[ServiceRow]) -> None:
        """New groups were just recorded: their hosts lead to them from now on."""
        groups = [(row.id, self._know(row)) for row in rows]
        hosts = [host for _, group in groups for host in group.document["hosts"]]
        if any(host.startswith("*.") for host in hosts):
            self._routes.clear()
        # Before anybody else can have had one of these hosts: nothing is waited for until here.
        self._bound(self._routes)
        for id_, group in groups:
            self._routes.update(
                {host: id_ for host in group.document["hosts"] if not host.startswith("*.")}
            )
        for _, group in groups:
            await self._settle(group.ports)
        if hosts:
            self._links.forget(hosts)

    async def _open(self, claims: Iterable[PortClaim]) -> None:
        """Opens ports for a group that is about to have them. Raises ItemError, and opens none."""
        claims = tuple(claims)
        try:
            for claim in claims:
                await self._listen(claim.port)
        except BaseException:
            self.close_unused(claims)
            raise

    async def _listen(self, port: int) -> None:
        await self._links.listen(port, alone=self._store.services.holding(port) == "alone")

    def close_unused(self, claims: Iterable[PortClaim]) -> None:
        """Closes those of the ports that no group has."""
        for claim in claims:
            if self._store.services.holding(claim.port) is None:
                self._links.close_port(claim.port)

    async def _settle(self, ports: Iterable[int]) -> None:
        """Has the proxy listen on those of the ports that a group has, and on no others of them.

        Between two of them a group may come or go. One that could be had before and cannot now is
        let be.
        """
        for port in ports:
            if port in (HTTP, HTTPS):
                continue
            if self._store.services.holding(port) is None:
                self._links.close_port(port)
            else:
                with contextlib.suppress(ItemError):
                    await self._listen(port)

    # What the proxy knows -----------------------------------------------------------------------

    def announce(self, service_id: int, *, anew: bool = False) -> str | None:
        """Tells the proxy of a group, unless it knows; the group's uuid.

        It forgets a group when none of its instances is attached any more: hence `anew`.
        """
        known = self._known(service_id)
        if known is None:
            return None
        if anew or not known.told:
            known.told = True
            self._links.group(known.document)
        return known.uuid

    def _known(self, service_id: int) -> _Known | None:
        known = self._groups.get(service_id)
        if known is None:
            row = self._store.services.by_id(service_id)
            if row is None:
                return None
            known = self._know(row)
        return known

    def _know(self, row: ServiceRow) -> _Known:
        self._bound(self._groups)
        config = service_of(row.document)
        ports = frozenset(service.port for service in config.services)
        known = self._groups[row.id] = _Known(row.uuid, ports, _document(row, config))
        return known

    def ports(self, service_id: int) -> frozenset[int]:
        """The ports of a group."""
        known = self._known(service_id)
        return frozenset() if known is None else known.ports

    def destinations(self, service_id: int) -> tuple[int, ...]:
        """The ports that its instances listen on."""
        known = self._known(service_id)
        services = () if known is None else known.document["services"]
        return tuple(service["destination_port"] for service in services)

    def route(self, host: str) -> int | None:
        """The id of the group that a host name leads to, exactly or by a wildcard."""
        found = self._routes.get(host)
        if found is not None:
            return found
        name = host
        while name:
            row = self._store.services.by_domain(name)
            if row is not None:
                self._bound(self._routes)
                self._routes[host] = row.id
                if row.id not in self._groups:
                    self._know(row)
                return row.id
            rest = name.removeprefix("*.").partition(".")[2]
            name = f"*.{rest}" if rest else ""
        return None

    async def proxy_is_new(self, listening: Iterable[int]) -> None:
        """The proxy may know nothing but where it listens: it hears of groups as they wake."""
        self._groups.clear()
        await self._settle({*listening, *self._store.services.listened()})

    async def replacing(
        self,
        service_id: int,
        services: Sequence[Service],
        write: Write,
    ) -> None:
        """Gives a group other services, if any, by `write`. Raises ItemError or StoreError."""
        row = self._store.services.by_id(service_id)
        if row is None:
            raise ItemError(Code.NOT_FOUND, "The service group is gone")
        config = service_of(row.document)
        if services:
            config = replace(config, services=checked_services(services))
        await self._rewrite(row, config, row, write)

    async def _rewrite(
        self, row: ServiceRow, config: ServiceConfig, wanted: ServiceRow, write: Write
    ) -> ServiceRow:
        """Makes `row` what `wanted` and `config` say, with the ports that takes.

        Raises ItemError or StoreError.
        """
        claims = _claims(config)
        await self._open(claims)
        wanted = replace(wanted, document=encode(config))
        try:
            written = await write(wanted, len(config.services), claims)
        except StoreError:
            self.close_unused(claims)
            raise
        former = _claims(service_of(row.document))
        await self._settle({claim.port for claim in (*former, *claims)})
        self._changed(written, {*row.domains, *written.domains, *_alone((*former, *claims))})
        return written

    def _changed(self, row: ServiceRow, hosts: Iterable[str]) -> None:
        """A group was written: the proxy is told, and what is known here is forgotten."""
        self._routes.clear()
        known = self._groups.pop(row.id, None)
        self._links.forget(list(hosts))
        if known is not None and known.told:
            self.announce(row.id)

    def _gone(self, row: ServiceRow) -> None:
        self._routes.clear()
        known = self._groups.pop(row.id, None)
        if known is not None and known.told:
            self._links.group({"group": row.uuid, "gone": True})
        claims = _claims(service_of(row.document))
        self.close_unused(claims)
        self._links.forget((*row.domains, *_alone(claims)))

    def _bound(self, known: dict[Any, Any]) -> None:
        """A dictionary that grows with what is asked for is begun anew when it is large."""
        if len(known) >= KNOWN_MAX:
            known.clear()

    def fqdns(self, domains: Iterable[Domain]) -> tuple[str, ...]:
        """The host names that domains of a request mean. Raises ItemError."""
        found: dict[str, None] = {}
        for domain in domains:
            if domain.certificate is not None:
                raise not_supported("'certificate' of a domain")
            found[full_domain(domain.name, self._suffix)] = None
        if not 1 <= len(found) <= MAX_DOMAINS:
            raise invalid("domains", f"must be 1 to {MAX_DOMAINS}")
        return tuple(found)

    async def update(self, row: ServiceRow, prop: str, op: str, value: object) -> ServiceRow:
        """Changes one property. Raises ItemError naming property and rule."""
        config, domains = service_of(row.document), row.domains
        try:
            if prop == "services":
                config = _with_services(config, op, value)
            elif prop == "domains":
                domains = self._with_domains(domains, op, value)
            elif prop in ("soft_limit", "hard_limit", "autokill"):
                if op != "set":
                    raise invalid("op", f"is '{op}': '{prop}' can only be set")
                defaults = ServiceConfig()
                kind = Autokill | None if prop == "autokill" else int
                wanted = getattr(defaults, prop) if value is None else msgspec.convert(value, kind)
                config = replace(config, **{prop: wanted})
            else:
                raise invalid("prop", f"is '{prop}': not a property of a service group")
        except msgspec.ValidationError as error:
            raise invalid("value", f"of '{prop}': {error}") from error
        check_limits(config)
        try:
            # One that has instances is found to have them when the time is over.
            kill_ms = _kill_ms(config) if prop == "autokill" else row.kill_ms
            wanted = replace(row, domains=domains, kill_ms=kill_ms)
            return await self._rewrite(row, config, wanted, self._store.services.update)
        except StoreError as error:
            raise from_store(error, uuid=row.uuid, name=row.name) from error

    def _with_domains(self, current: tuple[str, ...], op: str, value: object) -> tuple[str, ...]:
        listed = value if isinstance(value, list) else [value]
        given = [{"name": one} if isinstance(one, str) else one for one in listed]
        fqdns = self.fqdns(msgspec.convert(given, list[Domain]))
        if op == "set":
            return fqdns
        if op == "add":
            return self.fqdns(Domain(name=f"{one}.") for one in (*current, *fqdns))
        rest = [one for one in current if one not in fqdns]
        return self.fqdns(Domain(name=f"{one}.") for one in rest)

    async def remove(self, row: ServiceRow) -> None:
        """Removes a service group that no instance is attached to. Raises ItemError."""
        try:
            await self._store.services.remove(row)
        except StoreError as error:
            raise from_store(error, uuid=row.uuid, name=row.name) from error
        self._gone(row)

    async def release(self, service_id: int) -> None:
        """Removes an ephemeral service group whose last instance is gone.

        From then on counts the time of the autokill of one that stays.
        """
        row = self._store.services.by_id(service_id)
        if row is None:
            return
        config = service_of(row.document)
        if config.persistent and _kill_ms(config) is None:
            return
        if self._store.instances.of_service(service_id, limit=1):
            return
        if config.persistent:
            await self._store.services.set_kill(service_id, _kill_ms(config))
        else:
            await self._remove_unused(row)

    async def kill_unused(self, limit: int) -> None:
        """Removes groups that had no instance for as long as they were told."""
        for row in self._store.services.to_kill(now_ms(), limit):
            if self._store.instances.of_service(row.id, limit=1):
                # Counted anew when the last one goes.
                await self._store.services.set_kill(row.id, None)
            else:
                await self._remove_unused(row)

    async def _remove_unused(self, row: ServiceRow) -> None:
        try:
            await self._store.services.remove(row)
        except InUseError:
            return  # an instance was attached meanwhile
        self._gone(row)


def _kill_ms(config: ServiceConfig) -> int | None:
    """When a group is deleted by itself that has no instances from now on."""
    time_ms = 0 if config.autokill is None else config.autokill.time_ms
    return now_ms() + time_ms if time_ms and config.persistent else None


def _document(row: ServiceRow, config: ServiceConfig) -> dict[str, Any]:
    """A group in the words of the proxy's socket."""
    return {
        "group": row.uuid,
        "hosts": [*row.domains, *_alone(_claims(config))],
        "services": [
            {
                "port": service.port,
                "destination_port": service.destination_port or service.port,
                "handlers": list(service.handlers or ()),
                "retry_idempotent": service.retry_idempotent,
            }
            for service in config.services
        ],
        "soft_limit": config.soft_limit,
        "hard_limit": config.hard_limit,
    }


def _claims(config: ServiceConfig) -> tuple[PortClaim, ...]:
    """The ports that a group has beside 80 and 443."""
    return tuple(
        PortClaim(service.port, alone=not service.handlers and not service.tls_passthrough)
        for service in config.services
        if service.port not in (HTTP, HTTPS)
    )


def _alone(claims: Iterable[PortClaim]) -> tuple[str, ...]:
    """What stands for ports of its own among the hosts of a group."""
    return tuple(claim.host for claim in claims if claim.alone)


def checked_services(services: Sequence[Service]) -> tuple[Service, ...]:
    """Services with their handlers filled in. Raises ItemError naming the port and the rule."""
    if not 1 <= len(services) <= MAX_SERVICES:
        raise invalid("services", f"must be 1 to {MAX_SERVICES}")
    ports = [service.port for service in services]
    if len(set(ports)) != len(ports):
        raise invalid("services", "must not use a port twice")
    return tuple(_checked(service) for service in services)


def _checked(service: Service) -> Service:
    port = service.port
    for field in ("port", "destination_port"):
        number = getattr(service, field)
        if number is not None and not 1 <= number <= 65535:
            raise invalid(f"services.{field}", "must be 1 to 65535")
    if service.protocol != "tcp" or service.ip is not None:
        raise not_supported("'services' with protocol udp or an ip")
    handlers: set[str] = set(service.handlers or ())
    if not handlers and port in (HTTP, HTTPS):
        handlers = {"http"} if port == HTTP else {"http", "tls"}
    elif service.handlers is None and not service.tls_passthrough:
        handlers = {"tls"}
    rule = ""
    if port == HTTP and ("http" not in handlers or "tls" in handlers):
        rule = "port 80 must have handler http and not tls"
    elif port == HTTPS and handlers != {"http", "tls"}:
        rule = "port 443 must have handlers http and tls"
    elif "redirect" in handlers and (port != HTTP or service.destination_port != HTTPS):
        rule = "handler redirect is for port 80 to port 443 only"
    elif port not in (HTTP, HTTPS) and handlers not in (set(), {"tls"}):
        rule = f"port {port} must have handler tls, or none for plain TCP"
    elif service.tls_passthrough and handlers:
        rule = "tls_passthrough is for ports without handlers, other than 80 and 443"
    if rule:
        raise invalid("services.handlers", f"breaks a rule: {rule}")
    ordered = tuple(one for one in get_args(Handler) if one in handlers)
    destination = service.destination_port or port
    return replace(service, handlers=ordered, destination_port=destination)


def _with_services(config: ServiceConfig, op: str, value: object) -> ServiceConfig:
    if op == "del":
        ports = set(msgspec.convert(value if isinstance(value, list) else [value], list[int]))
        rest = [one for one in config.services if one.port not in ports]
        return replace(config, services=checked_services(rest))
    given = msgspec.convert(value if isinstance(value, list) else [value], list[Service])
    if op == "add":
        given = [*config.services, *given]
    return replace(config, services=checked_services(given))


def check_limits(config: ServiceConfig) -> None:
    """Soft and hard limit: 1 to 65535, and in order; autokill."""
    for field in ("soft_limit", "hard_limit"):
        if not 1 <= getattr(config, field) <= 65535:
            raise invalid(field, "must be 1 to 65535")
    check_autokill(config.autokill)
    if config.soft_limit > config.hard_limit:
        raise ItemError(Code.INVALID, "'soft_limit' must not be above 'hard_limit'")


def _domain_of(name: str, *, own: bool) -> str:
    """A label made of a group's name; a chosen one gets a suffix, being unique per owner only."""
    label = "".join(letter if letter.isalnum() else "-" for letter in name.lower())[:50].strip("-")
    return f"{label}-{random_name().rpartition('-')[2]}" if own else label
