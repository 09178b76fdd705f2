#!/bin/bash
# PostgreSQL: initdb, a server, psql over a Unix socket and TCP, transactions, a crash and its recovery.
set -eu
export PATH=/usr/lib/postgresql/15/bin:$PATH
mkdir -p /tmp/pg && chown app /tmp/pg
run() { setpriv --reuid=1000 --regid=1000 --clear-groups -- "$@"; }
export PGDATA=/tmp/pg/data PGHOST=/tmp/pg PGUSER=app PGDATABASE=postgres LC_ALL=C HOME=/tmp/pg
run initdb --no-locale --encoding=UTF8 --auth=trust >/tmp/pg/initdb.log 2>&1 || { cat /tmp/pg/initdb.log; exit 1; }
options="-c unix_socket_directories=/tmp/pg -c listen_addresses=127.0.0.1 -c port=5432 -c jit=off -c fsync=off"
run pg_ctl -w -t 120 -l /tmp/pg/log -o "$options" start >/dev/null || { cat /tmp/pg/log; exit 1; }
query() { psql -XAtq -v ON_ERROR_STOP=1 "$@"; }
query -c 'select version()' | cut -d' ' -f1-2 | cut -d. -f1
query <<'END' | sed 's/with PID [0-9]*/with some PID/'
create table t (id serial primary key, name text, value int);
insert into t (name, value) select 'name ' || i, i * i % 1009 from generate_series(1, 20000) i;
create index on t (value);
analyze t;
select count(*), sum(value), max(name) from t;
select value, count(*) from t group by value order by 2 desc, 1 limit 3;
begin; delete from t where id > 100; select count(*) from t; rollback;
select count(*) from t;
listen c; notify c, 'hello';
create extension if not exists plpgsql;
do $$ begin raise notice 'in a function'; end $$;
copy (select id, name from t order by id limit 3) to stdout;
END
PGHOST=127.0.0.1 query -c 'select 6 * 7'
query -c 'select 1 / 0' 2>&1 || echo "status $?"
for i in 1 2 3 4; do query -c "update t set value = value + 1 where id % 4 = $((i - 1))" & done; wait
query -c 'select sum(value) from t'
run pg_ctl -w -m immediate stop >/dev/null
run pg_ctl -w -t 120 -l /tmp/pg/log -o "$options" start >/dev/null || { cat /tmp/pg/log; exit 1; }
query -c 'select sum(value) from t'
run pg_ctl -w -m fast stop >/dev/null
echo stopped
