//! Why a request gets no completion, as programs that speak to OpenAI's servers read it.

use serde_json::json;

use super::super::http::Response;

/// An answer that is an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) message: String,
    /// The field of the request that is wrong.
    pub(super) field: Option<String>,
}

impl Refusal {
    /// The client's mistake in `field`.
    pub(super) fn of_field(field: &str, message: String) -> Self {
        Self { status: 400, message, field: Some(field.into()) }
    }

    /// Another error.
    pub(super) fn new(status: u16, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), field: None }
    }

    /// As an object of JSON.
    pub(super) fn json(&self) -> serde_json::Value {
        let kind = if self.status < 500 { "invalid_request_error" } else { "server_error" };
        json!({ "error": { "message": self.message, "type": kind, "param": self.field, "code": null } })
    }

    /// As an answer of its own.
    pub(super) fn response(&self) -> Response {
        Response { status: self.status, content_type: "application/json", body: self.json().to_string() }
    }
}
