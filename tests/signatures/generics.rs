//! Type and const parameters, lifetimes, `impl Trait`, `where`.

use super::*;

#[idempotent(key = id, ttl = "24h", name = "signatures.type_parameter")]
async fn type_parameter<T>(id: u64, value: T, effects: &Effects) -> Result<T, Error>
where
    T: Serialize + DeserializeOwned,
{
    effects.happen();
    Ok(value)
}

#[idempotent(key = (N, id), ttl = "24h", name = "signatures.const_parameter")]
async fn const_parameter<const N: usize>(id: u64, effects: &Effects) -> Result<[usize; 1], Error> {
    Ok([effects.happen() + N])
}

#[idempotent(key = name, ttl = "24h")]
async fn lifetimes<'name, 'effects: 'name>(
    name: &'name str,
    effects: &'effects Effects,
) -> Result<String, Error> {
    Ok(format!("{name}{}", effects.happen()))
}

#[idempotent(key = "{id.to_string()}", ttl = "24h", name = "signatures.impl_trait")]
async fn impl_trait(
    id: impl Display,
    mut more: impl Iterator<Item = u64>,
    effects: &Effects,
) -> Result<u64, Error> {
    effects.happen();
    Ok(more.next().unwrap_or(0) + id.to_string().len() as u64)
}

#[idempotent(key = id, ttl = "24h", name = "signatures.impl_error")]
async fn where_clause<T, E>(id: u64, value: T, effects: &Effects) -> Result<T, E>
where
    T: Serialize + DeserializeOwned + Send,
    E: From<Error>,
{
    effects.happen();
    Ok(value)
}

#[idempotent(key = id, ttl = "24h")]
async fn hidden_result(
    id: u64,
) -> Result<impl Serialize + DeserializeOwned + Debug + PartialEq, Error> {
    Ok(id + 1)
}

struct Repository<T>(PhantomData<T>);

impl<T: Serialize + DeserializeOwned + Clone> Repository<T> {
    #[idempotent(key = id, ttl = "24h", name = "signatures.save")]
    async fn save(&self, id: u64, value: &T, effects: &Effects) -> Result<T, Error> {
        effects.happen();
        Ok(value.clone())
    }
}

#[tokio::test]
async fn types_constants_and_lifetimes() {
    assert_eq!(once(async |effects| type_parameter(1, "a".to_owned(), effects).await).await, "a");
    assert_eq!(once(async |effects| const_parameter::<4>(1, effects).await).await, [5]);
    assert_eq!(once(async |effects| lifetimes("a", effects).await).await, "a1");
    assert_eq!(once(async |effects| impl_trait("ab", [3].into_iter(), effects).await).await, 5);
    assert_eq!(
        once(async |effects| where_clause::<_, anyhow::Error>(1, 5, effects).await).await,
        5
    );
    let hidden = hidden_result(1).with_engine(&Idempotency::new(MemoryStore::new())).await.unwrap();
    assert_eq!(format!("{hidden:?}"), "2");
    assert_eq!(once(async |effects| Repository(PhantomData).save(1, &9, effects).await).await, 9);
}

#[tokio::test]
async fn all_instantiations_are_one_operation() {
    let effects = Effects::default();
    let second = async {
        type_parameter(1, 8_u8, &effects).await.unwrap();
        type_parameter(1, "text".to_owned(), &effects).await
    }
    .with_engine(&Idempotency::new(MemoryStore::new()))
    .await;
    assert_eq!(
        second.unwrap_err().kind(),
        ErrorKind::Decode,
        "the stored result is of the other type"
    );
    assert_eq!(effects.count(), 1);
}
