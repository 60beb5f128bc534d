//! `key`: expressions, tuples, templates, constants.

use super::*;

#[idempotent(key = order.id, ttl = "1h", name = "field")]
async fn field(order: &Order) -> Result<(), Error> {
    Ok(())
}

#[idempotent(key = (order.user, order.tenant, (order.id, "x")), ttl = "1h", name = "tuple")]
async fn tuple(order: Order) -> Result<Order, Error> {
    Ok(order)
}

#[idempotent(key = "order:{order.id}:{order.user}", ttl = "1h", name = "template")]
async fn template(order: &Order) -> Result<(), Error> {
    Ok(())
}

#[idempotent(key = "{a}/{b}", ttl = "1h", name = "only_separators")]
async fn only_separators(a: &str, b: &str) -> Result<(), Error> {
    Ok(())
}

#[idempotent(key = "{{{a}}}", ttl = "1h", name = "escaped")]
async fn escaped(a: u64) -> Result<(), Error> {
    Ok(())
}

#[idempotent(
    key = "{a.split('}').count() as u64}:{a.replace(\"{a\", \"\")}",
    ttl = "1h",
    name = "braces_in_literals"
)]
async fn braces_in_literals(a: &str) -> Result<(), Error> {
    Ok(())
}

#[idempotent(key = if own { &order.user } else { &other }, ttl = "1h", name = "branches")]
async fn branches(order: Order, other: String, own: bool) -> Result<Order, Error> {
    drop(other);
    Ok(order)
}

#[idempotent(key = "nightly", ttl = "1h", name = "constant")]
async fn constant() -> Result<(), Error> {
    Ok(())
}

#[idempotent(
    key = (a, a, a, a, a, a, a, a, a, a, a, a, a, a, a),
    ttl = "1h",
    name = "fifteen"
)]
async fn fifteen(a: u64, effects: &Effects) -> Result<usize, Error> {
    Ok(effects.happen())
}

#[tokio::test]
async fn a_key_is_the_value_of_its_expression() {
    let engine = engine();
    field(&order()).with_engine(&engine).await.unwrap();
    assert_eq!(state(engine.record("field", 7)).await, Some(State::Completed));
    tuple(order()).with_engine(&engine).await.unwrap();
    assert_eq!(
        state(engine.record("tuple", ("ada", "eu", (7, "x")))).await,
        Some(State::Completed)
    );
    constant().with_engine(&engine).await.unwrap();
    assert_eq!(state(engine.record("constant", "nightly")).await, Some(State::Completed));
}

#[tokio::test]
async fn a_template_is_the_tuple_of_its_parts() {
    let engine = engine();
    template(&order()).with_engine(&engine).await.unwrap();
    assert_eq!(
        state(engine.record("template", ("order:", 7, ":", "ada"))).await,
        Some(State::Completed)
    );
    assert_eq!(state(engine.record("template", "order:7:ada")).await, None, "it is not text");
    only_separators("a/b", "c").with_engine(&engine).await.unwrap();
    assert_eq!(
        state(engine.record("only_separators", ("a/b", "/", "c"))).await,
        Some(State::Completed)
    );
    assert_eq!(
        state(engine.record("only_separators", ("a", "/", "b/c"))).await,
        None,
        "the boundary counts"
    );
    escaped(5).with_engine(&engine).await.unwrap();
    assert_eq!(state(engine.record("escaped", ("{", 5, "}"))).await, Some(State::Completed));
}

#[tokio::test]
async fn braces_in_literals_of_a_value_are_no_end_of_it() {
    let engine = engine();
    braces_in_literals("{a}b}").with_engine(&engine).await.unwrap();
    assert_eq!(
        state(engine.record("braces_in_literals", (3, ":", "}b}"))).await,
        Some(State::Completed)
    );
}

#[tokio::test]
async fn branches_that_borrow_leave_the_argument_to_the_body() {
    let engine = engine();
    branches(order(), "eve".to_owned(), true).with_engine(&engine).await.unwrap();
    assert_eq!(state(engine.record("branches", "ada")).await, Some(State::Completed));
}

#[tokio::test]
async fn a_tuple_can_have_any_number_of_parts() {
    once(async |effects| fifteen(1, effects).await).await;
}

#[tokio::test]
async fn none_anywhere_is_a_missing_key() {
    let error = tuple(Order { tenant: None, ..order() }).with_engine(&engine()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MissingKey);
}

#[idempotent(key = count(id, evaluations), ttl = "1h")]
async fn counted(id: u64, evaluations: &Effects, effects: &Effects) -> Result<usize, Error> {
    Ok(effects.happen())
}

fn count(id: u64, evaluations: &Effects) -> u64 {
    evaluations.happen();
    id
}

#[tokio::test]
async fn a_key_is_evaluated_once_in_each_call() {
    let evaluations = Effects::default();
    once(async |effects| counted(1, &evaluations, effects).await).await;
    assert_eq!(evaluations.count(), 2, "one call ran, one was a replay");
    drop(counted(1, &evaluations, &Effects::default()));
    assert_eq!(evaluations.count(), 2, "nothing happens before the first poll");
}
