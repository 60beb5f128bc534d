//! The card provider. It is outside of the shop, knows nothing of keys, and charges on every
//! request: its books are where charges are counted.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The time that the provider takes: long enough for a second click to arrive meanwhile.
const PAUSE: Duration = Duration::from_millis(700);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Card {
    #[default]
    Good,
    Declined,
    /// The money is taken, and the provider does not answer.
    TimesOut,
}

/// The entry for an order in the provider's books.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Account {
    /// The number of requests for money.
    asked: u32,
    /// The number of charges that were made.
    charges: u32,
    #[serde(skip)]
    receipts: HashMap<String, Receipt>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Receipt {
    pub order: String,
    pub amount: u64,
    pub charge: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotCharged {
    Declined,
    /// The provider did not answer. It may have charged all the same.
    NoAnswer,
}

#[derive(Default)]
pub struct Provider {
    books: Mutex<HashMap<String, Account>>,
}

impl Provider {
    /// Charges, whether or not it did so before. `reference` is the shop's name for the payment.
    pub async fn charge(
        &self,
        order: &str,
        reference: &str,
        amount: u64,
        card: Card,
    ) -> Result<Receipt, NotCharged> {
        let receipt = self.enter(order, reference, amount, card);
        tokio::time::sleep(PAUSE).await;
        match card {
            Card::TimesOut => Err(NotCharged::NoAnswer),
            Card::Good | Card::Declined => receipt.ok_or(NotCharged::Declined),
        }
    }

    /// Returns the charge under this reference, for later lookups.
    pub fn receipt(&self, order: &str, reference: &str) -> Option<Receipt> {
        self.account(order).receipts.get(reference).cloned()
    }

    pub fn account(&self, order: &str) -> Account {
        self.books
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(order)
            .cloned()
            .unwrap_or_default()
    }

    fn enter(&self, order: &str, reference: &str, amount: u64, card: Card) -> Option<Receipt> {
        let mut books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
        let account = books.entry(order.to_owned()).or_default();
        account.asked += 1;
        if card == Card::Declined {
            return None;
        }
        account.charges += 1;
        let charge = format!("ch_{order}_{}", account.charges);
        let receipt = Receipt { order: order.to_owned(), amount, charge };
        account.receipts.insert(reference.to_owned(), receipt.clone());
        Some(receipt)
    }
}
