-- The table of idempotency's SQLite store, schema version 1. `SqliteStore::open` and `migrate` run this; run it
-- yourself if you keep your own migrations. Another name for the table stands in all eight places.
--
-- Times are milliseconds since 1970-01-01 UTC, durations are milliseconds.
-- state: in progress 1, in doubt 2, completed 3, failed 4, released 5, tombstone 6.

CREATE TABLE IF NOT EXISTS idempotency_records (
    key_hash       BLOB    NOT NULL PRIMARY KEY,
    format         INTEGER NOT NULL,
    state          INTEGER NOT NULL,
    owner          BLOB    NOT NULL,
    fence          INTEGER NOT NULL,
    revision       INTEGER NOT NULL,
    operation      TEXT    NOT NULL,
    namespace      TEXT    NOT NULL,
    holder         TEXT    NOT NULL,
    fingerprint    BLOB,
    policy         INTEGER NOT NULL,
    created_at     INTEGER NOT NULL,
    attempts       INTEGER NOT NULL,
    reason         INTEGER NOT NULL,
    linger         INTEGER NOT NULL,
    after_expiry   INTEGER NOT NULL,
    lease_until    INTEGER NOT NULL,
    expires_at     INTEGER NOT NULL,
    purge_at       INTEGER NOT NULL,
    schema_version INTEGER NOT NULL,
    checkpoints    INTEGER NOT NULL,
    taken_over     INTEGER NOT NULL,
    trace          TEXT,
    body           BLOB    NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX IF NOT EXISTS idempotency_records_purge_at ON idempotency_records (purge_at);

-- One row: the version of the table, which database this is, and the largest fence of a record that is gone.
CREATE TABLE IF NOT EXISTS idempotency_records_meta (
    id       INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    version  INTEGER NOT NULL,
    identity BLOB    NOT NULL,
    fence    INTEGER NOT NULL DEFAULT 0
) STRICT;

INSERT OR IGNORE INTO idempotency_records_meta (id, version, identity) VALUES (1, 1, randomblob(16));

-- Whoever removes a record, and however: the next claim of its key begins above its fence.
CREATE TRIGGER IF NOT EXISTS idempotency_records_gone AFTER DELETE ON idempotency_records
BEGIN
    UPDATE idempotency_records_meta SET fence = OLD.fence WHERE fence < OLD.fence;
END;
