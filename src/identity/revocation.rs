//! `Revocations`: who is no longer trusted although a bundle vouches for him.

use std::collections::{BTreeMap, BTreeSet};

use rustls_pki_types::CertificateRevocationListDer;

use super::{Error, RevocationList, SpiffeId, TrustDomain};

/// What a trust domain's revocation lists mean for a handshake.
///
/// In every mode but `Off` a certificate that an authentic list names is refused, also when the list is out of date: what was
/// revoked stays revoked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RevocationMode {
    /// Lists are not looked at.
    Off,
    /// What a list revokes is refused; a list that is absent or out of date lets pass.
    #[default]
    Soft,
    /// Refused is also whatever no current list speaks for.
    Hard,
}

/// The revocation lists of one trust domain (RFC 5280, section 5).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RevocationLists {
    /// What they mean.
    pub mode: RevocationMode,
    /// The lists; several when the domain has several authorities.
    pub lists: Vec<CertificateRevocationListDer<'static>>,
}

impl RevocationLists {
    /// Adds the lists that a file or an answer holds (PEM with one or more, or the DER of one), and tells what they say.
    ///
    /// # Errors
    /// It holds no list, or one that cannot be read; nothing is added then.
    pub fn add(&mut self, content: &[u8]) -> Result<Vec<RevocationList>, Error> {
        let found = RevocationList::read(content)?;
        self.lists.extend(found.iter().map(|list| list.der().clone()));
        Ok(found)
    }

    /// Adds those lists that can be read, and tells why the others were discarded: a malformed list of one authority must not
    /// take away the lists of the others (111). Positions count from 1.
    pub fn add_each(
        &mut self,
        lists: impl IntoIterator<Item = CertificateRevocationListDer<'static>>,
    ) -> Vec<(usize, Error)> {
        let mut discarded = Vec::new();
        for (at, list) in lists.into_iter().enumerate() {
            match RevocationList::from_der(list) {
                Ok(list) => self.lists.push(list.der().clone()),
                Err(error) => discarded.push((at + 1, error)),
            }
        }
        discarded
    }
}

/// Refused at once, whatever bundles and lists say: what operators declare as `revocations`.
///
/// Serial numbers and keys are looked for in the whole path, so that an authority can be denied as well.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DenyList {
    /// Serial numbers, lower-case hexadecimal without leading zeros, with the trust domain whose authority gave them.
    pub serials: BTreeSet<(TrustDomain, String)>,
    /// SHA-256 of public keys (SubjectPublicKeyInfo), lower-case hexadecimal.
    pub keys: BTreeSet<String>,
    /// SPIFFE IDs.
    pub ids: BTreeSet<SpiffeId>,
}

/// Revocation lists by trust domain, and the deny list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revocations {
    /// The lists; a trust domain that is not in here has none and is judged softly.
    pub by_domain: BTreeMap<TrustDomain, RevocationLists>,
    /// Who is refused at once.
    pub denied: DenyList,
}
