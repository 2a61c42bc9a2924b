//! What happened: the decision log that can be proved, access records, metrics, health, and logs for people.
//!
//! Workers only append to a buffer of their own; threads of this room do everything else. It is a door: it defines nothing
//! itself.

mod access;
mod audit;
mod chain;
mod collected;
mod countersign;
mod decision;
mod denial;
mod ends;
mod error;
mod health;
mod heir;
mod json;
mod lane;
mod log_file;
mod logging;
mod metrics;
mod progress;
mod record;
mod redact;
mod retention;
mod seal;
mod settings;
mod shape;
mod tally;
mod writer;

#[cfg(test)]
mod keeping;
#[cfg(test)]
mod proof;

pub use access::{AccessLane, AccessLog, AccessRecord, AccessTarget};
pub use audit::{AuditLane, AuditLog, AuditSettings, Posture};
pub use chain::{
    Acknowledged, Expected, FileReport, Finding, LineFacts, Retired, VerifyReport, find_denial,
    log_files, read_line, verify,
};
pub use collected::CollectionRecord;
pub use countersign::{
    ChainLine, Countersignature, Countersigned, CountersignedRecord, Countersigner, GoodSeal, Seals,
};
pub use decision::{DecisionRecord, Nearest, RequestHead, TokenFacts, WouldBe};
pub use denial::DenialId;
pub use ends::{Ends, EndsFacts, TlsFacts};
pub use error::Error;
pub use health::{Gate, Readiness, router, status_router};
pub use lane::{Full, Stalled};
pub use logging::{LogFormat, LogSettings, start as start_logging};
pub use metrics::{Counter, Gauge, Histogram, MetricKind, Registry, WardgateMetrics};
pub use progress::{Hold, Progress};
pub use record::{
    AdminRecord, ConfigRecord, ConnectionRecord, HandshakeRefusedRecord, IdentityRecord,
    IssuerRecord, UpstreamRefusedRecord, next_connection_id, record_types,
};
pub use redact::{
    AddressRedaction, ChosenHeader, LoggedHeader, PathRedaction, PrincipalRedaction,
    RedactSettings, redaction_proofs,
};
pub use settings::{Allows, Connections, DecisionLogSettings, RetainSettings, WhenFull};
