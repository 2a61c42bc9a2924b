//! `decision_log`: the settings of what stands in the decision log, and what happens when it cannot be written.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::Error;
use super::redact::{LoggedHeader, RedactSettings, Redaction};

/// How decisions that allow are recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Allows {
    /// The first of its kind in a window has a record of its own, the rest of the window's one record with their number.
    #[default]
    Aggregated,
    /// Each has a record of its own.
    Each,
    /// They have none but where a route asks for `audit: required`, or a policy that only observes would have refused. Nobody can
    /// tell then who did what, nor learn rules from the log; refusals stand as ever.
    None,
}

/// Which connections have records of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Connections {
    /// Those that ended because they lost their proof.
    #[default]
    Forced,
    /// Each that comes in: when it opens and when it ends.
    All,
}

/// What happens to decisions whose record finds no room, because the log cannot be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// What is allowed goes on, and its records are counted as lost.
    #[default]
    Drop,
    /// What is allowed is refused with 503, and the process is not ready as long as the log cannot be written.
    Refuse,
}

/// How long files that were put aside are kept. Without any of the limits, for ever.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RetainSettings {
    /// Bytes of files that were put aside, all together; the oldest go first.
    #[serde(default)]
    pub bytes: Option<u64>,
    /// Days since the last record of a file.
    #[serde(default)]
    pub days: Option<u32>,
    /// Files that were put aside.
    #[serde(default)]
    pub files: Option<u32>,
    /// Keep what an output or the control plane has not got yet, whatever the limits say.
    #[serde(default = "yes")]
    pub undelivered: bool,
}

const fn yes() -> bool {
    true
}

impl Default for RetainSettings {
    fn default() -> Self {
        Self { bytes: None, days: None, files: None, undelivered: true }
    }
}

/// Settings of what the decision log says and how it is kept.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DecisionLogSettings {
    /// How decisions that allow are recorded.
    pub allows: Allows,
    /// Seconds of a window in which decisions are counted, at least 1.
    pub window_seconds: u64,
    /// Refusals of one kind that have a record of their own in a minute, for each worker; the rest are counted. At least 1.
    pub single_denies: u32,
    /// Which connections have records of their own.
    pub connections: Connections,
    /// What happens to decisions whose record finds no room.
    pub when_full: WhenFull,
    /// Ask the disk to keep what was written, with each batch.
    pub sync: bool,
    /// Seconds that a request to a route with `audit: required` waits for its record to be written, before it gets 503. At
    /// least 1.
    pub required_seconds: u64,
    /// Put the file aside and begin a new one at so many bytes; 0: never.
    pub rotate_bytes: u64,
    /// How long files that were put aside are kept.
    pub retain: RetainSettings,
    /// What is left out of records.
    pub redact: RedactSettings,
    /// Headers of requests that are logged, in records of single decisions. Values stand as their HMAC unless `keep` is given.
    pub headers: Vec<LoggedHeader>,
}

impl DecisionLogSettings {
    /// Judges what can be told without the disk.
    ///
    /// # Errors
    /// The first setting that cannot be, by its name.
    pub fn check(&self) -> Result<(), Error> {
        let at_least_one = [
            ("decision_log.window_seconds", self.window_seconds),
            ("decision_log.single_denies", self.single_denies.into()),
            ("decision_log.required_seconds", self.required_seconds),
        ];
        for (field, value) in at_least_one {
            if value == 0 {
                return Err(Error::Setting { field, problem: "0; expected at least 1".to_owned() });
            }
        }
        if self.rotate_bytes != 0 && self.rotate_bytes < 64 << 10 {
            let problem = format!("{}; expected 0, or at least 65536", self.rotate_bytes);
            return Err(Error::Setting { field: "decision_log.rotate_bytes", problem });
        }
        Redaction::check(&self.redact, &self.headers)
    }
}

impl Default for DecisionLogSettings {
    fn default() -> Self {
        Self {
            allows: Allows::default(),
            window_seconds: 10,
            single_denies: 100,
            connections: Connections::default(),
            when_full: WhenFull::default(),
            sync: false,
            required_seconds: 5,
            rotate_bytes: 256 << 20,
            retain: RetainSettings::default(),
            redact: RedactSettings::default(),
            headers: Vec::new(),
        }
    }
}
