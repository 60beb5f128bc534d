//! The lines with curl in the README, run as they stand there against the example that they are
//! about.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context as _, ensure};
use idempotency_test_support::worker::{Worker, example};

/// Where the lines expect the example.
const ADDRESS: &str = "http://127.0.0.1:3000";

/// The commands of the README, each with what it says about the answer.
fn lines() -> anyhow::Result<Vec<(&'static str, &'static str)>> {
    let readme = include_str!("../README.md");
    let block = readme
        .split("```")
        .find(|block| block.starts_with("sh\nurl="))
        .context("the README has no such block")?;
    let lines: Vec<_> = block.lines().filter(|line| line.starts_with("curl ")).collect();
    ensure!(block.contains(ADDRESS), "the lines say where the example is");
    lines
        .into_iter()
        .map(|line| line.split_once(" # ").with_context(|| format!("nothing is said about {line}")))
        .collect()
}

/// What the command prints.
fn run(command: &str, url: &str) -> anyhow::Result<String> {
    let curl = std::env::var("CURL").unwrap_or_else(|_| "curl".into());
    let output = Command::new("sh")
        .args(["-c", &command.replacen("curl", &curl, 1)])
        .env("url", url)
        .env("NO_PROXY", "*")
        .output()?;
    let (stdout, stderr) =
        (String::from_utf8(output.stdout)?, String::from_utf8_lossy(&output.stderr));
    ensure!(
        output.status.success(),
        "{}: {command}\n{stderr}(`cargo xtask test servers` installs curl where it can)",
        output.status
    );
    Ok(stdout)
}

#[tokio::test]
async fn the_readme_says_what_curl_prints() -> anyhow::Result<()> {
    let mut command = Command::new(example("payments_http")?);
    command.args(["--listen", "127.0.0.1:0"]).env_remove("STORE_URL");
    let mut shop = Worker::spawn(command, &[])?;
    let printed = shop.line().await?.context("the example has ended")?;
    let url = printed.split(' ').next().unwrap_or_default();

    let mut seen = BTreeSet::new();
    for (command, expected) in lines()? {
        let answer = run(command, url)?;
        let (status, rest) = expected.trim().split_once(": ").unwrap_or((expected.trim(), ""));
        if let Ok(status) = status.parse::<u16>() {
            let (head, body) = answer
                .split_once("\r\n\r\n")
                .context("the answer has no head: is there a `-i`?")?;
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{command}\n{answer}");
            let is_replayed = head.lines().any(|line| line == "idempotency-replayed: true");
            assert_eq!(
                is_replayed,
                rest.contains("idempotency-replayed: true"),
                "{command}\n{answer}"
            );
            assert!(is_replayed || rest.is_empty() || body.contains(rest), "{command}\n{answer}");
            seen.insert((status, is_replayed));
        } else {
            assert_eq!(answer, expected.trim(), "{command}");
        }
    }
    let promised = [(201, false), (201, true), (400, false), (409, false), (422, false)];
    assert!(promised.iter().all(|promised| seen.contains(promised)), "{seen:?}");
    Ok(())
}
