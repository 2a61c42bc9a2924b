//! `Safe`: what secret managers have said, and when they are to be asked again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::Error;
use super::environment::Environment;
use super::fetched::Fetched;
use super::manager::{Manager, Means};
use super::settings::SecretSettings;
use super::transport::Transport;
use crate::model::{Id, Kind, Redacted, SecretManager, SecretReference};
use crate::observe::{MetricKind, Registry};
use crate::rt::{Backoff, Clock, causes};

/// The first time between two attempts.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const FETCHES: &str = "wardgate_secret_fetches_total";

/// A secret's place: its manager, and what that calls it.
pub(super) type Place = (Id, String);
/// A resource's place.
pub(super) type Key = (Kind, Id);

/// What references stand for, at the moment. Cheap to copy; the feed fills it and the keeper looks into it.
#[derive(Clone)]
pub struct Safe(Arc<Inner>);

struct Inner {
    means: Means,
    refresh: Duration,
    retry: Duration,
    metrics: Registry,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    managers: BTreeMap<Id, Declared>,
    secrets: HashMap<Place, Secret>,
    /// Counts the versions of managers.
    version: u64,
}

struct Declared {
    declared: SecretManager,
    manager: Arc<Manager>,
    version: u64,
}

struct Secret {
    /// What was said last; it stays when the manager says nothing any more.
    value: Option<Arc<Fetched>>,
    /// Why the last attempt failed.
    error: Option<String>,
    due: Instant,
    is_asked: bool,
    backoff: Backoff,
    users: BTreeSet<Key>,
}

/// A question on its way.
pub(super) struct Job {
    place: Place,
    manager: Arc<Manager>,
    version: u64,
    means: Means,
}

/// What came of it.
pub(super) struct Asked {
    place: Place,
    version: u64,
    outcome: Result<Fetched, Error>,
}

impl Job {
    pub(super) async fn ask(self) -> Asked {
        let outcome = self.manager.fetch(&self.place.1, &self.means).await;
        Asked { place: self.place, version: self.version, outcome }
    }
}

impl std::fmt::Debug for Safe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Safe({})", self.0.state.lock().secrets.len())
    }
}

impl Safe {
    /// Nothing in it yet.
    pub fn new(settings: &SecretSettings, metrics: &Registry, clock: Clock) -> Self {
        let help = "Questions to secret managers, by manager and outcome (fetched or failed).";
        metrics.describe(FETCHES, MetricKind::Counter, help);
        Self(Arc::new(Inner {
            means: Means {
                environment: Environment::of_process(&settings.environment),
                transport: Transport::new(settings),
                clock,
            },
            refresh: settings.refresh(),
            retry: settings.retry(),
            metrics: metrics.clone(),
            state: Mutex::default(),
        }))
    }

    /// What a reference stands for. Asks nobody.
    ///
    /// # Errors
    /// It is not known; the sentence says why, and never shows a secret.
    pub fn clear(&self, reference: &SecretReference) -> Result<Arc<Redacted<String>>, String> {
        let (manager, path, key) = match reference {
            SecretReference::Environment { name, key } => {
                let read = self.0.means.environment.read(name, key.as_deref());
                return read.map_err(|error| causes(&error));
            }
            SecretReference::Managed { manager, path, key } => (manager, path, key.as_deref()),
        };
        let state = self.0.state.lock();
        let known = state.secrets.get(&(manager.clone(), path.clone()));
        match known.map(|secret| (&secret.value, &secret.error)) {
            Some((Some(value), _)) => value.pick(key).map_err(|error| causes(&error)),
            _ if !state.managers.contains_key(manager) => {
                Err(Error::NoManager(manager.to_string()).to_string())
            }
            Some((None, Some(error))) => Err(error.clone()),
            Some((None, None)) | None => {
                Err(format!("secret manager {manager} has not answered yet"))
            }
        }
    }

    /// A manager is new or different. What it said before stays until the new one says something.
    pub(super) fn put_manager(&self, id: &Id, declared: SecretManager) {
        let mut state = self.0.state.lock();
        // The same once more, as after a lost connection to the control plane.
        if state.managers.get(id).is_some_and(|known| known.declared == declared) {
            return;
        }
        state.version += 1;
        let version = state.version;
        let manager = Arc::new(Manager::new(&declared));
        state.managers.insert(id.clone(), Declared { declared, manager, version });
        let now = Instant::now();
        for (_, secret) in state.secrets.iter_mut().filter(|((of, _), _)| of == id) {
            (secret.due, secret.is_asked) = (now, false);
            secret.backoff.reset();
        }
    }

    /// A manager is gone, and with it what it said. Tells who suffers from it.
    pub(super) fn delete_manager(&self, id: &Id) -> BTreeSet<Key> {
        let mut state = self.0.state.lock();
        state.managers.remove(id);
        let mut users = BTreeSet::new();
        for (_, secret) in state.secrets.iter_mut().filter(|((of, _), _)| of == id) {
            (secret.value, secret.error, secret.is_asked) = (None, None, false);
            users.extend(secret.users.iter().cloned());
        }
        users
    }

    /// The managers that are declared.
    pub(super) fn managers(&self) -> Vec<Id> {
        self.0.state.lock().managers.keys().cloned().collect()
    }

    /// A resource bears a reference to this secret.
    pub(super) fn take_up(&self, place: &Place, user: &Key) {
        let mut state = self.0.state.lock();
        let new = || Secret {
            value: None,
            error: None,
            due: Instant::now(),
            is_asked: false,
            backoff: Backoff::new(FIRST_RETRY.min(self.0.retry), self.0.retry),
            users: BTreeSet::new(),
        };
        state.secrets.entry(place.clone()).or_insert_with(new).users.insert(user.clone());
    }

    /// It bears none any more. What nobody refers to is not kept.
    pub(super) fn lay_down(&self, place: &Place, user: &Key) {
        let mut state = self.0.state.lock();
        let Some(secret) = state.secrets.get_mut(place) else { return };
        secret.users.remove(user);
        if secret.users.is_empty() {
            state.secrets.remove(place);
        }
    }

    /// What is to be asked for now, and is being asked for from now on.
    pub(super) fn next_job(&self) -> Option<Job> {
        let mut state = self.0.state.lock();
        let State { managers, secrets, .. } = &mut *state;
        let now = Instant::now();
        let (place, secret) = secrets.iter_mut().find(|((manager, _), secret)| {
            !secret.is_asked && secret.due <= now && managers.contains_key(manager)
        })?;
        secret.is_asked = true;
        let Declared { manager, version, .. } = &managers[&place.0];
        Some(Job {
            place: place.clone(),
            manager: manager.clone(),
            version: *version,
            means: self.0.means.clone(),
        })
    }

    /// When the next one is to be asked for.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let state = self.0.state.lock();
        let idle = state.secrets.iter().filter(|((manager, _), secret)| {
            !secret.is_asked && state.managers.contains_key(manager)
        });
        idle.map(|(_, secret)| secret.due).min()
    }

    /// Is there something to wait for: an answer to the first question for this secret?
    pub(super) fn is_awaited(&self, place: &Place) -> bool {
        let state = self.0.state.lock();
        state.secrets.get(place).is_some_and(|secret| {
            secret.value.is_none()
                && (secret.is_asked || secret.due <= Instant::now())
                && state.managers.contains_key(&place.0)
        })
    }

    /// Notes an answer. Tells whom it concerns.
    pub(super) fn learn(&self, asked: Asked) -> BTreeSet<Key> {
        let Asked { place, version, outcome } = asked;
        let (manager, path) = (&place.0, &place.1);
        let mut state = self.0.state.lock();
        let State { managers, secrets, .. } = &mut *state;
        let is_current = managers.get(manager).is_some_and(|known| known.version == version);
        let Some(secret) = secrets.get_mut(&place).filter(|_| is_current) else {
            return BTreeSet::new();
        };
        secret.is_asked = false;
        let told = match outcome {
            Ok(value) => {
                if secret.error.take().is_some() {
                    tracing::info!(%manager, secret = path, "the secret can be fetched again");
                }
                secret.value = Some(Arc::new(value));
                secret.backoff.reset();
                // Earlier by up to a tenth, so that not all come at once.
                secret.due = Instant::now() + self.0.refresh.mul_f64(1.0 - fastrand::f64() / 10.0);
                "fetched"
            }
            Err(error) => {
                let error = format!("secret manager {manager}: {}", causes(&error));
                if secret.error.as_ref() != Some(&error) {
                    let is_known = secret.value.is_some();
                    tracing::warn!(
                        secret = path,
                        is_known,
                        "the secret cannot be fetched, what is known of it stays: {error}"
                    );
                }
                secret.error = Some(error);
                secret.due = Instant::now() + secret.backoff.next();
                "failed"
            }
        };
        self.0
            .metrics
            .counter(FETCHES, &[("manager", manager.as_str()), ("outcome", told)])
            .increment();
        secret.users.clone()
    }
}
