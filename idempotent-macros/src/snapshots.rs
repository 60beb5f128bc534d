//! Snapshots of the complete expansion of canonical signatures.

use proc_macro2::TokenStream;

/// Returns the formatted expansion of `item` under `#[idempotent(args)]`.
fn expanded(args: &str, item: &str) -> String {
    let tokens = |source: &str| source.parse::<TokenStream>().unwrap();
    let output = crate::rewrite(tokens(args), tokens(item));
    prettyplease::unparse(&syn::parse2(output).unwrap())
}

/// As [`expanded`], for a method.
fn expanded_method(args: &str, item: &str) -> String {
    let tokens = |source: &str| source.parse::<TokenStream>().unwrap();
    let output = crate::rewrite(tokens(args), tokens(item));
    prettyplease::unparse(&syn::parse2(quote::quote!(impl Payments { #output })).unwrap())
}

#[test]
fn free_function() {
    insta::assert_snapshot!(expanded(
        r#"key = order.id, ttl = "24h""#,
        "/// Charges.\n pub async fn charge(order: &Order) -> Result<Receipt, PayError> { Ok(pay(order).await?) }",
    ));
}

#[test]
fn method_with_every_option() {
    insta::assert_snapshot!(expanded_method(
        r#"
        key = "order:{order.id}:{user}",
        ttl = "7 days",
        name = "payments.charge",
        scope = (order.tenant, self.shop),
        fingerprint = (order.amount, order.currency),
        lease = self.lease,
        on_conflict = wait("1500ms"),
        on_crash = retry,
        on_error = |error| decide(error),
        version = 2,
        upgrade = read_old,
        engine = &self.engine,
        crate = crate::reexported,
        "#,
        "async fn charge(&self, user: &str, order: Order) -> Result<Receipt, PayError> { self.pay(user, order).await }",
    ));
}

#[test]
fn generic_function() {
    insta::assert_snapshot!(expanded(
        r#"key = (id, (N, kind)), ttl = TTL, name = "save", on_error = store, on_conflict = reject"#,
        "async unsafe fn save<'a, T: Value, const N: usize>(mut id: u64, kind: impl Kind + 'a, (a, b): Pair) \
         -> Result<Vec<impl Debug>, Error> where T: 'a { #![allow(unused)] id += a; write::<T>(id, b) }",
    ));
}

#[test]
fn detached_method() {
    insta::assert_snapshot!(expanded_method(
        r#"key = order.id, ttl = "24h", detach, on_error = hold, on_conflict = wait"#,
        "async fn charge(self: Arc<Self>, #[cfg(feature = \"x\")] mut order: &Order, note: String, code: &'static str) \
         -> Result<Receipt, PayError> { self.pay(order, note, code).await }",
    ));
}

#[test]
fn detached_function_that_holds_its_arguments() {
    insta::assert_snapshot!(expanded(
        r#"key = id, ttl = "24h", detach"#,
        "async fn charge(id: u64, _permit: Permit, #[cfg(unix)] _: Guard, #[expect(unused)] (forgotten, _): Pair, _: &str) \
         -> Result<Receipt, PayError> { pay().await }",
    ));
}

#[test]
fn boxed_future() {
    insta::assert_snapshot!(expanded_method(
        r#"key = order.id, ttl = "24h", on_crash = hold"#,
        "fn charge<'a, 'async_trait>(&'a self, order: Order) \
         -> ::core::pin::Pin<Box<dyn ::core::future::Future<Output = Result<Receipt, PayError>> + Send + 'async_trait>> \
         where 'a: 'async_trait { Box::pin(async move { let order = order; self.pay(order).await }) }",
    ));
}

#[test]
fn function_that_asks() {
    insta::assert_snapshot!(expanded(
        r#"key = order.id, ttl = "24h", on_crash = verify(|context| async move { ask(&order, context).await }, settle = "5s"),
        after_expiry = refuse("30d")"#,
        "async fn charge(order: Order) -> Result<Receipt, PayError> { pay(order).await }",
    ));
}

#[test]
fn boxed_future_that_asks() {
    insta::assert_snapshot!(expanded_method(
        r#"key = order.id, ttl = "24h", on_crash = verify(ask)"#,
        "fn charge<'a, 'async_trait>(&'a self, order: Order) \
         -> ::core::pin::Pin<Box<dyn ::core::future::Future<Output = Result<Receipt, PayError>> + Send + 'async_trait>> \
         where 'a: 'async_trait { Box::pin(async move { let order = order; self.pay(order).await }) }",
    ));
}

#[test]
fn function_in_a_transaction() {
    insta::assert_snapshot!(expanded(
        r#"key = order.id, ttl = "24h", tx = tx, on_error = store"#,
        "async fn transfer(tx: &mut Transaction<'_, Postgres>, mut order: Order) -> Result<Receipt, PayError> \
         { order.book(); write(tx, order).await }",
    ));
}

#[test]
fn boxed_future_in_a_transaction() {
    insta::assert_snapshot!(expanded_method(
        r#"key = order.id, ttl = "24h", tx = tx"#,
        "fn transfer<'a, 'b, 'async_trait>(&'a self, tx: &'b mut PgConnection, order: Order) \
         -> ::core::pin::Pin<Box<dyn ::core::future::Future<Output = Result<Receipt, PayError>> + Send + 'async_trait>> \
         where 'a: 'async_trait, 'b: 'async_trait \
         { Box::pin(async move { let tx = tx; let order = order; self.write(tx, order).await }) }",
    ));
}

#[test]
fn function_with_a_mistake() {
    insta::assert_snapshot!(expanded(
        r#"key = order.id, ttl = "0s""#,
        "#[inline] async fn charge(order: &Order) -> Result<Receipt, PayError> { #![allow(unused)] pay(order).await }",
    ));
}

#[test]
fn another_facade_replaces_every_path() {
    let args = r#"key = (order.id, order.user), ttl = "24h", on_error = store, on_conflict = reject, detach, crate = a::b"#;
    let output = expanded(
        args,
        "async fn charge(order: &Order, note: String) -> Result<Receipt, PayError> { pay() }",
    );
    assert!(output.contains("a::b::__private::DetachedBody::run"), "{output}");
    assert!(!output.contains("idempotency"), "{output}");
}
