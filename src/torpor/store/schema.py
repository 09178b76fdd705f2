"""The tables, as an ordered list of migrations. `PRAGMA user_version` counts how many were applied.

A migration that was released is never edited: a new one is appended. Times are milliseconds since
1970, uuids are their 16 bytes, documents are JSON whose shape belongs to the layers above.
"""

from typing import get_args

import apsw

from torpor.store.errors import DamagedError
from torpor.store.records import State

STATES: tuple[str, ...] = get_args(State)

_FIRST = f"""
CREATE TABLE owners(
    id INTEGER PRIMARY KEY,
    uuid BLOB NOT NULL UNIQUE CHECK(length(uuid) = 16),
    name TEXT NOT NULL UNIQUE,
    quotas BLOB NOT NULL
) STRICT;

CREATE TABLE tokens(
    id INTEGER PRIMARY KEY,
    uuid BLOB NOT NULL UNIQUE CHECK(length(uuid) = 16),
    owner_id INTEGER NOT NULL REFERENCES owners ON DELETE CASCADE,
    name TEXT NOT NULL,
    hash BLOB NOT NULL UNIQUE CHECK(length(hash) = 32),
    scopes TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER,
    UNIQUE(owner_id, name)
) STRICT;

CREATE TABLE services(
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid BLOB NOT NULL UNIQUE CHECK(length(uuid) = 16),
    owner_id INTEGER NOT NULL REFERENCES owners,
    name TEXT NOT NULL,
    revision INTEGER NOT NULL DEFAULT 1,
    created_ms INTEGER NOT NULL,
    ports INTEGER NOT NULL,
    document BLOB NOT NULL,
    UNIQUE(owner_id, name)
) STRICT;
CREATE INDEX services_in_order ON services(owner_id, created_ms, id);

-- Ports other than 80 and 443 that a service ever had: the proxy listens on them.
CREATE TABLE ports(port INTEGER PRIMARY KEY) STRICT;

CREATE TABLE domains(
    fqdn TEXT PRIMARY KEY,
    service_id INTEGER NOT NULL REFERENCES services ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX domains_of_service ON domains(service_id);

-- AUTOINCREMENT: an id is never used twice, so that a log or a snapshot that is late cannot land
-- with a later instance.
CREATE TABLE instances(
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid BLOB NOT NULL UNIQUE CHECK(length(uuid) = 16),
    owner_id INTEGER NOT NULL REFERENCES owners,
    kind TEXT NOT NULL CHECK(kind IN ('instance', 'template', 'checkpoint')),
    name TEXT NOT NULL,
    state TEXT NOT NULL CHECK(state IN {STATES}),
    revision INTEGER NOT NULL DEFAULT 1,
    generation INTEGER NOT NULL DEFAULT 0,
    memory_mb INTEGER NOT NULL,
    vcpus INTEGER NOT NULL,
    service_id INTEGER REFERENCES services,
    created_ms INTEGER NOT NULL,
    tags TEXT NOT NULL,
    config BLOB NOT NULL,
    facts BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX instances_by_name ON instances(owner_id, kind, name);
CREATE INDEX instances_in_order ON instances(owner_id, kind, created_ms, id);
CREATE INDEX instances_by_state ON instances(owner_id, kind, state, created_ms, id);
CREATE INDEX instances_of_service ON instances(service_id, state, id) WHERE service_id IS NOT NULL;
CREATE INDEX instances_in_motion ON instances(id)
    WHERE state IN ('starting', 'running', 'draining', 'stopping');

-- An index of instances.tags that lists the instances of a tag in their order.
CREATE TABLE instance_tags(
    owner_id INTEGER NOT NULL,
    kind TEXT NOT NULL,
    tag TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    instance_id INTEGER NOT NULL REFERENCES instances ON DELETE CASCADE,
    PRIMARY KEY(owner_id, kind, tag, created_ms, instance_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX tags_of_instance ON instance_tags(instance_id);

-- How many there are, without counting: kept by triggers, so that it cannot be forgotten.
CREATE TABLE totals(
    owner_id INTEGER NOT NULL,
    kind TEXT NOT NULL,
    state TEXT NOT NULL,
    instances INTEGER NOT NULL,
    memory_mb INTEGER NOT NULL,
    vcpus INTEGER NOT NULL,
    PRIMARY KEY(owner_id, kind, state)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER count_insert AFTER INSERT ON instances BEGIN
    INSERT INTO totals VALUES(new.owner_id, new.kind, new.state, 1, new.memory_mb, new.vcpus)
    ON CONFLICT DO UPDATE SET instances = instances + 1,
        memory_mb = memory_mb + new.memory_mb, vcpus = vcpus + new.vcpus;
END;
CREATE TRIGGER count_delete AFTER DELETE ON instances BEGIN
    UPDATE totals SET instances = instances - 1,
        memory_mb = memory_mb - old.memory_mb, vcpus = vcpus - old.vcpus
    WHERE owner_id = old.owner_id AND kind = old.kind AND state = old.state;
END;
CREATE TRIGGER count_update AFTER UPDATE OF kind, state, memory_mb, vcpus ON instances
    WHEN old.kind IS NOT new.kind OR old.state IS NOT new.state
        OR old.memory_mb IS NOT new.memory_mb OR old.vcpus IS NOT new.vcpus BEGIN
    UPDATE totals SET instances = instances - 1,
        memory_mb = memory_mb - old.memory_mb, vcpus = vcpus - old.vcpus
    WHERE owner_id = old.owner_id AND kind = old.kind AND state = old.state;
    INSERT INTO totals VALUES(new.owner_id, new.kind, new.state, 1, new.memory_mb, new.vcpus)
    ON CONFLICT DO UPDATE SET instances = instances + 1,
        memory_mb = memory_mb + new.memory_mb, vcpus = vcpus + new.vcpus;
END;

CREATE TABLE blobs(
    digest BLOB PRIMARY KEY CHECK(length(digest) = 32),
    size_bytes INTEGER NOT NULL,
    tier TEXT NOT NULL CHECK(tier IN ('upper', 'lower')),
    used_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX blobs_by_age ON blobs(tier, used_ms);

-- What states are differences to: templates, and warm bases of templates. `key` is the digest of
-- the configuration that a template serves; one without is kept while a snapshot needs it.
CREATE TABLE bases(
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    owner_id INTEGER NOT NULL REFERENCES owners,
    blob BLOB NOT NULL UNIQUE REFERENCES blobs,
    template_id INTEGER REFERENCES bases,
    key BLOB UNIQUE CHECK(key IS NULL OR length(key) = 32),
    image TEXT NOT NULL,
    mac BLOB NOT NULL,
    created_ms INTEGER NOT NULL,
    used_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX bases_of_template ON bases(template_id) WHERE template_id IS NOT NULL;

-- The last committed state of an instance; a large one is a file that `blobs` describes.
CREATE TABLE snapshots(
    instance_id INTEGER PRIMARY KEY REFERENCES instances ON DELETE CASCADE,
    generation INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    template_id INTEGER REFERENCES bases,
    warm_id INTEGER REFERENCES bases,
    origin TEXT NOT NULL,
    mac BLOB NOT NULL,
    digest BLOB NOT NULL CHECK(length(digest) = 32),
    size_bytes INTEGER NOT NULL,
    inline BLOB,
    blob BLOB REFERENCES blobs,
    CHECK((inline IS NULL) <> (blob IS NULL))
) STRICT;
CREATE INDEX snapshots_of_blob ON snapshots(blob) WHERE blob IS NOT NULL;
CREATE INDEX snapshots_of_template ON snapshots(template_id) WHERE template_id IS NOT NULL;
CREATE INDEX snapshots_of_warm ON snapshots(warm_id) WHERE warm_id IS NOT NULL;

CREATE TABLE logs(
    instance_id INTEGER NOT NULL REFERENCES instances ON DELETE CASCADE,
    start INTEGER NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY(instance_id, start)
) STRICT, WITHOUT ROWID;
"""

# When the instance is to be woken for a timer of its own; null for never.
_TIMERS = """
ALTER TABLE snapshots ADD COLUMN wake_ms INTEGER;
CREATE INDEX snapshots_by_wake ON snapshots(wake_ms) WHERE wake_ms IS NOT NULL;
"""

_FAMILIES = """
-- The digest of a configuration but for its environment: of a template that was begun with the
-- random numbers of that family, so that its siblings are small differences to it.
ALTER TABLE bases ADD COLUMN family BLOB CHECK(family IS NULL OR length(family) = 32);
CREATE INDEX bases_of_family ON bases(family) WHERE family IS NOT NULL;
"""

# As `totals` of instances: how many groups an owner has, and ports in them.
_SERVICE_TOTALS = """
CREATE TABLE service_totals(
    owner_id INTEGER PRIMARY KEY,
    services INTEGER NOT NULL,
    ports INTEGER NOT NULL
) STRICT;
INSERT INTO service_totals SELECT owner_id, count(*), sum(ports) FROM services GROUP BY owner_id;
CREATE TRIGGER count_service_insert AFTER INSERT ON services BEGIN
    INSERT INTO service_totals VALUES(new.owner_id, 1, new.ports)
    ON CONFLICT DO UPDATE SET services = services + 1, ports = ports + new.ports;
END;
CREATE TRIGGER count_service_delete AFTER DELETE ON services BEGIN
    UPDATE service_totals SET services = services - 1, ports = ports - old.ports
    WHERE owner_id = old.owner_id;
END;
CREATE TRIGGER count_service_update AFTER UPDATE OF ports ON services
    WHEN old.ports IS NOT new.ports BEGIN
    UPDATE service_totals SET ports = ports - old.ports + new.ports
    WHERE owner_id = old.owner_id;
END;
"""

# When something is deleted by itself (autokill), unless it changes before; null for never.
_AUTOKILL = """
ALTER TABLE instances ADD COLUMN kill_ms INTEGER;
CREATE INDEX instances_by_kill ON instances(kill_ms) WHERE kill_ms IS NOT NULL;
ALTER TABLE services ADD COLUMN kill_ms INTEGER;
CREATE INDEX services_by_kill ON services(kill_ms) WHERE kill_ms IS NOT NULL;
"""

# A group that goes with its last instance: when it has none it is to be deleted by itself at once,
# so that it is even if whoever deletes it is killed in between.
_EPHEMERAL = """
ALTER TABLE services ADD COLUMN ephemeral INTEGER NOT NULL DEFAULT 0;
UPDATE services SET ephemeral = 1
    WHERE json_extract(CAST(document AS TEXT), '$.persistent') IS NULL;
CREATE TRIGGER expire_on_delete AFTER DELETE ON instances WHEN old.service_id IS NOT NULL BEGIN
    UPDATE services SET kill_ms = 0 WHERE id = old.service_id AND ephemeral
        AND NOT EXISTS (SELECT 1 FROM instances WHERE service_id = old.service_id);
END;
CREATE TRIGGER expire_on_update AFTER UPDATE OF service_id ON instances
    WHEN old.service_id IS NOT NULL AND old.service_id IS NOT new.service_id BEGIN
    UPDATE services SET kill_ms = 0 WHERE id = old.service_id AND ephemeral
        AND NOT EXISTS (SELECT 1 FROM instances WHERE service_id = old.service_id);
END;
"""

# The ports that are listened on are those that groups have, which stand among the domains.
_PORTS = "DROP TABLE ports;"

MIGRATIONS: tuple[str, ...] = (
    _FIRST,
    _TIMERS,
    _FAMILIES,
    _SERVICE_TOTALS,
    _AUTOKILL,
    _EPHEMERAL,
    _PORTS,
)


def migrate(connection: apsw.Connection) -> None:
    """Brings a database up to this version, each migration in a transaction of its own.

    Raises DamagedError if the database was written by a newer version.
    """
    applied = connection.pragma("user_version")
    assert isinstance(applied, int)  # noqa: S101 -- what SQLite documents
    if applied > len(MIGRATIONS):
        raise DamagedError(
            f"the database has version {applied}, and this torpor knows up to {len(MIGRATIONS)}: "
            "use the newer torpor, or restore a backup"
        )
    for number, script in enumerate(MIGRATIONS[applied:], applied + 1):
        with connection:
            connection.execute(script)
            connection.pragma("user_version", number)
