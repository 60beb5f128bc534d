//! A server that closes connections without a response where the service requests it. Use
//! `axum::serve` for everything else.

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tower::ServiceExt as _;

/// The pause after a connection that could not be accepted.
const PAUSE: Duration = Duration::from_millis(100);

/// An extension of a response that is not sent: the connection is closed instead.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the answer is lost on the way")]
pub struct LostAnswer;

/// Serves until the process ends.
pub async fn serve(listener: TcpListener, router: Router) -> ! {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // The client has already disconnected, or too many files are open.
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let router = router.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| answer(router.clone(), request));
            // One request per connection. On a reused connection, browsers automatically retry a
            // request whose response is lost, even a payment, and the page would not notice the
            // loss.
            let connection = http1::Builder::new()
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            // It ends with an error if the response is lost, and if the client has disconnected.
            let _ = connection.await;
        });
    }
}

async fn answer(router: Router, request: Request<Incoming>) -> Result<Response<Body>, LostAnswer> {
    let Ok::<_, Infallible>(response) = router.oneshot(request.map(Body::new)).await;
    match response.extensions().get::<LostAnswer>() {
        Some(lost) => Err(*lost),
        None => Ok(response),
    }
}
