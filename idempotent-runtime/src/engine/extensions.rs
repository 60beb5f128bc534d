//! Values of edges, by type: in the scope of a body, and with an attempt.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use super::task_state::TaskState;

type Extension = Arc<dyn Any + Send + Sync>;

/// The values that edges have put into the scope of the running body, at most one of each type.
///
/// [`EdgeCall::extension`](crate::edge::EdgeCall::extension) adds one. It is found in the body, in the
/// verification of an earlier attempt, in the calls that they make, and in tasks that run
/// [`in_current_call`](crate::InCurrentCall::in_current_call).
///
/// ```
/// # use std::time::Duration;
/// # use idempotency::{Idempotency, store::MemoryStore};
/// use idempotency::edge::{EdgeCall, EdgeResult, Extensions};
/// use idempotency::key::Key;
///
/// /// The subject of a message.
/// #[derive(Clone, Debug, PartialEq)]
/// struct Subject(String);
///
/// fn subject() -> Option<Subject> {
///     Extensions::current().get().cloned()
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// # let engine = Idempotency::new(MemoryStore::new());
/// let call = EdgeCall::new(&engine, "mail", Key::of(&7), Duration::from_secs(60))
///     .extension(Subject("hello".to_owned()));
/// call.run(async |_| {
///     assert_eq!(subject(), Some(Subject("hello".to_owned())));
///     ((), EdgeResult::completed("").into())
/// })
/// .await;
/// assert_eq!(subject(), None);
/// # }
/// ```
#[derive(Clone, Default)]
pub struct Extensions(Option<Arc<[Extension]>>);

impl Extensions {
    /// Returns the values in the scope of the code that calls this.
    pub fn current() -> Self {
        TaskState::current().extensions()
    }

    /// Returns the value of type `T`, if there is one.
    pub fn get<T: Send + Sync + 'static>(&self) -> Option<&T> {
        self.iter().find_map(|extension| extension.downcast_ref())
    }

    /// Returns the value of type `T`, if there is one.
    pub(crate) fn shared<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        self.iter().find(|extension| (***extension).is::<T>())?.clone().downcast().ok()
    }

    /// Calls `function` with `value` in its scope, in place of the outer value of its type. With
    /// `None` there is no value of that type.
    ///
    /// An edge that does not guard a call, and lets it pass, hides in this way what an edge around
    /// it has said about another call.
    ///
    /// ```
    /// use idempotency::edge::Extensions;
    ///
    /// let number = || Extensions::current().get::<u32>().copied();
    /// Extensions::scope(Some(7_u32), || {
    ///     assert_eq!(number(), Some(7));
    ///     assert_eq!(Extensions::scope(None::<u32>, number), None);
    /// });
    /// assert_eq!(number(), None);
    /// ```
    ///
    /// It ends when `function` returns. The body of a future runs in its polls, so each of them is
    /// to be called in this way; or `function` returns the future
    /// [in the current call](crate::InCurrentCall::in_current_call).
    pub fn scope<T: Send + Sync + 'static, R>(value: Option<T>, function: impl FnOnce() -> R) -> R {
        TaskState::current().with_extension(value).enter(function)
    }

    /// Returns these values and `value`, which replaces one of its type.
    pub(crate) fn with<T: Send + Sync + 'static>(&self, value: Arc<T>) -> Self {
        Self(Some(self.except::<T>().chain([value as Extension]).collect()))
    }

    /// Returns these values without the one of type `T`.
    pub(crate) fn without<T: Send + Sync + 'static>(&self) -> Self {
        Self(Some(self.except::<T>().collect()))
    }

    fn except<T: Send + Sync + 'static>(&self) -> impl Iterator<Item = Extension> {
        self.iter().filter(|extension| !(***extension).is::<T>()).cloned()
    }

    /// Returns these values and `inner`, which replace those of their types.
    pub(crate) fn and(self, inner: &Self) -> Self {
        if inner.0.is_none() {
            return self;
        }
        if self.0.is_none() {
            return inner.clone();
        }
        let is_replaced = |outer: &Extension| {
            inner.iter().any(|inner| (**inner).type_id() == (**outer).type_id())
        };
        let outer = self.iter().filter(|outer| !is_replaced(outer));
        Self(Some(outer.chain(inner.iter()).cloned().collect()))
    }

    fn iter(&self) -> impl Iterator<Item = &Extension> {
        self.0.iter().flat_map(|extensions| extensions.iter())
    }
}

/// Shows only the number of values: they are not ours to print.
impl fmt::Debug for Extensions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Extensions({})", self.iter().count())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::Extensions;

    #[test]
    fn there_is_one_value_of_each_type_and_the_inner_one_counts() {
        let outer = Extensions::default().with(Arc::new(1_u32)).with(Arc::new("outer"));
        let outer = outer.with(Arc::new(2_u32));
        assert_eq!((outer.get::<u32>(), outer.get::<u64>()), (Some(&2), None));
        assert_eq!(format!("{outer:?}"), "Extensions(2)");

        let inner = Extensions::default().with(Arc::new("inner")).with(Arc::new(3_u64));
        let both = outer.clone().and(&inner);
        assert_eq!(both.get(), Some(&"inner"));
        assert_eq!((both.get::<u32>(), both.shared::<u64>()), (Some(&2), Some(Arc::new(3))));
        assert_eq!(format!("{both:?}"), "Extensions(3)");
        assert_eq!(outer.get(), Some(&"outer"), "the outer scope keeps its own");

        let hidden = both.without::<u32>();
        assert_eq!((hidden.get::<u32>(), hidden.get()), (None, Some(&"inner")));
        assert_eq!(format!("{hidden:?}"), "Extensions(2)");
    }
}
