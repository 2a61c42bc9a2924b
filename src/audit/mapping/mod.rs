//! Records in the words of others: OCSF, the Elastic Common Schema, OpenTelemetry. The words are tables (`ocsf.json`, `ecs.json`,
//! `otel.json`), read by one engine. A door: it defines nothing itself.

mod format;
mod severity;
mod table;
#[cfg(test)]
mod tests;

pub use format::{Format, Here};
pub(super) use format::{open_telemetry, syslog};
pub use severity::Severity;
