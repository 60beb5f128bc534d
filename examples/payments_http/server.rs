//! Connections that end without an answer where the service says so. Everybody else uses
//! `axum::serve`.

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

/// How long to wait after a connection that could not be accepted.
const PAUSE: Duration = Duration::from_millis(100);

/// In the extensions of a response: the connection is closed instead.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the answer is lost on the way")]
pub struct LostAnswer;

/// Serves until the process ends.
pub async fn serve(listener: TcpListener, router: Router) -> ! {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // The client has left already, or too many files are open.
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let router = router.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| answer(router.clone(), request));
            // One request per connection: where a connection was used before, browsers send a
            // request whose answer is lost again by themselves, also a payment, and the page would
            // not see that anything was lost.
            let connection = http1::Builder::new()
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            // It ends with an error when the answer is lost, and when the client has gone.
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
