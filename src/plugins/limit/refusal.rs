//! How the refusals of limits read.

use serde_json::json;

use crate::pipeline::{Invalid, Reply};
use crate::plugins::bounds;

/// The answer to who is above a limit: `rejected_code`, and `rejected_msg` where there is one.
pub(super) fn refusal(code: u16, message: Option<&str>) -> Result<Reply, Invalid> {
    bounds::number("rejected_code", code, 200..=599)?;
    Ok(match message {
        Some(text) => {
            bounds::text("rejected_msg", text, 1..=usize::MAX)?;
            Reply::json(code, &json!({ "error_msg": text }))
        }
        None => Reply::empty(code),
    })
}

pub(super) const fn default_code() -> u16 {
    503
}
