//! `Federation`: takes what is declared, fetches what it names, and hands on the trust that follows from it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use http::Uri;
use parking_lot::Mutex;
use tokio::time::MissedTickBehavior;

use super::board::{Board, DomainReport};
use super::disk::Shelf;
use super::lists::{self, Source};
use super::poll::{self, Fetched};
use crate::identity::{
    BundleOrigin, Composed, DatedList, DeclaredDomain, DeclaredTrust, Denial, EndpointServer,
    Identity, RevocationLists, RevocationMode, Rules, TrustBundle, TrustDomain, WrongField,
};
use crate::model::{Body, Change, Id, Kind, Rejected, Resource};
use crate::observe::{AuditLane, IdentityRecord};
use crate::rt::{Clock, Live, Tasks};

/// How often files and ends of time are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Which declared trust domains count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// All of them.
    Everywhere,
    /// Our own alone, and the deny list: for a control plane, whose peers are all of our own trust domain.
    OwnDomain,
}

/// What a federation needs to know of its process.
#[derive(Clone)]
pub struct Settings {
    /// `sidecar`, `ingress`, `control` or `issuer`.
    pub part: String,
    /// Where fetched bundles and lists are kept; this part's alone.
    pub folder: PathBuf,
    /// Which trust domains count.
    pub reach: Reach,
    /// How exactly peers are judged.
    pub rules: Rules,
    /// The clock of denials and lists.
    pub clock: Clock,
    /// Where the state is shown.
    pub board: Board,
    /// Where alarms go, beside the log.
    pub lane: Option<AuditLane>,
}

/// What is declared about trust, put into force. Clones are the same; the fetching ends with the last one.
#[derive(Clone)]
pub struct Federation {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Federation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Federation")
            .field("part", &self.shared.settings.part)
            .finish_non_exhaustive()
    }
}

pub(super) struct Shared {
    settings: Settings,
    own: TrustDomain,
    composed: Composed,
    shelf: Shelf,
    state: Mutex<State>,
    /// Looks at files and ends of time.
    look: Mutex<Tasks>,
}

#[derive(Default)]
struct State {
    domains: BTreeMap<TrustDomain, Held>,
    denials: BTreeMap<Id, Vec<Denial>>,
}

/// A declared trust domain.
struct Held {
    /// `None`: what is declared is broken. Nobody of the domain is trusted then.
    declared: Option<DeclaredDomain>,
    /// Why it is broken.
    broken: Option<String>,
    fetched: Option<Fetched>,
    lists: Vec<Source>,
    failures: u64,
    last_error: Option<String>,
    alarm: bool,
    next_at: Option<i64>,
    /// Ends with the declaration.
    _polls: Tasks,
}

impl Federation {
    /// Nothing is declared yet: the composed identity is the source's. To be called within a runtime.
    pub fn start(source: Live<Identity>, settings: Settings) -> Self {
        let own = source.load().id().trust_domain();
        let shared = Arc::new(Shared {
            shelf: Shelf::new(settings.folder.clone()),
            composed: Composed::new(source, settings.rules),
            own,
            settings,
            state: Mutex::default(),
            look: Mutex::default(),
        });
        shared.look.lock().add(look(Arc::downgrade(&shared)));
        Self { shared }
    }

    /// The identity with everything that is declared.
    pub fn identity(&self) -> Live<Identity> {
        self.shared.composed.identity()
    }

    /// Puts changes into force: when this returns, handshakes go by them. Kinds that are not ours are passed over.
    ///
    /// `unreadable` names resources that are there and cannot be read. A trust domain that cannot be read, or that makes no
    /// sense, has no bundle; a revocation goes on refusing whom it refused, and whom as much of it as can be read names.
    /// With `complete`, whatever is not named is gone.
    ///
    /// The result names what is refused and why; what is in `unreadable` is not named again.
    pub fn declare(
        &self,
        changes: &[Change],
        unreadable: &[Rejected],
        complete: bool,
    ) -> Vec<Rejected> {
        self.shared.declare(changes, unreadable, complete)
    }
}

impl Shared {
    fn declare(
        self: &Arc<Self>,
        changes: &[Change],
        unreadable: &[Rejected],
        complete: bool,
    ) -> Vec<Rejected> {
        let is_unreadable =
            |kind: Kind, id: &Id| unreadable.iter().any(|one| one.kind == kind && one.id == *id);
        let mut rejected = Vec::new();
        let mut state = self.state.lock();
        let mut named: BTreeSet<(Kind, Id)> =
            unreadable.iter().map(|one| (one.kind, one.id.clone())).collect();
        for change in changes {
            match change {
                Change::Put(Resource { kind, id, revision, body }) => {
                    named.insert((*kind, id.clone()));
                    let outcome = match body {
                        Body::TrustDomain(declared) => self.put_domain(&mut state, id, || {
                            let domain = id.as_str().parse::<TrustDomain>().map_err(|why| {
                                WrongField { field: "id", why: format!("{id}: {why}") }
                            })?;
                            DeclaredDomain::new(domain, declared)?.for_us(&self.own)
                        }),
                        Body::Revocation(declared) => {
                            let denial = Denial::new(declared);
                            match denial {
                                Ok(denial) if !is_unreadable(*kind, id) => {
                                    state.denials.insert(id.clone(), vec![denial]);
                                    Ok(())
                                }
                                other => {
                                    let part = Denial::readable_part(declared);
                                    let held = state.denials.entry(id.clone()).or_default();
                                    if !held.contains(&part) {
                                        held.push(part);
                                    }
                                    other.map(drop).map_err(|error| error.to_string())
                                }
                            }
                        }
                        _ => Ok(()),
                    };
                    if let Err(reason) = outcome
                        && !is_unreadable(*kind, id)
                    {
                        let (kind, id, revision) = (*kind, id.clone(), *revision);
                        rejected.push(Rejected { kind, id, revision, reason });
                    }
                }
                Change::Delete(Kind::TrustDomains, id) => self.remove_domain(&mut state, id),
                Change::Delete(Kind::Revocations, id) => {
                    state.denials.remove(id);
                }
                Change::Delete(..) => {}
            }
        }
        for one in unreadable.iter().filter(|one| one.kind == Kind::TrustDomains) {
            self.close(&mut state, &one.id, &one.reason);
        }
        if complete {
            let gone: Vec<Id> = state
                .domains
                .keys()
                .filter_map(|domain| Id::parse(domain.as_str()).ok())
                .filter(|id| !named.contains(&(Kind::TrustDomains, id.clone())))
                .collect();
            for id in gone {
                self.remove_domain(&mut state, &id);
            }
            state.denials.retain(|id, _| named.contains(&(Kind::Revocations, id.clone())));
        }
        self.put_in_force(&state);
        rejected
    }

    fn put_domain(
        self: &Arc<Self>,
        state: &mut State,
        id: &Id,
        read: impl FnOnce() -> Result<DeclaredDomain, WrongField>,
    ) -> Result<(), String> {
        match read() {
            Ok(declared) => {
                let counts =
                    self.settings.reach == Reach::Everywhere || declared.domain == self.own;
                if counts {
                    self.hold(state, declared);
                }
                Ok(())
            }
            Err(error) => {
                let reason = error.to_string();
                self.close(state, id, &reason);
                Err(reason)
            }
        }
    }

    /// A broken declaration: nobody of the domain is trusted. Of our own domain the declaration before stays.
    fn close(&self, state: &mut State, id: &Id, reason: &str) {
        let Ok(domain) = id.as_str().parse::<TrustDomain>() else { return };
        if domain == self.own || self.settings.reach == Reach::OwnDomain {
            return;
        }
        tracing::error!(%domain, reason, "what is declared about a trust domain is broken: nobody of it is trusted");
        let held = Held {
            declared: None,
            broken: Some(reason.to_owned()),
            fetched: None,
            lists: Vec::new(),
            failures: 0,
            last_error: None,
            alarm: false,
            next_at: None,
            _polls: Tasks::new(),
        };
        state.domains.insert(domain, held);
    }

    fn remove_domain(&self, state: &mut State, id: &Id) {
        let Ok(domain) = id.as_str().parse::<TrustDomain>() else { return };
        let Some(held) = state.domains.remove(&domain) else { return };
        // Declared anew it begins anew: nothing of the past is to be found then.
        self.shelf.forget(&poll::shelf_name(&domain));
        for source in held.lists {
            if let lists::Origin::Url(url) = &source.origin {
                self.shelf.forget(&lists::shelf_name(url));
            }
        }
    }

    fn hold(self: &Arc<Self>, state: &mut State, declared: DeclaredDomain) {
        let before = state.domains.remove(&declared.domain);
        let fetched = declared.endpoint().and_then(|endpoint| {
            let kept = before.as_ref().and_then(|before| before.fetched.clone());
            kept.or_else(|| poll::kept(&self.shelf, &declared.domain))
                // A new first bundle begins anew.
                .filter(|fetched| fetched.initial == poll::digest_of(endpoint.initial.as_ref()))
        });
        let mut sources = Vec::new();
        if let Some(revocation) = &declared.revocation {
            let known = |origin: &lists::Origin| {
                let before = before.iter().flat_map(|before| &before.lists);
                before.clone().find(|source| source.origin == *origin)
            };
            if !revocation.lists.is_empty() {
                sources.push(Source::given(revocation.lists.clone()));
            }
            for path in &revocation.files {
                let origin = lists::Origin::File(path.clone());
                sources.push(Source::file(path.clone(), known(&origin)));
            }
            for url in &revocation.urls {
                let origin = lists::Origin::Url(url.clone());
                sources.push(Source::url(url, &self.shelf, known(&origin)));
            }
        }
        let mut polls = Tasks::new();
        if declared.endpoint().is_some() {
            let has_bundle = fetched.is_some();
            polls.add(poll::follow_bundle(
                Arc::downgrade(self),
                declared.domain.clone(),
                has_bundle,
            ));
        }
        for url in declared.revocation.iter().flat_map(|revocation| &revocation.urls) {
            polls.add(poll::follow_list(
                Arc::downgrade(self),
                declared.domain.clone(),
                url.clone(),
            ));
        }
        let (failures, last_error, alarm) = match before {
            Some(before) => (before.failures, before.last_error, before.alarm),
            None => (0, None, false),
        };
        let held = Held {
            broken: None,
            fetched,
            lists: sources,
            failures,
            last_error,
            alarm,
            next_at: None,
            _polls: polls,
            declared: Some(declared),
        };
        let domain = held.declared.as_ref().map(|declared| declared.domain.clone());
        if let Some(domain) = domain {
            state.domains.insert(domain, held);
        }
    }

    /// Everything that is held becomes the trust of handshakes.
    fn put_in_force(&self, state: &State) {
        let now = self.settings.clock.now();
        let mut trust = DeclaredTrust::default();
        for (domain, held) in &state.domains {
            let Some(declared) = &held.declared else {
                trust.bundles.insert(domain.clone(), None);
                continue;
            };
            if declared.origin.is_some() {
                trust.bundles.insert(domain.clone(), held.bundle().cloned());
            }
            if let Some(revocation) = &declared.revocation {
                let lists = held.lists.iter().flat_map(|source| &source.lists);
                let young = lists.filter(|list| list.is_younger_than(revocation.max_age, now));
                let lists = young.map(|list: &DatedList| list.der.clone()).collect();
                let lists = RevocationLists { mode: revocation.mode, lists };
                trust.revocation.insert(domain.clone(), lists);
            }
        }
        for denial in state.denials.values().flatten().filter(|denial| denial.holds_at(now)) {
            denial.add_to(&mut trust.denied);
        }
        self.composed.declare(trust);
        self.settings.board.set(&self.settings.part, self.reports(state));
    }

    fn reports(&self, state: &State) -> Vec<DomainReport> {
        let report = |(domain, held): (&TrustDomain, &Held)| {
            let declared = held.declared.as_ref();
            let endpoint = declared.and_then(DeclaredDomain::endpoint);
            let from_source = || {
                let identity = self.composed.identity().load();
                identity.trust.bundles.find(domain).map(|bundle| bundle.roots.len())
            };
            let roots = match declared.map(|declared| &declared.origin) {
                Some(Some(_)) => held.bundle().map(|bundle| bundle.roots.len()),
                Some(None) => from_source(),
                None => None,
            };
            DomainReport {
                part: self.settings.part.clone(),
                trust_domain: domain.to_string(),
                origin: match declared.map(|declared| &declared.origin) {
                    None => "broken",
                    Some(None) => "source",
                    Some(Some(BundleOrigin::Given(_))) => "resource",
                    Some(Some(BundleOrigin::Endpoint(_))) => "endpoint",
                },
                url: endpoint.map(|endpoint| endpoint.url.to_string()),
                has_bundle: roots.is_some(),
                roots: roots.unwrap_or_default(),
                sequence: held.fetched.as_ref().and_then(|fetched| fetched.document.sequence),
                fetched_at: held.fetched.as_ref().map(|fetched| fetched.at),
                next_at: held.next_at,
                failures: held.failures,
                last_error: held.broken.clone().or_else(|| held.last_error.clone()),
                alarm: held.alarm,
                revocation: declared.and_then(|declared| declared.revocation.as_ref()).map(
                    |revocation| match revocation.mode {
                        RevocationMode::Off => "off",
                        RevocationMode::Soft => "soft",
                        RevocationMode::Hard => "hard",
                    },
                ),
                lists: held.lists.iter().map(Source::report).collect(),
            }
        };
        state.domains.iter().map(report).collect()
    }

    // What the polls ask and tell.

    pub(super) fn clock(&self) -> &Clock {
        &self.settings.clock
    }

    pub(super) fn shelf(&self) -> &Shelf {
        &self.shelf
    }

    /// What the next fetch of a bundle needs; `None` when the domain has no endpoint any more.
    pub(super) fn bundle_order(&self, domain: &TrustDomain) -> Option<poll::BundleOrder> {
        let state = self.state.lock();
        let held = state.domains.get(domain)?;
        let declared = held.declared.as_ref()?;
        let endpoint = declared.endpoint()?.clone();
        let current = self.composed.identity().load().trust.clone();
        let server_bundle = match &endpoint.server {
            EndpointServer::Web { .. } => None,
            // Self-serving: the newest bundle that there is, at first the declared one (81).
            EndpointServer::Spiffe { id } if id.trust_domain() == *domain => held.bundle().cloned(),
            // Another domain's: what is declared for that one (82).
            EndpointServer::Spiffe { id } => current.bundles.find(&id.trust_domain()).cloned(),
        };
        Some(poll::BundleOrder {
            endpoint,
            server_bundle,
            trust: current,
            held: held.fetched.clone(),
            refresh_every: declared.refresh_every,
        })
    }

    /// What a list is checked with, and what is held of it.
    pub(super) fn list_order(&self, domain: &TrustDomain, url: &Uri) -> Option<poll::ListOrder> {
        let state = self.state.lock();
        let held = state.domains.get(domain)?;
        let revocation = held.declared.as_ref()?.revocation.as_ref()?;
        let source =
            held.lists.iter().find(|source| source.origin == lists::Origin::Url(url.clone()))?;
        let bundle = self.composed.identity().load().trust.bundles.find(domain).cloned();
        Some(poll::ListOrder {
            allow_private: revocation.allow_private,
            held: source.lists.clone(),
            bundle,
        })
    }

    /// A bundle was fetched and may be taken.
    pub(super) fn take_bundle(&self, domain: &TrustDomain, fetched: Fetched, next_at: i64) {
        let mut state = self.state.lock();
        let Some(held) = state.domains.get_mut(domain) else { return };
        (held.failures, held.last_error, held.alarm) = (0, None, false);
        (held.fetched, held.next_at) = (Some(fetched), Some(next_at));
        self.put_in_force(&state);
    }

    /// A bundle could not be fetched, or may not be taken.
    pub(super) fn miss_bundle(&self, domain: &TrustDomain, error: &super::Error, next_at: i64) {
        let report = error.report();
        self.complain(domain, error, &report);
        let mut state = self.state.lock();
        let Some(held) = state.domains.get_mut(domain) else { return };
        held.failures += 1;
        // An alarm stays until something good was fetched: the other side being away does not end it.
        held.alarm |= error.is_alarm();
        (held.last_error, held.next_at) = (Some(report), Some(next_at));
        let reports = self.reports(&state);
        self.settings.board.set(&self.settings.part, reports);
    }

    pub(super) fn take_lists(
        &self,
        domain: &TrustDomain,
        url: &Uri,
        outcome: Result<Vec<DatedList>, super::Error>,
    ) {
        let error = outcome.as_ref().err().map(super::Error::report);
        if let (Err(cause), Some(report)) = (&outcome, &error) {
            self.complain(domain, cause, report);
        }
        let mut state = self.state.lock();
        let Some(held) = state.domains.get_mut(domain) else { return };
        let origin = lists::Origin::Url(url.clone());
        let Some(source) = held.lists.iter_mut().find(|source| source.origin == origin) else {
            return;
        };
        source.error = error;
        if let Ok(lists) = outcome {
            source.lists = lists;
        }
        self.put_in_force(&state);
    }

    fn complain(&self, domain: &TrustDomain, error: &super::Error, report: &str) {
        self.settings.board.failed(domain.as_str(), error.code());
        if !error.is_alarm() {
            tracing::warn!(%domain, reason = error.code(), "fetching trust failed; what is held stays in force: {report}");
            return;
        }
        tracing::error!(%domain, reason = error.code(), "ALARM: fetched trust refused; what is held stays in force: {report}");
        if let Some(lane) = &self.settings.lane {
            let identity = self.composed.identity().load();
            // What is lost here is counted in the log itself.
            let _ = lane.identity(&IdentityRecord {
                event: "bundle_refused",
                spiffe_id: identity.id().as_str(),
                serial: None,
                not_after: None,
                trust_domains: Some(domain.as_str()),
                bundle_revisions: None,
                detail: Some(report),
            });
        }
    }

    /// Files that changed, and denials and lists whose time is over.
    fn look(&self) {
        // Read without the lock: a slow disk is nobody else's concern.
        let files: Vec<(TrustDomain, Source)> = {
            let state = self.state.lock();
            let of = |(domain, held): (&TrustDomain, &Held)| {
                let files = held.lists.iter().filter(|source| source.is_file());
                files.map(|source| (domain.clone(), source.clone())).collect::<Vec<_>>()
            };
            state.domains.iter().flat_map(of).collect()
        };
        let looked = files.into_iter().filter_map(|(domain, before)| {
            let mut source = before.clone();
            source.look().then_some((domain, before, source))
        });
        let looked: Vec<_> = looked.collect();
        let mut state = self.state.lock();
        let mut changed = false;
        for (domain, before, source) in looked {
            let Some(held) = state.domains.get_mut(&domain) else { continue };
            // One that was declared anew meanwhile has read the file itself.
            if let Some(place) = held.lists.iter_mut().find(|place| **place == before) {
                *place = source;
                changed = true;
            }
        }
        let ends = state.denials.values().flatten().any(|denial| denial.expires_at.is_some())
            || state.domains.values().any(Held::has_lists_that_age);
        if changed || ends {
            self.put_in_force(&state);
        }
    }
}

impl Held {
    /// The bundle in force.
    fn bundle(&self) -> Option<&TrustBundle> {
        match self.declared.as_ref()?.origin.as_ref()? {
            BundleOrigin::Given(bundle) => Some(bundle),
            BundleOrigin::Endpoint(endpoint) => match &self.fetched {
                Some(fetched) => Some(&fetched.document.bundle),
                None => endpoint.initial.as_ref(),
            },
        }
    }

    fn has_lists_that_age(&self) -> bool {
        let revocation = self.declared.as_ref().and_then(|declared| declared.revocation.as_ref());
        revocation.is_some_and(|revocation| revocation.max_age.is_some())
    }
}

async fn look(shared: Weak<Shared>) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(shared) = shared.upgrade() else { return };
        let looked = tokio::task::spawn_blocking(move || shared.look()).await;
        if looked.is_err() {
            return;
        }
    }
}
