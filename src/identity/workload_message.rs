//! What a message of the Workload API says, and what of it is ours.
//!
//! A message is the full state. It is taken as a whole or not at all; only revocation lists that are of no use are left out one
//! by one.

use zeroize::Zeroize;

use rustls_pki_types::CertificateRevocationListDer;

use super::workload_proto::{X509svid, X509svidResponse};
use super::{
    Error, ListOrigin, RevocationList, Revocations, Rules, SpiffeId, Svid, Trust, TrustBundle,
    TrustBundles, TrustDomain,
};

/// The longest hint that counts, in bytes (107).
pub(super) const MAX_HINT_BYTES: usize = 1024;

/// Which SVID of a message is ours (105 to 107).
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    /// The one with this ID.
    pub(super) id: Option<SpiffeId>,
    /// The one with this hint.
    pub(super) hint: Option<String>,
}

/// What a message gives us.
#[derive(Debug)]
pub(super) enum Delivered {
    /// Our SVID and whom it trusts; neither is judged yet.
    Ours(Box<Svid>, Box<Trust>),
    /// Other SVIDs, whose IDs these are, but not ours (102).
    Others(Vec<SpiffeId>),
}

/// The private key must not outlive the message (113).
impl Drop for X509svid {
    fn drop(&mut self) {
        self.x509_svid_key.zeroize();
    }
}

impl Wanted {
    /// Reads a message.
    ///
    /// # Errors
    /// A part that must be there is missing or malformed: then nothing of it counts (104, 108, 109).
    pub(super) fn in_message(&self, message: &X509svidResponse) -> Result<Delivered, Error> {
        let ids = checked_ids(&message.svids)?;
        let bundles = bundles(message, &ids)?;
        let named = message.svids.iter().zip(&ids);
        let Some((ours, id)) = named.clone().find(|(svid, id)| self.fits(svid, id)) else {
            return Ok(Delivered::Others(ids));
        };
        let svid = Svid::from_der(&ours.x509_svid, &ours.x509_svid_key)?;
        if svid.id != *id {
            return Err(Error::OtherId { found: svid.id.to_string(), expected: id.to_string() });
        }
        let revocation = revocations(&message.crl, &bundles);
        Ok(Delivered::Ours(
            Box::new(svid),
            Box::new(Trust::new(bundles, revocation, Rules::default())),
        ))
    }

    fn fits(&self, svid: &X509svid, id: &SpiffeId) -> bool {
        let hint = (svid.hint.len() <= MAX_HINT_BYTES).then_some(&svid.hint);
        self.id.as_ref().is_none_or(|wanted| wanted == id)
            && self.hint.as_ref().is_none_or(|wanted| hint == Some(wanted))
    }
}

/// The SVIDs' IDs in their order; each SVID has all that it must have (104).
fn checked_ids(svids: &[X509svid]) -> Result<Vec<SpiffeId>, Error> {
    if svids.is_empty() {
        return Err(Error::WorkloadMessage { detail: "it has no SVID".into() });
    }
    let checked = |(at, svid): (usize, &X509svid)| {
        let wrong = |detail: &str| Error::WorkloadMessage {
            detail: format!("{detail} of SVID {}", at + 1),
        };
        for (field, bytes) in [
            ("spiffe_id is empty", svid.spiffe_id.as_bytes()),
            ("x509_svid is empty", &svid.x509_svid),
            ("x509_svid_key is empty", &svid.x509_svid_key),
            ("bundle is empty", &svid.bundle),
        ] {
            if bytes.is_empty() {
                return Err(wrong(field));
            }
        }
        svid.spiffe_id.parse().map_err(|_| wrong("spiffe_id is none"))
    };
    svids.iter().enumerate().map(checked).collect()
}

/// All bundles of a message, by the trust domain that each is given for; none is merged with another.
fn bundles(message: &X509svidResponse, ids: &[SpiffeId]) -> Result<TrustBundles, Error> {
    let mut bundles = TrustBundles::default();
    for (svid, id) in message.svids.iter().zip(ids) {
        let bundle = TrustBundle::from_der(id.trust_domain(), &svid.bundle)?;
        if let Some(other) = bundles.find(&bundle.domain)
            && *other != bundle
        {
            let detail = format!("it has two bundles for {}", bundle.domain);
            return Err(Error::WorkloadMessage { detail });
        }
        bundles.insert(bundle);
    }
    for (name, der) in &message.federated_bundles {
        let domain = domain_named(name)?;
        // The bundle of an SVID's own trust domain comes with the SVID; nobody else's word counts for it.
        if ids.iter().any(|id| id.trust_domain_name() == domain.as_str()) {
            tracing::warn!(%domain, "the Workload API federates our own trust domain with itself; passed over");
            continue;
        }
        if bundles.insert(TrustBundle::from_der(domain, der)?).is_some() {
            let detail = format!("it has two bundles for {name}");
            return Err(Error::WorkloadMessage { detail });
        }
    }
    Ok(bundles)
}

/// A federated bundle's key is the trust domain's SPIFFE ID; some servers write the bare name.
fn domain_named(name: &str) -> Result<TrustDomain, Error> {
    let unknown = || Error::TrustDomain { name: name.to_owned() };
    if !name.contains("://") {
        return name.parse().map_err(|_| unknown());
    }
    let id: SpiffeId = name.parse().map_err(|_| unknown())?;
    if id.path().is_empty() { Ok(id.trust_domain()) } else { Err(unknown()) }
}

/// The message's revocation lists (111): each for the trust domain one of whose roots signed it. A list by another authority is
/// kept for all, since intermediates show themselves only in a peer's chain; there the verifier looks whose signature it bears,
/// so that it speaks for nobody but its issuer's certificates.
fn revocations(lists: &[Vec<u8>], bundles: &TrustBundles) -> Revocations {
    let mut revocations = Revocations::default();
    for der in lists {
        let list = match RevocationList::from_der(CertificateRevocationListDer::from(der.clone())) {
            Ok(list) => list,
            Err(error) => {
                let error = error.report();
                tracing::error!(error, "a revocation list of the Workload API is passed over");
                continue;
            }
        };
        let origins: Vec<_> =
            bundles.iter().map(|bundle| (&bundle.domain, list.origin(bundle))).collect();
        let any = |wanted| origins.iter().any(|(_, origin)| *origin == wanted);
        if !any(ListOrigin::Root) && any(ListOrigin::Forged) {
            let issuer = list.issuer();
            tracing::error!(
                issuer,
                "a revocation list of the Workload API is not signed by the authority that it names; passed over"
            );
            continue;
        }
        let counts = if any(ListOrigin::Root) { ListOrigin::Root } else { ListOrigin::Unknown };
        for (domain, _) in origins.iter().filter(|(_, origin)| *origin == counts) {
            let of_domain = revocations.by_domain.entry((*domain).clone()).or_default();
            of_domain.lists.push(list.der().clone());
        }
    }
    // Their order says nothing: without this, the same lists in another order would be another trust.
    for lists in revocations.by_domain.values_mut() {
        lists.lists.sort_by(|one, other| one.as_ref().cmp(other.as_ref()));
        lists.lists.dedup();
    }
    revocations
}
