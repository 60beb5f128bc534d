-- The table of idempotency's MySQL and MariaDB store, schema version 1. `MySqlStore::migrate` runs this; run it yourself
-- if you keep your own migrations. Another name for the table stands in all four places.
--
-- Times are milliseconds since 1970-01-01 UTC, durations are milliseconds.
-- state: in progress 1, in doubt 2, completed 3, failed 4, released 5, tombstone 6.
--
-- The primary key is the only unique key: the store takes a duplicate key to mean that the record is there.

CREATE TABLE IF NOT EXISTS idempotency_records (
    key_hash       BINARY(32)    NOT NULL PRIMARY KEY,
    format         SMALLINT      NOT NULL,
    state          SMALLINT      NOT NULL,
    owner          BINARY(16)    NOT NULL,
    fence          BIGINT        NOT NULL,
    revision       BIGINT        NOT NULL,
    operation      MEDIUMTEXT    CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    namespace      VARCHAR(64)   CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    holder         VARCHAR(64)   CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    fingerprint    VARBINARY(17),
    policy         SMALLINT      NOT NULL,
    created_at     BIGINT        NOT NULL,
    attempts       BIGINT        NOT NULL,
    reason         SMALLINT      NOT NULL,
    linger         BIGINT        NOT NULL,
    after_expiry   BIGINT        NOT NULL,
    lease_until    BIGINT        NOT NULL,
    expires_at     BIGINT        NOT NULL,
    purge_at       BIGINT        NOT NULL,
    schema_version BIGINT        NOT NULL,
    checkpoints    BIGINT        NOT NULL,
    taken_over     SMALLINT      NOT NULL,
    trace          MEDIUMTEXT    CHARACTER SET utf8mb4 COLLATE utf8mb4_bin,
    body           LONGBLOB      NOT NULL,
    INDEX idempotency_records_purge_at (purge_at)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC;

-- One row: the version of the table, and which database this is.
CREATE TABLE IF NOT EXISTS idempotency_records_meta (
    id       SMALLINT   NOT NULL PRIMARY KEY,
    version  BIGINT     NOT NULL,
    identity BINARY(16) NOT NULL
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC;

INSERT IGNORE INTO idempotency_records_meta (id, version, identity) VALUES (1, 1, UNHEX(REPLACE(UUID(), '-', '')));
