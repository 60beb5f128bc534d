-- The table of idempotency's PostgreSQL store, schema version 1. `PostgresStore::migrate` runs this; run it yourself if
-- you keep your own migrations. Another name for the table stands in all five places.
--
-- Times are milliseconds since 1970-01-01 UTC, durations are milliseconds.
-- state: in progress 1, in doubt 2, completed 3, failed 4, released 5, tombstone 6.
--
-- Every record is written at least twice. The second version fits into the page of the first where a part of the page is
-- left free, and then touches no index.

CREATE TABLE IF NOT EXISTS idempotency_records (
    key_hash       bytea    NOT NULL PRIMARY KEY,
    format         smallint NOT NULL,
    state          smallint NOT NULL,
    owner          bytea    NOT NULL,
    fence          bigint   NOT NULL,
    revision       bigint   NOT NULL,
    operation      text     NOT NULL,
    namespace      text     NOT NULL,
    holder         text     NOT NULL,
    fingerprint    bytea,
    policy         smallint NOT NULL,
    created_at     bigint   NOT NULL,
    attempts       bigint   NOT NULL,
    reason         smallint NOT NULL,
    linger         bigint   NOT NULL,
    after_expiry   bigint   NOT NULL,
    lease_until    bigint   NOT NULL,
    expires_at     bigint   NOT NULL,
    purge_at       bigint   NOT NULL,
    schema_version bigint   NOT NULL,
    checkpoints    bigint   NOT NULL,
    taken_over     smallint NOT NULL,
    trace          text,
    body           bytea    NOT NULL
) WITH (
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.05
);

CREATE INDEX IF NOT EXISTS idempotency_records_purge_at ON idempotency_records (purge_at);

-- One row: the version of the table, and which database this is.
CREATE TABLE IF NOT EXISTS idempotency_records_meta (
    id       smallint NOT NULL PRIMARY KEY CHECK (id = 1),
    version  bigint   NOT NULL,
    identity bytea    NOT NULL
);

INSERT INTO idempotency_records_meta (id, version, identity)
VALUES (1, 1, decode(replace(gen_random_uuid()::text, '-', ''), 'hex'))
ON CONFLICT (id) DO NOTHING;
