-- Rows as release 0.1.0 writes them, format 1. Never changed: later releases must read them.
-- Each key is 32 times the byte that stands first; all of them expire in the year 2286.
INSERT INTO idempotency_records
    (key_hash, format, state, owner, fence, revision, operation, namespace, holder, fingerprint, policy, created_at,
     attempts, reason, linger, after_expiry, lease_until, expires_at, purge_at, schema_version, checkpoints, taken_over, trace, body)
VALUES
    (REPEAT(X'A1', 32), 1, 1, X'000102030405060708090A0B0C0D0E0F', 1700000000000000, 1700000000000003, 'payments.charge',
     'shop', 'shop-6c9f/1234', X'01FFEEDDCCBBAA99887766554433221100', 3, 1700000000000, 2, 0, 86400000, 3600000,
     9999999990000, 9999999999000, 9999999999000, 7, 2, 2, '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01', X'00FF68656C6C6F'),
    (REPEAT(X'A2', 32), 1, 2, X'FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF', 1, 1, 'möbel.größe 🪑', 'default', 'büro 🪑/7',
     NULL, 4, 0, 1, 1, 0, 0, 0, 9999999999000, 9999999999000, 0, 0, 0, NULL, X''),
    (REPEAT(X'A3', 32), 1, 3, X'00000000000000000000000000000001', 5, 9, 'a', '', '', NULL, 1, 12, 4294967295, 10, 1, 0, 0,
     9999999999000, 9999999999000, 4294967295, 0, 0, NULL, X'7B7D'),
    (REPEAT(X'A4', 32), 1, 4, X'00000000000000000000000000000001', 5, 9, 'a', '', '', NULL, 2, 12, 1, 5, 1, 0, 0,
     9999999999000, 9999999999000, 0, 0, 1, NULL, X'226E6F22'),
    (REPEAT(X'A5', 32), 1, 5, X'00000000000000000000000000000001', 5, 9, 'a', '', '', NULL, 4, 12, 3, 0, 1, 0, 0,
     9999999999000, 9999999999000, 0, 0, 0, NULL, X''),
    (REPEAT(X'A6', 32), 1, 6, X'00000000000000000000000000000001', 5, 9, 'a', '', '', NULL, 4, 12, 1, 10, 1, 0, 0,
     9999999999000, 9999999999000, 0, 0, 0, NULL, X'');
