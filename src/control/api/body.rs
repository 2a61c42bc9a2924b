//! What a request says beside its path: its body, and the parts of its query that all kinds share.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::StatusCode;
use http_body_util::BodyExt;
use serde_json::{Map, Value, json};

use super::super::answer::Answer;
use super::super::listing::Query;
use crate::store::Stored;

/// The largest body of a request.
const MAX_BODY_BYTES: usize = 1_572_864;

/// The body's bytes, not too many of them.
pub(super) async fn read_bytes(mut body: Body) -> Result<Bytes, Answer> {
    let mut bytes = Vec::new();
    let mut size = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Answer::bad(format!("invalid request body: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        size += data.len();
        if size > MAX_BODY_BYTES {
            return Err(Answer::bad(format!(
                "invalid request body: request size {size} is greater than the maximum size {MAX_BODY_BYTES} allowed"
            )));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes.into())
}

/// The body as JSON whatever its Content-Type says; `None` when there is none.
pub(super) async fn read_body(body: Body) -> Result<Option<Value>, Answer> {
    let bytes = read_bytes(body).await?;
    if bytes.is_empty() {
        return Ok(None);
    }
    serde_json::from_slice(&bytes).map(Some).map_err(|error| {
        let text = format!("invalid request body: {error}");
        let raw = String::from_utf8_lossy(&bytes);
        Answer::json(StatusCode::BAD_REQUEST, json!({"error_msg": text, "req_body": raw}))
    })
}

pub(super) fn configuration(body: Option<Value>) -> Result<Map<String, Value>, Answer> {
    match body {
        None => Err(Answer::bad("missing configurations")),
        Some(Value::Object(fields)) => Ok(fields),
        Some(_) => {
            Err(Answer::bad("invalid configuration: wrong type: expected an object at the top"))
        }
    }
}

/// The server alone writes times, except in a PATCH.
pub(super) fn refuse_times(fields: &Map<String, Value>) -> Result<(), Answer> {
    let inner = |name: &str| fields.get(name).and_then(Value::as_object);
    for (place, prefix) in
        [(Some(fields), ""), (inner("upstream"), "upstream."), (inner("plugins"), "plugins.")]
    {
        for name in ["create_time", "update_time"] {
            if place.is_some_and(|fields| fields.contains_key(name)) {
                // Two spaces, as APISIX has them.
                return Err(Answer::bad(format!("the property is forbidden:  {prefix}{name}")));
            }
        }
    }
    Ok(())
}

/// A PUT keeps the time of creation and renews the other.
pub(super) fn stamp(fields: &mut Map<String, Value>, before: Option<&Stored>, now: i64) {
    let created = before.and_then(|before| before.value.get("create_time")).cloned();
    fields.insert("create_time".into(), created.unwrap_or_else(|| json!(now)));
    fields.insert("update_time".into(), json!(now));
}

pub(super) fn ttl(query: &Query) -> Result<Option<u64>, Answer> {
    let Some(text) = query.find("ttl") else { return Ok(None) };
    let wrong = || Answer::bad("invalid argument ttl: should be a number");
    let seconds = text.trim().parse::<f64>().map_err(|_| wrong())?;
    if !(1.0..=1e10).contains(&seconds) {
        return Err(Answer::bad("invalid argument ttl: should be a number of seconds from 1"));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 to 10^10")]
    let seconds = seconds.ceil() as u64;
    Ok(Some(seconds))
}

pub(in crate::control) fn wait(query: &Query) -> Result<Option<Duration>, Answer> {
    match query.find("wait") {
        None => Ok(None),
        Some("applied") => {
            let seconds = query.find("timeout").map_or(Ok(10), str::parse::<u64>);
            match seconds {
                Ok(seconds @ 0..=60) => Ok(Some(Duration::from_secs(seconds))),
                _ => Err(Answer::bad("invalid argument timeout: should be 0 to 60 seconds")),
            }
        }
        Some(_) => Err(Answer::bad("invalid argument wait: should be applied")),
    }
}
