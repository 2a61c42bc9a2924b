//! An authority as its files describe it: certificates with their keys, ready to sign.

use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::super::Error;
use super::certificate::{Facts, Intermediate, Root, Signer, is_signed_by};
use super::custody::KeyCustody;
use super::files::{Files, OPEN, Stamp};
use super::state::{Phase, STATE, State};
use crate::identity::{TrustBundle, TrustDomain};

/// The file with all roots of the bundle, for people.
pub(super) const BUNDLE: &str = "bundle.pem";

/// The authority of one state. Immutable; the next state has another one.
pub(super) struct Loaded {
    pub(super) state: State,
    /// That of the state's file when it was read.
    pub(super) stamp: Stamp,
    pub(super) domain: TrustDomain,
    /// By the names of the state.
    pub(super) roots: Vec<(String, Arc<Root>)>,
    pub(super) intermediates: Vec<Arc<Intermediate>>,
    pub(super) signing: Arc<Intermediate>,
}

/// The file of a certificate.
pub(super) fn certificate_file(name: &str) -> String {
    format!("{name}.pem")
}

impl Loaded {
    /// Reads the state and all that it names; what `previous` has already is not read again.
    pub(super) fn read(
        files: &Files,
        custody: &dyn KeyCustody,
        previous: Option<&Self>,
    ) -> Result<Self, Error> {
        let stamp = files.stamp(STATE);
        let state = read_state(files)?;
        Self::of(state, stamp, files, custody, previous)
    }

    pub(super) fn of(
        state: State,
        stamp: Stamp,
        files: &Files,
        custody: &dyn KeyCustody,
        previous: Option<&Self>,
    ) -> Result<Self, Error> {
        let damaged =
            |name: &str, detail: String| Error::Damaged { path: files.path(name), detail };
        let domain: TrustDomain = state
            .trust_domain
            .parse()
            .map_err(|error| damaged(STATE, format!("trust_domain: {error}")))?;
        let mut roots = Vec::new();
        for record in &state.roots {
            let known = previous.and_then(|previous| previous.root(&record.name));
            let root = match known {
                Some(root) => root.clone(),
                None => read_root(files, custody, &record.name, record.upstream)?,
            };
            roots.push((record.name.clone(), root));
        }
        let find = |name: &str| roots.iter().find(|(known, _)| known == name).map(|(_, root)| root);
        let mut intermediates = Vec::new();
        let mut signing = None;
        for record in &state.intermediates {
            let known = previous.into_iter().flat_map(|previous| &previous.intermediates);
            let known = known.into_iter().find(|one| one.signer.name == record.name);
            let intermediate = match (known, find(&record.root)) {
                (Some(known), _) => known.clone(),
                (None, Some(root)) => {
                    read_intermediate(files, custody, &record.name, &record.root, root)?
                }
                // What a root that has left signed is of no use any more.
                (None, None) => continue,
            };
            if state.signing() == Some(record) {
                signing = Some(intermediate.clone());
            }
            intermediates.push(intermediate);
        }
        let Some(signing) = signing else {
            return Err(match &state.request {
                Some(name) => Error::AwaitingUpstream { path: files.path(&request_file(name)) },
                None => damaged(STATE, "nothing in it signs".into()),
            });
        };
        Ok(Self { state, stamp, domain, roots, intermediates, signing })
    }

    pub(super) fn root(&self, name: &str) -> Option<&Arc<Root>> {
        self.roots.iter().find(|(known, _)| known == name).map(|(_, root)| root)
    }

    pub(super) fn root_in(&self, phase: Phase) -> Option<&Arc<Root>> {
        self.root(&self.state.root_in(phase)?.name)
    }

    /// All roots: what others verify with.
    pub(super) fn bundle(&self) -> TrustBundle {
        let roots = self.roots.iter().map(|(_, root)| root.certificate.clone()).collect();
        TrustBundle::new(self.domain.clone(), roots)
    }

    /// All that signs and whose key we have.
    pub(super) fn signers(&self) -> impl Iterator<Item = &Signer> {
        let roots = self.roots.iter().filter_map(|(_, root)| root.signer.as_ref());
        roots.chain(self.intermediates.iter().map(|one| &one.signer))
    }

    /// Makes names and copies for people agree with the state, and removes what a crash left behind. Under the lock.
    pub(super) fn settle(&self, files: &Files) -> Result<(), Error> {
        if files.folder().is_none() {
            return Ok(());
        }
        let active = self.state.root_in(Phase::Active).map(|root| root.name.as_str());
        for (name, of) in [("root", active), ("intermediate", Some(&*self.signing.signer.name))] {
            let Some(of) = of else { continue };
            files.link(&certificate_file(name), &certificate_file(of))?;
            let (key, of) = (super::custody::key_file(name), super::custody::key_file(of));
            match files.is_there(&of) {
                true => files.link(&key, &of)?,
                // The key is elsewhere.
                false => files.remove(&key)?,
            }
        }
        let bundle = self.bundle().to_pem();
        if files.read_if_there(BUNDLE)?.as_deref() != Some(bundle.as_bytes()) {
            files.write(BUNDLE, bundle.as_bytes(), OPEN)?;
        }
        remove_orphans(files, &self.state)
    }
}

/// Removes certificates, keys and requests that the state does not name.
pub(super) fn remove_orphans(files: &Files, state: &State) -> Result<(), Error> {
    for name in files.names()? {
        let of = ["-key.pem", ".pem", ".csr"].iter().find_map(|end| name.strip_suffix(end));
        let Some(of) = of else { continue };
        let is_ours = ["root-", "intermediate-"].iter().any(|rank| {
            of.strip_prefix(rank).is_some_and(|rest| {
                rest.len() == 8 && rest.bytes().all(|byte| byte.is_ascii_hexdigit())
            })
        });
        if is_ours && !state.names().any(|named| named == of) {
            files.remove(&name)?;
        }
    }
    Ok(())
}

/// The file of a request to upstream.
pub(super) fn request_file(name: &str) -> String {
    format!("{name}.csr")
}

pub(super) fn read_state(files: &Files) -> Result<State, Error> {
    let Some(text) = files.read_if_there(STATE)? else {
        return Err(Error::NoAuthority { path: files.path(STATE) });
    };
    State::parse(&text).map_err(|detail| Error::Damaged { path: files.path(STATE), detail })
}

/// All certificates of a PEM file.
pub(super) fn read_certificates(
    files: &Files,
    name: &str,
) -> Result<Vec<CertificateDer<'static>>, Error> {
    let file = certificate_file(name);
    let damaged = |detail: &str| Error::Damaged { path: files.path(&file), detail: detail.into() };
    let text = files.read(&file)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(damaged("expected a certificate as PEM")),
    }
}

pub(super) fn read_root(
    files: &Files,
    custody: &dyn KeyCustody,
    name: &str,
    upstream: bool,
) -> Result<Arc<Root>, Error> {
    let damaged = |detail: &str| Error::Damaged {
        path: files.path(&certificate_file(name)),
        detail: detail.into(),
    };
    let mut found = read_certificates(files, name)?;
    let (Some(certificate), true) = (found.pop(), found.is_empty()) else {
        return Err(damaged("expected one certificate as PEM"));
    };
    let facts = Facts::read(&certificate).ok_or_else(|| damaged("it is not a certificate"))?;
    if !facts.is_authority || !is_signed_by(&certificate, &certificate) {
        return Err(damaged("it is not a self-signed root"));
    }
    let signer = match upstream {
        true => None,
        false => Some(with_key(files, custody, name, certificate.clone())?),
    };
    Ok(Arc::new(Root { certificate, facts, signer }))
}

fn read_intermediate(
    files: &Files,
    custody: &dyn KeyCustody,
    name: &str,
    root_name: &str,
    root: &Root,
) -> Result<Arc<Intermediate>, Error> {
    let damaged = |detail: &str| Error::Damaged {
        path: files.path(&certificate_file(name)),
        detail: detail.into(),
    };
    let chain = read_certificates(files, name)?;
    let above = chain.iter().skip(1).chain([&root.certificate]);
    if !chain.iter().zip(above).all(|(one, next)| is_signed_by(one, next)) {
        return Err(damaged("the root beside it did not sign it"));
    }
    let signer = with_key(files, custody, name, chain[0].clone())?;
    Intermediate::new(signer, chain, root_name, root.facts.not_after)
        .ok_or_else(|| damaged("a part of it is not a certificate"))
}

/// A signing certificate with its key, which must belong to it.
fn with_key(
    files: &Files,
    custody: &dyn KeyCustody,
    name: &str,
    certificate: CertificateDer<'static>,
) -> Result<Signer, Error> {
    let key = custody.open(name)?;
    let signer = Signer::new(name, certificate, key)?;
    signer.ok_or_else(|| Error::Damaged {
        path: files.path(&certificate_file(name)),
        detail: "it is no authority's certificate, or its key belongs to another certificate"
            .into(),
    })
}
