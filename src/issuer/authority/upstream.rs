//! An authority below a root that is kept elsewhere: it asks for an intermediate (PKCS#10) and takes in what was signed.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};

use super::super::Error;
use super::super::key::KeyPair;
use super::Authority;
use super::authority::past_until;
use super::certificate::{Intermediate, Signer, domain_of, fresh_name, is_signed_by, requested};
use super::custody::KeyCustody;
use super::files::{Files, OPEN};
use super::loaded::{
    certificate_file, read_certificates, read_state, remove_orphans, request_file,
};
use super::rotation::check_root;
use super::state::{Duty, IntermediateRecord, Phase, RootRecord, STATE, State};
use crate::identity::{Presented, Purpose, Trust, TrustBundle, TrustBundles, TrustDomain};
use crate::rt::Clock;

/// The request's name for people.
const REQUEST: &str = "upstream.csr";

/// What taking in a signed chain came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Adopted {
    /// It signs only when its root, which is prepared, is activated.
    pub waits: bool,
    /// How many certificates a workload serves: its own and those above it, without the root.
    pub served: usize,
    /// When the first of chain and root ends, seconds since 1970.
    pub not_after: i64,
}

impl Authority {
    /// Makes a key for an intermediate and returns the request (PKCS#10, PEM) that the upstream authority signs. In a directory
    /// that holds no authority yet, one of `domain` begins; in one that does, it goes on as it is until the answer is adopted.
    /// A request that was not answered is void.
    ///
    /// # Errors
    /// The directory holds an authority that has its own root or is of another trust domain, or cannot be written.
    pub fn request(
        domain: &TrustDomain,
        directory: &Path,
        custody: &dyn KeyCustody,
    ) -> Result<String, Error> {
        let files = Files::directory(directory);
        files.make_folder()?;
        let _alone = files.lock()?;
        let mut state = match read_state(&files) {
            Err(Error::NoAuthority { .. }) => {
                for name in ["root.pem", "root-key.pem", "intermediate.pem"] {
                    if files.is_there(name) {
                        return Err(Error::Exists { path: files.path(name) });
                    }
                }
                State::empty(domain.as_str())
            }
            read => read?,
        };
        if state.trust_domain != domain.as_str() {
            let detail = format!("the directory's authority is of {}", state.trust_domain);
            return Err(Error::Upstream { detail });
        }
        if state.roots.iter().any(|root| !root.upstream) {
            let detail = "the authority has its own root; nobody above it signs".to_owned();
            return Err(Error::Upstream { detail });
        }
        let name = fresh_name("intermediate")?;
        let key = custody.generate(&name)?;
        let request = requested(domain, &name)?.serialize_request(&key)?.pem()?;
        files.write(&request_file(&name), request.as_bytes(), OPEN)?;
        let former = state.request.replace(name.clone());
        state.generation += 1;
        files.write(STATE, &state.to_text(), OPEN)?;
        files.link(REQUEST, &request_file(&name))?;
        if let Some(former) = former {
            custody.destroy(&former)?;
        }
        remove_orphans(&files, &state)?;
        Ok(request)
    }

    /// Takes in what the upstream signed: `chain` as PEM has the intermediate and what is between it and the root, in any
    /// order; `root` is the upstream's root. Both are tried with a certificate before they come into force.
    ///
    /// # Errors
    /// Nothing was asked for; the certificates do not fit the request, each other or SPIFFE; the root is not in the bundle of
    /// an authority that has one already.
    pub fn adopt(
        directory: &Path,
        chain: &[u8],
        root: &[u8],
        custody: &dyn KeyCustody,
        clock: &Clock,
    ) -> Result<Adopted, Error> {
        let wrong = |detail: &str| Error::Upstream { detail: detail.into() };
        let files = Files::directory(directory);
        let now = clock.now();
        if !files.is_there(STATE) {
            return Err(Error::NoAuthority { path: files.path(STATE) });
        }
        let _alone = files.lock()?;
        let state = read_state(&files)?;
        let Some(name) = state.request.clone() else {
            return Err(wrong("nothing was asked for: `wardgate identity request` comes first"));
        };
        let domain: TrustDomain = state
            .trust_domain
            .parse()
            .map_err(|_| wrong("the directory's trust domain is none"))?;
        let certificates = |text: &[u8], what: &str| {
            let read: Result<Vec<CertificateDer<'static>>, _> =
                CertificateDer::pem_slice_iter(text).collect();
            read.map_err(|error| Error::Upstream { detail: format!("{what} is not PEM: {error}") })
        };
        let root = match certificates(root, "the root")?.as_slice() {
            [root] => root.clone(),
            found => {
                let detail =
                    format!("the root's file has {} certificates: expected one", found.len());
                return Err(Error::Upstream { detail });
            }
        };
        let root_facts = check_root(&root, now)?;
        let key = custody.open(&name)?;
        let given = certificates(chain, "the chain")?;
        let own = given
            .iter()
            .find_map(|one| Signer::new(&name, one.clone(), key.clone()).ok().flatten());
        let own = own.ok_or_else(|| {
            wrong("the chain has no authority's certificate (CA:TRUE, keyCertSign) for the key of the request")
        })?;
        let chain = path(own.certificate.clone(), &given, &root).ok_or_else(|| {
            wrong("the chain does not lead from the intermediate to the root: a certificate is missing")
        })?;
        for certificate in chain.iter().chain([&root]) {
            if domain_of(certificate).is_some_and(|named| named != domain) {
                return Err(wrong("a certificate names another trust domain"));
            }
        }
        let (root_name, phase) = place_of_root(&files, &state, &root)?;
        let intermediate = Intermediate::new(own, chain, &root_name, root_facts.not_after)
            .ok_or_else(|| wrong("a part of the chain is not a certificate"))?;
        try_it(&domain, &intermediate, &root, now)?;

        let pem = |certificates: &[CertificateDer<'static>]| {
            TrustBundle::new(domain.clone(), certificates.to_vec()).to_pem()
        };
        files.write(&certificate_file(&name), pem(&intermediate.chain).as_bytes(), OPEN)?;
        let requested_name = name.clone();
        let mut next = state;
        next.request = None;
        next.generation += 1;
        match phase {
            None => {
                files.write(&certificate_file(&root_name), pem(&[root]).as_bytes(), OPEN)?;
                let phase = Phase::Active;
                next.roots.push(RootRecord {
                    name: root_name.clone(),
                    phase,
                    since: now,
                    upstream: true,
                });
                let duty = Duty::Signing;
                next.intermediates.push(IntermediateRecord { name, root: root_name, duty });
            }
            Some(Phase::Active) => {
                next = next
                    .renew(&name, past_until(now))
                    .ok_or_else(|| wrong("the authority has no active root"))?;
            }
            Some(Phase::Prepared) => {
                next.intermediates.retain(|one| one.duty != Duty::Waiting);
                let duty = Duty::Waiting;
                next.intermediates.push(IntermediateRecord { name, root: root_name, duty });
            }
            Some(Phase::Outgoing) => {
                return Err(wrong("that root is outgoing: nothing new is signed under it"));
            }
        }
        files.write(STATE, &next.to_text(), OPEN)?;
        files.remove(REQUEST)?;
        files.remove(&request_file(&requested_name))?;
        remove_orphans(&files, &next)?;
        Ok(Adopted {
            waits: phase == Some(Phase::Prepared),
            served: intermediate.chain.len() + 1,
            not_after: intermediate.not_after,
        })
    }
}

/// The name under which the bundle has this root, and its phase; a new name for the first root of all.
fn place_of_root(
    files: &Files,
    state: &State,
    root: &CertificateDer<'_>,
) -> Result<(String, Option<Phase>), Error> {
    for known in &state.roots {
        if read_certificates(files, &known.name)?.first() == Some(root) {
            return Ok((known.name.clone(), Some(known.phase)));
        }
    }
    if !state.roots.is_empty() {
        return Err(Error::Upstream {
            detail: "that root is not in the bundle yet, nobody would trust it: \
                     `wardgate identity rotate-root prepare --root FILE` comes first"
                .into(),
        });
    }
    Ok((fresh_name("root")?, None))
}

/// The shortest way up from `first`, the root left out.
fn path(
    first: CertificateDer<'static>,
    given: &[CertificateDer<'static>],
    root: &CertificateDer<'_>,
) -> Option<Vec<CertificateDer<'static>>> {
    let mut path = vec![first];
    loop {
        let last = path.last()?;
        if is_signed_by(last, root) {
            return Some(path);
        }
        let next = given.iter().find(|one| !path.contains(one) && is_signed_by(last, one))?;
        path.push(next.clone());
    }
}

/// Issues and verifies as workloads and their peers will do.
fn try_it(
    domain: &TrustDomain,
    intermediate: &Arc<Intermediate>,
    root: &CertificateDer<'static>,
    now: i64,
) -> Result<(), Error> {
    let id = domain.workload("/wardgate/trial").map_err(|_| Error::Random)?;
    let until = (now + 60).min(intermediate.not_after);
    let key = KeyPair::generate()?;
    let (leaf, _) = intermediate.signer.leaf(&id, &[], &key, now, until)?;
    let bundle = TrustBundle::new(domain.clone(), vec![root.clone()]);
    let trust = Trust::from([bundle].into_iter().collect::<TrustBundles>());
    let at = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now).unwrap_or(0)));
    let verified = trust.verifier().verify(
        &leaf,
        &intermediate.chain,
        Purpose::Server,
        at,
        &mut Presented::default(),
    );
    match verified {
        Ok(_) => Ok(()),
        Err(flaw) => Err(Error::Upstream {
            detail: format!("an SVID under it would be refused ({}): {flaw}", flaw.code()),
        }),
    }
}
