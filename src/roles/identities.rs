//! What a process knows of its own identities and public certificates: how long they last, for `/identity`, metrics and warnings.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::identity::{Budget, Identity, Limit};
use crate::mtls::{PublicCertificate, Sites};
use crate::observe::{MetricKind, Registry};
use crate::rt::{Clock, Live, crypto, memory};

/// The identities and public certificates in use; clones share them.
#[derive(Clone)]
pub struct Identities {
    clock: Clock,
    registry: Registry,
    watched: Arc<Mutex<Vec<Arc<Watched>>>>,
    sites: Arc<Mutex<Vec<Live<Sites>>>>,
}

/// One identity with what is worked out of it once.
pub(super) struct Watched {
    live: Live<Identity>,
    seen: Mutex<Seen>,
}

/// An identity in use.
#[derive(Clone)]
pub(super) struct Seen {
    pub(super) identity: Arc<Identity>,
    pub(super) budget: Arc<Budget>,
    /// When it came into use here, seconds since 1970.
    pub(super) since: i64,
}

impl Watched {
    fn new(live: Live<Identity>, now: i64) -> Self {
        let seen = Mutex::new(Seen::of(live.load(), now));
        Self { live, seen }
    }

    pub(super) fn now(&self, now: i64) -> Seen {
        let identity = self.live.load();
        let mut seen = self.seen.lock();
        if !Arc::ptr_eq(&seen.identity, &identity) {
            let same = seen.identity.svid.serial == identity.svid.serial;
            let since = if same { seen.since } else { now };
            *seen = Seen { since, ..Seen::of(identity, now) };
        }
        seen.clone()
    }
}

impl Seen {
    fn of(identity: Arc<Identity>, now: i64) -> Self {
        Self { budget: Arc::new(Budget::of(&identity)), identity, since: now }
    }
}

impl Identities {
    /// None yet. `clock` is the wall clock that certificates follow.
    pub fn new(registry: &Registry, clock: Clock) -> Self {
        let name = "wardgate_identity_budget_seconds";
        let help =
            "Seconds until peers begin to refuse us if nothing is renewed, and what ends first.";
        registry.describe(name, MetricKind::Gauge, help);
        let (watched, sites) = (Arc::default(), Arc::default());
        Self { clock, registry: registry.clone(), watched, sites }
    }

    /// Shows this identity from now on.
    pub fn watch(&self, live: Live<Identity>) {
        let id = live.load().id().to_string();
        let watched = Arc::new(Watched::new(live, self.clock.now()));
        for limit in Limit::ALL {
            let (watched, clock) = (watched.clone(), self.clock.clone());
            #[expect(clippy::cast_precision_loss, reason = "a metric's value")]
            let value = move || {
                let now = clock.now();
                let budget = watched.now(now).budget;
                // Shown is the one that ends first: what is not a number is not shown.
                if budget.first().1 == limit { budget.seconds_left(now) as f64 } else { f64::NAN }
            };
            let labels = [("spiffe_id", id.as_str()), ("fails_first", limit.name())];
            let name = "wardgate_identity_budget_seconds";
            self.registry.computed(name, &labels, MetricKind::Gauge, value);
        }
        self.watched.lock().push(watched);
    }

    /// Shows the public certificates of a data plane from now on.
    pub fn watch_sites(&self, live: Live<Sites>) {
        self.sites.lock().push(live);
    }

    pub(super) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The identities in use.
    pub(super) fn in_use(&self) -> Vec<Seen> {
        let now = self.clock.now();
        self.watched.lock().iter().map(|watched| watched.now(now)).collect()
    }

    /// The public certificates in use, each once.
    pub fn certificates(&self) -> Vec<Arc<PublicCertificate>> {
        let planes: Vec<Arc<Sites>> = self.sites.lock().iter().map(Live::load).collect();
        let mut known = HashSet::new();
        let all = planes.iter().flat_map(|plane| plane.certificates());
        all.filter(|one| known.insert(one.sha256())).cloned().collect()
    }

    /// What `/identity` answers.
    pub fn status(&self) -> Value {
        let now = self.clock.now();
        let identities: Vec<Value> =
            self.in_use().iter().map(|seen| identity_status(seen, now)).collect();
        let certificates: Vec<Value> =
            self.certificates().iter().map(|one| certificate_status(one, now)).collect();
        json!({
            "identities": identities,
            "public_certificates": certificates,
            "crypto": { "library": crypto::LIBRARY, "fips": cfg!(feature = "fips") },
            "memory_closed": memory::is_closed(),
        })
    }
}

fn identity_status(seen: &Seen, now: i64) -> Value {
    let Seen { identity, budget, .. } = seen;
    let limits: serde_json::Map<String, Value> =
        budget.limits(now).map(|(limit, left)| (limit.name().to_owned(), left.into())).collect();
    let domains: serde_json::Map<String, Value> = identity
        .trust
        .bundles
        .iter()
        .map(|bundle| (bundle.domain.to_string(), json!({ "roots": bundle.roots.len() })))
        .collect();
    json!({
        "spiffe_id": identity.id().as_str(),
        "serial": identity.svid.serial,
        "not_before": rfc3339(identity.svid.not_before),
        "not_after": rfc3339(identity.svid.not_after),
        "withdrawn": identity.is_withdrawn(),
        "budget_seconds": budget.seconds_left(now),
        "fails_first": budget.first().1.name(),
        "limits_seconds": limits,
        "trust_domains": domains,
    })
}

fn certificate_status(certificate: &PublicCertificate, now: i64) -> Value {
    json!({
        "names": certificate.names(),
        "serial": certificate.serial(),
        "not_after": rfc3339(certificate.not_after()),
        "seconds_left": certificate.not_after() - now,
        "must_staple": certificate.must_staple(),
        "ocsp_until": certificate.stapled().map(|answer| rfc3339(answer.next_update)),
    })
}

pub(super) fn rfc3339(seconds: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp(seconds).ok();
    time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_else(|| seconds.to_string())
}
