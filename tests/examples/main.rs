//! The examples, started as a user starts them: what they print, what they leave outside, and how
//! they exit.

mod payments_http;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// The program that `cargo test` has built from the example.
fn example(name: &str) -> Command {
    let test = std::env::current_exe().expect("the test knows its own program");
    let profile = test
        .parent()
        .and_then(Path::parent)
        .expect("tests are built into `deps` of the profile's directory");
    let program =
        profile.join("examples").join(name).with_extension(std::env::consts::EXE_EXTENSION);
    let built = fs::metadata(&program).and_then(|metadata| metadata.modified());
    let newest =
        sources(name).iter().filter_map(|source| source.metadata().ok()?.modified().ok()).max();
    assert!(
        built.is_ok_and(|built| newest.is_some_and(|newest| newest <= built)),
        "{} is missing or older than its source: `cargo build --examples` builds it, and so does `cargo test` without `--test`",
        program.display()
    );
    let mut command = Command::new(program);
    // A user has no backtraces switched on, and starts the examples from anywhere.
    command.env_remove("RUST_BACKTRACE").current_dir(std::env::temp_dir());
    command
}

fn sources(name: &str) -> Vec<PathBuf> {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let file = examples.join(name).with_extension("rs");
    if file.exists() {
        let modules: &[&str] = match name {
            "redis_shared" => &["payments/mod.rs", "fleet/mod.rs"],
            "quickstart" | "without_macro" => &["payments/mod.rs"],
            _ => &[],
        };
        return modules.iter().map(|module| examples.join(module)).chain([file]).collect();
    }
    let files = fs::read_dir(examples.join(name)).expect("an example is a file or a directory");
    files.map(|file| file.expect("the directory can be read").path()).collect()
}

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data").join(name)
}

fn run(command: &mut Command) -> Output {
    command.output().expect("the example starts")
}

/// What an example that succeeds prints.
fn printed(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = run(command);
    let stdout = String::from_utf8(stdout).expect("the example prints text");
    assert!(status.success(), "{status}\n{stdout}\n{}", String::from_utf8_lossy(&stderr));
    stdout
}

/// The rows of an account: the last word of each line under the words before it.
fn rows(text: &str) -> HashMap<String, String> {
    let rows = text.lines().filter_map(|line| line.rsplit_once(' '));
    rows.map(|(name, figure)| (name.trim().to_owned(), figure.to_owned())).collect()
}

fn count(rows: &HashMap<String, String>, name: &str) -> u32 {
    let figure = rows.get(name).unwrap_or_else(|| panic!("no row `{name}` in {rows:?}"));
    figure.parse().unwrap_or_else(|_| panic!("`{name}` is {figure}"))
}

/// A kept ledger: how often each payment was charged, and the cents of each currency.
fn ledger(path: &Path) -> (HashMap<String, u32>, HashMap<String, u64>) {
    let (mut payments, mut cents) = (HashMap::new(), HashMap::new());
    for line in fs::read_to_string(path).expect("the ledger was kept").lines() {
        let charge: Value = serde_json::from_str(line).expect("the ledger is JSON");
        let text = |field: &str| charge[field].as_str().expect("a text").to_owned();
        *payments.entry(text("payment")).or_default() += 1;
        *cents.entry(text("currency")).or_default() +=
            charge["amount"].as_u64().expect("an amount");
    }
    (payments, cents)
}

/// `examples/data/README.md` has the figures.
fn assert_ledger_of_the_bundled_day(path: &Path) {
    let (payments, cents) = ledger(path);
    assert_eq!(payments.len(), 228);
    assert!(payments.values().all(|&times| times == 1), "charged twice: {payments:?}");
    let expected = [("EUR", 1_203_258), ("GBP", 677_099), ("USD", 101_317)];
    assert_eq!(cents, expected.map(|(currency, cents)| (currency.to_owned(), cents)).into());
}

#[test]
fn quickstart_accounts_for_every_bundled_event() {
    let text = printed(&mut example("quickstart"));
    assert!(text.starts_with("329 events from "), "{text}");
    let rows = rows(&text);
    assert_eq!(count(&rows, "charges made"), 228);
    assert_eq!(count(&rows, "declined by the provider"), 12);
    assert_eq!(count(&rows, "repeats: replayed") + count(&rows, "repeats: joined in flight"), 88);
    assert_eq!(count(&rows, "refused: content differs"), 1);
    assert_eq!(count(&rows, "answers lost on the way"), 15);
    assert_eq!(rows["moved, EUR"], "12032.58");
    assert_eq!(rows["moved, GBP"], "6770.99");
    assert_eq!(rows["moved, USD"], "1013.17");
    assert!(text.ends_with("every payment was charged once\n"), "{text}");
}

#[cfg(feature = "http")]
#[test]
fn http_client_gets_the_lost_answer_with_its_key() {
    let text = printed(&mut example("http_client"));
    assert!(text.starts_with("answer: 201 Created, receipt 1 for order 7\n"), "{text}");
    assert!(text.ends_with("attempts = 2, replayed = true, charges = 1\n"), "{text}");
}

#[cfg(feature = "sqlite")]
#[test]
fn quickstart_on_a_file_charges_nothing_in_a_second_run() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = format!("sqlite:{}", directory.path().join("events.db").display());
    let mut charged = HashMap::new();
    for (run, charges) in [("first", 228), ("second", 0)] {
        let kept = directory.path().join(run);
        printed(
            example("quickstart").arg(data("events.jsonl")).arg(&kept).args(["--store", &store]),
        );
        let (payments, _) = ledger(&kept);
        assert_eq!(payments.len(), charges, "{run} run");
        for (payment, count) in payments {
            *charged.entry(payment).or_insert(0) += count;
        }
    }
    assert!(charged.len() == 228 && charged.values().all(|count| *count == 1), "{charged:?}");
}

#[test]
fn quickstart_joins_double_submits_that_overlap() {
    let rows = rows(&printed(&mut example("quickstart")));
    // 23 events are second and third submits on lines next to their first, and 64 events run at a
    // time.
    assert!(count(&rows, "repeats: joined in flight") > 0, "{rows:?}");
}

#[test]
fn quickstart_charges_each_payment_once_in_the_ledger_outside() {
    let directory = tempfile::tempdir().expect("a directory");
    let kept = directory.path().join("ledger");
    printed(example("quickstart").arg(data("events.jsonl")).arg(&kept));
    assert_ledger_of_the_bundled_day(&kept);
}

#[test]
fn quickstart_reports_malformed_lines_by_number_and_goes_on() {
    let directory = tempfile::tempdir().expect("a directory");
    let kept = directory.path().join("ledger");
    let Output { status, stdout, stderr } =
        run(example("quickstart").arg(data("malformed.jsonl")).arg(&kept));
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{status}: {stderr}");

    let reported: Vec<_> = stderr.lines().collect();
    assert_eq!(reported.len(), 3, "{stderr}");
    for (line, number, reason) in [(0, 2, "EOF"), (1, 4, "missing field `payment`"), (2, 5, "-500")]
    {
        let start = format!("line {number}, column ");
        assert!(reported[line].starts_with(&start) && reported[line].contains(reason), "{stderr}");
    }

    assert!(
        stdout.starts_with("3 events from ") && stdout.contains("; 3 malformed lines\n"),
        "{stdout}"
    );
    let rows = rows(&stdout);
    assert_eq!(count(&rows, "charges made"), 2);
    assert_eq!(count(&rows, "repeats: replayed") + count(&rows, "repeats: joined in flight"), 1);
    assert_eq!(rows["moved, EUR"], "62.49");
    let (payments, cents) = ledger(&kept);
    assert_eq!(
        payments,
        HashMap::from([("pay_AAAAAAAAA1".to_owned(), 1), ("pay_AAAAAAAAA3".to_owned(), 1)])
    );
    assert_eq!(cents, HashMap::from([("EUR".to_owned(), 6249)]));
}

#[test]
fn quickstart_takes_bytes_that_are_no_text_for_a_malformed_line() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("events");
    let event = fs::read(data("events.jsonl")).expect("the bundled events");
    let event = event.split(|&byte| byte == b'\n').next().expect("a line");
    fs::write(&path, [b"\xff\xfe\n", event, b"\r\n\n"].concat()).expect("the file can be written");
    let Output { status, stdout, stderr } = run(example("quickstart").arg(&path));
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{status}: {stderr}");
    assert!(stderr.starts_with("line 1, column ") && stderr.lines().count() == 1, "{stderr}");
    assert_eq!(count(&rows(&stdout), "charges made"), 1);
}

#[test]
fn an_unreadable_file_is_a_clear_error() {
    for name in ["quickstart", "without_macro"] {
        let Output { status, stdout, stderr } = run(example(name).arg("no-such-file.jsonl"));
        let stderr = String::from_utf8_lossy(&stderr);
        assert_eq!(status.code(), Some(1), "{stderr}");
        assert!(stderr.starts_with("error: cannot read no-such-file.jsonl: "), "{stderr}");
        assert_eq!((stderr.lines().count(), stdout.len()), (1, 0), "{stderr}");
    }
}

#[test]
fn a_ledger_that_is_there_already_is_not_touched() {
    let kept = tempfile::NamedTempFile::new().expect("a file");
    fs::write(&kept, "the books of last year").expect("the file can be written");
    let Output { status, stderr, .. } =
        run(example("quickstart").arg(data("events.jsonl")).arg(kept.path()));
    let stderr = String::from_utf8_lossy(&stderr);
    assert_eq!(status.code(), Some(1), "{stderr}");
    assert!(stderr.starts_with("error: cannot make the ledger "), "{stderr}");
    assert_eq!(fs::read_to_string(&kept).expect("the file is there"), "the books of last year");
}

#[test]
fn without_macro_gives_the_same_account() {
    let directory = tempfile::tempdir().expect("a directory");
    let kept = directory.path().join("ledger");
    let text = printed(example("without_macro").arg(data("events.jsonl")).arg(&kept));
    let rows = rows(&text);
    assert_eq!(count(&rows, "charges made"), 228);
    assert_eq!(count(&rows, "declined by the provider"), 12);
    assert_eq!(count(&rows, "repeats, replayed"), 88);
    assert_eq!(count(&rows, "refused: content differs"), 1);
    assert_eq!(count(&rows, "answers lost on the way"), 15);
    assert!(text.contains("Completed"), "{text}");
    assert_ledger_of_the_bundled_day(&kept);
}

#[test]
fn custom_store_survives_a_restart_and_a_damaged_record() {
    let text = printed(&mut example("custom_store"));
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "first call:     label 1 for parcel-1");
    assert_eq!(lines[1], "second call:    label 1 for parcel-1");
    assert_eq!(lines[2], "32 at once:     label 2 for parcel-2");
    assert_eq!(lines[3], "after restart:  label 1 for parcel-1");
    assert!(
        lines[4].contains("the stored record cannot be read, the body did not run again"),
        "{text}"
    );
    assert_eq!(lines[5], "labels printed: 2 for 2 parcels");
}

#[test]
fn testing_your_service_passes_its_checks() {
    let text = printed(&mut example("testing_your_service"));
    let sold: Vec<_> =
        text.lines().filter_map(|line| line.strip_suffix(" sold")?.rsplit(' ').next()).collect();
    assert_eq!(sold, ["1", "1", "1", "0", "2"], "{text}");
}

#[test]
fn axum_handler_answers_with_the_status_of_each_error() {
    let text = printed(&mut example("axum_handler"));
    let lines: Vec<_> = text.lines().collect();
    let status = |line: usize, what: &str| {
        lines[line].strip_prefix(what).unwrap_or_else(|| panic!("{text}")).trim()
    };
    assert_eq!(status(0, "a charge "), "200 OK");
    assert_eq!(status(1, "the same again "), "200 OK");
    assert_eq!(status(2, "the key, another amount "), "422 Unprocessable Entity");
    assert_eq!(status(3, "no key "), "400 Bad Request");
    let (conflict, wait) = status(4, "a double submit ")
        .split_once(", retry after ")
        .unwrap_or_else(|| panic!("{text}"));
    assert_eq!(conflict, "409 Conflict");
    assert!(
        wait.strip_suffix(" s")
            .and_then(|wait| wait.parse().ok())
            .is_some_and(|wait: u64| wait >= 1),
        "{text}"
    );
    assert_eq!(status(5, "a double submit "), "200 OK");
    assert!(
        status(6, "at shutdown ").starts_with("503 Service Unavailable, retry after "),
        "{text}"
    );
    assert_eq!(lines[7], "the bank made 2 charges");
}

#[test]
fn error_policy_stores_holds_and_releases() {
    let text = printed(&mut example("error_policy"));
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "declined  first try  the bank was asked 1x: the card was declined");
    assert_eq!(lines[1], "declined  retry      the bank was asked 1x: the card was declined");
    assert_eq!(
        lines[2],
        "timeout   first try  the bank was asked 1x: the bank gave no answer in time"
    );
    assert!(
        lines[3].starts_with("timeout   retry      the bank was asked 1x: payments.charge ["),
        "{text}"
    );
    assert!(lines[3].contains("it is not known whether it finished"), "{text}");
    assert_eq!(lines[4], "busy      first try  the bank was asked 1x: the bank is busy");
    assert_eq!(lines[5], "busy      retry      the bank was asked 2x: receipt for `busy`");
    assert!(lines[7].contains(" is InDoubt because "), "{text}");
    assert_eq!(
        lines[8],
        "timeout   retry      the bank was asked 1x: receipt from the bank's books"
    );
}

#[test]
fn swap_store_runs_the_same_service_on_the_store_of_the_variable() {
    let text = printed(&mut example("swap_store"));
    assert!(text.starts_with("store:          memory\n"), "{text}");
    assert!(text.contains("second call:    parcel with a lamp for order-1\n"), "{text}");
    assert!(text.contains("another item:   refused, Mismatch\n"), "{text}");
    assert!(text.ends_with("parcels packed: 2\n"), "{text}");

    let Output { status, stdout, stderr } =
        run(example("swap_store").env("STORE_URL", "floppy:secret"));
    let stderr = String::from_utf8_lossy(&stderr);
    assert!(!status.success() && stdout.is_empty(), "{stderr}");
    assert!(stderr.contains("`floppy:`") && !stderr.contains("secret"), "{stderr}");
}

#[cfg(feature = "redis")]
mod redis {
    use std::process::Output;

    use idempotency_test_support::server::{RedisOptions, RedisServer};

    use super::{example, printed, run};

    #[tokio::test]
    async fn swap_store_keeps_its_parcels_in_redis() -> anyhow::Result<()> {
        let server = RedisServer::start(RedisOptions::new().private()).await?;
        for packed in [2, 0] {
            let text = printed(example("swap_store").env("STORE_URL", server.url()));
            assert!(text.starts_with("store:          redis\n"), "{text}");
            assert!(text.ends_with(&format!("parcels packed: {packed}\n")), "{text}");
        }
        Ok(())
    }

    fn assert_account_of_the_day(text: &str) {
        assert!(text.starts_with("worker 1 was killed (SIGKILL)"), "{text}");
        // How many payments were under way when it died, if any, is the scheduler's choice: the
        // sums hold whatever it was.
        for total in ["moved, EUR   12032.58 ", "moved, GBP    6770.99 ", "moved, USD    1013.17 "]
        {
            assert!(text.contains(total), "{text}");
        }
        assert!(text.ends_with("every payment was charged once: 228 charges\n"), "{text}");
    }

    #[tokio::test]
    async fn redis_shared_has_the_right_total_although_a_worker_was_killed() -> anyhow::Result<()> {
        let server = RedisServer::start(RedisOptions::new().private()).await?;
        assert_account_of_the_day(&printed(
            example("redis_shared").env_remove("REDIS_URL").arg(server.url()),
        ));
        assert_account_of_the_day(&printed(example("redis_shared").env("REDIS_URL", server.url())));
        Ok(())
    }

    #[test]
    fn redis_shared_starts_a_server_of_its_own_or_says_how_to_get_one() {
        assert_account_of_the_day(&printed(example("redis_shared").env_remove("REDIS_URL")));
        let mut command = example("redis_shared");
        let Output { status, stderr, .. } =
            run(command.env_remove("REDIS_URL").env("PATH", "/nowhere"));
        let stderr = String::from_utf8_lossy(&stderr);
        assert_eq!(status.code(), Some(1), "{stderr}");
        assert!(
            stderr.contains("apt install redis-server") && stderr.contains("REDIS_URL"),
            "{stderr}"
        );
    }
}

#[cfg(feature = "sqlite")]
#[test]
fn fulfil_order_goes_on_after_the_last_finished_step() {
    let text = printed(&mut example("fulfil_order"));
    let processes: Vec<Vec<_>> = text
        .split("a process starts\n")
        .skip(1)
        .map(|process| process.lines().filter_map(|line| line.strip_prefix("  ")).collect())
        .collect();
    let steps = |process: usize| &processes[process][..4];
    assert_eq!(steps(0), ["reserve ran", "charge ran", "ship started", "killed"], "{text}");
    assert_eq!(
        steps(1),
        ["reserve replayed", "charge replayed", "ship ran", "notify ran"],
        "{text}"
    );
    assert_eq!(
        steps(2),
        ["reserve ran", "charge ran", "ship failed", "not fulfilled: no truck today"],
        "{text}"
    );
    assert_eq!(
        steps(3),
        ["reserve replayed", "charge replayed", "ship ran", "notify ran"],
        "{text}"
    );
    assert!(
        processes[1][4].starts_with("fulfilled: parcel from shelf 11, paid with ch_"),
        "{text}"
    );
    assert!(text.ends_with("each effect happened once\n"), "{text}");
}

/// The provider's books are its own: each line is a request that arrived there, with the payment
/// and the key.
#[cfg(feature = "sqlite")]
#[test]
fn verify_with_provider_charges_once_whenever_the_worker_was_killed() {
    let directory = tempfile::tempdir().expect("a directory");
    let kept = directory.path().join("kept");
    let text = printed(example("verify_with_provider").arg(&kept));
    let books = fs::read_to_string(kept.join("books")).expect("the provider has books");
    let requests: Vec<[&str; 3]> = books
        .lines()
        .map(|line| {
            line.split(' ').collect::<Vec<_>>().try_into().unwrap_or_else(|_| panic!("{line}"))
        })
        .collect();
    for payment in ["1", "2", "3"] {
        let of_payment: Vec<_> =
            requests.iter().filter(|[_, noted, _]| *noted == payment).collect();
        let count = |what| of_payment.iter().filter(|[noted, ..]| *noted == what).count();
        assert_eq!((count("charged"), count("repeated")), (1, 0), "payment {payment}: {books}");
        assert!(count("asked") > 0, "payment {payment}: {books}");
        assert!(
            of_payment.iter().all(|[.., key]| *key == of_payment[0][2]),
            "one key for all attempts: {books}"
        );
    }
    let position = |line: &str| {
        requests.iter().position(|request| request[..2].join(" ") == line).expect(line)
    };
    assert!(position("charged 1") < position("asked 1"), "killed after the charge: {books}");
    assert!(position("asked 2") < position("charged 2"), "killed before the charge: {books}");

    assert_eq!(text.lines().filter(|line| *line == "  killed").count(), 4, "{text}");
    let (_, while_down) =
        text.split_once("the provider is down\n").expect("the provider goes down");
    let (while_down, afterwards) =
        while_down.split_once("the provider is up again\n").expect("and up again");
    assert!(while_down.contains("asked the provider, no answer: "), "{text}");
    assert!(
        while_down.contains("it is not known whether it finished") && !while_down.contains("paid"),
        "{text}"
    );
    assert!(afterwards.contains("asked the provider, it has charged: ch_3\n"), "{text}");
    assert!(afterwards.contains("  paid, ch_3\n"), "{text}");
    assert!(text.ends_with("every payment was charged once\n"), "{text}");
}

#[cfg(feature = "sqlite")]
#[test]
fn operator_resolve_answers_once_for_each_payment_in_doubt() {
    let directory = tempfile::tempdir().expect("a directory");
    let kept = directory.path().join("kept");
    let text = printed(example("operator_resolve").arg(&kept));
    assert_eq!(
        fs::read_to_string(kept.join("books")).expect("the bank has books"),
        "charged 7\ncharged 8\n"
    );

    let count = |part: &str| text.lines().filter(|line| line.starts_with(part)).count();
    let told = text.lines().filter(|line| line.starts_with("  refused: payments.charge ["));
    for part in [
        "it is not known whether it finished",
        "and its lease expired",
        "attempt 1",
        "first claimed ",
        "resolve(",
    ] {
        assert_eq!(told.clone().filter(|line| line.contains(part)).count(), 2, "{part}: {text}");
    }
    assert!(text.contains("in doubt are 2 payments\n"), "{text}");
    let mut holders: Vec<_> =
        text.lines().filter_map(|line| line.strip_prefix("  held by ")).collect();
    assert!(holders.iter().all(|holder| holder.contains('/')), "{text}");
    holders.dedup();
    assert_eq!(holders.len(), 2, "each was held by a worker of its own: {text}");
    assert_eq!((count("  Ada "), count("  Bob answers too late: ")), (2, 2), "{text}");
    let (_, afterwards) =
        text.rsplit_once("payment 7, a worker starts\n").expect("it is called again");
    assert_eq!(
        afterwards,
        "  done: receipt of payment 7\npayment 8, a worker starts\n  charging\n  charged\n  done: receipt of payment \
         8\nevery payment was charged once\n"
    );
}

#[cfg(feature = "sqlite")]
#[tokio::test]
async fn advance_with_fence_refuses_the_late_owner_in_the_row() -> anyhow::Result<()> {
    use sqlx::Connection as _;
    let directory = tempfile::tempdir()?;
    let kept = directory.path().join("kept");
    let text = printed(example("advance_with_fence").arg(&kept));
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(kept.join("shop.db"));
    let mut shop = sqlx::SqliteConnection::connect_with(&options).await?;
    let tries: Vec<(String, i64, bool)> =
        sqlx::query_as("SELECT owner, fence, written FROM tries ORDER BY fence")
            .fetch_all(&mut shop)
            .await?;
    let order: (String, i64) =
        sqlx::query_as("SELECT state, fence FROM orders").fetch_one(&mut shop).await?;
    let [(slow, smaller, false), (next, larger, true)] = &tries[..] else {
        panic!("{tries:?}\n{text}")
    };
    assert_eq!((&**next, &**slow), ("the next owner", "the slow owner"), "{text}");
    assert!(larger > smaller, "{tries:?}");
    assert_eq!(order, ("packed by the next owner".to_owned(), *larger));
    assert!(text.contains("the slow owner wakes up; its lease is over\n"), "{text}");
    // Its own, or the answer of who took it over, if that is stored by then.
    let ends = [
        "an error: a later owner has written to the order",
        "the result of the call: packed by the next owner",
    ];
    assert!(
        ends.iter().any(|end| text.contains(&format!("the slow owner returns {end}\n"))),
        "{text}"
    );
    Ok(())
}

#[cfg(feature = "sqlite")]
#[test]
fn inventory_happens_once_also_in_a_second_run_on_the_same_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("warehouse.db");
    for _ in 0..2 {
        let text = printed(example("inventory").arg(&path));
        assert!(text.contains("360 sent, 300 accepted, 60 sold out"), "{text}");
        assert!(
            text.contains("0 lamps left, 40 serial numbers, chairs at 2090 in version 10"),
            "{text}"
        );
        assert!(text.ends_with("everything happened once\n"), "{text}");
    }
}

#[cfg(feature = "postgres")]
mod postgres {
    use idempotency_test_support::server::{PostgresOptions, PostgresServer};

    use super::{example, printed, run};

    #[tokio::test]
    async fn postgres_transfer_keeps_the_sums_although_a_worker_was_killed() -> anyhow::Result<()> {
        let server = PostgresServer::start(PostgresOptions::new()).await?;
        let url = server.database("transfer").await?;
        for command in [
            example("postgres_transfer").env_remove("DATABASE_URL").arg(&url),
            example("postgres_transfer").env("DATABASE_URL", &url),
        ] {
            let text = printed(command);
            assert!(text.contains("killed (SIGKILL) after 40 of 300 transfers"), "{text}");
            assert!(text.contains("transfers made: 300, postings: 600, records: 300"), "{text}");
            assert!(text.ends_with("every transfer was made once\n"), "{text}");
        }
        Ok(())
    }

    #[test]
    fn postgres_transfer_without_a_database_says_how_to_give_one() {
        let output = run(example("postgres_transfer").env_remove("DATABASE_URL"));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && stderr.contains("DATABASE_URL"), "{stderr}");
    }
}
