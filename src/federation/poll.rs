//! The polls: one task for each endpoint and each URL of a revocation list.

use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::rt::crypto::digest::{SHA256, digest};
use http::Uri;
use serde::{Deserialize, Serialize};

use super::declarations::Shared;
use super::disk::Shelf;
use super::fetch::{self, Order, Server};
use super::{Error, Limits, lists};
use crate::identity::{
    BundleDocument, DatedList, Endpoint, EndpointServer, Trust, TrustBundle, TrustBundles,
    TrustDomain,
};
use crate::rt::Clock;

/// No interval is shorter, whatever fails and whatever a document says (70, 86).
const SHORTEST: Duration = Duration::from_secs(10);
/// Between two fetches of an endpoint that never said how often (69).
const DEFAULT: Duration = Duration::from_secs(300);
/// Between two fetches of a revocation list, at most.
const LISTS_AT_MOST: Duration = Duration::from_secs(300);

/// A bundle that was fetched.
#[derive(Clone, Debug)]
pub(super) struct Fetched {
    pub(super) document: BundleDocument,
    pub(super) at: i64,
    /// SHA-256 of the declared first bundle from which it came.
    pub(super) initial: Option<String>,
}

/// What the file says of a fetched bundle beside its document.
#[derive(Serialize, Deserialize)]
struct About {
    trust_domain: String,
    url: String,
    at: i64,
    initial: Option<String>,
}

/// What a fetch of a bundle needs.
pub(super) struct BundleOrder {
    pub(super) endpoint: Endpoint,
    /// What verifies the server of an `https_spiffe` endpoint.
    pub(super) server_bundle: Option<TrustBundle>,
    /// For its revocation and rules.
    pub(super) trust: Arc<Trust>,
    pub(super) held: Option<Fetched>,
    pub(super) refresh_every: Option<Duration>,
}

/// What a fetch of a revocation list needs.
pub(super) struct ListOrder {
    pub(super) allow_private: bool,
    pub(super) held: Vec<DatedList>,
    pub(super) bundle: Option<TrustBundle>,
}

/// Tells whether a declared first bundle is another one.
pub(super) fn digest_of(initial: Option<&TrustBundle>) -> Option<String> {
    initial.map(|bundle| hex::encode(digest(&SHA256, &bundle.to_der())))
}

pub(super) fn shelf_name(domain: &TrustDomain) -> String {
    format!("bundle-{domain}")
}

/// The bundle that was fetched last, by an earlier process (87).
pub(super) fn kept(shelf: &Shelf, domain: &TrustDomain) -> Option<Fetched> {
    let name = shelf_name(domain);
    let (about, document) = match shelf.read::<About>(&name) {
        Ok(found) => found?,
        Err(error) => {
            tracing::error!(%domain, error = error.report(), "the kept bundle cannot be used");
            return None;
        }
    };
    match BundleDocument::parse(domain.clone(), &document) {
        Ok(document) if about.trust_domain == domain.as_str() => {
            Some(Fetched { document, at: about.at, initial: about.initial })
        }
        Ok(_) => {
            tracing::error!(%domain, of = about.trust_domain, "the kept bundle is another domain's");
            shelf.move_aside(&name);
            None
        }
        Err(error) => {
            tracing::error!(%domain, error = error.report(), "the kept bundle cannot be used");
            shelf.move_aside(&name);
            None
        }
    }
}

/// Fetches a bundle now and then at its intervals. A failure waits for the next one like a success (86).
pub(super) async fn follow_bundle(shared: Weak<Shared>, domain: TrustDomain, has_bundle: bool) {
    if has_bundle {
        // A fleet that hears of a change at once does not come at once.
        tokio::time::sleep(Duration::from_millis(fastrand::u64(..1000))).await;
    }
    loop {
        let Some(order) = shared.upgrade().and_then(|shared| shared.bundle_order(&domain)) else {
            return;
        };
        let outcome = bundle(&domain, &order).await;
        let Some(shared) = shared.upgrade() else { return };
        let held = order.held.as_ref();
        let newest = outcome.as_ref().ok().map(|(_, document)| document);
        let pause = with_jitter(until_next_fetch(&order, newest));
        let now = shared.clock().now();
        let next_at = now.saturating_add(seconds(pause));
        match outcome {
            Ok((text, document)) => {
                let (sequence, roots) = (document.sequence, document.bundle.roots.len());
                let fetched = Fetched {
                    document,
                    at: now,
                    initial: digest_of(order.endpoint.initial.as_ref()),
                };
                keep(&shared, &domain, &order, &fetched, &text);
                let is_new =
                    held.is_none_or(|held| held.document.bundle != fetched.document.bundle);
                if is_new {
                    tracing::info!(%domain, ?sequence, roots, "bundle fetched");
                }
                shared.take_bundle(&domain, fetched, next_at);
            }
            Err(error) => shared.miss_bundle(&domain, &error, next_at),
        }
        drop(shared);
        tokio::time::sleep(pause).await;
    }
}

fn keep(
    shared: &Shared,
    domain: &TrustDomain,
    order: &BundleOrder,
    fetched: &Fetched,
    text: &[u8],
) {
    let about = About {
        trust_domain: domain.to_string(),
        url: order.endpoint.url.to_string(),
        at: fetched.at,
        initial: fetched.initial.clone(),
    };
    if let Err(error) = shared.shelf().keep(&shelf_name(domain), &about, text) {
        // It is in force all the same: a root that was removed must not live on because a disk is full.
        tracing::error!(%domain, error = error.report(), "a fetched bundle cannot be kept for the next start");
    }
}

async fn bundle(
    domain: &TrustDomain,
    order: &BundleOrder,
) -> Result<(Vec<u8>, BundleDocument), Error> {
    let endpoint = &order.endpoint;
    let trust;
    let server = match &endpoint.server {
        EndpointServer::Web { authorities } => Server::Web { authorities: authorities.as_deref() },
        EndpointServer::Spiffe { id } => {
            let Some(bundle) = order.server_bundle.clone() else {
                return Err(Error::NoBundle { domain: id.trust_domain() });
            };
            // Nobody but the endpoint's own trust domain can vouch for its server.
            let bundles: TrustBundles = [bundle].into_iter().collect();
            trust = Trust::new(bundles, order.trust.revocation.clone(), order.trust.rules);
            Server::Spiffe { trust: &trust, id }
        }
    };
    let body = fetch::fetch(&Order {
        url: &endpoint.url,
        server,
        schemes: &["https"],
        accept: "application/json",
        allow_redirects: endpoint.allow_redirects,
        allow_private: endpoint.allow_private,
        limits: Limits::BUNDLE,
    })
    .await?;
    let document = BundleDocument::parse(domain.clone(), &body)?;
    if let Some(held) = &order.held {
        document.succeeds(&held.document)?;
    }
    Ok((body.to_vec(), document))
}

/// How long to wait after a fetch; `newest` is what came of it, nothing when it failed (69, 86).
fn until_next_fetch(order: &BundleOrder, newest: Option<&BundleDocument>) -> Duration {
    let held = order.held.as_ref().map(|held| &held.document);
    match (order.refresh_every, newest.or(held)) {
        (Some(declared), _) => declared,
        (None, Some(document)) => document.refresh_after,
        // Nobody of the domain is trusted until there is a bundle: as often as any hint could ask.
        (None, None) if order.endpoint.initial.is_none() => SHORTEST,
        (None, None) => DEFAULT,
    }
}

/// Fetches a revocation list now and again well before it ends.
pub(super) async fn follow_list(shared: Weak<Shared>, domain: TrustDomain, url: Uri) {
    loop {
        let Some(order) = shared.upgrade().and_then(|shared| shared.list_order(&domain, &url))
        else {
            return;
        };
        let fetched = fetch::fetch(&Order {
            url: &url,
            server: Server::Web { authorities: None },
            schemes: &["http", "https"],
            accept: "application/pkix-crl, application/x-pem-file, */*",
            allow_redirects: true,
            allow_private: order.allow_private,
            limits: Limits::LIST,
        })
        .await;
        let Some(shared) = shared.upgrade() else { return };
        let outcome = fetched.and_then(|bytes| {
            let lists = lists::succeed(&url, &bytes, &order.held, order.bundle.as_ref())?;
            if lists != order.held
                && let Err(error) = lists::keep(shared.shelf(), &url, &bytes)
            {
                tracing::error!(%domain, error = error.report(), "a revocation list cannot be kept for the next start");
            }
            Ok(lists)
        });
        let current = outcome.as_ref().unwrap_or(&order.held);
        let pause = with_jitter(until_next(current, shared.clock()));
        shared.take_lists(&domain, &url, outcome);
        drop(shared);
        tokio::time::sleep(pause).await;
    }
}

/// Half of what is left of the list that ends first.
fn until_next(lists: &[DatedList], clock: &Clock) -> Duration {
    let now = clock.now();
    let ends = lists.iter().map(|list| list.next_update).min();
    let left = ends.map_or(i64::MAX, |end| (end - now) / 2);
    Duration::from_secs(u64::try_from(left).unwrap_or(0)).clamp(SHORTEST, LISTS_AT_MOST)
}

/// Up to a tenth earlier, and never below the shortest interval.
fn with_jitter(pause: Duration) -> Duration {
    pause.mul_f64(1.0 - fastrand::f64() * 0.1).max(SHORTEST)
}

fn seconds(pause: Duration) -> i64 {
    i64::try_from(pause.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::forge::Forge;

    #[test]
    fn rules_69_70_and_86_say_when_to_fetch_again() {
        let forge = Forge::new("b.test");
        let document = |seconds| BundleDocument {
            bundle: forge.bundle(),
            sequence: None,
            refresh_after: Duration::from_secs(seconds),
        };
        let order = |held: Option<u64>, initial: bool, declared: Option<u64>| BundleOrder {
            endpoint: Endpoint {
                url: "https://b.test/".parse().unwrap(),
                server: EndpointServer::Web { authorities: None },
                initial: initial.then(|| forge.bundle()),
                allow_redirects: true,
                allow_private: false,
            },
            server_bundle: None,
            trust: Arc::default(),
            held: held.map(|seconds| Fetched { document: document(seconds), at: 0, initial: None }),
            refresh_every: declared.map(Duration::from_secs),
        };
        for (rule, held, initial, declared, fetched, seconds) in [
            ("69 the document's hint", None, false, None, Some(60), 60),
            ("69 the newest hint", Some(60), false, None, Some(90), 90),
            ("69 an operator's word", Some(60), false, Some(20), Some(90), 20),
            ("86 a failure waits for the interval", Some(60), false, None, None, 60),
            ("86 an operator's interval", None, false, Some(20), None, 20),
            ("86 nothing is known", None, true, None, None, 300),
            ("86 there is no bundle", None, false, None, None, 10),
        ] {
            let newest = fetched.map(document);
            let pause = until_next_fetch(&order(held, initial, declared), newest.as_ref());
            assert_eq!(pause.as_secs(), seconds, "{rule}");
        }
        for seconds in [1, 10, 300, 86_400] {
            let pause = with_jitter(Duration::from_secs(seconds));
            assert!(pause >= SHORTEST, "70 {pause:?}");
            assert!(pause <= Duration::from_secs(seconds).max(SHORTEST), "70 {pause:?}");
        }
    }

    #[test]
    fn a_revocation_list_is_fetched_again_well_before_it_ends() {
        let clock = Clock::fixed(1_000);
        let list = |next_update| DatedList { der: Vec::new().into(), this_update: 0, next_update };
        for (ends, seconds) in [(1_100, 50), (1_001, 10), (0, 10), (1_000_000, 300)] {
            assert_eq!(until_next(&[list(ends)], &clock).as_secs(), seconds, "{ends}");
        }
        assert_eq!(until_next(&[list(1_100), list(1_050)], &clock).as_secs(), 25);
        assert_eq!(until_next(&[], &clock), LISTS_AT_MOST);
    }
}
