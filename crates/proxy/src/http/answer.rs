//! Answers of the proxy's own.

use super::body::Body;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};

/// An answer that says what was wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Its status.
    pub status: StatusCode,
    /// One line for the client.
    pub text: &'static str,
    /// One line for the log, where there is more to say than clients are told.
    pub reason: Option<String>,
}

impl Refused {
    /// Without a reason of its own.
    #[must_use]
    pub const fn new(status: StatusCode, text: &'static str) -> Self {
        Self { status, text, reason: None }
    }

    /// With what the log is to say.
    #[must_use]
    pub fn because(status: StatusCode, text: &'static str, reason: impl Into<String>) -> Self {
        Self { status, text, reason: Some(reason.into()) }
    }

    /// Whether the request was such that what follows on its connection can't be trusted.
    #[must_use]
    pub fn ends_connection(&self) -> bool {
        matches!(self.status, StatusCode::BAD_REQUEST | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED)
    }

    /// As a response.
    #[must_use]
    pub fn response(&self) -> Response<Body> {
        let mut response = Response::new(Body::text(format!("{}\n", self.text)));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
