//! Replacing the root: prepare, activate, retire. By command, or by a policy.
//!
//! A new root first enters the bundle, and everybody learns to trust it. Then it signs, and the former one stays in the bundle
//! for what it signed. When nothing of that lives any more, it leaves.

use std::fmt;
use std::time::Duration;

use rustls_pki_types::CertificateDer;

use super::super::Error;
use super::authority::{Authority, new_root, past_until};
use super::certificate::{Facts, fresh_name, is_signed_by};
use super::files::OPEN;
use super::ledger::{Issued, in_use};
use super::lists::read_revoked;
use super::loaded::{Loaded, certificate_file};
use super::state::{Phase, RootRecord};
use crate::identity::TrustBundle;

/// Whoever fetches a bundle looks again after this time, when it names none itself (SPIFFE Trust Domain and Bundle, 4.1.2).
const REFRESH_SECONDS: i64 = 300;
/// What a running issuer needs at most to notice that the root was changed by a command.
const NOTICED_SECONDS: i64 = 5;

/// A step of a root's rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A new root enters the bundle.
    Prepare,
    /// It signs.
    Activate,
    /// The former root leaves the bundle.
    Retire,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prepare => "prepare",
            Self::Activate => "activate",
            Self::Retire => "retire",
        })
    }
}

/// When a running issuer replaces its root by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RotationPolicy {
    /// How long a root signs.
    pub every: Duration,
    /// How long a new root is in the bundle before it signs, and the former one at least after that. When not given: the
    /// longest time after which anybody looks for a new bundle, 300 s or half of the longest SVID's life.
    pub overlap: Option<Duration>,
}

impl Authority {
    /// A new root enters the bundle.
    ///
    /// # Errors
    /// One is prepared or outgoing already; the root's key is kept upstream; the files cannot be written.
    pub fn prepare_root(&self) -> Result<(), Error> {
        let now = self.clock().now();
        let changing = self.changing()?;
        let loaded = changing.loaded();
        loaded.state.expect(Step::Prepare)?;
        if loaded.state.root_in(Phase::Active).is_some_and(|root| root.upstream) {
            return Err(Error::Upstream {
                detail: "its root is kept elsewhere: give the new one with --root".into(),
            });
        }
        let (root, intermediate) = new_root(&self.files, &*self.custody, self.domain(), now)?;
        tracing::info!(domain = %self.domain(), root = root.name, "a new root is prepared");
        changing.commit(loaded.state.prepare(root, Some(intermediate))?)?;
        changing.refresh_lists()
    }

    /// As [`Authority::prepare_root`], for a root whose key is kept elsewhere.
    ///
    /// # Errors
    /// One is prepared or outgoing already; the authority has its own root; the certificate is no root, or known already.
    pub fn prepare_upstream_root(&self, certificate: CertificateDer<'static>) -> Result<(), Error> {
        let now = self.clock().now();
        let changing = self.changing()?;
        let loaded = changing.loaded();
        loaded.state.expect(Step::Prepare)?;
        let wrong = |detail: &str| Error::Upstream { detail: detail.into() };
        if loaded.state.root_in(Phase::Active).is_some_and(|root| !root.upstream) {
            return Err(wrong("its root is its own: prepare needs no --root"));
        }
        check_root(&certificate, now)?;
        if loaded.roots.iter().any(|(_, known)| known.certificate == certificate) {
            return Err(wrong("that root is in the bundle already"));
        }
        let name = fresh_name("root")?;
        let text = TrustBundle::new(self.domain().clone(), vec![certificate]).to_pem();
        self.files.write(&certificate_file(&name), text.as_bytes(), OPEN)?;
        let root = RootRecord { name, phase: Phase::Prepared, since: now, upstream: true };
        changing.commit(loaded.state.prepare(root, None)?)
    }

    /// The prepared root signs from now on. Refused before those who verify can know it, unless `force`d; `overlap` as in
    /// [`RotationPolicy`].
    ///
    /// # Errors
    /// No root is prepared, or not for long enough; the upstream has not signed an intermediate under it.
    pub fn activate_root(&self, overlap: Option<Duration>, force: bool) -> Result<(), Error> {
        let now = self.clock().now();
        let changing = self.changing()?;
        let loaded = changing.loaded();
        let next = loaded.state.activate(now, past_until(now))?;
        let since = loaded.state.root_in(Phase::Prepared).map_or(now, |root| root.since);
        let until = since + overlap_seconds(overlap, &self.ledger.live(now, |_| true)?);
        if now < until && !force {
            return Err(Error::TooEarly { since, until });
        }
        changing.commit(next)?;
        tracing::info!(domain = %self.domain(), root = changing.loaded().signing.root, "a new root signs");
        Ok(())
    }

    /// The outgoing root leaves the bundle, and its keys are destroyed. Refused while live
    /// SVIDs chain to it that are not revoked, unless `force`d.
    ///
    /// # Errors
    /// No root is outgoing; it is since a moment only; SVIDs would break, which the error names.
    pub fn retire_root(&self, force: bool) -> Result<(), Error> {
        let now = self.clock().now();
        let changing = self.changing()?;
        let loaded = changing.loaded();
        let next = loaded.state.retire()?;
        let outgoing = loaded.state.root_in(Phase::Outgoing);
        let (name, since) = outgoing.map_or(("", now), |root| (root.name.as_str(), root.since));
        if !force {
            if now < since + NOTICED_SECONDS {
                return Err(Error::TooEarly { since, until: since + NOTICED_SECONDS });
            }
            let revoked = read_revoked(&self.files)?;
            // Who is revoked is not left behind: nobody accepts it now.
            let is_revoked = |serial: &str| revoked.iter().any(|one| one.serial == serial);
            let mut live = in_use(self.ledger.live(now, |_| true)?);
            live.retain(|issued| issued.root == name && !is_revoked(&issued.serial));
            if !live.is_empty() {
                return Err(Error::WouldBreak { live });
            }
        }
        changing.commit(next)?;
        changing.refresh_lists()?;
        tracing::info!(domain = %self.domain(), "the former root left the bundle");
        Ok(())
    }

    /// Takes the step that `policy` asks for now. A root that something alive chains to stays: its retiring is delayed.
    pub(super) fn rotate_by(&self, policy: &RotationPolicy) -> Result<(), Error> {
        let now = self.clock().now();
        let loaded = self.loaded();
        let since = |phase| loaded.state.root_in(phase).map_or(now, |root| root.since);
        let passed = |from: i64, seconds: Duration| now >= from.saturating_add(whole(seconds));
        match loaded.state.next_step() {
            Step::Prepare if is_upstream(&loaded) => Ok(()),
            Step::Prepare if passed(since(Phase::Active), policy.every) => self.prepare_root(),
            Step::Activate => match self.activate_root(policy.overlap, false) {
                Err(Error::TooEarly { .. } | Error::Upstream { .. }) => Ok(()),
                done => done,
            },
            Step::Retire => {
                let overlap = policy.overlap.unwrap_or(Duration::from_secs(REFRESH_SECONDS as u64));
                if !passed(since(Phase::Active), overlap) {
                    return Ok(());
                }
                match self.retire_root(false) {
                    Err(Error::TooEarly { .. } | Error::WouldBreak { .. }) => Ok(()),
                    done => done,
                }
            }
            Step::Prepare => Ok(()),
        }
    }
}

fn is_upstream(loaded: &Loaded) -> bool {
    loaded.state.root_in(Phase::Active).is_some_and(|root| root.upstream)
}

fn whole(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

/// How long a root must be known before it signs: until those who fetch bundles and those who renew SVIDs have it.
pub(super) fn overlap_seconds(given: Option<Duration>, live: &[Issued]) -> i64 {
    let longest = live.iter().map(|issued| issued.not_after - issued.at).max().unwrap_or(0);
    given.map_or_else(|| REFRESH_SECONDS.max(longest / 2), whole)
}

/// Is this a root that can stand in a bundle now?
pub(super) fn check_root(certificate: &[u8], now: i64) -> Result<Facts, Error> {
    let wrong = |detail: &str| Error::Upstream { detail: format!("the root {detail}") };
    let facts = Facts::read(certificate).ok_or_else(|| wrong("is not a certificate"))?;
    if !facts.is_authority || !is_signed_by(certificate, certificate) {
        return Err(wrong("is not a self-signed authority's certificate"));
    }
    if facts.not_after <= now {
        return Err(wrong("expired"));
    }
    Ok(facts)
}
