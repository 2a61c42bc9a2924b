//! `TrustBundle`: the roots of one trust domain; `TrustBundles`: one for each domain, never merged.

use std::collections::BTreeMap;

use rustls_pki_types::CertificateDer;

use super::TrustDomain;

/// The X.509 authorities of one trust domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustBundle {
    /// Whose authorities they are.
    pub domain: TrustDomain,
    /// The root certificates. None at all means that nobody of the domain is trusted.
    pub roots: Vec<CertificateDer<'static>>,
}

/// The bundles that we hold, by trust domain. A bundle speaks only for its own domain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustBundles {
    by_domain: BTreeMap<TrustDomain, TrustBundle>,
}

impl TrustBundles {
    /// The bundle of that trust domain.
    pub fn find(&self, domain: &TrustDomain) -> Option<&TrustBundle> {
        self.by_domain.get(domain)
    }

    /// All bundles.
    pub fn iter(&self) -> impl Iterator<Item = &TrustBundle> {
        self.by_domain.values()
    }
}

impl FromIterator<TrustBundle> for TrustBundles {
    fn from_iter<I: IntoIterator<Item = TrustBundle>>(bundles: I) -> Self {
        let by_domain = bundles.into_iter().map(|bundle| (bundle.domain.clone(), bundle)).collect();
        Self { by_domain }
    }
}
