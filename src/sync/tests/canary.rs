//! Canary pushes between publisher and subscribers, over a store in memory.

use std::collections::BTreeSet;

use super::*;
use crate::rt::Live;
use crate::store;
use crate::sync::canary::{
    CanarySettings, Counts, Course, Figures, Past, Phase, Record, Remembered, Rise, skipping,
    state_key,
};

/// Remembers what the test has written.
#[derive(Default)]
struct Written(Mutex<Vec<Remembered>>);

#[async_trait]
impl Past for Written {
    async fn of_changed_since(&self, revision: Revision) -> Result<Vec<Remembered>, store::Error> {
        let all = self.0.lock().clone();
        let changed: BTreeSet<_> =
            all.iter().filter(|one| one.revision > revision).map(|one| one.key.clone()).collect();
        Ok(all.into_iter().filter(|one| changed.contains(&one.key)).collect())
    }
}

/// A store, a control plane that tries changes first, and what of it is known.
struct Trying {
    world: World,
    past: Arc<Written>,
    settings: CanarySettings,
    figures: Option<Live<Figures>>,
}

impl Trying {
    async fn new(settings: CanarySettings) -> Self {
        let world = World {
            store: Arc::new(Memory::new()),
            address: watch::channel("127.0.0.1:1".parse().unwrap()).0,
            control: None,
        };
        let mut trying = Self { world, past: Arc::default(), settings, figures: None };
        trying.start().await;
        trying
    }

    async fn start(&mut self) {
        let rules = super::super::scope::tests::rules();
        let place = (&self.settings, "/apisix");
        let publisher =
            Publisher::with_canaries(rules, Arc::new(|_, _| true), place, self.past.clone());
        self.world.start_with(publisher.clone()).await;
        self.world.follow();
        let store: Arc<dyn Store> = self.world.store.clone();
        let course = Course::new((store, "/apisix"), self.settings.clone(), publisher, None);
        self.figures = Some(course.figures());
        let control = self.world.control.as_mut().unwrap();
        let guard = control.drain.guard();
        control._tasks.add(course.run(guard));
    }

    async fn put(&self, name: &str, value: Value) -> Revision {
        let revision = self.world.put(name, value.clone()).await;
        let (kind, id) = name.split_once('/').unwrap();
        let key = (Kind::named(kind).unwrap(), Id::parse(id).unwrap());
        self.past.0.lock().push(Remembered { key, revision, value: Some(value) });
        revision
    }

    /// A data plane of the ingress, which has counted so much.
    fn plane(&self, node: &str, counts: &Arc<Mutex<Counts>>) -> Plane {
        let connect = Dial { address: self.world.address.subscribe(), spiffe_id: EDGE.into() };
        let counts = counts.clone();
        let settings = Settings { node: node.into(), ..quick(Role::Ingress) };
        let settings = settings.with_counts(BTreeMap::new(), Arc::new(move || *counts.lock()));
        let feed = Subscriber::start(settings, connect, None);
        let seen = Arc::<Mutex<BTreeMap<String, Revision>>>::default();
        let refuses = Arc::<Mutex<BTreeSet<Revision>>>::default();
        Plane { seen: seen.clone(), refuses: refuses.clone(), _tasks: run(feed, seen, refuses) }
    }

    async fn until(&self, what: &str, is_so: impl Fn(&Record) -> bool) -> Record {
        let mut figures = self.figures.clone().unwrap();
        let wait = async {
            loop {
                if let Some(record) = figures.load().record.clone().filter(&is_so) {
                    return record;
                }
                figures.changed().await;
            }
        };
        tokio::time::timeout(SOON, wait).await.unwrap_or_else(|_| panic!("{what}"))
    }
}

/// A data plane that takes what comes.
struct Plane {
    /// The resources that it has, with their revisions.
    seen: Arc<Mutex<BTreeMap<String, Revision>>>,
    refuses: Arc<Mutex<BTreeSet<Revision>>>,
    _tasks: Tasks,
}

fn run(
    mut feed: Subscriber,
    seen: Arc<Mutex<BTreeMap<String, Revision>>>,
    refuses: Arc<Mutex<BTreeSet<Revision>>>,
) -> Tasks {
    let mut tasks = Tasks::new();
    tasks.add(async move {
        loop {
            let batch = feed.next().await;
            let mut rejected = Vec::new();
            for change in &batch.changes {
                match change {
                    Change::Put(Resource { kind, id, revision, .. }) => {
                        if refuses.lock().contains(revision) {
                            let (kind, id, revision) = (*kind, id.clone(), *revision);
                            let reason = "refused by the test".into();
                            rejected.push(Rejected { kind, id, revision, reason });
                        } else {
                            seen.lock().insert(format!("{kind}/{id}"), *revision);
                        }
                    }
                    Change::Delete(kind, id) => {
                        seen.lock().remove(&format!("{kind}/{id}"));
                    }
                }
            }
            feed.applied(Applied { revision: batch.revision, rejected, restored: Vec::new() });
        }
    });
    tasks
}

impl Plane {
    fn has(&self, name: &str) -> Option<Revision> {
        self.seen.lock().get(name).copied()
    }

    async fn comes_to(&self, name: &str, revision: Option<Revision>) {
        let wait = async {
            while self.has(name) != revision {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let told = tokio::time::timeout(SOON, wait).await;
        assert!(told.is_ok(), "{name} at {revision:?}: {:?}", self.seen.lock());
    }
}

fn settings() -> CanarySettings {
    CanarySettings { share: 50, watch_seconds: 1, ..CanarySettings::default() }
}

#[tokio::test]
async fn what_a_canary_refuses_is_taken_back_and_a_control_plane_that_starts_anew_knows_it() {
    let mut trying = Trying::new(settings()).await;
    let first = trying.put("routes/1", route("/1")).await;
    trying.until("nobody is there to try it", |record| record.stable >= first).await;
    let counts = Arc::<Mutex<Counts>>::default();
    let planes = [trying.plane("a", &counts), trying.plane("b", &counts)];
    for plane in &planes {
        plane.comes_to("routes/1", Some(first)).await;
    }

    // The second is refused by whoever gets it; the third comes with it and is no trouble.
    let bad = trying.put("routes/1", route("/bad")).await;
    // It settles for a while before anybody gets it.
    for plane in &planes {
        plane.refuses.lock().insert(bad);
    }
    let beside = trying.put("routes/2", route("/2")).await;
    let stopped = |record: &Record| record.phase == Phase::Stopped;
    let record = trying.until("the refusal stops it", stopped).await;
    assert!(record.reason.contains("refuses routes/1") && record.candidate >= beside, "{record:?}");
    assert!(record.stable < bad);
    for plane in &planes {
        plane.comes_to("routes/1", Some(first)).await;
        plane.comes_to("routes/2", None).await;
    }

    // A control plane that never saw what was before gives it to whoever comes.
    trying.world.stop().await;
    trying.start().await;
    trying.until("it is read", stopped).await;
    let newcomer = trying.plane("c", &counts);
    newcomer.comes_to("routes/1", Some(first)).await;
    assert_eq!(newcomer.has("routes/2"), None);

    // What says that it must not wait goes past, and what was stopped stays where it is.
    let mark = skipping("/apisix", "test");
    let value = route("/urgent");
    let write = store::Write {
        key: "/apisix/routes/urgent".into(),
        value: Some(value),
        expect: Expect::Anything,
        ttl: None,
    };
    let urgent = trying.world.store.commit(vec![write, mark]).await.unwrap().revision;
    newcomer.comes_to("routes/urgent", Some(urgent)).await;
    assert_eq!(newcomer.has("routes/1"), Some(first));
    assert!(trying.world.publisher().wait_applied(urgent, SOON).await.has_applied(urgent));

    // Written anew, it is tried, and passes with what came beside it.
    let good = trying.put("routes/1", route("/good")).await;
    let record = trying.until("it passes", |record| record.stable >= good).await;
    assert_eq!(record.phase, Phase::Passed);
    for plane in planes.iter().chain([&newcomer]) {
        plane.comes_to("routes/1", Some(good)).await;
        plane.comes_to("routes/2", Some(beside)).await;
    }
}

#[tokio::test]
async fn a_rise_of_denials_at_the_canary_stops_it_and_the_other_never_has_it() {
    let rise = Rise { points: 5.0, times: 2.0 };
    let trying =
        Trying::new(CanarySettings { denied: rise, watch_seconds: 60, ..settings() }).await;
    let first = trying.put("routes/1", route("/1")).await;
    trying.until("nobody is there to try it", |record| record.stable >= first).await;
    let counts = [(); 2].map(|()| Arc::new(Mutex::new(Counts::default())));
    let planes = [trying.plane("a", &counts[0]), trying.plane("b", &counts[1])];
    for plane in &planes {
        plane.comes_to("routes/1", Some(first)).await;
    }
    let second = trying.put("routes/1", route("/2")).await;
    trying.until("it is tried", |record| record.phase == Phase::Trying).await;
    let at = loop {
        if let Some(at) = planes.iter().position(|plane| plane.has("routes/1") == Some(second)) {
            break at;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let add = |at: usize, decided: u64, denied: u64| {
        let mut counts = counts[at].lock();
        counts.decided += decided;
        counts.denied += denied;
    };
    // Counted again and again: the first count may come before or after what was tried.
    let stop = trying.until("it is stopped", |record| {
        add(at, 1000, 900);
        add(1 - at, 1000, 0);
        record.phase == Phase::Stopped
    });
    let ring = async {
        loop {
            add(at, 1000, 900);
            add(1 - at, 1000, 0);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let record = tokio::select! {
        record = stop => record,
        () = ring => unreachable!("it goes on for ever"),
    };
    assert!(record.reason.contains("denials rose to 90.0 %"), "{record:?}");
    planes[at].comes_to("routes/1", Some(first)).await;
    assert_eq!(planes[1 - at].has("routes/1"), Some(first), "it never had the other");
    assert!(trying.world.store.get(&state_key("/apisix")).await.unwrap().is_some());
}
