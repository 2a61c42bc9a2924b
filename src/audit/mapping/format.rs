//! `Format`: in whose words records are told.

use std::borrow::Cow;
use std::sync::OnceLock;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::severity::Severity;
use super::table::{Source, Table};

/// In whose words records are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The log's own lines, byte for byte: what the chain and its seals can be checked with.
    #[default]
    Wardgate,
    /// The Open Cybersecurity Schema Framework, 1.6.
    Ocsf,
    /// The Elastic Common Schema, 8.17.
    Ecs,
}

/// What is known of the place where records are told, beside what stands in them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Here {
    /// The process' name.
    pub node: Option<String>,
}

impl Here {
    fn of(&self, record: &Value) -> Value {
        json!({
            "node": self.node,
            "version": env!("CARGO_PKG_VERSION"),
            "severity": Severity::of(record).name(),
        })
    }
}

impl Format {
    /// A line of the log in these words.
    ///
    /// # Errors
    /// The line is no JSON.
    pub fn tell<'l>(self, line: &'l str, here: &Here) -> Result<Cow<'l, str>, serde_json::Error> {
        let table = match self {
            Self::Wardgate => return Ok(Cow::Borrowed(line)),
            Self::Ocsf => ocsf(),
            Self::Ecs => ecs(),
        };
        let record = serde_json::from_str(line)?;
        let told = table.map(Source { record: &record, here: &here.of(&record) });
        Ok(Cow::Owned(told.to_string()))
    }
}

/// A record in OpenTelemetry's words: `{"severity_number", "severity_text", "attributes": {..}}`.
pub(in crate::audit) fn open_telemetry(record: &Value, here: &Here) -> Value {
    otel().map(Source { record, here: &here.of(record) })
}

/// The fields of a record that stand in syslog's structured data: a flat object.
pub(in crate::audit) fn syslog(record: &Value, here: &Here) -> Value {
    static TABLE: OnceLock<Table> = OnceLock::new();
    let table = TABLE.get_or_init(|| Table::read(include_str!("syslog.json")).expect(TESTED));
    table.map(Source { record, here: &here.of(record) })
}

fn ocsf() -> &'static Table {
    static TABLE: OnceLock<Table> = OnceLock::new();
    TABLE.get_or_init(|| Table::read(include_str!("ocsf.json")).expect(TESTED))
}

fn ecs() -> &'static Table {
    static TABLE: OnceLock<Table> = OnceLock::new();
    TABLE.get_or_init(|| Table::read(include_str!("ecs.json")).expect(TESTED))
}

fn otel() -> &'static Table {
    static TABLE: OnceLock<Table> = OnceLock::new();
    TABLE.get_or_init(|| Table::read(include_str!("otel.json")).expect(TESTED))
}

const TESTED: &str = "a table of this build, which its tests have read";
