//! `KubernetesAttestor`: whose is a projected token, and the selectors and the identity that come of it.

use std::collections::BTreeSet;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::api_server::ApiServer;
use super::keys::Keys;
use super::review::review;
use super::settings::{KubernetesMode, KubernetesSettings};
use super::token::{Expected, Unverified};
use crate::identity::{SpiffeId, TrustDomain};
use crate::issuer::attest::selector::is_name;
use crate::issuer::{DEFAULT_TTL, Error, Grant, ProofFlaw, Selector};

/// Calls to one API server at once.
const MAX_CALLS: usize = 16;
/// How long fetched keys are used without asking again.
const KEYS_FRESH: Duration = Duration::from_secs(300);
/// How often an unknown key's name may make us fetch: whoever writes tokens chooses these names.
const FETCH_EVERY: Duration = Duration::from_secs(10);

/// A service account, and the pod that its token is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Account {
    namespace: String,
    name: String,
    pod_name: Option<String>,
    pod_uid: Option<String>,
}

impl Account {
    /// From names that somebody else wrote.
    ///
    /// # Errors
    /// One of them is no name of a Kubernetes object.
    pub(super) fn new(
        namespace: String,
        name: String,
        uid: &str,
        pod_name: Option<String>,
        pod_uid: Option<String>,
    ) -> Result<Self, ProofFlaw> {
        let bound = [&pod_name, &pod_uid].into_iter().filter_map(Option::as_deref);
        if ![&namespace, &name, uid].into_iter().chain(bound).all(is_name) {
            return Err(ProofFlaw::Subject { detail: "a name that is none" });
        }
        Ok(Self { namespace, name, pod_name, pod_uid })
    }
}

/// Attests the service accounts of one cluster.
#[derive(Debug)]
pub struct KubernetesAttestor {
    settings: KubernetesSettings,
    domain: TrustDomain,
    server: Option<ApiServer>,
    calls: Semaphore,
    fetched: Mutex<Option<(Instant, Keys)>>,
    fetching: tokio::sync::Mutex<Option<Instant>>,
}

impl KubernetesAttestor {
    /// For a cluster whose accounts may enrol in `domain`. Nobody is asked yet.
    ///
    /// # Errors
    /// A setting that cannot be used, by name.
    pub fn new(settings: KubernetesSettings, domain: TrustDomain) -> Result<Self, Error> {
        let wrong = |field, detail: &str| Error::Kubernetes {
            cluster: settings.name.clone(),
            field,
            detail: detail.to_owned(),
        };
        if !is_name(&settings.name) {
            return Err(wrong("name", "expected lower-case letters, digits, dots and dashes"));
        }
        if settings.audience.is_empty() {
            return Err(wrong("audience", "empty; expected what the tokens are projected for"));
        }
        if settings.issuer.is_empty() {
            return Err(wrong("issuer", "empty; expected the tokens' iss"));
        }
        if settings.ttl.is_some_and(|ttl| !(1..=86_400).contains(&ttl)) {
            return Err(wrong("ttl", "expected 1 to 86400 seconds"));
        }
        let needs_server = match settings.mode {
            KubernetesMode::TokenReview if settings.jwks_file.is_some() => {
                return Err(wrong("jwks_file", "given; it belongs to mode jwks"));
            }
            KubernetesMode::TokenReview => true,
            KubernetesMode::Jwks => settings.jwks_file.is_none(),
        };
        let server = match needs_server {
            true => Some(ApiServer::new(&settings)?),
            false => None,
        };
        let made = Self {
            settings,
            domain,
            server,
            calls: Semaphore::new(MAX_CALLS),
            fetched: Mutex::default(),
            fetching: tokio::sync::Mutex::default(),
        };
        if let Some(template) = &made.settings.id_template {
            let field = "id_template";
            let wrong =
                |detail| Error::Kubernetes { cluster: made.settings.name.clone(), field, detail };
            let accounts = ["{namespace}", "{service_account}"];
            if let Some(missing) = accounts.iter().find(|name| !template.contains(*name)) {
                return Err(wrong(format!(
                    "{template:?} lacks {missing}: accounts would share an identity"
                )));
            }
            made.filled(template, "namespace", "account").map_err(wrong)?;
        }
        Ok(made)
    }

    /// The cluster's name.
    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// For how long the proof of a token is good.
    pub fn proof_seconds(&self) -> i64 {
        self.settings.proof_seconds.into()
    }

    /// The selectors of whoever shows this token.
    ///
    /// # Errors
    /// The token proves nothing; [`ProofFlaw::Unavailable`] when that cannot be found out.
    pub async fn attest(&self, token: &str, now: i64) -> Result<BTreeSet<Selector>, ProofFlaw> {
        let account = match self.settings.mode {
            KubernetesMode::TokenReview => {
                let closed = || ProofFlaw::Unavailable { detail: "no API server".into() };
                let server = self.server.as_ref().ok_or_else(closed)?;
                let _place = self.calls.acquire().await.map_err(|_| closed())?;
                review(server, token, &self.settings.audience).await?
            }
            KubernetesMode::Jwks => {
                let token = Unverified::read(token)?;
                let keys = self.keys(&token.kid).await?;
                let KubernetesSettings { issuer, audience, .. } = &self.settings;
                token.verify(&keys, &Expected { issuer, audience, now })?
            }
        };
        Ok(self.selectors(account))
    }

    fn selectors(&self, account: Account) -> BTreeSet<Selector> {
        let Account { namespace, name, pod_name, pod_uid } = account;
        let mut shown: BTreeSet<_> = [
            Selector::KubernetesCluster(self.settings.name.clone()),
            Selector::KubernetesNamespace(namespace),
            Selector::KubernetesServiceAccount(name),
        ]
        .into();
        shown.extend(pod_name.map(Selector::KubernetesPodName));
        shown.extend(pod_uid.map(Selector::KubernetesPodUid));
        shown
    }

    /// The identity that the template gives to whoever showed these selectors of this cluster.
    pub fn grant(&self, shown: &BTreeSet<Selector>) -> Option<Grant> {
        let template = self.settings.id_template.as_ref()?;
        shown.contains(&Selector::KubernetesCluster(self.settings.name.clone())).then_some(())?;
        let namespace = shown.iter().find_map(|one| match one {
            Selector::KubernetesNamespace(name) => Some(name),
            _ => None,
        })?;
        let account = shown.iter().find_map(|one| match one {
            Selector::KubernetesServiceAccount(name) => Some(name),
            _ => None,
        })?;
        let spiffe_id = self
            .filled(template, namespace, account)
            .inspect_err(|detail| {
                tracing::warn!(namespace, account, detail, "no identity by id_template");
            })
            .ok()?;
        let ttl = self.settings.ttl.map_or(DEFAULT_TTL, |ttl| Duration::from_secs(ttl.into()));
        Some(Grant { spiffe_id, ttl, dns_names: Vec::new() })
    }

    fn filled(&self, template: &str, namespace: &str, account: &str) -> Result<SpiffeId, String> {
        let text = template
            .replace("{trust_domain}", self.domain.as_str())
            .replace("{cluster}", &self.settings.name)
            .replace("{namespace}", namespace)
            .replace("{service_account}", account);
        let id: SpiffeId = text.parse().map_err(|error| format!("{text:?}: {error}"))?;
        if id.trust_domain() != self.domain {
            return Err(format!("{id} is not in the trust domain {}", self.domain));
        }
        // Whoever may name a namespace must not become the control plane by it.
        if id.path() == "/wardgate" || id.path().starts_with("/wardgate/") {
            return Err(format!("{id} is reserved for Wardgate's own parts"));
        }
        Ok(id)
    }

    /// The cluster's keys: from the file, or fetched, and fetched again for a key that is not known.
    async fn keys(&self, kid: &str) -> Result<Keys, ProofFlaw> {
        let unavailable = |detail: String| {
            tracing::error!(
                cluster = self.settings.name,
                detail,
                "the cluster's keys cannot be had"
            );
            ProofFlaw::Unavailable { detail }
        };
        if let Some(path) = &self.settings.jwks_file {
            let text = tokio::fs::read(path)
                .await
                .map_err(|error| unavailable(format!("cannot read {}: {error}", path.display())))?;
            let named = |error: String| unavailable(format!("{}: {error}", path.display()));
            let document =
                serde_json::from_slice(&text).map_err(|error| named(error.to_string()))?;
            return Keys::parse(&document).map_err(named);
        }
        if let Some(keys) = self.fresh(kid) {
            return Ok(keys);
        }
        let mut last = self.fetching.lock().await;
        // Somebody else may have fetched while we waited for the turn.
        if let Some(keys) = self.fresh(kid) {
            return Ok(keys);
        }
        if last.is_some_and(|last| last.elapsed() < FETCH_EVERY) {
            return match &*self.fetched.lock() {
                Some((at, keys)) if at.elapsed() < KEYS_FRESH => Ok(keys.clone()),
                _ => Err(ProofFlaw::Unavailable {
                    detail: "the cluster's keys cannot be had".into(),
                }),
            };
        }
        *last = Some(Instant::now());
        let server = self.server.as_ref().ok_or_else(|| unavailable("no API server".into()))?;
        let document = server.call("GET", "/openid/v1/jwks", None).await?;
        let keys = Keys::parse(&document)
            .map_err(|error| unavailable(format!("the API server's keys: {error}")))?;
        *self.fetched.lock() = Some((Instant::now(), keys.clone()));
        Ok(keys)
    }

    fn fresh(&self, kid: &str) -> Option<Keys> {
        let fetched = self.fetched.lock();
        let (at, keys) = fetched.as_ref()?;
        (at.elapsed() < KEYS_FRESH && keys.knows(kid)).then(|| keys.clone())
    }
}
