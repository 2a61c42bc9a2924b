//! `Ticket`: what an enrolment rested on, kept by the one who enrolled and sealed by the issuer.
//!
//! A renewal shows the ticket beside the SVID. So the issuer knows, without a list of all workloads, by which proof an identity
//! was once given, and decides anew whether that still stands. A ticket belongs to one key: nobody but the holder of the
//! SVID that it came with can use it.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::rt::crypto::hmac;
use crate::rt::crypto::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::identity::SpiffeId;
use crate::issuer::{Error, Selector};

const KEY: &str = "enrolment.key";
const TAG_BYTES: usize = 32;
const MAX_TICKET_BYTES: usize = 8 * 1024;

/// What an enrolment rested on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    /// The identity that was given.
    pub(super) spiffe_id: SpiffeId,
    /// SHA-256 of the public key (SubjectPublicKeyInfo) that it was given to, lower-case hexadecimal.
    pub(super) spki_sha256: String,
    /// What the proof showed.
    pub(super) shown: BTreeSet<Selector>,
    /// When it was shown the last time, seconds since 1970.
    pub(super) proved: i64,
    /// The root that the SVID chains to, as the authority calls it.
    pub(super) root: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    version: u8,
    spiffe_id: String,
    spki_sha256: String,
    shown: Vec<String>,
    proved: i64,
    root: String,
}

impl Ticket {
    /// The cluster whose token the enrolment rests on.
    pub(super) fn cluster(&self) -> Option<&str> {
        self.shown.iter().find_map(|one| match one {
            Selector::KubernetesCluster(name) => Some(name.as_str()),
            _ => None,
        })
    }
}

/// Seals tickets and opens them.
pub(super) struct TicketKey(hmac::Key);

impl std::fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TicketKey")
    }
}

impl TicketKey {
    /// The key beside the authority in `directory`, made there when it is missing.
    ///
    /// # Errors
    /// The file cannot be read or written, is damaged, or readable for everybody.
    pub(super) fn open(directory: &Path) -> Result<Self, Error> {
        let path = directory.join(KEY);
        let mut fresh = Zeroizing::new([0; 32]);
        SystemRandom::new().fill(&mut *fresh).map_err(|_| Error::Random)?;
        let write = || -> io::Result<()> {
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
            file.write_all(&*fresh)?;
            file.sync_all()
        };
        match write() {
            Ok(()) => return Ok(Self::of(&*fresh)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(Error::Write { path, source }),
        }
        let failed = |source| Error::Read { path: path.clone(), source };
        let seen = std::fs::metadata(&path).map_err(failed)?;
        if seen.permissions().mode() & 0o007 != 0 {
            return Err(Error::KeyReadable { path });
        }
        let key = Zeroizing::new(std::fs::read(&path).map_err(failed)?);
        if key.len() != 32 {
            return Err(Error::Damaged { path, detail: "expected 32 bytes".into() });
        }
        Ok(Self::of(&key))
    }

    fn of(key: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key))
    }

    /// A ticket as the workload keeps it.
    pub(super) fn seal(&self, ticket: &Ticket) -> Vec<u8> {
        let written = Written {
            version: 1,
            spiffe_id: ticket.spiffe_id.to_string(),
            spki_sha256: ticket.spki_sha256.clone(),
            shown: ticket.shown.iter().map(ToString::to_string).collect(),
            proved: ticket.proved,
            root: ticket.root.clone(),
        };
        let text = serde_json::to_vec(&written).expect("text and numbers only");
        let tag = hmac::sign(&self.0, &text);
        [tag.as_ref(), &text].concat()
    }

    /// What a sealed ticket says; `None` when this key did not seal it.
    pub(super) fn open_ticket(&self, sealed: &[u8]) -> Option<Ticket> {
        if sealed.len() > MAX_TICKET_BYTES {
            return None;
        }
        let (tag, text) = sealed.split_at_checked(TAG_BYTES)?;
        hmac::verify(&self.0, text, tag).ok()?;
        let written: Written = serde_json::from_slice(text).ok()?;
        if written.version != 1 {
            return None;
        }
        let shown = written.shown.iter().map(|one| one.parse().ok());
        Some(Ticket {
            spiffe_id: written.spiffe_id.parse().ok()?,
            spki_sha256: written.spki_sha256,
            shown: shown.collect::<Option<_>>()?,
            proved: written.proved,
            root: written.root,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::forge::Folder;

    fn ticket() -> Ticket {
        Ticket {
            spiffe_id: "spiffe://a.test/web".parse().unwrap(),
            spki_sha256: "ab".repeat(32),
            shown: ["join_token:0123456789abcdef", "k8s:cluster:prod"]
                .map(|one| one.parse().unwrap())
                .into(),
            proved: 1_800_000_000,
            root: "r".into(),
        }
    }

    #[test]
    fn a_ticket_comes_back_as_it_was_sealed_after_a_restart_too() {
        let folder = Folder::new();
        let sealed = TicketKey::open(folder.path()).unwrap().seal(&ticket());
        let again = TicketKey::open(folder.path()).unwrap();
        let opened = again.open_ticket(&sealed).unwrap();
        assert_eq!(opened, ticket());
        assert_eq!(opened.cluster(), Some("prod"));
        let mode = std::fs::metadata(folder.path().join(KEY)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_ticket_that_anybody_touched_or_made_is_none() {
        let (folder, other) = (Folder::new(), Folder::new());
        let key = TicketKey::open(folder.path()).unwrap();
        let sealed = key.seal(&ticket());
        for at in 0..sealed.len() {
            let mut touched = sealed.clone();
            touched[at] ^= 1;
            assert_eq!(key.open_ticket(&touched), None, "byte {at}");
        }
        assert_eq!(key.open_ticket(&[]), None);
        assert_eq!(key.open_ticket(&sealed[..40]), None);
        assert_eq!(key.open_ticket(&[&sealed[..], b" "].concat()), None);
        assert_eq!(TicketKey::open(other.path()).unwrap().open_ticket(&sealed), None);
    }

    #[test]
    fn a_key_for_everybody_or_of_another_length_is_refused() {
        let folder = Folder::new();
        let path = folder.path().join(KEY);
        TicketKey::open(folder.path()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(TicketKey::open(folder.path()), Err(Error::KeyReadable { .. })));
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "short").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(TicketKey::open(folder.path()), Err(Error::Damaged { .. })));
    }
}
