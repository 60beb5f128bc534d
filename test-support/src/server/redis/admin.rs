//! A minimal connection to a Redis server, to check that it is ready and to set it up.

use std::fmt::Write as _;

use anyhow::{Context as _, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::resp::{Length, message_length};

/// Sends one command and returns the answer as the server wrote it, without the type and length of
/// a string. Null is empty.
pub(super) async fn ask(
    address: &str,
    credentials: Option<&[String]>,
    words: &[&str],
) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address)
        .await
        .with_context(|| format!("could not connect to {address}"))?;
    if let Some(credentials) = credentials {
        let words: Vec<_> =
            ["AUTH"].into_iter().chain(credentials.iter().map(String::as_str)).collect();
        request(&mut stream, &words).await?;
    }
    request(&mut stream, words).await
}

async fn request(stream: &mut TcpStream, words: &[&str]) -> anyhow::Result<String> {
    let mut request = format!("*{}\r\n", words.len());
    for word in words {
        write!(request, "${}\r\n{word}\r\n", word.len())?;
    }
    stream.write_all(request.as_bytes()).await?;

    let mut answer = Vec::new();
    let end = loop {
        match message_length(&answer) {
            Length::Complete(end) => break end,
            Length::Incomplete => {}
            Length::Invalid => {
                bail!("the answer is not of a Redis server: {}", answer.escape_ascii())
            }
        }
        if stream.read_buf(&mut answer).await? == 0 {
            bail!("the server closed the connection");
        }
    };
    let text = String::from_utf8_lossy(&answer[..end]);
    let text = text.strip_suffix("\r\n").unwrap_or(&text);
    match text.split_at_checked(1) {
        Some(("-", error)) => bail!("the server refused {}: {error}", words.join(" ")),
        Some(("+" | ":", content)) => Ok(String::from(content)),
        Some(("$", content)) => {
            Ok(String::from(content.split_once("\r\n").map_or("", |(_, string)| string)))
        }
        _ => Ok(String::from(text)),
    }
}
