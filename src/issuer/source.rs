//! Identity source: an authority in the same process, as `dev`, `demo` and the control plane have it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Authority, Error};
use crate::identity::{
    Identity, IdentitySource, RevocationLists, Revocations, Rules, SpiffeId, Trust, TrustBundles,
    renew_after,
};
use crate::rt::{Backoff, Live, Publisher, Tasks};

/// An identity kept current by an authority in this process. The renewal ends when this is dropped.
#[derive(Debug)]
pub struct IssuerSource {
    live: Live<Identity>,
    _renewal: Tasks,
}

impl IssuerSource {
    /// Issues `id` and renews it at half its life with jitter, soon when the authority signs under another root, and at once when
    /// it is revoked. Follows the authority's bundle and lists, and `federated` (bundles of other trust domains).
    /// To be called within a runtime.
    ///
    /// # Errors
    /// The authority refuses to issue.
    pub fn start(
        authority: Arc<Authority>,
        id: SpiffeId,
        ttl: Duration,
        federated: Live<TrustBundles>,
    ) -> Result<Self, Error> {
        let first = next(&authority, &id, ttl, &federated, None)?;
        let (publisher, live) = Publisher::new(first);
        let mut renewal = Tasks::new();
        renewal.add(renew(authority, id, ttl, federated, publisher));
        Ok(Self { live, _renewal: renewal })
    }
}

impl IdentitySource for IssuerSource {
    fn identity(&self) -> Live<Identity> {
        self.live.clone()
    }
}

async fn renew(
    authority: Arc<Authority>,
    id: SpiffeId,
    ttl: Duration,
    mut federated: Live<TrustBundles>,
    publisher: Publisher<Identity>,
) {
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
    let mut jwt_keys = authority.jwt().keys();
    let mut announced = authority.announced();
    let mut issued_under = announced.load().root.clone();
    let mut due = Instant::now() + pause_for(&publisher.live().load(), &authority);
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(due) => {}
            () = changed(&mut federated) => {}
            () = changed(&mut jwt_keys) => {}
            () = changed(&mut announced) => {}
        }
        let current = publisher.live().load();
        let news = announced.load();
        if news.revoked.contains(&current.svid.serial) {
            due = Instant::now();
        } else if news.root != issued_under {
            // There are few in a process: no burst to be avoided, and its own authority waits for it.
            due = due.min(Instant::now() + spread(ttl).min(Duration::from_secs(1)));
            issued_under.clone_from(&news.root);
        }
        if Instant::now() < due {
            // Others are trusted, the SVID is as good as before.
            let now = authority.clock().now();
            let trust = trust(&authority, &federated);
            match Identity::successor(Some(&current), current.svid.clone(), trust, now) {
                Ok(next) => publisher.set(next),
                Err(error) => tracing::error!(%error, %id, "the bundle does not fit the identity"),
            }
            continue;
        }
        issued_under = loop {
            // Before issuing: what changes meanwhile is taken for news.
            let root = announced.load().root.clone();
            match next(&authority, &id, ttl, &federated, Some(&current)) {
                Ok(next) => {
                    publisher.set(next);
                    break root;
                }
                Err(error) => {
                    tracing::error!(%error, %id, "cannot renew the identity; keeping the one in use");
                    backoff.wait().await;
                }
            }
        };
        backoff.reset();
        due = Instant::now() + pause_for(&publisher.live().load(), &authority);
    }
}

fn pause_for(identity: &Identity, authority: &Authority) -> Duration {
    let left = identity.svid.seconds_left(authority.clock().now());
    pause(Duration::from_secs(u64::try_from(left).unwrap_or(0)))
}

fn next(
    authority: &Authority,
    id: &SpiffeId,
    ttl: Duration,
    federated: &Live<TrustBundles>,
    current: Option<&Identity>,
) -> Result<Identity, Error> {
    let svid = authority.issue(id, ttl, &[])?;
    let now = authority.clock().now();
    Ok(Identity::successor(current, svid, trust(authority, federated), now)?)
}

/// Whom an identity of the authority trusts: its own domain, with the authority's revocation lists, and the others.
fn trust(authority: &Authority, federated: &Live<TrustBundles>) -> Trust {
    let mut bundles = TrustBundles::clone(&federated.load());
    // Last, so that nobody speaks for our own trust domain but our authority.
    bundles.insert(authority.bundle());
    let lists = authority.announced().load().lists.clone();
    let mut revocation = Revocations::default();
    let own = RevocationLists { lists, ..RevocationLists::default() };
    revocation.by_domain.insert(authority.domain().clone(), own);
    Trust::new(bundles, revocation, Rules::default())
}

/// How long after issuing to renew, counted from now: the certificate's backdating is no part of its life.
pub(super) fn pause(ttl: Duration) -> Duration {
    renew_after(ttl, fastrand::f64()).max(Duration::from_millis(200))
}

/// How long to wait with what is not urgent, so that a fleet does not ask at once: at most a tenth of `life`, and a minute.
pub(super) fn spread(life: Duration) -> Duration {
    (life / 10).min(Duration::from_secs(60)).mul_f64(fastrand::f64())
}

/// Waits for a change; for ever when there can be none.
pub(super) async fn changed<T>(live: &mut Live<T>) {
    if !live.changed().await {
        std::future::pending::<()>().await;
    }
}
