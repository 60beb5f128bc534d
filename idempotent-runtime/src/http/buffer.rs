//! Buffers that bodies are copied into as they arrive.

/// Appends `data` to `buffer`, whose capacity doubles when it is full but stays within `limit`.
///
/// A `Vec` that grows by itself may end with room for almost twice as much as it may hold, for as
/// long as it is kept. `data` that passes the limit is appended all the same.
pub(super) fn append(buffer: &mut Vec<u8>, data: &[u8], limit: usize) {
    let length = buffer.len() + data.len();
    if length > buffer.capacity() {
        let capacity = buffer.capacity().saturating_mul(2).min(limit).max(length);
        buffer.reserve_exact(capacity - buffer.len());
    }
    buffer.extend_from_slice(data);
}

#[cfg(test)]
mod tests {
    use super::append;

    #[test]
    fn a_buffer_grows_by_doubling_and_not_past_its_limit() {
        let mut buffer = Vec::new();
        let mut growths = 0;
        for _ in 0..1_000 {
            let before = buffer.capacity();
            append(&mut buffer, b"abc", 2_999);
            growths += u32::from(buffer.capacity() > before);
            assert!(buffer.capacity() <= 3_000, "{}", buffer.capacity());
        }
        assert_eq!(buffer, b"abc".repeat(1_000));
        assert!(growths < 13, "{growths}");
    }
}
