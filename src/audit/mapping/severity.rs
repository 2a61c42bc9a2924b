//! `Severity`: how much a record matters.

use serde_json::Value;

/// How much a record matters; the further down, the more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// As it should be.
    Informational,
    /// A change that somebody made.
    Notice,
    /// Somebody was refused, or something will end soon.
    Warning,
    /// Something is not as it should be.
    Error,
    /// The log itself is incomplete, or an identity is gone.
    Critical,
}

impl Severity {
    /// Of a record.
    pub fn of(record: &Value) -> Self {
        let text = |field: &str| record[field].as_str().unwrap_or_default();
        let event = text("event");
        match text("type") {
            "loss" => Self::Critical,
            "decision" | "handshake_refused" | "issuer" if text("outcome") == "deny" => {
                Self::Warning
            }
            "connection" if event != "open" && event != "close" => Self::Warning,
            "identity" => match event {
                "withdrawn" | "bundle_refused" => Self::Critical,
                "expiring" => Self::Warning,
                _ => Self::Notice,
            },
            "config" => match event {
                "refused" => Self::Error,
                "expiring" => Self::Warning,
                _ => Self::Notice,
            },
            "admin" if record["reason"].is_string() => Self::Warning,
            "admin" | "posture" | "issuer" => Self::Notice,
            _ => Self::Informational,
        }
    }

    /// Its name in tables.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Informational => "informational",
            Self::Notice => "notice",
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Critical => "critical",
        }
    }
}
