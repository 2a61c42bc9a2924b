//! `Board`: what a registry has told, and a live list for each service that an upstream names.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::service::{Service, sound};
use crate::model::Node;
use crate::rt::{Live, Publisher};
use crate::upstream::following::{Found, Source};

/// The nodes of services by name.
pub(super) type Services = BTreeMap<Service, Arc<[Node]>>;

/// What one registry has told. It may speak through several servers, each of which knows services of its own.
pub(super) struct Board {
    state: Mutex<State>,
    asked: Publisher<()>,
    changed: Publisher<()>,
    /// What stands for a service that the registry does not know.
    default: Option<Arc<[Node]>>,
}

#[derive(Default)]
struct State {
    servers: Vec<Told>,
    /// What the registry told a process before this one. It counts until the registry has spoken itself.
    dumped: Services,
    followed: HashMap<Service, Weak<Follower>>,
    /// So many were left when they were last looked through.
    in_use: usize,
}

/// What one server has told.
#[derive(Clone, Default)]
struct Told {
    services: Services,
    /// It told of all that it has: whatever is not there does not exist.
    is_whole: bool,
    is_away: bool,
}

impl Told {
    fn has_spoken_of(&self, service: &Service) -> bool {
        self.is_whole || self.services.contains_key(service)
    }
}

struct Follower {
    publisher: Publisher<Found>,
}

impl Board {
    /// Nothing is known. `default` stands for services that the registry does not know.
    pub(super) fn new(servers: usize, default: Option<Node>) -> Self {
        let state = State { servers: vec![Told::default(); servers], ..State::default() };
        Self {
            state: Mutex::new(state),
            asked: Publisher::new(()).0,
            changed: Publisher::new(()).0,
            default: default.map(|node| Arc::from([node])),
        }
    }

    /// Takes what was known before this process began.
    pub(super) fn remember(&self, dumped: Services) {
        self.state.lock().dumped = dumped;
    }

    /// The nodes of a service, live for as long as the result is held.
    pub(super) fn follow(&self, service: Service) -> Source {
        let mut state = self.state.lock();
        if let Some(follower) = state.followed.get(&service).and_then(Weak::upgrade) {
            return Source { found: follower.publisher.live(), held: follower };
        }
        let found = state.find(&service, self.default.as_ref());
        let is_news = !state.servers.iter().all(|told| told.has_spoken_of(&service));
        let (publisher, live) = Publisher::new(found);
        let follower = Arc::new(Follower { publisher });
        state.followed.insert(service, Arc::downgrade(&follower));
        if state.followed.len() > 2 * state.in_use + 64 {
            state.sweep();
        }
        drop(state);
        if is_news {
            self.asked.set(());
        }
        Source { found: live, held: follower }
    }

    /// Tells when a service is followed of which some server has not spoken.
    pub(super) fn asked(&self) -> Live<()> {
        self.asked.live()
    }

    /// Tells when something that is known has changed.
    pub(super) fn changed(&self) -> Live<()> {
        self.changed.live()
    }

    /// The services that are followed by now. What is known of others is forgotten: for a registry that is asked for each.
    pub(super) fn wanted(&self) -> Vec<Service> {
        let mut state = self.state.lock();
        state.sweep();
        let State { servers, followed, .. } = &mut *state;
        for told in servers {
            told.services.retain(|service, _| followed.contains_key(service));
        }
        followed.keys().cloned().collect()
    }

    /// Those of them of which this server has not spoken.
    pub(super) fn unheard(&self, server: usize) -> Vec<Service> {
        let mut wanted = self.wanted();
        let state = self.state.lock();
        wanted.retain(|service| !state.servers[server].has_spoken_of(service));
        wanted
    }

    /// A server told of one service.
    pub(super) fn tell(&self, server: usize, service: &Service, nodes: Vec<Node>) {
        let nodes = sound(nodes);
        let mut state = self.state.lock();
        let told = &mut state.servers[server];
        let was_away = std::mem::replace(&mut told.is_away, false);
        let before = told.services.get(service);
        let same = match before {
            Some(before) => **before == *nodes,
            None => told.is_whole && nodes.is_empty(),
        };
        if !same {
            match told.is_whole && nodes.is_empty() {
                true => drop(told.services.remove(service)),
                false => drop(told.services.insert(service.clone(), nodes.into())),
            }
            self.changed.set(());
        }
        match was_away {
            true => state.publish(self.default.as_ref()),
            false if same => {}
            false => state.publish_one(service, self.default.as_ref()),
        }
    }

    /// A server told of all services that it has.
    pub(super) fn tell_all(&self, server: usize, services: BTreeMap<Service, Vec<Node>>) {
        let services: Services =
            services.into_iter().map(|(service, nodes)| (service, sound(nodes).into())).collect();
        let mut state = self.state.lock();
        let told = &mut state.servers[server];
        let same = told.is_whole && told.services == services;
        if same && !told.is_away {
            return;
        }
        *told = Told { services, is_whole: true, is_away: false };
        if !same {
            self.changed.set(());
        }
        state.publish(self.default.as_ref());
    }

    /// A server does not answer. What it told stays.
    pub(super) fn lost(&self, server: usize) {
        let mut state = self.state.lock();
        if !std::mem::replace(&mut state.servers[server].is_away, true) {
            state.publish(self.default.as_ref());
        }
    }

    /// A server answers again, and what it told holds.
    pub(super) fn found(&self, server: usize) {
        let mut state = self.state.lock();
        if std::mem::replace(&mut state.servers[server].is_away, false) {
            state.publish(self.default.as_ref());
        }
    }

    /// All that is known.
    pub(super) fn known(&self) -> Services {
        let state = self.state.lock();
        let mut known = Services::new();
        let told = state.servers.iter().flat_map(|told| told.services.keys());
        for service in told.chain(state.dumped.keys()) {
            if let Some(nodes) = state.find(service, None).filter(|nodes| !nodes.is_empty()) {
                known.insert(service.clone(), nodes);
            }
        }
        known
    }
}

impl State {
    fn find(&self, service: &Service, default: Option<&Arc<[Node]>>) -> Found {
        let told = self.servers.iter().filter_map(|told| {
            let nodes = told.services.get(service).filter(|nodes| !nodes.is_empty())?;
            Some((told.is_away, nodes))
        });
        // Who is in touch is believed first, then the first one of the settings.
        if let Some((_, nodes)) = told.min_by_key(|(is_away, _)| *is_away) {
            return Some(nodes.clone());
        }
        let has_spoken = |told: &&Told| told.has_spoken_of(service);
        let waits = self.servers.iter().any(|told| !has_spoken(&told) && !told.is_away);
        let has_answer = self.servers.iter().any(|told| has_spoken(&told));
        let before = self.dumped.get(service).filter(|_| waits || !has_answer);
        match before {
            Some(before) => Some(before.clone()),
            None if waits => None,
            // Nobody has it, or nobody answers: no request shall wait for that.
            None => Some(default.cloned().unwrap_or_default()),
        }
    }

    fn publish(&self, default: Option<&Arc<[Node]>>) {
        for service in self.followed.keys() {
            self.publish_one(service, default);
        }
    }

    fn publish_one(&self, service: &Service, default: Option<&Arc<[Node]>>) {
        let Some(follower) = self.followed.get(service).and_then(Weak::upgrade) else { return };
        let found = self.find(service, default);
        if *follower.publisher.live().load() != found {
            follower.publisher.set(found);
        }
    }

    fn sweep(&mut self) {
        self.followed.retain(|_, follower| follower.strong_count() > 0);
        self.in_use = self.followed.len();
    }
}

#[cfg(test)]
mod tests {
    use super::super::service::node;
    use super::*;

    fn nodes(port: u16) -> Vec<Node> {
        vec![node("10.0.0.1", Some(port), 1)]
    }

    fn ports(source: &Source) -> Option<Vec<u16>> {
        let found = source.found.load();
        Some(found.as_ref().as_ref()?.iter().map(|node| node.port.unwrap()).collect())
    }

    fn all(ports: &[(&str, u16)]) -> BTreeMap<Service, Vec<Node>> {
        ports.iter().map(|(name, port)| (Service::named(*name), nodes(*port))).collect()
    }

    #[test]
    fn a_service_is_unknown_until_all_servers_have_spoken_or_failed() {
        let board = Board::new(2, None);
        let source = board.follow(Service::named("a"));
        assert_eq!(ports(&source), None);
        board.tell_all(0, all(&[("b", 1)]));
        assert_eq!(ports(&source), None, "the other one may have it");
        board.lost(1);
        assert_eq!(ports(&source), Some(vec![]), "nobody has it");
        board.tell_all(1, all(&[("a", 2)]));
        assert_eq!(ports(&source), Some(vec![2]));
        board.lost(1);
        assert_eq!(ports(&source), Some(vec![2]), "the last good list stays");
        assert_eq!(ports(&board.follow(Service::named("b"))), Some(vec![1]));
    }

    #[test]
    fn of_two_servers_that_have_a_service_the_one_in_touch_is_believed() {
        let board = Board::new(2, None);
        let source = board.follow(Service::named("a"));
        board.tell_all(0, all(&[("a", 1)]));
        board.tell_all(1, all(&[("a", 2)]));
        assert_eq!(ports(&source), Some(vec![1]));
        board.lost(0);
        assert_eq!(ports(&source), Some(vec![2]));
        board.tell_all(0, all(&[("a", 1)]));
        assert_eq!(ports(&source), Some(vec![1]));
    }

    #[test]
    fn a_default_stands_for_what_the_registry_does_not_know_or_cannot_say() {
        let board = Board::new(1, Some(node("10.0.0.9", Some(9), 1)));
        let source = board.follow(Service::named("a"));
        assert_eq!(ports(&source), None);
        board.lost(0);
        assert_eq!(ports(&source), Some(vec![9]));
        board.tell(0, &Service::named("a"), nodes(1));
        assert_eq!(ports(&source), Some(vec![1]));
        board.tell(0, &Service::named("a"), Vec::new());
        assert_eq!(ports(&source), Some(vec![9]));
    }

    #[test]
    fn what_was_dumped_counts_until_the_registry_has_spoken() {
        let board = Board::new(1, None);
        board.remember([(Service::named("a"), nodes(7).into())].into());
        let source = board.follow(Service::named("a"));
        assert_eq!(ports(&source), Some(vec![7]));
        board.lost(0);
        assert_eq!(ports(&source), Some(vec![7]));
        board.tell_all(0, BTreeMap::new());
        assert_eq!(ports(&source), Some(vec![]));
    }

    #[test]
    fn what_nobody_follows_any_more_is_no_longer_wanted() {
        let board = Board::new(1, None);
        let mut asked = board.asked();
        let (a, b) = (board.follow(Service::named("a")), board.follow(Service::named("b")));
        assert!(futures_util::FutureExt::now_or_never(asked.changed()).is_some());
        board.tell(0, &Service::named("a"), nodes(1));
        board.tell(0, &Service::named("b"), nodes(2));
        assert_eq!(board.wanted().len(), 2);
        drop(a);
        assert_eq!(board.wanted(), [Service::named("b")]);
        assert_eq!(board.known().len(), 1);
        let again = board.follow(Service::named("b"));
        board.tell(0, &Service::named("b"), nodes(3));
        assert_eq!((ports(&again), ports(&b)), (Some(vec![3]), Some(vec![3])));
        assert!(board.unheard(0).is_empty());
    }
}
