//! A shop that is paid over HTTP, and a page on which a person tries to be charged twice.
//!
//! ```sh
//! cargo run --example payments_http                                # then open http://127.0.0.1:3000
//! cargo run --example payments_http -- --listen 127.0.0.1:0        # on a free port, which it prints
//! cargo run --features sqlite --example payments_http -- --store sqlite:payments.db
//! ```
//!
//! The README shows the same with curl.

mod provider;
mod server;
mod shop;

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use idempotency::Idempotency;
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> anyhow::Result<()> {
    let mut store = std::env::var("STORE_URL").unwrap_or_else(|_| "memory:".into());
    let mut listen = String::from("127.0.0.1:3000");
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match &*argument {
            "--store" => store = arguments.next().context("`--store` needs a URL")?,
            "--listen" => {
                listen = arguments.next().context("`--listen` needs an address, with its port")?;
            }
            other => bail!("`{other}` is unknown; there are `--store URL` and `--listen ADDRESS`"),
        }
    }
    let engine = Idempotency::connect(&store).await?;
    let listener =
        TcpListener::bind(&listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    // The part after the scheme may contain a password.
    let store = store.split(':').next().unwrap_or_default();
    println!(
        "http://{} (store: {store}; open it in a browser, Ctrl-C ends it)",
        listener.local_addr()?
    );
    server::serve(listener, shop::router(engine)).await
}
