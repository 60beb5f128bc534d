INSERT INTO idempotency_records (
    key_hash, format, state, owner, fence, revision, operation, namespace, holder, fingerprint, policy, created_at,
    attempts, reason, linger, after_expiry, lease_until, expires_at, purge_at, schema_version, checkpoints,
    taken_over, trace, body
) VALUES (
    x'1111111111111111111111111111111111111111111111111111111111111111', 1, 2, x'0102030405060708090a0b0c0d0e0f10',
    1699999000000001, 1699999000000007, 'payments.charge', 'shop', 'shop-6c9f/1234',
    x'010000000000000000000000000000feed', 3, 1699999000000, 4, 4,
    2592000000, 86400000, 1699999900000, 1702591900000, 1702678300000, 5, 6, 1,
    '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01', x'626f6479'
), (
    x'2222222222222222222222222222222222222222222222222222222222222222', 1, 3, x'00000000000000000000000000000001',
    0, 0, '', '', '', NULL, 1, 0, 1, 0,
    0, 0, 0, 1700000000001, 1700000000001, 0, 0, 0,
    NULL, x''
);
