//! What an authority's directory tells without its keys: roots and their phases, who got what, who was revoked.

use std::path::Path;

use super::super::Error;
use super::certificate::{Facts, fingerprint};
use super::files::Files;
use super::ledger::{Issued, in_use, read_in};
use super::lists::{Reason, Revoked, read_revoked, write_revoked};
use super::loaded::{read_certificates, read_state};
use super::rotation::{Step, overlap_seconds};
use super::state::{Duty, Phase, STATE, State};

/// The records of an authority. Reading them needs no key and disturbs nobody who works with it.
#[derive(Debug)]
pub struct Records {
    files: Files,
    state: State,
    issued: Vec<Issued>,
    revoked: Vec<Revoked>,
}

/// A root of the bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootStatus {
    /// As the authority calls it: the name of its file, without the ending.
    pub name: String,
    /// Where it is on its way.
    pub phase: Phase,
    /// Since when, seconds since 1970.
    pub since: i64,
    /// When it ends, seconds since 1970.
    pub not_after: i64,
    /// SHA-256 of the certificate, lower-case hexadecimal.
    pub fingerprint: String,
    /// Its key is kept elsewhere.
    pub upstream: bool,
    /// The live SVIDs that chain to it and are not revoked.
    pub live: Vec<Issued>,
}

/// An SVID that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What the ledger says.
    pub issued: Issued,
    /// How it was revoked, if it was.
    pub revoked: Option<Revoked>,
}

impl Records {
    /// Reads the records in `directory`.
    ///
    /// # Errors
    /// It holds no authority, or a record that cannot be read.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let files = Files::directory(directory);
        if !files.is_there(STATE) {
            return Err(Error::NoAuthority { path: files.path(STATE) });
        }
        let _whole = files.lock_shared()?;
        let state = read_state(&files)?;
        let (issued, revoked) = (read_in(directory)?, read_revoked(&files)?);
        Ok(Self { files, state, issued, revoked })
    }

    /// The trust domain's name.
    pub fn trust_domain(&self) -> &str {
        &self.state.trust_domain
    }

    /// The roots of the bundle.
    ///
    /// # Errors
    /// A certificate cannot be read.
    pub fn roots(&self, now: i64) -> Result<Vec<RootStatus>, Error> {
        let live = self.live(now);
        let mut roots = Vec::new();
        for root in &self.state.roots {
            let certificates = read_certificates(&self.files, &root.name)?;
            let certificate = certificates.first().map(|one| &one[..]).unwrap_or_default();
            roots.push(RootStatus {
                name: root.name.clone(),
                phase: root.phase,
                since: root.since,
                not_after: Facts::read(certificate).map_or(0, |facts| facts.not_after),
                fingerprint: fingerprint(certificate),
                upstream: root.upstream,
                live: live.iter().filter(|issued| issued.root == root.name).cloned().collect(),
            });
        }
        Ok(roots)
    }

    /// The step that a rotation takes next, and from when on it may, seconds since 1970.
    pub fn next_step(&self, now: i64) -> (Step, Option<i64>) {
        let step = self.state.next_step();
        let live = self.live(now);
        let from = match step {
            Step::Prepare => None,
            Step::Activate => {
                let prepared = self.state.root_in(Phase::Prepared);
                prepared.map(|root| root.since + overlap_seconds(None, &live))
            }
            Step::Retire => {
                let outgoing = self.state.root_in(Phase::Outgoing);
                let under =
                    |issued: &&Issued| outgoing.is_some_and(|root| root.name == issued.root);
                live.iter().filter(under).map(|issued| issued.not_after + 1).max()
            }
        };
        (step, from)
    }

    /// Has the upstream been asked for an intermediate?
    pub fn awaits_upstream(&self) -> bool {
        self.state.request.is_some()
    }

    /// What was issued with this serial number (hexadecimal) or to this SPIFFE ID, newest first.
    pub fn find(&self, serial_or_id: &str) -> Vec<Finding> {
        let serial = serial(serial_or_id);
        let mut found: Vec<Finding> = self
            .issued
            .iter()
            .filter(|issued| issued.id == serial_or_id || serial.as_ref() == Some(&issued.serial))
            .map(|issued| Finding {
                issued: issued.clone(),
                revoked: self.revoked.iter().find(|one| one.serial == issued.serial).cloned(),
            })
            .collect();
        found.sort_by_key(|finding| std::cmp::Reverse(finding.issued.at));
        found
    }

    /// Records that this serial number (hexadecimal) is revoked. With `unknown`, also one that neither the ledger nor the
    /// authority itself knows.
    ///
    /// # Errors
    /// Nobody was issued it, it is revoked already, or it is an upstream's; the record cannot be written.
    pub fn revoke_serial(
        &mut self,
        text: &str,
        reason: Reason,
        unknown: bool,
        now: i64,
    ) -> Result<Vec<Revoked>, Error> {
        let serial = serial(text).ok_or_else(|| Error::Serial { text: text.to_owned() })?;
        let issued = self.issued.iter().find(|issued| issued.serial == serial);
        let revoked = match issued {
            Some(issued) => revocation(issued, reason, now),
            None => match self.own(&serial)? {
                Some((signer, not_after)) => {
                    let signer = Some(signer);
                    Revoked { serial, id: None, signer, not_after, at: now, reason }
                }
                None if unknown => {
                    // The longest that anything of ours can live.
                    let not_after = now + super::certificate::DAY;
                    Revoked { serial, id: None, signer: None, not_after, at: now, reason }
                }
                None => return Err(Error::UnknownSerial { serial }),
            },
        };
        self.add(vec![revoked])
    }

    /// Records that all live SVIDs of this ID are revoked, which are returned.
    ///
    /// # Errors
    /// The record cannot be written.
    pub fn revoke_id(&mut self, id: &str, reason: Reason, now: i64) -> Result<Vec<Revoked>, Error> {
        let live = self.issued.iter().filter(|issued| issued.id == id && issued.is_live(now));
        let more = live.map(|issued| revocation(issued, reason, now)).collect();
        self.add(more)
    }

    /// One of our own intermediates, and the root whose list names it.
    fn own(&self, serial: &str) -> Result<Option<(String, i64)>, Error> {
        for one in &self.state.intermediates {
            let certificates = read_certificates(&self.files, &one.name)?;
            let facts = certificates.first().and_then(|certificate| Facts::read(certificate));
            let Some(facts) = facts.filter(|facts| facts.serial == serial) else { continue };
            if self.state.root(&one.root).is_some_and(|root| root.upstream) {
                return Err(Error::Upstream {
                    detail: "the upstream signed that intermediate, and its list names it".into(),
                });
            }
            if one.duty == Duty::Waiting {
                return Err(Error::Upstream {
                    detail: "that intermediate does not sign yet; activate or prepare anew".into(),
                });
            }
            return Ok(Some((one.root.clone(), facts.not_after)));
        }
        Ok(None)
    }

    /// What has neither expired nor been revoked nor been dropped.
    fn live(&self, now: i64) -> Vec<Issued> {
        let revoked = |serial: &str| self.revoked.iter().any(|one| one.serial == serial);
        let holds = |issued: &&Issued| issued.is_live(now) && !revoked(&issued.serial);
        in_use(self.issued.iter().filter(holds).cloned().collect())
    }

    fn add(&mut self, mut more: Vec<Revoked>) -> Result<Vec<Revoked>, Error> {
        let _alone = self.files.lock()?;
        // Another process may have added some since we read.
        let mut all = read_revoked(&self.files)?;
        more.retain(|one| !all.iter().any(|known| known.serial == one.serial));
        if !more.is_empty() {
            all.extend(more.iter().cloned());
            write_revoked(&self.files, &all)?;
        }
        self.revoked = all;
        Ok(more)
    }
}

fn revocation(issued: &Issued, reason: Reason, now: i64) -> Revoked {
    Revoked {
        serial: issued.serial.clone(),
        id: Some(issued.id.clone()),
        signer: Some(issued.intermediate.clone()),
        not_after: issued.not_after,
        at: now,
        reason,
    }
}

/// A serial number as we write it: lower-case hexadecimal without leading zeros, from any of the ways that tools print it.
fn serial(text: &str) -> Option<String> {
    let digits: String = text.chars().filter(|c| !matches!(c, ':' | ' ')).collect();
    let digits = digits.strip_prefix("0x").unwrap_or(&digits).to_ascii_lowercase();
    let even = if digits.len() % 2 == 1 { format!("0{digits}") } else { digits };
    let bytes = hex::decode(even).ok()?;
    let start = bytes.iter().position(|byte| *byte != 0)?;
    (bytes.len() - start <= 20).then(|| hex::encode(&bytes[start..]))
}
