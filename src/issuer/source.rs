//! Identity source: an authority in the same process, as `dev`, `demo` and the control plane have it.

use std::sync::Arc;
use std::time::Duration;

use super::{Authority, Error};
use crate::identity::{Identity, IdentitySource, SpiffeId, TrustBundles, renew_after};
use crate::rt::{Backoff, Live, Publisher, Tasks};

/// An identity kept current by an authority in this process. The renewal ends when this is dropped.
#[derive(Debug)]
pub struct IssuerSource {
    live: Live<Identity>,
    _renewal: Tasks,
}

impl IssuerSource {
    /// Issues `id` and renews it at half its life with jitter, and when `federated` (bundles of other trust domains) changes.
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
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause(ttl)) => {}
            () = changed(&mut federated) => {}
            () = changed(&mut jwt_keys) => {}
        }
        while let Err(error) = {
            let current = publisher.live().load();
            next(&authority, &id, ttl, &federated, Some(&current)).map(|next| publisher.set(next))
        } {
            tracing::error!(%error, %id, "cannot renew the identity; keeping the one in use");
            backoff.wait().await;
        }
        backoff.reset();
    }
}

fn next(
    authority: &Authority,
    id: &SpiffeId,
    ttl: Duration,
    federated: &Live<TrustBundles>,
    current: Option<&Identity>,
) -> Result<Identity, Error> {
    let svid = authority.issue(id, ttl, &[])?;
    let mut bundles = TrustBundles::clone(&federated.load());
    // Last, so that nobody speaks for our own trust domain but our authority.
    bundles.insert(authority.bundle());
    Ok(Identity::successor(current, svid, bundles, authority.clock().now())?)
}

/// How long after issuing to renew, counted from now: the certificate's backdating is no part of its life.
pub(super) fn pause(ttl: Duration) -> Duration {
    renew_after(ttl, fastrand::f64()).max(Duration::from_millis(200))
}

/// Waits for a change; for ever when there can be none.
pub(super) async fn changed<T>(live: &mut Live<T>) {
    if !live.changed().await {
        std::future::pending::<()>().await;
    }
}
