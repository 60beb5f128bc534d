//! The example `payments_http`, spoken to over its socket.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Output;

use anyhow::Context as _;
use idempotency_test_support::deadline::DEADLINE;
use idempotency_test_support::worker::Worker;

use super::{example, run};

/// The example on this store and a free port, and its address.
async fn start(store: &str) -> anyhow::Result<(Worker, String)> {
    let mut command = example("payments_http");
    command.env("STORE_URL", store).args(["--listen", "127.0.0.1:0"]);
    let mut shop = Worker::spawn(command, &[])?;
    let line = shop.line().await?.context("the example has ended")?;
    let (url, _) = line.split_once(' ').context("the URL and more")?;
    let address = url.strip_prefix("http://").with_context(|| line.clone())?.to_owned();
    Ok((shop, address))
}

/// All of the answer; nothing where there is none.
fn send(address: &str, method: &str, path: &str, key: &str, body: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let head = format!(
        "{method} {path} HTTP/1.0\r\ncontent-type: application/json\r\nidempotency-key: {key}"
    );
    stream
        .write_all(format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[tokio::test]
async fn payments_http_charges_once_although_the_answer_was_lost() -> anyhow::Result<()> {
    let (_shop, address) = start("memory:").await?;
    let page = send(&address, "GET", "/", "none", "")?;
    assert!(page.contains("text/html") && page.ends_with("</html>\n"), "{page}");
    assert!(send(&address, "POST", "/orders", "k1", r#"{"order": "lamp"}"#)?.contains(" 201 "));

    send(&address, "PUT", "/orders/lamp/answers", "none", r#""lost""#)?;
    let pay = || send(&address, "POST", "/orders/lamp/payments", "k2", r#"{"amount": 4999}"#);
    assert_eq!(pay()?, "", "the connection ends without an answer");
    send(&address, "PUT", "/orders/lamp/answers", "none", r#""delivered""#)?;
    let answer = pay()?;
    assert!(answer.contains(" 201 ") && answer.contains("idempotency-replayed: true"), "{answer}");
    assert!(
        send(&address, "GET", "/provider/lamp", "none", "")?
            .ends_with(r#"{"asked":1,"charges":1}"#)
    );
    assert!(send(&address, "GET", "/status", "k2", "")?.contains(r#""state":"succeeded""#));
    Ok(())
}

#[cfg(feature = "sqlite")]
#[tokio::test]
async fn payments_http_on_a_file_replays_after_a_restart() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let store = format!("sqlite:{}", directory.path().join("payments.db").display());
    for (is_replayed, account) in
        [(false, r#"{"asked":1,"charges":1}"#), (true, r#"{"asked":0,"charges":0}"#)]
    {
        let (shop, address) = start(&store).await?;
        send(&address, "POST", "/orders", "k1", r#"{"order": "lamp"}"#)?;
        let answer = send(&address, "POST", "/orders/lamp/payments", "k2", r#"{"amount": 4999}"#)?;
        assert!(answer.contains(" 201 "), "{answer}");
        assert_eq!(answer.contains("idempotency-replayed: true"), is_replayed, "{answer}");
        assert!(send(&address, "GET", "/provider/lamp", "none", "")?.ends_with(account));
        shop.kill().await?;
    }
    Ok(())
}

#[test]
fn payments_http_says_what_is_wrong_with_its_arguments() {
    for (arguments, part) in [
        (&["--store", "floppy:secret"][..], "`floppy:`"),
        (&["--listen", "nowhere"], "cannot listen on nowhere"),
        (&["--store"], "`--store` needs a URL"),
        (&["--port"], "`--port` is unknown"),
    ] {
        let Output { status, stdout, stderr } = run(example("payments_http").args(arguments));
        let stderr = String::from_utf8_lossy(&stderr);
        assert_eq!((status.code(), stdout.len()), (Some(1), 0), "{stderr}");
        assert!(
            stderr.starts_with("error: ") && stderr.contains(part) && !stderr.contains("secret"),
            "{stderr}"
        );
    }
}
