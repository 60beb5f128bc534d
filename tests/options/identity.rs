//! Which functions are one operation. Two that are not, and have one name, never get each other's
//! answers.

use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Barrier;

use super::*;

/// A call of key 1, which answers with a number that no other function gives.
type Made = Pin<Box<dyn Future<Output = Result<u64, Error>>>>;
type Caller = fn() -> Made;

struct Card;
struct Wallet;

macro_rules! on_one_line {
    () => {
        impl Card {
            #[idempotent(key = 1, ttl = "1h")]
            async fn charge(&self) -> Result<u64, Error> {
                Ok(1)
            }
        }
        impl Wallet {
            #[idempotent(key = 1, ttl = "1h")]
            async fn charge(&self) -> Result<u64, Error> {
                Ok(2)
            }
        }
    };
}
on_one_line!();

macro_rules! from_the_same_tokens {
    ($($owner:ident answers $answer:literal),*) => {$(
        impl $owner {
            #[idempotent(key = 1, ttl = "1h")]
            async fn refund(&self) -> Result<u64, Error> {
                Ok($answer)
            }

            #[idempotent(key = 1, ttl = "1h", name = "identity.named_by_a_macro")]
            async fn named(&self) -> Result<u64, Error> {
                Ok($answer)
            }

            fn nested() -> Made {
                #[idempotent(key = 1, ttl = "1h")]
                async fn inner() -> Result<u64, Error> {
                    Ok($answer)
                }
                let closure = || Box::pin(inner());
                closure()
            }
        }
    )*};
}
from_the_same_tokens!(Card answers 1, Wallet answers 2);

trait Provides {
    const ANSWER: u64;

    #[idempotent(key = 1, ttl = "1h")]
    async fn provided(&self) -> Result<u64, Error> {
        Ok(Self::ANSWER)
    }

    #[idempotent(key = 1, ttl = "1h", name = "identity.provided")]
    async fn provided_by_name(&self) -> Result<u64, Error> {
        Ok(Self::ANSWER)
    }
}

impl Provides for Card {
    const ANSWER: u64 = 1;
}

impl Provides for Wallet {
    const ANSWER: u64 = 2;
}

impl<const N: usize> Provides for [u8; N] {
    const ANSWER: u64 = N as u64;
}

/// Two types of one text: they are declared in two blocks of one function.
fn of_a_local_type(second: bool) -> Made {
    if second {
        struct Local;
        impl Provides for Local {
            const ANSWER: u64 = 2;
        }
        Box::pin(async { Local.provided().await })
    } else {
        struct Local;
        impl Provides for Local {
            const ANSWER: u64 = 1;
        }
        Box::pin(async { Local.provided().await })
    }
}

#[async_trait::async_trait(?Send)]
trait Boxing {
    fn answer(&self) -> u64;

    #[idempotent(key = 1, ttl = "1h")]
    async fn boxed(&self) -> Result<u64, Error> {
        Ok(self.answer())
    }
}

impl Boxing for Card {
    fn answer(&self) -> u64 {
        1
    }
}

impl Boxing for Wallet {
    fn answer(&self) -> u64 {
        2
    }
}

struct Repository<T>(PhantomData<T>);

impl<T: Send + 'static> Repository<T> {
    const ANSWER: u64 = size_of::<T>() as u64;

    const fn new() -> Self {
        Self(PhantomData)
    }

    #[idempotent(key = 1, ttl = "1h")]
    async fn save(&self) -> Result<u64, Error> {
        Ok(Self::ANSWER)
    }

    #[idempotent(key = 1, ttl = "1h")]
    async fn without_a_receiver() -> Result<u64, Error> {
        Ok(Self::ANSWER)
    }

    #[idempotent(key = 1, ttl = "1h", detach)]
    async fn detached(self) -> Result<u64, Error> {
        Ok(Self::ANSWER)
    }

    #[idempotent(key = 1, ttl = "1h", on_crash = verify(async |_| Ok(idempotency::Verdict::Unknown)))]
    async fn verified(&self) -> Result<u64, Error> {
        Ok(Self::ANSWER)
    }

    #[idempotent(key = 1, ttl = "1h", name = "identity.save")]
    async fn named(&self) -> Result<u64, Error> {
        Ok(Self::ANSWER)
    }
}

struct Letter<const C: char>;

impl<const C: char> Letter<C> {
    #[idempotent(key = 1, ttl = "1h")]
    async fn write(&self) -> Result<u64, Error> {
        Ok(C.into())
    }

    async fn of_all_letters(&self) -> Result<u64, Error> {
        #[idempotent(key = 1, ttl = "1h")]
        async fn inside() -> Result<u64, Error> {
            Ok(26)
        }
        inside().await
    }
}

struct Borrowing<'a>(&'a str);

impl Borrowing<'_> {
    #[idempotent(key = self.0, ttl = "1h")]
    async fn save(&self) -> Result<usize, Error> {
        Ok(self.0.len())
    }
}

/// Types of which the methods are elsewhere, as in a service that keeps its data and what it does
/// with it apart.
mod data {
    pub struct Voucher;
    pub struct Loan<'a>(pub &'a str);
    pub struct Batch<T>(pub T);

    pub trait Redeems {
        fn redeem(&self) -> super::Made;
    }
}

impl data::Voucher {
    #[idempotent(key = 1, ttl = "1h")]
    async fn issue(&self) -> Result<u64, Error> {
        Ok(1)
    }
}

impl data::Redeems for data::Voucher {
    #[idempotent(key = 1, ttl = "1h")]
    fn redeem(&self) -> Pin<Box<dyn Future<Output = Result<u64, Error>>>> {
        Box::pin(async { Ok(2) })
    }
}

impl data::Loan<'_> {
    #[idempotent(key = self.0, ttl = "1h")]
    async fn prolong(&self) -> Result<u64, Error> {
        Ok(3)
    }
}

const _: () = {
    impl data::Voucher {
        #[idempotent(key = 1, ttl = "1h")]
        async fn expire(&self) -> Result<u64, Error> {
            Ok(4)
        }
    }
};

impl data::Batch<u8> {
    #[idempotent(key = 1, ttl = "1h")]
    async fn send(&self) -> Result<u64, Error> {
        Ok(self.0.into())
    }
}

/// Functions of which the second would share the first one's records.
const PAIRS: [(&str, Caller, Caller); 9] = [
    (
        "on_one_line",
        || Box::pin(async { Card.charge().await }),
        || Box::pin(async { Wallet.charge().await }),
    ),
    (
        "same_tokens",
        || Box::pin(async { Card.refund().await }),
        || Box::pin(async { Wallet.refund().await }),
    ),
    (
        "named_by_a_macro",
        || Box::pin(async { Card.named().await }),
        || Box::pin(async { Wallet.named().await }),
    ),
    ("nested", || Card::nested(), || Wallet::nested()),
    (
        "provided",
        || Box::pin(async { Card.provided().await }),
        || Box::pin(async { Wallet.provided().await }),
    ),
    (
        "arrays",
        || Box::pin(async { [0; 1].provided().await }),
        || Box::pin(async { [0; 2].provided().await }),
    ),
    ("local_types", || of_a_local_type(false), || of_a_local_type(true)),
    (
        "boxed",
        || Box::pin(async { Card.boxed().await }),
        || Box::pin(async { Wallet.boxed().await }),
    ),
    (
        "of_both",
        || Box::pin(async { Card.provided().await }),
        || Box::pin(async { [0; 2].provided().await }),
    ),
];

/// Functions that have parameters where the attribute cannot see them: not even the first is
/// called.
const PARAMETERS: [(&str, Caller, Caller); 6] = [
    (
        "letters",
        || Box::pin(async { Letter::<'x'>.write().await }),
        || Box::pin(async { Letter::<'y'>.write().await }),
    ),
    (
        "brackets",
        || Box::pin(async { Letter::<'<'>.write().await }),
        || Box::pin(async { Letter::<','>.write().await }),
    ),
    (
        "methods",
        || Box::pin(async { Repository::<u8>::new().save().await }),
        || Box::pin(async { Repository::<u16>::new().save().await }),
    ),
    (
        "without_a_receiver",
        || Box::pin(Repository::<u8>::without_a_receiver()),
        || Box::pin(Repository::<u16>::without_a_receiver()),
    ),
    (
        "detached",
        || Box::pin(Repository::<u8>::new().detached()),
        || Box::pin(Repository::<u16>::new().detached()),
    ),
    (
        "verified",
        || Box::pin(async { Repository::<u8>::new().verified().await }),
        || Box::pin(async { Repository::<u16>::new().verified().await }),
    ),
];

fn assert_refused(case: &str, answer: Result<u64, Error>) {
    let error = answer.expect_err(case);
    assert_eq!(error.kind(), ErrorKind::Config, "{case}: {error}");
    assert!(error.to_string().contains("name = \""), "{case}: {error}");
}

#[tokio::test]
async fn the_second_function_of_a_name_is_refused_in_both_orders() {
    for (case, one, other) in PAIRS {
        for (first, answer, second) in [(one, 1, other), (other, 2, one)] {
            let engine = engine();
            assert_eq!(first().with_engine(&engine).await.unwrap(), answer, "{case}");
            assert_refused(case, second().with_engine(&engine).await);
            assert_eq!(
                first().with_engine(&engine).await.unwrap(),
                answer,
                "{case}: the first one keeps its records"
            );
            assert_refused(case, second().with_engine(&engine).await);
        }
    }
}

#[tokio::test]
async fn a_function_with_parameters_that_has_no_name_is_refused_at_its_first_call() {
    for (case, one, other) in PARAMETERS {
        for (first, second) in [(one, other), (other, one)] {
            let engine = engine();
            assert_refused(case, first().with_engine(&engine).await);
            assert_refused(case, second().with_engine(&engine).await);
        }
    }
}

#[test]
fn threads_that_meet_under_one_name_never_get_each_others_answers() {
    const THREADS: usize = 8;
    for (case, one, other) in PAIRS {
        let (engine, start) = (engine(), Barrier::new(THREADS));
        let call = |thread: usize| {
            let (call, own) = if thread.is_multiple_of(2) { (one, 1) } else { (other, 2) };
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            start.wait();
            (own, runtime.block_on(async move { call().await }.with_engine(&engine)))
        };
        let answers: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..THREADS).map(|thread| scope.spawn(move || call(thread))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let winner =
            answers.iter().find_map(|(own, answer)| answer.is_ok().then_some(*own)).expect(case);
        for (own, answer) in answers {
            if own == winner {
                assert_eq!(answer.unwrap(), own, "{case}");
            } else {
                assert_refused(case, answer);
            }
        }
    }
}

#[tokio::test]
async fn a_name_is_shared_by_all_types_of_one_function() {
    let engine = engine();
    async {
        assert_eq!(Repository::<u8>::new().named().await.unwrap(), 1);
        assert_eq!(Repository::<u16>::new().named().await.unwrap(), 1, "the answer of the first");
        assert_eq!(Card.provided_by_name().await.unwrap(), 1);
        assert_eq!(Wallet.provided_by_name().await.unwrap(), 1, "the answer of the first");
    }
    .with_engine(&engine)
    .await;
}

#[tokio::test]
async fn a_function_inside_of_a_method_is_one_whatever_parameters_are_around_the_method() {
    let engine = engine();
    async {
        assert_eq!(Letter::<'x'>.of_all_letters().await.unwrap(), 26);
        assert_eq!(Letter::<'<'>.of_all_letters().await.unwrap(), 26);
    }
    .with_engine(&engine)
    .await;
}

#[tokio::test]
async fn lifetimes_are_no_parameters() {
    let (engine, short) = (engine(), String::from("short"));
    async {
        assert_eq!(Borrowing("static").save().await.unwrap(), 6);
        assert_eq!(Borrowing(&short).save().await.unwrap(), 5);
    }
    .with_engine(&engine)
    .await;
}

#[tokio::test]
async fn a_method_that_is_in_another_module_than_its_type_is_one_function() {
    use data::{Batch, Loan, Redeems as _, Voucher};

    let engine = engine();
    async {
        assert_eq!(Voucher.issue().await.unwrap(), 1);
        assert_eq!(Voucher.redeem().await.unwrap(), 2);
        assert_eq!(Loan("book").prolong().await.unwrap(), 3);
        assert_eq!(Voucher.expire().await.unwrap(), 4);
        assert_refused("parameters count there too", Batch(5_u8).send().await);
    }
    .with_engine(&engine)
    .await;
}

#[tokio::test]
async fn a_refusal_says_which_functions_would_share_the_operation() {
    let engine = engine();
    async {
        let text = Repository::<u8>::new().save().await.unwrap_err().to_string();
        assert!(text.contains("Repository<u8>::save` is one of many functions"), "{text}");
        assert!(text.contains("name = \"payments.save\""), "{text}");
        Card.provided().await.unwrap();
        let text = Wallet.provided().await.unwrap_err().to_string();
        assert!(text.contains("Card as ") && text.contains("Wallet as "), "{text}");
        Card.charge().await.unwrap();
        let text = Wallet.charge().await.unwrap_err().to_string();
        assert!(text.contains("both written by a macro at tests/options/identity.rs:"), "{text}");
    }
    .with_engine(&engine)
    .await;
}
