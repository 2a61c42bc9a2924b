//! What an output is told: where records go, which ones, and in whose words.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use super::follower::Batch;
use super::mapping::Format;
use super::selection::Selection;
use super::syslog::Facility;
use crate::identity::SpiffePattern;
use crate::model::Redacted;

/// One output of the decision log: `otlp`, `syslog` or `http`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OutputSettings {
    /// What it is called in metrics, in the log and in the name of its cursor: lower-case letters, digits, `-` and `_`.
    pub name: String,
    /// In whose words records are told.
    #[serde(default)]
    pub format: Format,
    /// Only records of these types; all when not given. `loss` records always go.
    #[serde(default)]
    pub only: Vec<String>,
    /// Only records that tell of a refusal, and `loss` records.
    #[serde(default)]
    pub only_denied: bool,
    /// Where a new output begins: at the oldest record there is, or with what comes from now on.
    #[serde(default)]
    pub begin: Begin,
    /// How many records are handed over at once.
    #[serde(default)]
    pub batch: BatchSettings,
    /// OpenTelemetry logs.
    #[serde(default)]
    pub otlp: Option<OtlpSettings>,
    /// Syslog.
    #[serde(default)]
    pub syslog: Option<SyslogSettings>,
    /// HTTP POST.
    #[serde(default)]
    pub http: Option<HttpSettings>,
}

/// Where a new output begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Begin {
    /// At the oldest record there is.
    #[default]
    Oldest,
    /// With what comes from now on.
    Now,
}

/// How many records are handed over at once.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BatchSettings {
    /// At most so many records, 1 to 10000.
    pub records: usize,
    /// At most so many bytes of lines, 1024 to 3145728; a single record may be longer.
    pub bytes: usize,
    /// Seconds that it waits after one batch for the next one to become larger, 0 to 60.
    pub seconds: f64,
}

impl Default for BatchSettings {
    fn default() -> Self {
        let Batch { records, bytes, within } = Batch::default();
        Self { records, bytes, seconds: within.as_secs_f64() }
    }
}

/// OpenTelemetry logs (OTLP 1.x).
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OtlpSettings {
    /// `https://host:4317`, or `http://` without TLS. Over `http/protobuf` with the path, as `https://host:4318/v1/logs`.
    pub endpoint: String,
    /// How it is carried.
    #[serde(default)]
    pub protocol: OtlpProtocol,
    /// Headers of each request, as for an API key.
    #[serde(default)]
    pub headers: BTreeMap<String, HeaderSettings>,
    /// Further attributes of the resource, beside `service.name` and the like; they win.
    #[serde(default)]
    pub resource: BTreeMap<String, String>,
    /// TLS, for `https`.
    #[serde(default)]
    pub tls: OutputTls,
    /// Seconds that an answer may take, 1 to 50.
    #[serde(default = "default_timeout_seconds")]
    pub timeout_seconds: u64,
}

/// How OTLP is carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum OtlpProtocol {
    /// gRPC.
    #[default]
    #[serde(rename = "grpc")]
    Grpc,
    /// HTTP/1.1 with protobuf.
    #[serde(rename = "http/protobuf")]
    Http,
}

/// Syslog (RFC 5424), over TLS (RFC 5425), over TCP with counted octets (RFC 6587), or to a socket of this machine.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SyslogSettings {
    /// `tls://host:6514`, `tcp://host:601`, or `unix:///dev/log`.
    pub address: String,
    /// The facility.
    #[serde(default)]
    pub facility: Facility,
    /// The name of this host in messages; the process' `node` when not given.
    #[serde(default)]
    pub hostname: Option<String>,
    /// The program's name in messages.
    #[serde(default = "default_app_name")]
    pub app_name: String,
    /// The name of the element with the record's fields. 32473 is the number for examples (RFC 5612): put your own there.
    #[serde(default = "default_sd_id")]
    pub sd_id: String,
    /// TLS, for `tls://`.
    #[serde(default)]
    pub tls: OutputTls,
}

/// POSTs of batches.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpSettings {
    /// `https://host/path`, or `http://` without TLS.
    pub url: String,
    /// How records stand in a body.
    #[serde(default)]
    pub body: Body,
    /// Headers of each request, as for an API key.
    #[serde(default)]
    pub headers: BTreeMap<String, HeaderSettings>,
    /// TLS, for `https`.
    #[serde(default)]
    pub tls: OutputTls,
    /// Seconds that an answer may take, 1 to 50.
    #[serde(default = "default_timeout_seconds")]
    pub timeout_seconds: u64,
}

/// How records stand in a body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Body {
    /// One JSON object a line: `application/x-ndjson`.
    #[default]
    Ndjson,
    /// One JSON array: `application/json`.
    Json,
}

/// A header's value.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum HeaderSettings {
    /// As it stands here; `${{NAME}}` takes it from the environment.
    Text(Redacted<String>),
    /// From a file.
    File(HeaderFile),
}

/// A header's value from a file, which is read again for each request: a token may be renewed in its place.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HeaderFile {
    /// The file; blanks and line ends around the value do not count.
    pub file: PathBuf,
    /// What stands before the value, as `"Bearer "`.
    #[serde(default)]
    pub prefix: String,
}

/// How the other side is known, and what it is shown. Files are read at each connection: certificates may be renewed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OutputTls {
    /// PEM of the authorities that the other side's certificate must come from; the system's when not given.
    pub ca: Option<PathBuf>,
    /// The name that it must prove; the address' host when not given.
    pub server_name: Option<String>,
    /// PEM of the certificate chain that we present.
    pub certificate: Option<PathBuf>,
    /// PEM of its private key.
    pub key: Option<PathBuf>,
    /// Presents our SVID in place of `certificate` and `key`.
    pub svid: bool,
    /// The other side is in the mesh: it must prove one of these SPIFFE IDs or patterns, and is shown our SVID.
    pub spiffe_ids: Vec<String>,
}

const fn default_timeout_seconds() -> u64 {
    10
}

fn default_app_name() -> String {
    "wardgate".into()
}

fn default_sd_id() -> String {
    "wardgate@32473".into()
}

/// Why an output cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{output}: {problem}")]
pub struct InvalidOutput {
    /// Which one, by its name or its number.
    pub output: String,
    /// What is wrong, and what is expected.
    pub problem: String,
}

impl OutputSettings {
    /// Judges outputs, as far as that can be done without a disk and the network.
    ///
    /// # Errors
    /// The first that cannot be.
    pub fn check_all(all: &[Self]) -> Result<(), InvalidOutput> {
        let mut names = BTreeSet::new();
        for (number, one) in all.iter().enumerate() {
            let wrong = |problem: String| {
                let output =
                    if one.name.is_empty() { number.to_string() } else { one.name.clone() };
                InvalidOutput { output, problem }
            };
            one.check().map_err(wrong)?;
            if !names.insert(&one.name) {
                return Err(wrong("the name is given twice; expected one of its own".into()));
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), String> {
        let is_of_name = |byte: u8| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_')
        };
        let name = self.name.as_bytes();
        if name.is_empty() || name.len() > 64 || !name.iter().copied().all(is_of_name) {
            let expected = "expected 1 to 64 lower-case letters, digits, - and _";
            return Err(format!("name {:?}: {expected}", self.name));
        }
        self.selection()?;
        let BatchSettings { records, bytes, seconds } = &self.batch;
        if !(1..=10_000).contains(records) {
            return Err(format!("batch.records: {records}; expected 1 to 10000"));
        }
        if !(1024..=3 << 20).contains(bytes) {
            return Err(format!("batch.bytes: {bytes}; expected 1024 to 3145728"));
        }
        if !(0.0..=60.0).contains(seconds) {
            return Err(format!("batch.seconds: {seconds}; expected 0 to 60"));
        }
        let timeout = |kind: &str, seconds: u64| match seconds {
            1..=50 => Ok(()),
            _ => Err(format!("{kind}.timeout_seconds: {seconds}; expected 1 to 50")),
        };
        match (&self.otlp, &self.syslog, &self.http) {
            (Some(otlp), None, None) => timeout("otlp", otlp.timeout_seconds),
            (None, Some(_), None) => Ok(()),
            (None, None, Some(http)) => timeout("http", http.timeout_seconds),
            _ => Err("expected one of otlp, syslog and http".into()),
        }
    }

    /// Which records it gets.
    pub(super) fn selection(&self) -> Result<Selection, String> {
        Selection::new(&self.only, self.only_denied).map_err(|why| format!("only: {why}"))
    }

    /// How many at once.
    pub(super) fn batch(&self) -> Batch {
        let BatchSettings { records, bytes, seconds } = self.batch;
        Batch { records, bytes, within: Duration::from_secs_f64(seconds) }
    }
}

impl OutputTls {
    /// Judges what can be judged without a disk.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.certificate.is_some() != self.key.is_some() {
            return Err("tls: certificate and key go together".into());
        }
        if self.svid && self.certificate.is_some() {
            return Err("tls: give either svid or certificate and key".into());
        }
        self.patterns()?;
        let is_web = self.ca.is_some() || self.certificate.is_some() || self.server_name.is_some();
        if !self.spiffe_ids.is_empty() && is_web {
            let why =
                "they go with neither ca nor server_name nor certificate: trust is our identity's";
            return Err(format!("tls.spiffe_ids: {why}"));
        }
        Ok(())
    }

    pub(super) fn patterns(&self) -> Result<Vec<SpiffePattern>, String> {
        let parse = |text: &String| {
            text.parse().map_err(|error| format!("tls.spiffe_ids: {text:?}: {error}"))
        };
        self.spiffe_ids.iter().map(parse).collect()
    }

    /// Does it need an identity of ours?
    pub(super) fn needs_identity(&self) -> bool {
        self.svid || !self.spiffe_ids.is_empty()
    }
}
