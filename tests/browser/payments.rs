//! The page of the example `payments_http`, tried as a person tries it. Charges are counted at the
//! provider.
//!
//! `IDEMPOTENCY_PICTURES=docs/images cargo xtask test tests` takes the pictures of the
//! documentation anew.

mod page;

use std::path::PathBuf;

use anyhow::ensure;
use idempotency_test_support::deadline::eventually;
use idempotency_test_support::server::is_running;
use page::{Account, DESKTOP, Look, Page};

const ONE_CHARGE: Account = Account { asked: 1, charges: 1 };

/// Runs `test` on a page, and ends the browser in good order if it succeeds.
async fn on_page(
    look: Look,
    test: impl AsyncFnOnce(&mut Page) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut page = Page::open(look).await?;
    test(&mut page).await?;
    page.close().await
}

/// Checks a picture of the page, and keeps it where the environment says.
async fn take_picture(page: &Page, name: &str) -> anyhow::Result<()> {
    const LIMIT: usize = 200_000;
    let picture = page.picture().await?;
    ensure!(picture.starts_with(b"\x89PNG"), "the picture is no PNG");
    ensure!(picture.len() < LIMIT, "{name} has {} bytes", picture.len());
    if let Some(directory) = std::env::var_os("IDEMPOTENCY_PICTURES") {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
        std::fs::write(root.join(directory).join(name), picture)?;
    }
    Ok(())
}

#[tokio::test]
async fn a_double_click_makes_one_charge() -> anyhow::Result<()> {
    on_page(DESKTOP, async |page| {
        page.double_click("pay").await?;
        page.until(&[("charges", "1"), ("replays", "1"), ("state", "succeeded")]).await?;
        // The second one may have been told to wait, and have come again.
        let requests = page.text("requests").await?;
        page.until(&[("headline", &format!("{requests} requests, one charge."))]).await?;
        assert_eq!(page.account().await?, ONE_CHARGE);
        take_picture(page, "payments.png").await
    })
    .await
}

#[tokio::test]
async fn without_the_key_a_double_click_makes_two_charges() -> anyhow::Result<()> {
    on_page(DESKTOP, async |page| {
        page.click("careless").await?;
        page.double_click("pay").await?;
        page.until(&[("headline", "Charged 2 times!"), ("charges", "2"), ("replays", "0")]).await?;
        assert_eq!(page.account().await?, Account { asked: 2, charges: 2 });
        Ok(())
    })
    .await
}

#[tokio::test]
async fn ten_at_once_make_one_charge() -> anyhow::Result<()> {
    on_page(DESKTOP, async |page| {
        page.click("ten").await?;
        page.until(&[("replays", "9"), ("charges", "1"), ("state", "succeeded")]).await?;
        let (requests, refusals) = (page.text("requests").await?, page.text("refusals").await?);
        let (requests, refusals): (u32, u32) = (requests.parse()?, refusals.parse()?);
        assert_eq!(requests, 10 + refusals, "each one that was told to wait came again");
        page.until(&[("headline", &format!("{requests} requests, one charge."))]).await?;
        assert_eq!(page.account().await?, ONE_CHARGE);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_lost_answer_is_replayed() -> anyhow::Result<()> {
    on_page(DESKTOP, async |page| {
        page.click("lose").await?;
        page.until(&[("replays", "1"), ("requests", "2"), ("state", "succeeded")]).await?;
        page.until(&[("headline", "2 requests, one charge.")]).await?;
        let log = page.text("log").await?;
        for part in ["no answer", "The connection broke before an answer came", "201 replayed"] {
            assert!(log.contains(part), "{part}: {log}");
        }
        assert!(!log.contains("201 charged"), "the first answer never arrived: {log}");
        assert_eq!(page.account().await?, ONE_CHARGE);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_changed_amount_is_refused() -> anyhow::Result<()> {
    on_page(DESKTOP, async |page| {
        page.click("change").await?;
        page.until(&[
            ("refusals", "1"),
            ("headline", "Charged once. The changed request was refused."),
        ])
        .await?;
        let log = page.text("log").await?;
        assert!(
            log.contains("422 refused") && log.contains("€59.99 is not what it was used for"),
            "{log}"
        );
        assert_eq!(page.account().await?, ONE_CHARGE);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_declined_card_is_declined_again_from_the_record() -> anyhow::Result<()> {
    on_page(DESKTOP, async |page| {
        page.click("decline").await?;
        page.until(&[
            ("replays", "1"),
            ("state", "failed"),
            ("headline", "Not charged: the card was declined."),
        ])
        .await?;
        let log = page.text("log").await?;
        assert!(log.contains("402 declined") && log.contains("402 replayed"), "{log}");
        assert_eq!(page.account().await?, Account { asked: 1, charges: 0 });
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_silent_provider_is_not_asked_again_until_somebody_has_settled_it() -> anyhow::Result<()>
{
    let look = Look { width: 390, height: 1080, dark: true };
    on_page(look, async |page| {
        page.click("time-out").await?;
        page.until(&[("refusals", "1"), ("state", "uncertain")]).await?;
        page.until(&[("headline", "Nobody knows whether it charged.")]).await?;
        assert_eq!(page.account().await?, ONE_CHARGE);
        let overflow =
            page.script("return document.documentElement.scrollWidth - document.documentElement.clientWidth").await?;
        assert_eq!(overflow, 0, "the page is wider than a phone");
        take_picture(page, "payments-phone.png").await?;

        page.click("settle").await?;
        page.until(&[("replays", "1"), ("state", "succeeded"), ("headline", "3 requests, one charge.")]).await?;
        assert_eq!(page.account().await?, ONE_CHARGE);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_server_that_is_gone_is_told_in_plain_words() -> anyhow::Result<()> {
    on_page(DESKTOP, async |page| {
        page.stop_shop().await?;
        page.click("pay").await?;
        page.until(&[("because", "The server cannot be reached. Is it still running?")]).await
    })
    .await
}

#[tokio::test]
async fn a_browser_that_was_not_closed_ends_with_its_driver() -> anyhow::Result<()> {
    let page = Page::open(DESKTOP).await?;
    let browser = page.browser()?;
    assert!(is_running(browser)?);
    drop(page);
    eventually("the browser to end", || !is_running(browser).unwrap_or(true)).await
}
