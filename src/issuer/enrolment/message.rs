//! Messages: what the wire carries of trust, and the debug output that shows no secret.

use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateRevocationListDer;
use serde::{Deserialize, Serialize};

use crate::identity::{
    BundleDocument, RevocationLists, Revocations, Rules, Trust, TrustBundles, TrustDomain,
};
use crate::issuer::Error;
use crate::issuer::wire;

/// Whom an enrolled workload trusts, as its issuer said it: kept as it came, so that it can be kept on disk as well.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustNews {
    bundles: Vec<BundleNews>,
    /// The SVID should be renewed before its time. News only: nothing to be kept.
    #[serde(skip)]
    pub(super) renew_soon: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BundleNews {
    trust_domain: String,
    document: String,
    /// DER, base64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    revocation_lists: Vec<String>,
}

impl From<wire::Trust> for TrustNews {
    fn from(trust: wire::Trust) -> Self {
        let bundles = trust.bundles.into_iter().map(|bundle| BundleNews {
            trust_domain: bundle.trust_domain,
            document: bundle.document,
            revocation_lists: bundle
                .revocation_lists
                .iter()
                .map(|list| STANDARD.encode(list))
                .collect(),
        });
        Self { bundles: bundles.collect(), renew_soon: trust.renew_soon }
    }
}

impl TrustNews {
    /// What a verifier needs. A trust domain may be named once, and `own` must be among them with at least one root.
    ///
    /// # Errors
    /// A part of it is damaged, or `own` is missing. Nothing of it may be used then.
    pub fn trust(&self, own: &TrustDomain) -> Result<Trust, Error> {
        let wrong = |detail: String| Error::IssuerAnswer { detail };
        let (mut bundles, mut revocations) = (TrustBundles::default(), Revocations::default());
        for news in &self.bundles {
            let domain: TrustDomain = news
                .trust_domain
                .parse()
                .map_err(|error| wrong(format!("{:?}: {error}", news.trust_domain)))?;
            let document = BundleDocument::parse(domain.clone(), news.document.as_bytes())
                .map_err(|error| wrong(format!("the bundle of {domain}: {}", error.report())))?;
            if bundles.insert(document.bundle).is_some() {
                return Err(wrong(format!("two bundles of {domain}")));
            }
            if news.revocation_lists.is_empty() {
                continue;
            }
            let lists = news.revocation_lists.iter().map(|list| STANDARD.decode(list));
            let lists = lists
                .map(|list| list.map(CertificateRevocationListDer::from))
                .collect::<Result<_, _>>()
                .map_err(|_| wrong(format!("a revocation list of {domain}")))?;
            let lists = RevocationLists { lists, ..RevocationLists::default() };
            revocations.by_domain.insert(domain, lists);
        }
        if bundles.find(own).is_none_or(|bundle| bundle.roots.is_empty()) {
            return Err(wrong(format!("no bundle of our own trust domain {own}")));
        }
        Ok(Trust::new(bundles, revocations, Rules::default()))
    }
}

/// Trust as the wire carries it.
///
/// # Errors
/// A bundle has a key that a bundle document cannot carry.
pub(super) fn to_wire(trust: &Trust, renew_soon: bool) -> Result<wire::Trust, Error> {
    let bundles = trust.bundles.iter().map(|bundle| {
        let refresh_after = Duration::from_secs(300);
        let document = BundleDocument { bundle: bundle.clone(), sequence: None, refresh_after };
        let lists = trust.revocation.by_domain.get(&bundle.domain);
        let lists = lists.into_iter().flat_map(|lists| &lists.lists);
        Ok(wire::Bundle {
            trust_domain: bundle.domain.to_string(),
            document: document.to_json()?.to_string(),
            revocation_lists: lists.map(|list| list.to_vec()).collect(),
        })
    });
    Ok(wire::Trust { bundles: bundles.collect::<Result<_, Error>>()?, renew_soon })
}

/// Without what they prove and what they open.
macro_rules! without_secrets {
    ($($message:ty => $name:literal),*) => {
        $(impl fmt::Debug for $message {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct($name).finish_non_exhaustive()
            }
        })*
    };
}

without_secrets!(
    wire::EnrolRequest => "EnrolRequest",
    wire::RenewRequest => "RenewRequest",
    wire::WatchRequest => "WatchRequest",
    wire::Proof => "Proof",
    wire::proof::Kind => "Kind",
    wire::KubernetesToken => "KubernetesToken",
    wire::Enrolled => "Enrolled"
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::forge::Forge;

    fn domain(name: &str) -> TrustDomain {
        name.parse().unwrap()
    }

    #[test]
    fn trust_survives_the_wire_and_the_disk() {
        let (a, b) = (Forge::new("a.test"), Forge::new("b.test"));
        let bundles: TrustBundles = [a.bundle(), b.bundle()].into_iter().collect();
        let lists = vec![CertificateRevocationListDer::from(vec![1, 2, 3])];
        let mut revocations = Revocations::default();
        let lists = RevocationLists { lists, ..RevocationLists::default() };
        revocations.by_domain.insert(domain("b.test"), lists);
        let trust = Trust::new(bundles, revocations, Rules::default());
        let news = TrustNews::from(to_wire(&trust, false).unwrap());
        assert_eq!(news.trust(&domain("a.test")).unwrap(), trust);
        let text = serde_json::to_string(&news).unwrap();
        assert_eq!(serde_json::from_str::<TrustNews>(&text).unwrap(), news);
    }

    #[test]
    fn damaged_or_missing_trust_is_refused_as_a_whole() {
        let a = Forge::new("a.test");
        let good = TrustNews::from(to_wire(&Trust::from(a.bundles()), false).unwrap());
        let refused = |change: &dyn Fn(&mut TrustNews)| {
            let mut news = good.clone();
            change(&mut news);
            news.trust(&domain("a.test")).unwrap_err().to_string()
        };
        assert!(refused(&|news| news.bundles.clear()).contains("own trust domain a.test"));
        assert!(refused(&|news| news.bundles[0].trust_domain = "b.test".into()).contains("own"));
        assert!(refused(&|news| news.bundles[0].trust_domain = "A".into()).contains("\"A\""));
        assert!(refused(&|news| news.bundles.push(news.bundles[0].clone())).contains("two"));
        assert!(refused(&|news| news.bundles[0].document = "{}".into()).contains("keys"));
        assert!(
            refused(&|news| news.bundles[0].document = r#"{"keys":[]}"#.into()).contains("own")
        );
        assert!(
            refused(&|news| news.bundles[0].revocation_lists = vec!["?".into()])
                .contains("revocation list")
        );
    }
}
