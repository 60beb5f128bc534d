//! Makes any async function safe to retry.
