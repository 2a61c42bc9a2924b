//! Revocation: who was revoked (`revoked.jsonl`), and the lists that say so (`crl.pem`, RFC 5280 section 5).
//!
//! Each intermediate has a list for the leaves that it signed, each root whose key is ours one for its intermediates. A list is
//! signed anew at half of its life, when somebody is revoked, and when another certificate begins to sign. Lists are signed as a
//! set and bear the same number, which grows.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevocationReason, RevokedCertParams};
use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};

use super::super::Error;
use super::certificate::{BACKDATED_SECONDS, Signer, moment};
use super::files::{CLOSED, Files, OPEN};
use super::loaded::Loaded;
use crate::identity::RevocationList;

/// Who was revoked.
pub(super) const REVOKED: &str = "revoked.jsonl";
/// The lists, one after another.
pub(super) const LISTS: &str = "crl.pem";

/// Why a certificate was revoked (RFC 5280, section 5.3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// Nobody says.
    #[default]
    Unspecified,
    /// Its private key is known to somebody else, or may be.
    KeyCompromise,
    /// What it names has changed.
    AffiliationChanged,
    /// Another one has taken its place.
    Superseded,
    /// It is not needed any more.
    CessationOfOperation,
    /// What it allowed was taken away.
    PrivilegeWithdrawn,
}

impl Reason {
    /// All of them, as they are written.
    pub const ALL: [(&'static str, Self); 6] = [
        ("unspecified", Self::Unspecified),
        ("key-compromise", Self::KeyCompromise),
        ("affiliation-changed", Self::AffiliationChanged),
        ("superseded", Self::Superseded),
        ("cessation-of-operation", Self::CessationOfOperation),
        ("privilege-withdrawn", Self::PrivilegeWithdrawn),
    ];

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(_, reason)| *reason == self).map_or("unspecified", |(name, _)| name)
    }

    /// `None` where a list says nothing.
    fn code(self) -> Option<RevocationReason> {
        match self {
            Self::Unspecified => None,
            Self::KeyCompromise => Some(RevocationReason::KeyCompromise),
            Self::AffiliationChanged => Some(RevocationReason::AffiliationChanged),
            Self::Superseded => Some(RevocationReason::Superseded),
            Self::CessationOfOperation => Some(RevocationReason::CessationOfOperation),
            Self::PrivilegeWithdrawn => Some(RevocationReason::PrivilegeWithdrawn),
        }
    }
}

impl std::str::FromStr for Reason {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|(name, _)| *name == text);
        found.map(|(_, reason)| *reason).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|(name, _)| *name).collect();
            format!("expected one of {}", names.join(", "))
        })
    }
}

/// A certificate that was revoked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {
    /// Its serial number, lower-case hexadecimal.
    pub serial: String,
    /// Whom it names, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The root or intermediate that signed it; nothing when that is not known: then every list names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer: Option<String>,
    /// When it ends of itself, seconds since 1970.
    pub not_after: i64,
    /// When it was revoked, seconds since 1970.
    pub at: i64,
    /// Why.
    pub reason: Reason,
}

/// Reads who was revoked. A line that is none is an error: whom it revoked would be trusted again.
pub(super) fn read_revoked(files: &Files) -> Result<Vec<Revoked>, Error> {
    let text = files.read_if_there(REVOKED)?.unwrap_or_default();
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines
        .enumerate()
        .map(|(at, line)| {
            serde_json::from_slice(line).map_err(|error| Error::Damaged {
                path: files.path(REVOKED),
                detail: format!("line {}: {error}", at + 1),
            })
        })
        .collect()
}

/// Writes who was revoked, as a whole. Under the lock.
pub(super) fn write_revoked(files: &Files, all: &[Revoked]) -> Result<(), Error> {
    let mut text = Vec::new();
    for revoked in all {
        serde_json::to_writer(&mut text, revoked).expect("names and numbers are JSON");
        text.push(b'\n');
    }
    files.write(REVOKED, &text, CLOSED)
}

/// The lists of an authority, and whom they name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Lists {
    pub(super) der: Vec<CertificateRevocationListDer<'static>>,
    /// Serial numbers, lower-case hexadecimal.
    pub(super) revoked: BTreeSet<String>,
    /// When they must be signed anew: half of their life is over then. Seconds since 1970.
    due: i64,
}

impl Lists {
    /// Reads the lists that are on disk, if they hold for all that signs now and name who was revoked; `None` when they must be
    /// signed anew.
    pub(super) fn current(
        files: &Files,
        loaded: &Loaded,
        revoked: &[Revoked],
        lifetime: i64,
        now: i64,
    ) -> Result<Option<Self>, Error> {
        let text = files.read_if_there(LISTS)?.unwrap_or_default();
        let found: Result<Vec<_>, _> =
            CertificateRevocationListDer::pem_slice_iter(&text).collect();
        let Ok(found) = found else { return Ok(None) };
        let signers: Vec<&Signer> = list_signers(loaded).collect();
        if signers.len() != found.len() {
            return Ok(None);
        }
        let mut due = i64::MAX;
        for (signer, der) in signers.iter().zip(&found) {
            let serials = serials_under(&signer.name, revoked);
            match holds_until(der, signer, &serials, lifetime) {
                Some(until) if now < until => due = due.min(until),
                _ => return Ok(None),
            }
        }
        Ok(Some(Self { der: found, revoked: all_serials(revoked), due }))
    }

    /// Signs a list for each of `loaded`'s certificates. `number` must be greater than that of the lists before.
    pub(super) fn sign(
        loaded: &Loaded,
        revoked: &[Revoked],
        number: u64,
        lifetime: i64,
        now: i64,
    ) -> Result<Self, Error> {
        let sign = |signer: &Signer| {
            let mut revoked_certs = Vec::new();
            for revoked in revoked.iter().filter(|revoked| revoked.is_under(&signer.name)) {
                let serial = hex::decode(&revoked.serial).unwrap_or_default();
                revoked_certs.push(RevokedCertParams {
                    serial_number: serial.into(),
                    revocation_time: moment(revoked.at)?,
                    reason_code: revoked.reason.code(),
                    invalidity_date: None,
                });
            }
            let key_id = signer.facts.key_id.clone();
            let params = CertificateRevocationListParams {
                this_update: moment(now - BACKDATED_SECONDS)?,
                next_update: moment(now + lifetime)?,
                crl_number: number.into(),
                issuing_distribution_point: None,
                revoked_certs,
                key_identifier_method: key_id
                    .map_or(KeyIdMethod::Sha256, KeyIdMethod::PreSpecified),
            };
            Ok(params.signed_by(&signer.issuer)?.der().clone())
        };
        let der = list_signers(loaded).map(sign).collect::<Result<_, Error>>()?;
        Ok(Self { der, revoked: all_serials(revoked), due: now + lifetime / 2 })
    }

    /// Keeps them for those who read files.
    pub(super) fn write(&self, files: &Files) -> Result<(), Error> {
        files.write(LISTS, self.to_pem().as_bytes(), OPEN)
    }

    fn to_pem(&self) -> String {
        let mut text = String::new();
        for der in &self.der {
            let encoded = STANDARD.encode(der);
            text.push_str("-----BEGIN X509 CRL-----\n");
            for line in encoded.as_bytes().chunks(64) {
                text.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
                text.push('\n');
            }
            text.push_str("-----END X509 CRL-----\n");
        }
        text
    }

    /// When they must be signed anew, seconds since 1970.
    pub(super) fn due(&self) -> i64 {
        self.due
    }
}

impl Revoked {
    fn is_under(&self, signer: &str) -> bool {
        self.signer.as_deref().is_none_or(|name| name == signer)
    }
}

/// Whoever may sign a list, in the order of the lists. An upstream that did not allow it leaves its leaves without one.
fn list_signers(loaded: &Loaded) -> impl Iterator<Item = &Signer> {
    loaded.signers().filter(|signer| signer.facts.signs_lists)
}

fn all_serials(revoked: &[Revoked]) -> BTreeSet<String> {
    revoked.iter().map(|revoked| revoked.serial.clone()).collect()
}

fn serials_under(signer: &str, revoked: &[Revoked]) -> BTreeSet<String> {
    let under = revoked.iter().filter(|revoked| revoked.is_under(signer));
    under.map(|revoked| revoked.serial.clone()).collect()
}

/// Until when this is a good list: half of its life. `None` when it is not `signer`'s, lives longer than it should, or names
/// others than these.
fn holds_until(
    der: &CertificateRevocationListDer<'static>,
    signer: &Signer,
    serials: &BTreeSet<String>,
    lifetime: i64,
) -> Option<i64> {
    let list = RevocationList::from_der(der.clone()).ok()?;
    let life = list.next_update() - list.this_update();
    let holds = list.is_signed_by(&signer.certificate)
        && life <= lifetime + BACKDATED_SECONDS
        && list.entries() == serials.len()
        && serials.iter().all(|serial| list.revokes(serial));
    holds.then_some(list.this_update() + life / 2)
}
