//! Private RabbitMQ brokers.

use idempotency_test_support::server::{RabbitMqOptions, RabbitMqServer, is_running};

#[tokio::test]
async fn a_broker_answers_keeps_its_files_over_a_kill_and_leaves_no_process() -> anyhow::Result<()>
{
    let mut broker =
        RabbitMqServer::start(RabbitMqOptions::new().setting("channel_max", "7")).await?;
    let url = broker.url();
    assert_eq!(
        broker.control(&["eval", "application:get_env(rabbit, channel_max)."]).await?.trim(),
        "{ok,7}"
    );
    broker.control(&["add_vhost", "kept"]).await?;
    broker.kill()?;
    assert_eq!(broker.pid(), None);
    broker.restart().await?;
    assert_eq!(broker.url(), url);
    assert!(broker.control(&["list_vhosts"]).await?.contains("kept"));
    let (pid, directory) = (broker.pid().unwrap(), broker.directory()?.to_path_buf());
    drop(broker);
    assert!(!is_running(pid)?);
    assert!(!directory.exists());
    Ok(())
}
