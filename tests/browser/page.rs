//! The page in a browser, and the provider behind it.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use fantoccini::actions::{InputSource as _, MOUSE_BUTTON_LEFT, MouseActions, PointerAction};
use fantoccini::elements::Element;
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use idempotency_test_support::deadline::{eventually_within, within};
use idempotency_test_support::server::ChromeDriver;
use idempotency_test_support::worker::{Worker, example};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, MutexGuard};

/// A browser on a busy machine needs longer than a server.
const DEADLINE: Duration = Duration::from_secs(60);

/// One browser at a time: each is a dozen processes.
static TURN: Mutex<()> = Mutex::const_new(());

/// How a person looks at the page.
#[derive(Clone, Copy)]
pub struct Look {
    pub width: u32,
    pub height: u32,
    pub dark: bool,
}

pub const DESKTOP: Look = Look { width: 1240, height: 920, dark: false };

pub struct Page {
    // The browser is closed first.
    client: Client,
    _driver: ChromeDriver,
    /// `None` when it is gone.
    shop: Option<Worker>,
    address: String,
    _turn: MutexGuard<'static, ()>,
}

/// What the provider has in its books about an order.
#[derive(Debug, PartialEq, Eq)]
pub struct Account {
    pub asked: u64,
    pub charges: u64,
}

impl Page {
    /// A shop of its own, and the page in a browser of its own.
    pub async fn open(look: Look) -> anyhow::Result<Self> {
        let turn = TURN.lock().await;
        let mut command = Command::new(example("payments_http")?);
        command.args(["--listen", "127.0.0.1:0"]).env_remove("STORE_URL");
        let mut shop = Worker::spawn(command, &[])?;
        let line = shop.line().await?.context("the shop has ended")?;
        let url = line.split(' ').next().unwrap_or_default();
        let address = url
            .strip_prefix("http://")
            .with_context(|| format!("the shop printed {line:?}"))?
            .to_owned();

        let driver = ChromeDriver::start().await?;
        let mut arguments = driver.browser_arguments()?;
        arguments.push(format!("--blink-settings=preferredColorScheme={}", u8::from(!look.dark)));
        let is_phone = look.width < 600;
        let options = json!({
            "args": arguments,
            "mobileEmulation": {"deviceMetrics": {
                "width": look.width, "height": look.height, "pixelRatio": 1, "mobile": is_phone, "touch": false,
            }},
        });
        let capabilities =
            [("browserName".into(), json!("chrome")), ("goog:chromeOptions".into(), options)];
        let mut builder = ClientBuilder::new(HttpConnector::new());
        builder.capabilities(capabilities.into_iter().collect());
        let client = tokio::time::timeout(DEADLINE, builder.connect(driver.url()))
            .await
            .context("no browser started")??;
        let page = Self { client, _driver: driver, shop: Some(shop), address, _turn: turn };
        page.steer(page.client.goto(url)).await?;
        Ok(page)
    }

    /// The id of the browser's process.
    pub fn browser(&self) -> anyhow::Result<u32> {
        let id =
            self.client.capabilities().and_then(|capabilities| capabilities.get("goog:processID"));
        Ok(u32::try_from(
            id.and_then(Value::as_u64).context("the driver does not tell the process")?,
        )?)
    }

    /// Ends the shop: nobody listens at its address any more.
    pub async fn stop_shop(&mut self) -> anyhow::Result<()> {
        self.shop.take().context("the shop is gone already")?.kill().await
    }

    /// Ends the browser in good order.
    pub async fn close(self) -> anyhow::Result<()> {
        Ok(within("the browser to end", self.client.close()).await??)
    }

    async fn steer<T>(
        &self,
        command: impl Future<Output = Result<T, fantoccini::error::CmdError>>,
    ) -> anyhow::Result<T> {
        Ok(tokio::time::timeout(DEADLINE, command)
            .await
            .context("the browser does not answer")??)
    }

    async fn element(&self, id: &str) -> anyhow::Result<Element> {
        self.steer(self.client.find(Locator::Id(id))).await.with_context(|| format!("#{id}"))
    }

    pub async fn click(&self, id: &str) -> anyhow::Result<()> {
        let element = self.element(id).await?;
        self.steer(element.click()).await.with_context(|| format!("#{id} cannot be clicked"))
    }

    /// Two clicks of the mouse, as fast as they can be made.
    pub async fn double_click(&self, id: &str) -> anyhow::Result<()> {
        let element = self.element(id).await?;
        let (down, up) = (
            PointerAction::Down { button: MOUSE_BUTTON_LEFT },
            PointerAction::Up { button: MOUSE_BUTTON_LEFT },
        );
        let there = PointerAction::MoveToElement { element, duration: None, x: 0.0, y: 0.0 };
        let clicks = [there, down.clone(), up.clone(), down, up];
        let mouse = clicks.into_iter().fold(MouseActions::new("mouse".into()), MouseActions::then);
        self.steer(self.client.perform_actions(mouse)).await
    }

    /// What a script in the page returns.
    pub async fn script(&self, script: &str) -> anyhow::Result<Value> {
        self.steer(self.client.execute(script, Vec::new())).await
    }

    /// What the element says, also where it is scrolled out of sight.
    pub async fn text(&self, id: &str) -> anyhow::Result<String> {
        let text =
            self.script(&format!("return document.getElementById('{id}').textContent")).await?;
        Ok(text.as_str().with_context(|| format!("#{id} is not there"))?.to_owned())
    }

    /// Waits until each element says what is expected of it.
    pub async fn until(&self, expected: &[(&str, &str)]) -> anyhow::Result<()> {
        let mut last = Ok(Vec::new());
        let waited = eventually_within(DEADLINE, "the page to say so", async || {
            last = self.texts(expected).await;
            last.as_ref().map_or(true, |said| {
                said.iter().zip(expected).all(|(said, (_, expected))| said == expected)
            })
        });
        let waited = waited.await;
        let said = last?;
        waited.with_context(|| format!("expected {expected:?}, the page says {said:?}"))
    }

    async fn texts(&self, of: &[(&str, &str)]) -> anyhow::Result<Vec<String>> {
        let mut texts = Vec::new();
        for (id, _) in of {
            texts.push(self.text(id).await?);
        }
        Ok(texts)
    }

    /// What the provider says about the order that the page shows, asked past the page and its
    /// browser.
    pub async fn account(&self) -> anyhow::Result<Account> {
        let order = self.text("order").await?;
        let request = format!("GET /provider/{order} HTTP/1.0\r\n\r\n");
        let ask = async {
            let mut stream = TcpStream::connect(&self.address).await?;
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            anyhow::Ok(answer)
        };
        let answer = within("the provider to answer", ask).await??;
        let (head, body) =
            answer.split_once("\r\n\r\n").context("the answer has no end of its head")?;
        ensure!(head.contains(" 200 "), "{answer}");
        let account: Value = serde_json::from_str(body)?;
        let figure =
            |name: &str| account[name].as_u64().with_context(|| format!("{answer} has no {name}"));
        Ok(Account { asked: figure("asked")?, charges: figure("charges")? })
    }

    /// A picture of what the window shows, in PNG.
    pub async fn picture(&self) -> anyhow::Result<Vec<u8>> {
        self.steer(self.client.screenshot()).await
    }
}
