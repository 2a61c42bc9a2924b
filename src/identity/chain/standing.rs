//! Has a certificate of a path been revoked? A trust domain's revocation lists, compiled.

use crate::rt::crypto::digest::{SHA256, digest};
use parking_lot::Mutex;
use rustls_pki_types::SubjectPublicKeyInfoDer;

use super::Flaw;
use crate::identity::revocation_list::Subject;
use crate::identity::{RevocationList, RevocationLists, RevocationMode, TrustDomain};

/// Authorities whose signature on a list is remembered; more than a trust domain has at one time.
const MAX_REMEMBERED: usize = 64;

/// The lists of one trust domain, each parsed once.
///
/// webpki can check lists as well, but takes the first one that bears the issuer's name: with two authorities of one name (an
/// authority that changed its key) it refuses those whose list comes second, and it checks each list's signature in each
/// handshake. Here a list speaks only where its signature fits the very key on the path, and that is found out once.
#[derive(Debug)]
pub(super) struct Standing {
    mode: RevocationMode,
    lists: Vec<Kept>,
}

#[derive(Debug)]
struct Kept {
    list: RevocationList,
    /// SHA-256 of an issuer's key, and whether the list's signature is by it.
    signed_by: Mutex<Vec<([u8; 32], bool)>>,
}

/// The authority that issued the certificate in question.
pub(super) struct IssuedBy<'a> {
    /// Its name as DER, without the outer tag and length.
    pub(super) name: &'a [u8],
    /// Its public key.
    pub(super) key: &'a SubjectPublicKeyInfoDer<'a>,
    /// Its key usage allows signing lists.
    pub(super) signs_lists: bool,
}

/// How far the lists speak for a certificate.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Known {
    Nothing,
    OutOfDate,
    Current,
}

impl Standing {
    /// Parses the lists. One that cannot be read is left out, and logged.
    pub(super) fn of(domain: &TrustDomain, declared: &RevocationLists) -> Self {
        let mut lists = Vec::new();
        if declared.mode != RevocationMode::Off {
            for (at, der) in declared.lists.iter().enumerate() {
                match RevocationList::from_der(der.clone()) {
                    Ok(list) => lists.push(Kept { list, signed_by: Mutex::default() }),
                    Err(error) => tracing::error!(
                        %domain, position = at + 1, error = error.report(),
                        "a revocation list cannot be used; it is discarded alone"
                    ),
                }
            }
        }
        Self { mode: declared.mode, lists }
    }

    /// Nothing that could be asked for would ever refuse.
    pub(super) fn is_silent(&self) -> bool {
        match self.mode {
            RevocationMode::Off => true,
            RevocationMode::Soft => self.lists.is_empty(),
            RevocationMode::Hard => false,
        }
    }

    /// Judges one certificate of a path.
    pub(super) fn check(
        &self,
        subject: &Subject<'_>,
        issuer: &IssuedBy<'_>,
        now: i64,
    ) -> Result<(), Flaw> {
        let mut known = Known::Nothing;
        for kept in &self.lists {
            let authentic = kept.list.issuer_der() == issuer.name
                && issuer.signs_lists
                && kept.is_signed_with(issuer.key);
            if !authentic {
                continue;
            }
            // A serial number is its issuer's only once, so that neither scope nor age of the list matters here.
            if kept.list.names(subject.serial) {
                return Err(if subject.is_authority {
                    Flaw::AuthorityRevoked
                } else {
                    Flaw::Revoked
                });
            }
            if kept.list.covers(subject) {
                let age = if kept.list.is_current(now) { Known::Current } else { Known::OutOfDate };
                known = known.max(age);
            }
        }
        match (self.mode, known) {
            (RevocationMode::Hard, Known::Nothing) => Err(Flaw::RevocationUnknown),
            (RevocationMode::Hard, Known::OutOfDate) => Err(Flaw::RevocationExpired),
            _ => Ok(()),
        }
    }
}

impl Kept {
    fn is_signed_with(&self, key: &SubjectPublicKeyInfoDer<'_>) -> bool {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, key).as_ref());
        let find = |known: &[([u8; 32], bool)]| {
            known.iter().find(|(key, _)| *key == hash).map(|(_, verdict)| *verdict)
        };
        if let Some(verdict) = find(&self.signed_by.lock()) {
            return verdict;
        }
        let verdict = self.list.is_signed_with(key);
        let mut known = self.signed_by.lock();
        if find(&known).is_none() {
            if known.len() >= MAX_REMEMBERED {
                known.remove(0);
            }
            known.push((hash, verdict));
        }
        verdict
    }
}
