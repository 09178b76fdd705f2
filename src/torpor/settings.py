"""The server's part of config.toml in the data directory. Flags beat environment beats this file.

[server]
listen = "127.0.0.1:7400"        # the API
domain_suffix = "localhost"      # of domains without a trailing dot
lower_tier = "/slow/disk"        # a directory for cold snapshots; none if absent

[proxy]
http = "127.0.0.1:8080"          # services on port 80
tls = "127.0.0.1:8443"           # services on port 443; "" for no TLS
public_ports = { "80" = 80, "443" = 443 }   # what clients see, if not these ports

[egress]                         # of guests' own connections (docs/network.md)
scope = "public"                 # or "private", which includes it, or "none"
allow = ["10.1.2.3", "10.2.0.0/16"]
deny = ["10.2.3.0/24"]

[vms]
memory_mb = 16000                # of all VM processes; 0 is three quarters of the host's
resting_per_template = 0         # VM processes that rest, at most, for one template and for all;
resting = 0                      # 0 is as many as are wanted and memory_mb allows
resting_s = 300                  # how long they rest after the last wake of their template
reuse = true                     # false: every wake gets a fresh VM process
timer_interval_s = 1             # an instance's own timers (`wake_on_timer`) wake it no sooner

[keep]
checkpoint_s = 60                # of stateful instances that stay awake; 0 is never
template_unused_s = 604800       # templates that nothing needs; 0 is for ever
templates_mb = 10000             # of them in all, the oldest go first; 0 is without bound
lower_after_s = 86400            # unused snapshots, before they go to the lower tier; 0 is never
upper_mb = 0                     # of snapshots outside it, the oldest go first; 0 is without bound
image_unused_s = 3600            # images that nothing is made of, before prune takes them; 0: never
sweep_s = 60                     # how often is looked for what may go
"""

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from torpor.controller.links import Egress
from torpor.controller.upkeep import Policy
from torpor.errors import UsageError

MAX_PORT = 65535
Port = Annotated[int, Meta(ge=1, le=MAX_PORT)]
Seconds = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=0, le=1_000_000)]
_VARIABLES = {
    "TORPOR_LISTEN": ("server", "listen"),
    "TORPOR_PROXY": ("proxy", "http"),
    "TORPOR_PROXY_TLS": ("proxy", "tls"),
    "TORPOR_DOMAIN_SUFFIX": ("server", "domain_suffix"),
}
_OPTIONS = {
    ("server", "listen"): "--listen",
    ("proxy", "http"): "--proxy",
    ("proxy", "tls"): "--proxy-tls",
}
"""What sets them on the command line."""


class ServerTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The API and the store."""

    listen: str = "127.0.0.1:7400"
    domain_suffix: str = "localhost"
    lower_tier: str = ""


class ProxyTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The proxy."""

    http: str = "127.0.0.1:8080"
    tls: str = "127.0.0.1:8443"
    public_ports: dict[str, Port] = {}


class VmsTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """VM processes."""

    memory_mb: Annotated[int, Meta(ge=0)] = 0
    resting_per_template: Count = 0
    resting: Count = 0
    resting_s: Seconds = 300.0
    reuse: bool = True
    timer_interval_s: Seconds = 1.0


class KeepTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long things are kept."""

    checkpoint_s: Seconds = 60.0
    template_unused_s: Seconds = 604800.0
    templates_mb: Count = 10_000
    lower_after_s: Seconds = 86400.0
    upper_mb: Annotated[int, Meta(ge=0)] = 0
    image_unused_s: Seconds = 3600.0
    sweep_s: Annotated[float, Meta(gt=0)] = 60.0


class ServerSettings(msgspec.Struct, frozen=True):
    """All that can be set about a server; other tables of the file are others' business."""

    server: ServerTable = ServerTable()
    proxy: ProxyTable = ProxyTable()
    vms: VmsTable = VmsTable()
    keep: KeepTable = KeepTable()
    egress: Egress = Egress()

    def policy(self) -> Policy:
        """What the controller's upkeep goes by."""
        keep = self.keep
        return Policy(
            checkpoint_s=keep.checkpoint_s,
            timer_interval_s=self.vms.timer_interval_s,
            template_unused_s=keep.template_unused_s,
            templates_bytes=keep.templates_mb * 1_000_000,
            lower_after_s=keep.lower_after_s,
            upper_bytes=keep.upper_mb * 1_000_000,
            image_unused_s=keep.image_unused_s,
            sweep_s=keep.sweep_s,
        )

    def public_ports(self) -> dict[int, int]:
        """The ports that clients see in place of 80 and 443."""
        seen = {80: port_of(self.proxy.http)}
        if self.proxy.tls:
            seen[443] = port_of(self.proxy.tls)
        return seen | {int(port): public for port, public in self.proxy.public_ports.items()}


def load_server_settings(
    data_dir: Path, env: Mapping[str, str] = os.environ, **flags: str | None
) -> ServerSettings:
    """Reads the settings of a data directory; `flags` are named TABLE_KEY, None where not given.

    Raises UsageError naming a wrong key or value.
    """
    path = data_dir / "config.toml"
    try:
        document = msgspec.toml.decode(path.read_bytes(), type=dict[str, object])
    except FileNotFoundError:
        document = {}
    except msgspec.DecodeError as error:
        raise UsageError(f"{path}: {error}") from error
    named = {place: f"{path}: [{place[0]}] {place[1]}" for place in _OPTIONS}
    beaten = {}
    for name, place in _VARIABLES.items():
        if env.get(name):
            beaten[place], named[place] = env[name], name
    for flag, value in flags.items():
        if value is not None:
            table, _, key = flag.partition("_")
            beaten[table, key] = value
            named[table, key] = f"option '{_OPTIONS.get((table, key))}'"
    for (table, key), value in beaten.items():
        found = document.setdefault(table, {})
        if isinstance(found, dict):
            found[key] = value
    try:
        settings = msgspec.convert(document, ServerSettings)
    except msgspec.ValidationError as error:
        raise UsageError(f"{path}: {error}") from error
    if set(settings.proxy.public_ports) - {"80", "443"}:
        raise UsageError(f"{path}: [proxy] public_ports may have 80 and 443")
    for text in (*settings.egress.allow, *settings.egress.deny):
        try:
            ipaddress.ip_network(text)
        except ValueError as error:
            raise UsageError(f"{path}: [egress] {error}") from error
    server, proxy = settings.server, settings.proxy
    addresses = {("server", "listen"): server.listen, ("proxy", "http"): proxy.http}
    if proxy.tls:
        addresses["proxy", "tls"] = proxy.tls
    for place, address in addresses.items():
        if port_of(address) < 0:
            raise UsageError(
                f"{named[place]} is '{address}': must be HOST:PORT, with a port of 0 to {MAX_PORT}"
            )
        if place[0] == "proxy" and not _has_ip_address(address):
            raise UsageError(
                f"{named[place]} is '{address}': must be ADDRESS:PORT, as 127.0.0.1:8080, not a "
                "name"
            )
    return settings


def port_of(address: str) -> int:
    """The port of HOST:PORT; -1 if it is none."""
    host, _, port = address.rpartition(":")
    return int(port) if host and port.isdecimal() and int(port) <= MAX_PORT else -1


def _has_ip_address(address: str) -> bool:
    """Whether the host of HOST:PORT is an address; one of IPv6 stands in brackets."""
    host = address.rpartition(":")[0]
    in_brackets = host.startswith("[") and host.endswith("]")
    try:
        ipaddress.IPv6Address(host[1:-1]) if in_brackets else ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return True
