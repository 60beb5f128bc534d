//! The cost of a guarded call, beside the cost of the bare client, a plain cache and other crates
//! for the same work.
//!
//! Every figure is a ratio of two kinds of work that take turns in one run.
//! `cargo xtask bench --write` puts them into `docs/performance.md`.

mod compile;
mod cpu;
mod inbox;
mod measure;
mod memory;
mod messages;
mod page;
mod peers;
mod plot;
mod postgres;
mod receipt;
mod records;
mod redis;
mod sqlite;
mod stream;
mod waiters;

use std::path::Path;

use anyhow::{Context as _, bail};
use futures::FutureExt as _;
use futures::future::LocalBoxFuture;
use lexopt::prelude::{Long, Value, ValueExt as _};

use measure::Row;

type Group = fn() -> LocalBoxFuture<'static, anyhow::Result<Vec<Row>>>;

const GROUPS: [(&str, Group); 10] = [
    ("redis", || redis::rows().boxed_local()),
    ("postgres", || postgres::rows().boxed_local()),
    ("inbox", || inbox::rows().boxed_local()),
    ("messages", || messages::rows().boxed_local()),
    ("sqlite", || sqlite::rows().boxed_local()),
    ("memory", || memory::rows().boxed_local()),
    ("peers", || peers::rows().boxed_local()),
    ("waiters", || waiters::rows().boxed_local()),
    ("records", || records::rows().boxed_local()),
    ("compile", || async { compile::rows() }.boxed_local()),
];

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut write = false;
    let mut names = Vec::new();
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("write") => write = true,
            Value(name) => names.push(name.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    if let Some(unknown) = names.iter().find(|name| GROUPS.iter().all(|(known, _)| known != name)) {
        bail!(
            "there is no group `{unknown}`; there are {}",
            GROUPS.map(|(name, _)| name).join(", ")
        );
    }
    if write && !names.is_empty() {
        bail!("`--write` puts all groups on the page; leave out the names");
    }
    let mut rows = Vec::new();
    for (name, group) in GROUPS {
        if names.is_empty() || names.iter().any(|wanted| wanted == name) {
            eprintln!("{name} …");
            rows.extend(group().await.with_context(|| format!("measuring {name}"))?);
        }
    }
    println!("{}", page::table(&rows));
    if write {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
        page::write(&docs.join("performance.md"), &rows)?;
        plot::write(&docs.join("images/performance.svg"), &rows)?;
    }
    Ok(())
}
