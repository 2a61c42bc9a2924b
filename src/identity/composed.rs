//! Composed trust: what the source says and what operators declare, as one identity.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{
    DenyList, Identity, RevocationLists, Revocations, Rules, Trust, TrustBundle, TrustBundles,
    TrustDomain,
};
use crate::rt::{Live, Publisher, Tasks};

/// What is declared beside the source, as it is at this moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeclaredTrust {
    /// The bundles of declared trust domains. `None`: there is no bundle, and nobody of the domain is trusted, whatever the
    /// source says.
    pub bundles: BTreeMap<TrustDomain, Option<TrustBundle>>,
    /// Their revocation lists.
    pub revocation: BTreeMap<TrustDomain, RevocationLists>,
    /// Who is refused at once.
    pub denied: DenyList,
}

/// A source's identity, composed with what is declared. It follows the source until the last clone is dropped.
///
/// - Our own trust domain's bundle always comes from the source.
/// - A declared domain has the declared bundle alone: bundles are never merged.
/// - A declared mode holds in place of the source's; lists and denials only ever add up.
/// - Trust that is the same keeps its `Arc`: whoever rests on it need not look again.
#[derive(Clone)]
pub struct Composed {
    shared: Arc<Shared>,
    _follow: Arc<Tasks>,
}

struct Shared {
    source: Live<Identity>,
    publisher: Publisher<Identity>,
    rules: Rules,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    declared: DeclaredTrust,
    /// What the published identity was made of.
    from: Arc<Identity>,
}

impl std::fmt::Debug for Composed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Composed").field("declared", &self.shared.state.lock().declared).finish()
    }
}

impl Composed {
    /// Nothing is declared yet; peers are judged by `rules`. To be called within a runtime.
    pub fn new(source: Live<Identity>, rules: Rules) -> Self {
        let from = source.load();
        let (publisher, _) = Publisher::of(in_force(&from, &DeclaredTrust::default(), rules));
        let state = Mutex::new(State { declared: DeclaredTrust::default(), from });
        let shared = Arc::new(Shared { source, publisher, rules, state });
        let mut follow = Tasks::new();
        let following = Arc::downgrade(&shared);
        let mut changes = shared.source.clone();
        follow.add(async move {
            // Whatever came between the first look and this task is seen at the first turn.
            while let Some(shared) = following.upgrade() {
                shared.compose(None);
                drop(shared);
                if !changes.changed().await {
                    return;
                }
            }
        });
        Self { shared, _follow: Arc::new(follow) }
    }

    /// The composed identity.
    pub fn identity(&self) -> Live<Identity> {
        self.shared.publisher.live()
    }

    /// Declares anew, all at once. When this returns, the new trust is what handshakes use.
    pub fn declare(&self, declared: DeclaredTrust) {
        self.shared.compose(Some(declared));
    }
}

impl Shared {
    fn compose(&self, declared: Option<DeclaredTrust>) {
        let mut state = self.state.lock();
        let source = self.source.load();
        let same_source = Arc::ptr_eq(&source, &state.from);
        match declared {
            Some(declared) if declared != state.declared => state.declared = declared,
            _ if same_source => return,
            _ => {}
        }
        state.from = source.clone();
        let current = self.publisher.live().load();
        let trust = composed(&source, &state.declared, self.rules);
        let trust = match trust {
            None => source.trust.clone(),
            Some(trust) if trust == *current.trust => current.trust.clone(),
            Some(trust) => Arc::new(trust),
        };
        if same_source && Arc::ptr_eq(&trust, &current.trust) {
            return;
        }
        let next = match Arc::ptr_eq(&trust, &source.trust) {
            true => source,
            false => Arc::new(Identity { svid: source.svid.clone(), trust }),
        };
        super::source::warn_of_shared_keys(&next.trust.bundles);
        self.publisher.set_arc(next);
    }
}

/// The source's identity with composed trust.
fn in_force(source: &Arc<Identity>, declared: &DeclaredTrust, rules: Rules) -> Arc<Identity> {
    match composed(source, declared, rules) {
        None => source.clone(),
        Some(trust) => Arc::new(Identity { svid: source.svid.clone(), trust: Arc::new(trust) }),
    }
}

/// The composed trust; `None` when it is the source's as it is.
fn composed(source: &Identity, declared: &DeclaredTrust, rules: Rules) -> Option<Trust> {
    // Nothing that is declared brings back what the source took away.
    let is_plain = *declared == DeclaredTrust::default() && rules == source.trust.rules;
    if source.is_withdrawn() || is_plain {
        return None;
    }
    let own = source.id().trust_domain();
    let told = &source.trust;
    let undeclared = told
        .bundles
        .iter()
        .filter(|bundle| bundle.domain == own || !declared.bundles.contains_key(&bundle.domain));
    let added = declared.bundles.values().flatten().filter(|bundle| bundle.domain != own);
    let bundles: TrustBundles = undeclared.chain(added).cloned().collect();

    let Revocations { mut by_domain, mut denied } = told.revocation.clone();
    for (domain, RevocationLists { mode, lists }) in &declared.revocation {
        let known = by_domain.entry(domain.clone()).or_default();
        known.mode = *mode;
        for list in lists {
            if !known.lists.contains(list) {
                known.lists.push(list.clone());
            }
        }
    }
    denied.serials.extend(declared.denied.serials.iter().cloned());
    denied.keys.extend(declared.denied.keys.iter().cloned());
    denied.ids.extend(declared.denied.ids.iter().cloned());
    let trust = Trust::new(bundles, Revocations { by_domain, denied }, rules);
    (trust != **told).then_some(trust)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::forge::Forge;
    use crate::identity::{RevocationMode, Svid};

    struct World {
        a: Forge,
        b: Forge,
        svid: Svid,
        source: Publisher<Identity>,
        composed: Composed,
    }

    impl World {
        /// A source of a.test that also knows b.test.
        fn new() -> Self {
            let (a, b) = (Forge::new("a.test"), Forge::new("b.test"));
            let first = a.identity("/web", &[&b]);
            let svid = first.svid.clone();
            let (source, live) = Publisher::new(first);
            Self { a, b, svid, composed: Composed::new(live, Rules::default()), source }
        }

        fn trust(&self) -> Arc<Trust> {
            self.composed.identity().load().trust.clone()
        }

        fn declare(&self, bundles: &[(&Forge, Option<TrustBundle>)]) {
            let bundles =
                bundles.iter().map(|(forge, bundle)| (forge.domain.clone(), bundle.clone()));
            self.composed
                .declare(DeclaredTrust { bundles: bundles.collect(), ..DeclaredTrust::default() });
        }
    }

    #[tokio::test]
    async fn what_is_declared_takes_the_place_of_what_the_source_says_and_is_never_merged() {
        let world = World::new();
        let (first, other, c) = (world.trust(), Forge::new("b.test"), Forge::new("c.test"));
        world.declare(&[(&world.b, Some(other.bundle())), (&c, Some(c.bundle()))]);
        let found = world.trust();
        assert_eq!(found.bundles.find(&world.b.domain), Some(&other.bundle()), "54");
        assert_eq!(found.bundles.find(&c.domain), Some(&c.bundle()));
        assert_eq!(found.bundles.find(&world.a.domain), Some(&world.a.bundle()));
        world.declare(&[(&world.b, None)]);
        assert_eq!(world.trust().bundles.find(&world.b.domain), None, "52, 74");
        world.declare(&[]);
        assert!(Arc::ptr_eq(&world.trust(), &first), "the source's own trust again");
    }

    #[tokio::test]
    async fn peers_are_judged_by_the_rules_that_are_set_from_the_first_moment() {
        let forge = Forge::new("a.test");
        let rules = Rules { strict: true, not_before_leeway: 30 };
        let (source, live) = Publisher::new(forge.identity("/web", &[]));
        let composed = Composed::new(live, rules);
        assert_eq!(composed.identity().load().trust.rules, rules);
        let first = composed.identity().load().trust.clone();
        source.set(forge.identity("/web", &[]));
        let mut identity = composed.identity();
        while identity.version() == 0 {
            assert!(identity.changed().await);
        }
        let next = identity.load().trust.clone();
        assert!(Arc::ptr_eq(&first, &next), "equal trust is the same over a renewal");
    }

    #[tokio::test]
    async fn our_own_bundle_always_comes_from_the_source() {
        let world = World::new();
        let forged = Forge::new("a.test");
        for bundle in [Some(forged.bundle()), None] {
            world.declare(&[(&world.a, bundle)]);
            assert_eq!(world.trust().bundles.find(&world.a.domain), Some(&world.a.bundle()));
        }
    }

    #[tokio::test]
    async fn equal_trust_keeps_its_arc_over_renewals_and_declarations() {
        let world = World::new();
        let c = Forge::new("c.test");
        world.declare(&[(&c, Some(c.bundle()))]);
        let (before, mut live) = (world.trust(), world.composed.identity());
        world.declare(&[(&c, Some(c.bundle()))]);
        assert_eq!(live.version(), 1, "nothing new is not told");
        world.source.set(world.a.identity("/web", &[&world.b]));
        assert!(live.changed().await);
        assert!(Arc::ptr_eq(&world.trust(), &before));
        assert_ne!(live.load().svid.serial, world.svid.serial);
    }

    #[tokio::test]
    async fn a_withdrawn_identity_stays_withdrawn_and_comes_back_with_what_is_declared() {
        let world = World::new();
        let c = Forge::new("c.test");
        world.declare(&[(&c, Some(c.bundle()))]);
        let mut live = world.composed.identity();
        let current = live.load();
        world.source.set(current.withdrawn());
        while !live.load().is_withdrawn() {
            assert!(live.changed().await);
        }
        world.declare(&[(&c, Some(Forge::new("c.test").bundle()))]);
        assert!(live.load().is_withdrawn());
        world.source.set(world.a.identity("/web", &[]));
        while live.load().is_withdrawn() {
            assert!(live.changed().await);
        }
        assert!(world.trust().bundles.find(&c.domain).is_some());
    }

    #[tokio::test]
    async fn denials_and_lists_add_up_and_a_declared_mode_wins() {
        let world = World::new();
        let list = |byte: u8| vec![byte; 4].into();
        let mut told = Revocations::default();
        told.by_domain.insert(
            world.b.domain.clone(),
            RevocationLists { mode: RevocationMode::Soft, lists: vec![list(1)] },
        );
        told.denied.keys.insert("k".into());
        let bundles: TrustBundles = [world.a.bundle(), world.b.bundle()].into_iter().collect();
        let rules = Rules::default();
        world.source.set(Identity::new(world.svid.clone(), Trust::new(bundles, told, rules)));
        let mut declared = DeclaredTrust::default();
        declared.revocation.insert(
            world.b.domain.clone(),
            RevocationLists { mode: RevocationMode::Hard, lists: vec![list(1), list(2)] },
        );
        declared.denied.ids.insert("spiffe://b.test/x".parse().unwrap());
        world.composed.declare(declared);
        let found = &world.trust().revocation;
        let of_b = &found.by_domain[&world.b.domain];
        assert_eq!((of_b.mode, of_b.lists.len()), (RevocationMode::Hard, 2));
        assert_eq!((found.denied.keys.len(), found.denied.ids.len()), (1, 1));
    }
}
