//! Requests without protection, where the layer fails open and the store does not answer.

use http::{Request, Response};
use tracing::Instrument as _;

use super::effects::blames_the_key;
use super::guard::Guard;
use super::handler::{Handles, ready};
use super::request_body::RequestBody;
use super::response_body::ResponseBody;

impl Guard {
    /// Runs the handler without a claim, also in a task of its own.
    pub(super) async fn bypass<S, B, R>(
        &self,
        mut service: S,
        request: Request<RequestBody<B>>,
    ) -> Result<Response<ResponseBody<R>>, S::Error>
    where
        S: Handles<B, R>,
        B: Send + 'static,
        R: Send + 'static,
    {
        // `call` itself may already run service code, so it belongs inside the task too.
        let handler = self.call().run_unprotected(|| async move {
            ready(&mut service).await?;
            service.call(request).await
        });
        let handler = match handler {
            Ok(handler) => handler,
            Err(error) => return Ok(self.refused(&error)),
        };
        let options = &self.options;
        tracing::warn!(operation = %options.operation, "the store does not answer: a request runs unprotected");
        match tokio::spawn(handler.in_current_span()).await {
            Ok(response) => {
                let response = response?;
                let is_answer = blames_the_key(response.extensions()).is_none();
                let (mut head, body) = options.in_form(response).into_parts();
                if !(is_answer && options.markers.bypassed(&mut head.headers)) {
                    return Ok(options.unprotected_failure().map(ResponseBody::full));
                }
                Ok(Response::from_parts(head, body))
            }
            Err(_) => Ok(self.panicked(true)),
        }
    }
}
