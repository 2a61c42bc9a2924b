//! `ProofFlaw`: why what a remote caller shows proves nothing.

/// Why a join token or a Kubernetes token proves nothing. [`ProofFlaw::code`] is stable: it stands in records.
///
/// The caller itself only learns that its proof is not valid: the rest helps an operator, and whoever guesses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProofFlaw {
    /// Nothing was shown.
    #[error("no proof was shown")]
    Missing,
    /// Not of the shape of a token.
    #[error("the token is malformed: {detail}")]
    Malformed {
        /// Which part of it.
        detail: &'static str,
    },
    /// No such join token was ever minted here, it was revoked, or its secret is another one.
    #[error("there is no such join token")]
    Unknown,
    /// Its time is over.
    #[error("the token expired")]
    Expired,
    /// Its time has not come.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// A join token's one use is behind it.
    #[error("the join token was used already, with another key")]
    Used,
    /// The issuer knows no such cluster.
    #[error("no Kubernetes cluster {name:?} is configured")]
    Cluster {
        /// What the caller named.
        name: String,
    },
    /// The token is signed in a way that is never taken: `none`, a shared secret, or anything but RS256 and ES256.
    #[error("the token is signed with {found:?}: expected RS256 or ES256")]
    Algorithm {
        /// What its header says.
        found: String,
    },
    /// None of the cluster's keys has the name that the token's header gives.
    #[error("the cluster has no key {kid:?} for this token")]
    Key {
        /// The name.
        kid: String,
    },
    /// The signature is another one's.
    #[error("the token's signature does not hold")]
    Signature,
    /// Another authority made the token.
    #[error("the token was issued by {found:?}")]
    Issuer {
        /// Its `iss`.
        found: String,
    },
    /// The token is meant for somebody else.
    #[error("the token is not meant for us: its audience is {found}")]
    Audience {
        /// Its audiences.
        found: String,
    },
    /// The token names no service account, or contradicts itself.
    #[error("the token is no service account's: {detail}")]
    Subject {
        /// Which part.
        detail: &'static str,
    },
    /// The API server does not vouch for the token.
    #[error("the API server does not vouch for the token: {detail}")]
    NotAuthenticated {
        /// What it says.
        detail: String,
    },
    /// Whether the token holds cannot be found out now. Nobody is let in; it is no failure of the caller.
    #[error("the token cannot be checked now: {detail}")]
    Unavailable {
        /// Why.
        detail: String,
    },
}

impl ProofFlaw {
    /// The stable name of the reason.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Missing => "proof_missing",
            Self::Malformed { .. } => "token_malformed",
            Self::Unknown => "token_unknown",
            Self::Expired => "token_expired",
            Self::NotYetValid => "token_not_yet_valid",
            Self::Used => "token_used",
            Self::Cluster { .. } => "unknown_cluster",
            Self::Algorithm { .. } => "token_algorithm",
            Self::Key { .. } => "token_key",
            Self::Signature => "token_signature",
            Self::Issuer { .. } => "token_issuer",
            Self::Audience { .. } => "token_audience",
            Self::Subject { .. } => "token_subject",
            Self::NotAuthenticated { .. } => "token_not_authenticated",
            Self::Unavailable { .. } => "token_not_checkable",
        }
    }
}
