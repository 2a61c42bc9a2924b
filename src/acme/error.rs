//! Why there is no certificate.

use std::io;
use std::path::PathBuf;

/// What an authority says is wrong (RFC 7807, RFC 8555 section 6.7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The problem's type, such as `urn:ietf:params:acme:error:rateLimited`.
    pub kind: String,
    /// What it says to people, with what it says of single names behind it.
    pub detail: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.detail, self.kind)
    }
}

impl From<&instant_acme::Problem> for Problem {
    fn from(found: &instant_acme::Problem) -> Self {
        let mut detail = found.detail.clone().unwrap_or_else(|| "no detail given".into());
        for part in &found.subproblems {
            detail += "; ";
            detail += &part.to_string();
        }
        let kind = found.r#type.clone().unwrap_or_else(|| "about:blank".into());
        // It goes into logs and answers as one line.
        let line = |text: String| text.replace(char::is_control, " ");
        Self { kind: line(kind), detail: line(detail) }
    }
}

/// Why a certificate could not be obtained or kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The settings make no sense.
    #[error("{field}: {problem}")]
    Setting {
        /// The setting within `ingress.acme`.
        field: &'static str,
        /// What is wrong, and what is expected.
        problem: String,
    },
    /// A file of ours, or one that the settings name.
    #[error("cannot use the file {path}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The authority refuses.
    #[error("the authority refuses: {0}")]
    Refused(Problem),
    /// The authority has looked, and did not find that the name is ours.
    #[error("the authority could not validate {domain} by {challenge}: {problem}")]
    NotValidated {
        /// Which name.
        domain: String,
        /// By which challenge.
        challenge: &'static str,
        /// What it saw.
        problem: Problem,
    },
    /// The authority has no challenge for us.
    #[error("the authority offers none of the challenges {wanted} for {domain}")]
    NoChallenge {
        /// Which name.
        domain: String,
        /// What we can answer.
        wanted: String,
    },
    /// The authority is not finished with the order.
    #[error("the authority has not finished the order in time")]
    Late,
    /// The order ended in a state that gives no certificate.
    #[error("the order became {status}, and the authority does not say why")]
    Order {
        /// The state.
        status: String,
    },
    /// The authority cannot be reached, or does not speak ACME.
    #[error("the authority cannot be reached, or does not speak ACME")]
    Protocol(#[source] instant_acme::Error),
    /// A key or a request could not be made.
    #[error("a key or a request for it cannot be made")]
    Request(#[source] rcgen::Error),
    /// What the authority gave is no certificate that we can show.
    #[error("what the authority gave cannot be served")]
    Unusable(#[source] crate::mtls::Error),
}

impl Error {
    /// What the authority said, where it was the authority.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Refused(problem) | Self::NotValidated { problem, .. } => Some(problem),
            _ => None,
        }
    }
}

impl From<instant_acme::Error> for Error {
    fn from(error: instant_acme::Error) -> Self {
        match error {
            instant_acme::Error::Api(problem) => Self::Refused(Problem::from(&problem)),
            instant_acme::Error::Timeout(_) => Self::Late,
            other => Self::Protocol(other),
        }
    }
}
