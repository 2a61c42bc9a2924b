//! `Watch`: one worker's eye on what its live connections rest on. A connection does not outlive its proof.
//!
//! Certificates end by the wall clock, which is looked at each second: a timer alone would be wrong after a suspend and after
//! the clock was set. Trust and policy are followed as they change. A condition that falls is told to the connection's
//! [`Proof`], which wakes whoever carries it; when its time to finish is over as well, whatever is left ends at once.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use rustls_pki_types::UnixTime;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::metrics::ProxyMetrics;
use crate::identity::{Identity, Peer, RevocationMode, SpiffeId, Trust};
use crate::model::{Listeners, Strictness};
use crate::mtls::{Begun, ExpectedPeers, Lapse, Opening, Proof, Proofs};
use crate::observe::{AuditLane, ConnectionRecord, Ends, EndsFacts};
use crate::policy::{Modes, Policy};
use crate::rt::{Clock, Live};
use crate::snapshot::Snapshot;
use crate::upstream::Stream;

/// How long connections may live, and how long they may take to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProofLimits {
    /// For what is under way when trust or permission is taken away.
    pub drain_within: Duration,
    /// For what is under way when a certificate is over or the connection too old.
    pub expiry_drain_within: Duration,
    /// The age of an mTLS connection between workloads; none: as old as its certificates.
    pub max_age: Option<Duration>,
    /// The age of any other connection that comes in.
    pub public_max_age: Option<Duration>,
}

impl Default for ProofLimits {
    fn default() -> Self {
        Self {
            drain_within: Duration::from_secs(5),
            expiry_drain_within: Duration::from_secs(30),
            max_age: Some(Duration::from_secs(24 * 3600)),
            public_max_age: None,
        }
    }
}

impl ProofLimits {
    /// For what is under way when this condition falls.
    pub(in crate::proxy) fn within(&self, lapse: Lapse) -> Duration {
        if lapse.is_taken() { self.drain_within } else { self.expiry_drain_within }
    }
}

/// Of an age that may be reached, the part that chance takes away: connections that began together do not end together.
const JITTER: f64 = 0.1;
/// Connections that are looked at in one go, and for how long at most: requests wait meanwhile.
const BATCH: usize = 64;
const TURN: Duration = Duration::from_millis(1);
/// Where a revocation list must be current, time alone may take trust away.
const HARD_AGAIN: Duration = Duration::from_secs(30);

/// One worker's eye on its connections' proofs.
pub(in crate::proxy) struct Watch {
    pub(in crate::proxy) proofs: Arc<Proofs>,
    metrics: Arc<ProxyMetrics>,
    limits: ProofLimits,
    clock: Clock,
    identity: Option<Live<Identity>>,
    /// Whom we trust and who we are, as last seen.
    seen: Mutex<Option<Seen>>,
    /// Of `seen`: a proof that was judged by an earlier revision is judged again before it serves a request.
    revision: AtomicU64,
    /// How often the policy has changed.
    policies: AtomicU64,
    leaving: Mutex<Leaving>,
    news: Notify,
}

struct Seen {
    trust: Arc<Trust>,
    me: SpiffeId,
    revision: u64,
}

/// Connections that have lost their proof and are given time to finish, in the order of their last moments.
#[derive(Default)]
struct Leaving {
    taken: VecDeque<(Instant, Weak<Proof>)>,
    ended: VecDeque<(Instant, Weak<Proof>)>,
    /// One of those may wait in the pool.
    pooled: bool,
}

impl Leaving {
    fn first(&self) -> Option<Instant> {
        let both = [self.taken.front(), self.ended.front()];
        both.into_iter().flatten().map(|(at, _)| *at).min()
    }
}

impl Watch {
    pub(in crate::proxy) fn new(
        limits: ProofLimits,
        clock: Clock,
        identity: Option<Live<Identity>>,
        lane: AuditLane,
        metrics: Arc<ProxyMetrics>,
    ) -> Self {
        let counted = metrics.clone();
        let proofs = Proofs::new(move |proof| ended(proof, &lane, &counted));
        let watch = Self {
            proofs,
            metrics,
            limits,
            clock,
            identity,
            seen: Mutex::default(),
            revision: AtomicU64::new(0),
            policies: AtomicU64::new(0),
            leaving: Mutex::default(),
            news: Notify::new(),
        };
        watch.look();
        watch
    }

    /// Who we are, as last seen.
    pub(in crate::proxy) fn me(&self) -> Option<SpiffeId> {
        self.seen.lock().as_ref().map(|seen| seen.me.clone())
    }

    /// How often the policy has changed, by a change of its text or by the time: what was decided when it was another number is asked again.
    pub(in crate::proxy) fn policies(&self) -> u64 {
        self.policies.load(Ordering::Relaxed)
    }

    /// The proof of a connection that came in; its handshake began when our identity was `before`.
    pub(in crate::proxy) fn accepted(
        &self,
        number: u64,
        door: Listeners,
        (local, remote): (SocketAddr, SocketAddr),
        peer: Option<&Arc<Peer>>,
        before: Option<&Identity>,
        lax: Option<Strictness>,
    ) -> Arc<Proof> {
        let opening = Opening::Accepted(door);
        self.enter(Opened { number, opening, local, remote, peer, before, lax, expected: None })
    }

    /// The proof of a connection that we made to a workload.
    pub(in crate::proxy) fn originated(
        &self,
        stream: &Stream,
        peer: &Arc<Peer>,
        before: &Identity,
        expected: Option<Arc<ExpectedPeers>>,
    ) -> std::io::Result<Arc<Proof>> {
        Ok(self.enter(Opened {
            number: crate::observe::next_connection_id(),
            opening: Opening::Originated,
            local: stream.tcp().local_addr()?,
            remote: stream.tcp().peer_addr()?,
            peer: Some(peer),
            before: Some(before),
            lax: None,
            expected,
        }))
    }

    /// The connection's door asks for more than when it let the caller in without an identity.
    pub(in crate::proxy) fn tightened(&self, proof: &Arc<Proof>) {
        self.fall(proof, Lapse::ModeTightened);
    }

    fn enter(&self, opened: Opened<'_>) -> Arc<Proof> {
        let Opened { number, opening, local, remote, peer, before, lax, expected } = opened;
        let since = self.clock.now();
        let max_age = match peer {
            Some(_) => self.limits.max_age,
            None => self.limits.public_max_age.filter(|_| {
                // Who calls there is our own workload.
                opening != Opening::Accepted(Listeners::Outbound)
            }),
        };
        let old_at = max_age.map(|age| {
            let age = age.mul_f64(1.0 - JITTER * fastrand::f64());
            since.saturating_add(i64::try_from(age.as_secs()).unwrap_or(i64::MAX).max(1))
        });
        let own = peer.and(before).map(Begun::own);
        let peer = peer.cloned();
        let begun =
            Begun { number, opening, local, remote, peer, expected, lax, own, since, old_at };
        self.look();
        // The handshake judged by the trust of `before`, or by a later one.
        let judged = match (&*self.seen.lock(), before) {
            (Some(seen), Some(before)) if Arc::ptr_eq(&seen.trust, &before.trust) => seen.revision,
            _ => 0,
        };
        let proof = self.proofs.enter(begun, judged);
        if opening == Opening::Originated {
            self.metrics.proved_upstreams.add(1.0);
        }
        self.lapse(&proof);
        proof
    }

    /// Which condition of this connection fell, if one did; judges it first where trust has changed since it was judged last.
    pub(in crate::proxy) fn lapse(&self, proof: &Arc<Proof>) -> Option<Lapse> {
        if proof.stands(self.revision.load(Ordering::Relaxed)) {
            return None;
        }
        self.judge(proof, &mut Known::default());
        proof.lapse()
    }

    #[cold]
    fn judge(&self, proof: &Arc<Proof>, known: &mut Known) {
        let Some(peer) = proof.begun.peer.as_ref().filter(|_| proof.lapse().is_none()) else {
            return;
        };
        let (trust, is_other, revision) = {
            let seen = self.seen.lock();
            let Some(seen) = &*seen else { return };
            let is_other = proof.begun.own.as_ref().is_some_and(|(own, _)| *own != seen.me);
            (seen.trust.clone(), is_other, seen.revision)
        };
        let verdict = match is_other || trust.bundles.is_empty() {
            true => Some(Lapse::Withdrawn),
            false => known.verdict(&trust, peer, self.clock.now()),
        };
        match verdict {
            None => proof.judged(revision),
            Some(lapse) => self.fall(proof, lapse),
        }
    }

    fn fall(&self, proof: &Arc<Proof>, lapse: Lapse) {
        if !proof.falls(lapse) {
            return;
        }
        tracing::debug!(
            connection = proof.begun.number,
            side = proof.begun.opening.name(),
            reason = lapse.code(),
            "a connection has lost its proof"
        );
        let within = self.limits.within(lapse);
        let mut leaving = self.leaving.lock();
        leaving.pooled |= proof.begun.opening == Opening::Originated;
        let at = (Instant::now() + within, Arc::downgrade(proof));
        match lapse.is_taken() {
            _ if within.is_zero() => {}
            true => leaving.taken.push_back(at),
            false => leaving.ended.push_back(at),
        }
        drop(leaving);
        if within.is_zero() {
            proof.cut();
        }
        // What fell beside a request: the watch must hear when its time is over.
        self.news.notify_one();
    }

    /// Watches, for as long as the worker lives. `close_fallen` closes those in the pool whose proof has fallen.
    pub(in crate::proxy) async fn run(
        &self,
        mut snapshot: Live<Snapshot>,
        close_fallen: &impl Fn(),
    ) {
        let mut identity = self.identity.clone();
        let (mut policy, mut modes) =
            (snapshot.load().policy.clone(), snapshot.load().modes.clone());
        let mut hard_again = Instant::now() + HARD_AGAIN;
        let mut judged = 0;
        let mut told = self.clock.now();
        loop {
            let second = 1000 - crate::rt::unix_millis() % 1000;
            let tick = Instant::now() + Duration::from_millis(second);
            let next = self.leaving.lock().first().map_or(tick, |at| at.min(tick));
            tokio::select! {
                biased;
                () = changed(identity.as_mut()) => {}
                () = changed(Some(&mut snapshot)) => {
                    let now = snapshot.load();
                    if !Arc::ptr_eq(&policy, &now.policy) || !Arc::ptr_eq(&modes, &now.modes) {
                        (policy, modes) = (now.policy.clone(), now.modes.clone());
                        self.follow_policy(&policy, &modes, close_fallen).await;
                    }
                }
                () = self.news.notified() => {}
                () = tokio::time::sleep_until(next) => {}
            }
            let now = self.clock.now();
            if policy.asks_time() && now != told && policy.turns(told, now) {
                self.follow_policy(&policy, &modes, close_fallen).await;
            }
            told = now;
            if Instant::now() >= hard_again {
                hard_again = Instant::now() + HARD_AGAIN;
                self.doubt_where_hard();
            }
            self.look();
            if judged != self.revision.load(Ordering::Relaxed) {
                judged = self.follow_trust(close_fallen).await;
            }
            self.tidy(close_fallen);
        }
    }

    /// Takes note of the identity of this moment.
    fn look(&self) {
        let Some(identity) = &self.identity else { return };
        let now = identity.load();
        let mut seen = self.seen.lock();
        let is_same = seen
            .as_ref()
            .is_some_and(|seen| Arc::ptr_eq(&seen.trust, &now.trust) && seen.me == *now.id());
        if !is_same {
            let revision = seen.as_ref().map_or(1, |seen| seen.revision + 1);
            *seen = Some(Seen { trust: now.trust.clone(), me: now.id().clone(), revision });
            self.revision.store(revision, Ordering::Relaxed);
        }
    }

    /// Where revocation lists must be current, every peer is judged again now and then.
    fn doubt_where_hard(&self) {
        let mut seen = self.seen.lock();
        let Some(seen) = &mut *seen else { return };
        let lists = &seen.trust.revocation.by_domain;
        if lists.values().any(|lists| lists.mode == RevocationMode::Hard) {
            seen.revision += 1;
            self.revision.store(seen.revision, Ordering::Relaxed);
        }
    }

    /// Judges every peer by the trust of now; tells by which revision.
    async fn follow_trust(&self, close_fallen: &impl Fn()) -> u64 {
        let mut revision = self.revision.load(Ordering::Relaxed);
        let mut known = Known::default();
        let mut from = Some(0);
        let mut turn = Instant::now();
        while let Some(at) = from {
            let (proofs, next) = self.proofs.some(at, BATCH);
            from = next;
            for proof in proofs {
                if proof.is_judged(revision) {
                    continue;
                }
                self.judge(&proof, &mut known);
                drop(proof);
                if turn.elapsed() > TURN {
                    turn = self.pause(close_fallen).await;
                }
            }
            turn = self.pause(close_fallen).await;
            self.look();
            let newest = self.revision.load(Ordering::Relaxed);
            if newest != revision {
                (revision, known, from) = (newest, Known::default(), Some(0));
            }
        }
        revision
    }

    /// Asks of every peer that calls us whether any rule can admit it, of every caller without an identity whether its door
    /// still lets such in, and wakes whoever carries an exchange that was decided
    /// before.
    async fn follow_policy(&self, policy: &Policy, modes: &Modes, close_fallen: &impl Fn()) {
        self.policies.fetch_add(1, Ordering::Relaxed);
        let mut from = Some(0);
        let mut turn = Instant::now();
        while let Some(at) = from {
            let (proofs, next) = self.proofs.some(at, BATCH);
            from = next;
            for proof in proofs {
                let mode = modes.at(proof.begun.local.port());
                if proof.begun.lax.is_some_and(|lax| mode > lax) {
                    self.tightened(&proof);
                } else if proof.begun.opening == Opening::Accepted(Listeners::Inbound)
                    && mode != Strictness::Observe
                    && policy.standing(proof.begun.peer.as_deref()).is_hopeless()
                {
                    self.fall(&proof, Lapse::PolicyChanged);
                } else {
                    proof.wake_busy();
                }
                drop(proof);
                if turn.elapsed() > TURN {
                    turn = self.pause(close_fallen).await;
                }
            }
        }
    }

    /// Lets requests go first.
    async fn pause(&self, close_fallen: &impl Fn()) -> Instant {
        self.tidy(close_fallen);
        tokio::task::yield_now().await;
        Instant::now()
    }

    /// What is due by the clocks: certificates and ages that are over, and connections that had their time to finish.
    fn tidy(&self, close_fallen: &impl Fn()) {
        for proof in self.proofs.over(self.clock.now()) {
            if let Some((_, lapse)) = proof.begun.ends() {
                self.fall(&proof, lapse);
            }
        }
        let now = Instant::now();
        let mut due = Vec::new();
        let mut leaving = self.leaving.lock();
        let Leaving { taken, ended, pooled } = &mut *leaving;
        for queue in [taken, ended] {
            while queue.front().is_some_and(|(at, _)| *at <= now) {
                due.extend(queue.pop_front().and_then(|(_, proof)| proof.upgrade()));
            }
        }
        let pooled = std::mem::take(pooled);
        drop(leaving);
        due.iter().for_each(|proof| proof.cut());
        if pooled {
            close_fallen();
        }
    }
}

/// A connection that has just been made.
struct Opened<'a> {
    number: u64,
    opening: Opening,
    local: SocketAddr,
    remote: SocketAddr,
    peer: Option<&'a Arc<Peer>>,
    /// Who we were when its handshake began.
    before: Option<&'a Identity>,
    lax: Option<Strictness>,
    expected: Option<Arc<ExpectedPeers>>,
}

/// What was found about peers in one go, by certificate: of ten thousand connections most come from the same few.
#[derive(Default)]
struct Known(HashMap<String, Vec<Judged>>);

/// A peer, and what was found about it.
type Judged = (Arc<Peer>, Option<Lapse>);

impl Known {
    fn verdict(&mut self, trust: &Trust, peer: &Arc<Peer>, now: i64) -> Option<Lapse> {
        let is_same = |known: &Peer| known.purpose == peer.purpose && known.chain == peer.chain;
        let mut known = self.0.get(&peer.sha256).into_iter().flatten();
        if let Some((_, verdict)) = known.find(|(known, _)| is_same(known)) {
            return *verdict;
        }
        let seconds = u64::try_from(now).unwrap_or_default();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let verdict = trust.verifier().again(peer, now).err().as_ref().map(Lapse::from);
        self.0.entry(peer.sha256.clone()).or_default().push((peer.clone(), verdict));
        verdict
    }
}

/// Waits for the next value; for ever when there will be none.
async fn changed<T>(live: Option<&mut Live<T>>) {
    if let Some(live) = live
        && live.changed().await
    {
        return;
    }
    std::future::pending::<()>().await;
}

/// Who is at the ends of a connection that we made, for its records.
pub(in crate::proxy) fn originated_ends(begun: &Begun, lane: &AuditLane) -> Ends {
    let expected = begun.expected.as_ref().map(|expected| expected.text());
    lane.ends(&EndsFacts {
        src_spiffe_id: begun.own.as_ref().map(|(own, _)| own.as_str()),
        dst_spiffe_id: begun.peer.as_ref().map(|peer| peer.id.as_str()),
        dst_expected_id: expected.as_deref(),
        is_originated: true,
        ..EndsFacts::of(begun.number, begun.local, begun.remote.port())
    })
}

/// A connection is gone. Of one that we made and that had lost its proof, or where all have one, this is the record; one that
/// came in writes its own, which knows more.
fn ended(proof: &Proof, lane: &AuditLane, metrics: &ProxyMetrics) {
    let begun = &proof.begun;
    if begun.opening != Opening::Originated {
        return;
    }
    metrics.proved_upstreams.add(-1.0);
    let lapse = proof.lapse();
    if let Some(lapse) = lapse {
        metrics.ended(begun.opening, lapse);
    } else if !lane.records_connections() {
        return;
    }
    let ends = originated_ends(begun, lane);
    // What is lost is counted in the log itself.
    let _ = lane.connection(&ConnectionRecord {
        side: Some(begun.opening.name()),
        peer_serial: begun.peer.as_ref().map(|peer| peer.serial.as_str()),
        reason: lapse.map(Lapse::code),
        ..ConnectionRecord::of(&ends, if proof.is_cut() { "forced_close" } else { "close" })
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::forge::Forge;
    use crate::identity::{
        Purpose, RevocationLists, Revocations, Rules, TrustBundle, TrustBundles,
    };
    use crate::model::{Body, Change, Id, Kind, Resource};
    use crate::observe::{AuditLog, AuditSettings, Posture, Registry};
    use crate::rt::Publisher;
    use crate::snapshot::Keeper;

    /// A worker's watch, and the ends of what it follows.
    struct World {
        forge: Forge,
        identity: Publisher<Identity>,
        keeper: Keeper,
        snapshots: Publisher<Snapshot>,
        clock: Clock,
        /// When it began.
        begun: i64,
        watch: Arc<Watch>,
        registry: Registry,
        _audit: AuditLog,
    }

    impl World {
        fn new(limits: ProofLimits) -> Self {
            let forge = Forge::new("a.test");
            let (identity, live) = Publisher::new(forge.identity("/me", &[]));
            let registry = Registry::new();
            let me = live.load().id().clone();
            let mut keeper = Keeper::new(&[], Some(me), registry.clone());
            let (snapshots, _) = Publisher::of(keeper.apply(Vec::new(), 1).snapshot);
            let audit = AuditLog::open(AuditSettings::default(), &Posture::default()).unwrap();
            // The certificates are good for an hour from now.
            let begun = crate::rt::unix_seconds();
            let clock = Clock::fixed(begun);
            let metrics = ProxyMetrics::new(&registry);
            let watch = Watch::new(limits, clock.clone(), Some(live), audit.lane(), metrics);
            let watch = Arc::new(watch);
            Self {
                forge,
                identity,
                keeper,
                snapshots,
                clock,
                begun,
                watch,
                registry,
                _audit: audit,
            }
        }

        /// Watches beside the test.
        fn run(&self) -> tokio::task::JoinHandle<()> {
            let (watch, snapshot) = (self.watch.clone(), self.snapshots.live());
            crate::rt::spawn(async move { watch.run(snapshot, &|| {}).await })
        }

        /// A peer whose leaf this authority signed.
        fn peer(&self, forge: &Forge, path: &str, not_after: i64) -> Arc<Peer> {
            let svid = forge.svid(path);
            Arc::new(Peer {
                id: svid.id.clone(),
                serial: svid.serial.clone(),
                spki_sha256: String::new(),
                sha256: svid.serial.clone(),
                not_after,
                issuer_ski: None,
                bundle_revision: "".into(),
                purpose: Purpose::Client,
                chain: svid.chain.clone().into(),
            })
        }

        fn connect(&self, peer: &Arc<Peer>) -> Arc<Proof> {
            self.connect_since(&self.identity.live().load(), peer)
        }

        /// A connection whose handshake began when our identity was `before`.
        fn connect_since(&self, before: &Identity, peer: &Arc<Peer>) -> Arc<Proof> {
            let ends =
                (SocketAddr::from(([127, 0, 0, 1], 1)), SocketAddr::from(([127, 0, 0, 1], 2)));
            self.watch.accepted(1, Listeners::Inbound, ends, Some(peer), Some(before), None)
        }

        fn trust(&self, roots: &[&Forge]) {
            let roots = roots.iter().map(|forge| forge.root.clone()).collect();
            let bundle = TrustBundle::new(self.forge.domain.clone(), roots);
            let bundles: TrustBundles = [bundle].into_iter().collect();
            self.identity.set(Identity::new(self.forge.svid("/me"), bundles));
        }

        fn allow(&mut self, principal: &str) {
            self.rule(&serde_json::json!({ "from": { "principals": [principal] } }));
        }

        fn rule(&mut self, rule: &serde_json::Value) {
            let text = serde_json::json!({ "action": "allow", "rules": [rule] });
            let kind = Kind::IdentityPolicies;
            let (id, body) = (Id::parse("p").unwrap(), Body::parse(kind, &text).unwrap());
            let put = Change::Put(Resource { kind, id, revision: 2, body });
            self.snapshots.set_arc(self.keeper.apply(vec![put], 2).snapshot);
        }
    }

    fn at_once() -> ProofLimits {
        ProofLimits { drain_within: Duration::ZERO, max_age: None, ..ProofLimits::default() }
    }

    async fn settled(what: &str, mut holds: impl FnMut() -> bool) {
        for _ in 0..2000 {
            if holds() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{what} never came");
    }

    #[tokio::test]
    async fn a_proof_stands_through_renewals_and_falls_with_the_authority_that_vouched_for_it() {
        let world = World::new(at_once());
        let other = Forge::new("a.test");
        let ours = world.peer(&world.forge, "/web", i64::MAX);
        world.trust(&[&world.forge, &other]);
        let theirs = world.peer(&other, "/web", i64::MAX);
        let (first, second) = (world.connect(&ours), world.connect(&theirs));
        let stand = || (world.watch.lapse(&first), world.watch.lapse(&second));
        assert_eq!(stand(), (None, None));

        // Renewed, and no trust taken away from either.
        let running = world.run();
        world.trust(&[&other, &world.forge]);
        let revision = || world.watch.revision.load(Ordering::Relaxed);
        settled("the new trust", || first.is_judged(3) && second.is_judged(3)).await;
        assert_eq!((revision(), stand()), (3, (None, None)));

        world.trust(&[&world.forge]);
        settled("the fall", || second.is_cut()).await;
        assert_eq!(stand(), (None, Some(Lapse::BundleChanged)));
        let withdrawn = world.identity.live().load().withdrawn();
        world.identity.set(withdrawn);
        settled("the end of all", || first.is_cut()).await;
        assert_eq!(stand().0, Some(Lapse::Withdrawn));
        running.abort();
    }

    #[tokio::test]
    async fn revocation_lists_and_the_deny_list_are_conditions_each_by_its_name() {
        let world = World::new(at_once());
        let [web, shop] = ["/web", "/shop"].map(|path| world.peer(&world.forge, path, i64::MAX));
        let (web, shop) = (world.connect(&web), world.connect(&shop));
        let trust = |revocation: Revocations| {
            let trust = Trust::new(world.forge.bundles(), revocation, Rules::default());
            world.identity.set(Identity::new(world.forge.svid("/me"), trust));
            world.watch.look();
            (world.watch.lapse(&web), world.watch.lapse(&shop))
        };
        let mut revocation = Revocations::default();
        revocation.denied.ids.insert(web.begun.peer.as_ref().unwrap().id.clone());
        assert_eq!(trust(revocation), (Some(Lapse::DeniedByList), None));
        // Nothing speaks for it, where something must.
        let lists = RevocationLists { mode: RevocationMode::Hard, lists: Vec::new() };
        let mut revocation = Revocations::default();
        revocation.by_domain.insert(world.forge.domain.clone(), lists);
        assert_eq!(trust(revocation), (Some(Lapse::DeniedByList), Some(Lapse::Revoked)));
    }

    #[tokio::test]
    async fn a_request_is_judged_by_the_trust_of_now_before_the_watch_comes_to_its_connection() {
        let world = World::new(at_once());
        let other = Forge::new("a.test");
        world.trust(&[&world.forge, &other]);
        let peer = world.peer(&other, "/web", i64::MAX);
        let before = world.identity.live().load();
        let proof = world.connect(&peer);
        world.trust(&[&world.forge]);
        assert_eq!(proof.lapse(), None);
        world.watch.look();
        assert_eq!(world.watch.lapse(&proof), Some(Lapse::BundleChanged));
        // A handshake that trust overtook is judged when it is over.
        let overtaken = world.connect_since(&before, &peer);
        assert_eq!(overtaken.lapse(), Some(Lapse::BundleChanged));
    }

    #[tokio::test]
    async fn ends_come_by_the_wall_clock_and_leave_time_to_finish() {
        let expiry_drain_within = Duration::from_secs(3600);
        let max_age = Some(Duration::from_secs(100));
        let world = World::new(ProofLimits { expiry_drain_within, max_age, ..at_once() });
        let peers = [world.begun + 10, world.begun + 1_000]
            .map(|end| world.peer(&world.forge, "/web", end));
        let [short, old] = peers.each_ref().map(|peer| world.connect(peer));
        let look = || {
            world.watch.tidy(&|| {});
            (short.lapse(), old.lapse())
        };
        assert_eq!(look(), (None, None));
        world.clock.advance(10);
        assert_eq!(look(), (Some(Lapse::PeerExpired), None));
        // At the latest: chance takes up to a tenth.
        world.clock.advance(90);
        assert_eq!(look(), (Some(Lapse::PeerExpired), Some(Lapse::MaxAge)));
        assert!(!short.is_cut() && !old.is_cut(), "an hour to finish");
    }

    #[tokio::test]
    async fn our_own_svid_is_a_condition_of_the_connections_that_were_made_with_it() {
        let world = World::new(at_once());
        let peer = world.peer(&world.forge, "/web", i64::MAX);
        let mut ending = world.forge.identity("/me", &[]);
        ending.svid.not_after = world.begun + 5;
        world.identity.set(ending);
        let old = world.connect(&peer);
        world.trust(&[&world.forge]);
        let renewed = world.connect(&peer);
        world.clock.advance(5);
        world.watch.tidy(&|| {});
        assert_eq!((old.lapse(), renewed.lapse()), (Some(Lapse::OwnSvidExpired), None));
    }

    #[tokio::test]
    async fn a_peer_that_no_rule_can_admit_any_more_loses_its_connections_and_nobody_else_does() {
        let mut world = World::new(at_once());
        world.allow("spiffe://a.test/*");
        let running = world.run();
        let [web, shop] = ["/web", "/shop"].map(|path| world.peer(&world.forge, path, i64::MAX));
        let (web, shop) = (world.connect(&web), world.connect(&shop));
        tokio::task::yield_now().await;
        let before = world.watch.policies();
        world.allow("spiffe://a.test/shop");
        settled("the end", || web.is_cut()).await;
        assert_eq!((web.lapse(), shop.lapse()), (Some(Lapse::PolicyChanged), None));
        assert!(world.watch.policies() > before);
        running.abort();
    }

    #[tokio::test]
    async fn a_span_of_time_that_ends_wakes_what_is_under_way_and_has_it_decided_again() {
        let mut world = World::new(at_once());
        let end = time::OffsetDateTime::from_unix_timestamp(world.begun + 60).unwrap();
        let end = end.format(&time::format_description::well_known::Rfc3339).unwrap();
        world.rule(&serde_json::json!({ "when": { "times": [{ "not_after": end }] } }));
        let peer = world.peer(&world.forge, "/web", i64::MAX);
        let proof = world.connect(&peer);
        let running = world.run();
        tokio::task::yield_now().await;
        proof.set_busy(true);
        let woken = Arc::new(AtomicU64::new(0));
        let attending = {
            let (proof, woken) = (proof.clone(), woken.clone());
            crate::rt::spawn(std::future::poll_fn(move |context| {
                proof.attend(context.waker());
                woken.fetch_add(1, Ordering::Relaxed);
                std::task::Poll::<()>::Pending
            }))
        };
        tokio::task::yield_now().await;
        let (policies, polls) = (world.watch.policies(), woken.load(Ordering::Relaxed));
        world.clock.advance(60);
        settled("a second look", || world.watch.policies() > policies).await;
        settled("a wake", || woken.load(Ordering::Relaxed) > polls).await;
        // The connection as such stands: what it carries is decided by whoever carries it.
        assert_eq!(proof.lapse(), None);
        attending.abort();
        running.abort();
    }

    #[tokio::test]
    async fn thousands_of_connections_are_judged_in_turns_with_others_and_each_peer_once() {
        let world = World::new(at_once());
        let other = Forge::new("a.test");
        world.trust(&[&world.forge, &other]);
        let peers: Vec<_> = (0..20).map(|_| world.peer(&other, "/web", i64::MAX)).collect();
        let proofs: Vec<_> = (0..5000).map(|at| world.connect(&peers[at % 20])).collect();
        let running = world.run();
        tokio::task::yield_now().await;
        world.trust(&[&world.forge]);
        let mut turns = 0;
        while !proofs.iter().all(|proof| proof.is_cut()) {
            tokio::task::yield_now().await;
            turns += 1;
        }
        assert!(turns > 5000 / BATCH, "others had {turns} turns");
        running.abort();
        drop(proofs);
        let text = world.registry.render();
        assert!(text.contains("wardgate_connections_ended_total"), "{text}");
    }
}
