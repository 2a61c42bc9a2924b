//! `Trust`: all that a peer is judged by. Replaced as a whole, compiled once.

use std::sync::{Arc, OnceLock};

use super::{ChainVerifier, Revocations, TokenVerifier, TrustBundles};

/// How exactly a verifier takes the rules that a specification leaves open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Refuses what the specification asks of issuers and not of verifiers: a key usage that is not critical (33), a name
    /// extension that is not critical beside an empty subject (41).
    pub strict: bool,
    /// Seconds that a certificate may be used before its notBefore, at most 60 (40): more counts as 60. There is no leeway after
    /// notAfter.
    pub not_before_leeway: u8,
}

impl Rules {
    /// The leeway for notBefore in seconds: 0 to 60.
    pub fn leeway(self) -> u8 {
        self.not_before_leeway.min(60)
    }
}

/// Whom we trust and under which conditions: bundles, revocation, rules.
#[derive(Debug, Default)]
pub struct Trust {
    /// The trust domains that we can verify. None at all when the source withdrew the identity: then no handshake succeeds.
    pub bundles: TrustBundles,
    /// Who is no longer trusted although a bundle vouches for him.
    pub revocation: Revocations,
    /// How exactly the rules are taken.
    pub rules: Rules,
    verifier: OnceLock<Arc<ChainVerifier>>,
    token_verifier: OnceLock<TokenVerifier>,
}

impl Trust {
    /// Trust in `bundles` under these conditions.
    pub fn new(bundles: TrustBundles, revocation: Revocations, rules: Rules) -> Self {
        Self {
            bundles,
            revocation,
            rules,
            verifier: OnceLock::new(),
            token_verifier: OnceLock::new(),
        }
    }

    /// The verifier of this trust; compiled at the first call.
    pub fn verifier(&self) -> &Arc<ChainVerifier> {
        self.verifier.get_or_init(|| Arc::new(ChainVerifier::new(self)))
    }

    /// The verifier of JWT-SVIDs of this trust; compiled at the first call.
    pub fn token_verifier(&self) -> &TokenVerifier {
        self.token_verifier.get_or_init(|| TokenVerifier::new(self))
    }
}

impl PartialEq for Trust {
    fn eq(&self, other: &Self) -> bool {
        (&self.bundles, &self.revocation, self.rules)
            == (&other.bundles, &other.revocation, other.rules)
    }
}

impl From<TrustBundles> for Trust {
    fn from(bundles: TrustBundles) -> Self {
        Self::new(bundles, Revocations::default(), Rules::default())
    }
}
