//! The boundaries of messages in the Redis protocol (RESP2 and RESP3).

/// The maximum nesting: deeper than any real answer, and far from the end of the stack.
const MAX_DEPTH: usize = 32;

/// The first bytes of all kinds of messages.
const KINDS: &[u8] = b"+-:_,#($=!*~>%|";

/// The length of a message, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Length {
    /// The message has this many bytes.
    Complete(usize),
    /// More bytes have to arrive.
    Incomplete,
    /// This is not the Redis protocol.
    Invalid,
}

/// Returns the length of the first message in `bytes`.
pub(crate) fn message_length(bytes: &[u8]) -> Length {
    match value(bytes, 0, MAX_DEPTH) {
        Ok(end) => Length::Complete(end),
        Err(stop) => stop,
    }
}

/// Returns the length of the first request in `bytes`: an array, or a line typed by a person.
pub(crate) fn request_length(bytes: &[u8]) -> Length {
    match bytes.first() {
        None => Length::Incomplete,
        Some(b'*') => message_length(bytes),
        Some(byte) if byte.is_ascii_alphabetic() => {
            line(bytes, 0).map_or_else(|stop| stop, |(_, end)| Length::Complete(end))
        }
        Some(_) => Length::Invalid,
    }
}

/// Returns the words of one complete request.
pub(crate) fn words(request: &[u8]) -> Vec<&[u8]> {
    if request.first() != Some(&b'*') {
        return request.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).collect();
    }
    let mut words = Vec::new();
    let Ok((_, mut at)) = line(request, 0) else { return words };
    while at < request.len() {
        let (Ok((_, start)), Ok(end)) = (line(request, at), value(request, at, MAX_DEPTH)) else {
            break;
        };
        words.push(&request[start..end - 2]);
        at = end;
    }
    words
}

/// Returns the end of the value that begins at `at`.
fn value(bytes: &[u8], at: usize, depth: usize) -> Result<usize, Length> {
    let depth = depth.checked_sub(1).ok_or(Length::Invalid)?;
    let kind = *bytes.get(at).ok_or(Length::Incomplete)?;
    if !KINDS.contains(&kind) {
        // Not only at the end of the line, which may never arrive.
        return Err(Length::Invalid);
    }
    let (content, end) = line(bytes, at)?;
    match kind {
        b'+' | b'-' | b':' | b'_' | b',' | b'#' | b'(' => Ok(end),
        b'$' | b'=' | b'!' => match count(content)? {
            None => Ok(end),
            Some(length) => {
                let end = end
                    .checked_add(length)
                    .and_then(|end| end.checked_add(2))
                    .ok_or(Length::Invalid)?;
                if end <= bytes.len() { Ok(end) } else { Err(Length::Incomplete) }
            }
        },
        b'*' | b'~' | b'>' => values(bytes, end, count(content)?.unwrap_or(0), depth),
        b'%' => values(bytes, end, count(content)?.unwrap_or(0).saturating_mul(2), depth),
        // Attributes precede the value that they describe.
        b'|' => values(
            bytes,
            end,
            count(content)?.unwrap_or(0).saturating_mul(2).saturating_add(1),
            depth,
        ),
        _ => Err(Length::Invalid),
    }
}

fn values(bytes: &[u8], start: usize, count: usize, depth: usize) -> Result<usize, Length> {
    (0..count).try_fold(start, |at, _| value(bytes, at, depth))
}

/// Returns the content of the line that begins at `at`, without its first byte, and the start of
/// the next line.
fn line(bytes: &[u8], at: usize) -> Result<(&[u8], usize), Length> {
    let rest = bytes.get(at..).ok_or(Length::Incomplete)?;
    let length = rest.iter().position(|byte| *byte == b'\n').ok_or(Length::Incomplete)?;
    let content = rest.get(1..length).unwrap_or_default();
    Ok((content.strip_suffix(b"\r").unwrap_or(content), at + length + 1))
}

/// Parses a count, or `None` for the null of RESP2.
fn count(content: &[u8]) -> Result<Option<usize>, Length> {
    if content == b"-1" {
        return Ok(None);
    }
    let digits = std::str::from_utf8(content).map_err(|_| Length::Invalid)?;
    digits.parse().map(Some).map_err(|_| Length::Invalid)
}

#[cfg(test)]
mod tests {
    use super::Length::{Complete, Incomplete, Invalid};
    use super::{message_length, request_length, words};

    #[test]
    fn every_message_ends_where_it_ends_and_not_before() {
        let messages: [&[u8]; 11] = [
            b"+OK\r\n",
            b"-ERR no\r\n",
            b"$3\r\nabc\r\n",
            b"$4\r\na\r\nb\r\n",
            b"$-1\r\n",
            b"*-1\r\n",
            b"*2\r\n$1\r\na\r\n:1\r\n",
            b">2\r\n+invalidate\r\n*1\r\n$1\r\nk\r\n",
            b"%1\r\n+a\r\n*0\r\n",
            b"|1\r\n+ttl\r\n:9\r\n+OK\r\n",
            b"_\r\n",
        ];
        for message in messages {
            for cut in 0..message.len() {
                assert_eq!(
                    message_length(&message[..cut]),
                    Incomplete,
                    "{}",
                    message[..cut].escape_ascii()
                );
            }
            let followed = [message, b"+next\r\n"].concat();
            assert_eq!(
                message_length(&followed),
                Complete(message.len()),
                "{}",
                message.escape_ascii()
            );
        }
    }

    #[test]
    fn what_is_not_the_protocol_is_said_to_be_none() {
        for bytes in [
            &b"\x16\x03\x01"[..],
            b"HTTP/1.1 400 Bad Request\r\n",
            b"$x\r\n",
            b"$-2\r\n",
            b"$99999999999999999999\r\n",
        ] {
            assert_eq!(message_length(bytes), Invalid, "{}", bytes.escape_ascii());
        }
        assert_eq!(message_length(&b"*1\r\n".repeat(100)), Invalid);
        assert_eq!(message_length(format!("${}\r\n", usize::MAX).as_bytes()), Invalid);
    }

    #[test]
    fn requests_are_split_into_words() {
        let request = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$4\r\na\r\nb\r\n";
        assert_eq!(request_length(request), Complete(request.len()));
        assert_eq!(words(request), [&b"SET"[..], b"k", b"a\r\nb"]);
        assert_eq!(request_length(b"PING  now\r\nPING\r\n"), Complete(11));
        assert_eq!(words(b"PING  now\r\n"), [&b"PING"[..], b"now"]);
        assert_eq!(request_length(b"\x16\x03\x01"), Invalid);
    }
}
