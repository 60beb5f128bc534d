//! The call of every test: a mail, which an edge sends in a world.

use idempotency::edge::{EdgeCall, EdgeResult, End};
use idempotency::key::Key;
use idempotency::record::RecordView;
use idempotency::{Error, Idempotency};

use crate::world::{DAY, World};

pub(crate) trait Mail {
    /// The call.
    fn mail(&self) -> EdgeCall;

    /// A body that sends the mail, and returns the number of times that this was done.
    fn send(&self) -> (usize, End);

    async fn mail_record(&self) -> Result<Option<RecordView>, Error>;
}

impl Mail for World {
    fn mail(&self) -> EdgeCall {
        mail(&self.engine)
    }

    fn send(&self) -> (usize, End) {
        let number = self.ledger.happen();
        (number, EdgeResult::completed(number.to_string()).into())
    }

    async fn mail_record(&self) -> Result<Option<RecordView>, Error> {
        mail(&self.other_process().engine).record().inspect().await
    }
}

pub(crate) fn mail(engine: &Idempotency) -> EdgeCall {
    EdgeCall::new(engine, "mail", Key::of("7"), DAY)
}
