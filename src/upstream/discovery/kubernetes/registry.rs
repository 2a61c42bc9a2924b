//! All clusters as one registry.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::join_all;
use serde_json::{Value, json};

use super::cluster::Cluster;
use super::settings::KubernetesSettings;
use crate::model::Invalid;
use crate::upstream::discovery::Error;
use crate::upstream::discovery::board::{Board, Services};
use crate::upstream::discovery::dump;
use crate::upstream::discovery::registries::Registry;
use crate::upstream::discovery::service::Service;
use crate::upstream::discovery::settings::{Environment, some};

/// The clusters.
pub(in crate::upstream::discovery) struct Kubernetes {
    clusters: Vec<Cluster>,
    is_one: bool,
}

/// Can there be such a service: `[id/]namespace/name:port`?
///
/// # Errors
/// The sentence names the field.
pub(in crate::upstream::discovery) fn check_name(name: &str) -> Result<(), Invalid> {
    let wrong =
        || Invalid(format!("service_name: expected [id/]namespace/name:port, got {name:?}"));
    let (service, port) = name.rsplit_once(':').ok_or_else(wrong)?;
    let parts: Vec<&str> = service.split('/').collect();
    let is_whole = !port.is_empty() && parts.iter().all(|part| !part.is_empty());
    match parts.len() {
        2 | 3 if is_whole => Ok(()),
        _ => Err(wrong()),
    }
}

impl Kubernetes {
    pub(in crate::upstream::discovery) fn new(
        settings: &KubernetesSettings,
        environment: Environment<'_>,
    ) -> Result<Self, Error> {
        let list = match settings {
            KubernetesSettings::One(one) => {
                if one.id.is_some() {
                    let problem = "it is for one of several clusters; write a list";
                    return Err(Error::setting("kubernetes.id", problem));
                }
                let cluster = Cluster::new(one, "kubernetes", true, environment)?;
                return Ok(Self { clusters: vec![cluster], is_one: true });
            }
            KubernetesSettings::Several(list) => list,
        };
        some("kubernetes", list)?;
        let mut ids = BTreeSet::new();
        let mut clusters = Vec::new();
        for (at, settings) in list.iter().enumerate() {
            let field = format!("kubernetes[{at}]");
            let id = settings.id.as_deref().unwrap_or_default();
            let is_id = (1..=8).contains(&id.len())
                && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
            if !is_id || !ids.insert(id) {
                let problem = "expected a name of its own, 1 to 8 of [a-z0-9]";
                return Err(Error::setting(format!("{field}.id"), problem));
            }
            clusters.push(Cluster::new(settings, &field, false, environment)?);
        }
        Ok(Self { clusters, is_one: false })
    }
}

#[async_trait]
impl Registry for Kubernetes {
    fn board(&self) -> Board {
        Board::new(self.clusters.len(), None)
    }

    fn service(&self, service: Service) -> Result<Service, Invalid> {
        let has_id = service.name.split('/').count() == 3;
        let is_known = match self.is_one {
            true => !has_id,
            false => self
                .clusters
                .iter()
                .any(|cluster| has_id && service.name.starts_with(&cluster.prefix)),
        };
        if !is_known {
            let expected = match self.is_one {
                true => "expected namespace/name:port",
                false => "expected id/namespace/name:port with the id of a cluster that is set up",
            };
            return Err(Invalid(format!("service_name: {expected}, got {:?}", service.name)));
        }
        Ok(Service::named(service.name))
    }

    async fn run(&self, board: Arc<Board>) {
        let each = self.clusters.iter().enumerate();
        join_all(each.map(|(number, cluster)| cluster.follow(number, &board))).await;
    }

    fn config(&self) -> Value {
        self.clusters.iter().map(|cluster| cluster.shown.clone()).collect()
    }

    fn shown(&self, known: &Services) -> Value {
        let one = |cluster: &Cluster| {
            let mut services = BTreeMap::<&str, BTreeMap<&str, Value>>::new();
            for (service, nodes) in known {
                let own = service.name.strip_prefix(&cluster.prefix);
                let Some((name, port)) = own.and_then(|own| own.rsplit_once(':')) else { continue };
                services.entry(name).or_default().insert(port, json!(dump::shown(nodes)));
            }
            // APISIX shows what lies in its shared memory: a text of JSON.
            let text = |(name, ports): (&str, BTreeMap<&str, Value>)| json!({ "name": name, "value": json!(ports).to_string() });
            let endpoints: Vec<Value> = services.into_iter().map(text).collect();
            match cluster.prefix.strip_suffix('/') {
                None => json!({ "endpoints": endpoints }),
                Some(id) => json!({ "id": id, "endpoints": endpoints }),
            }
        };
        let endpoints: Vec<Value> = self.clusters.iter().map(one).collect();
        json!({ "config": self.config(), "endpoints": endpoints })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kubernetes(settings: Value) -> Result<Kubernetes, Error> {
        let environment = |name: &str| match name {
            "KUBERNETES_SERVICE_HOST" => Some("10.96.0.1".to_owned()),
            "KUBERNETES_SERVICE_PORT" => Some("443".to_owned()),
            _ => None,
        };
        Kubernetes::new(&serde_json::from_value(settings).unwrap(), &environment)
    }

    #[test]
    fn in_a_pod_nothing_has_to_be_said() {
        let pod = kubernetes(json!({})).unwrap();
        assert_eq!(
            pod.config(),
            json!([{
                "service": {"schema": "https", "host": "10.96.0.1", "port": "443"},
                "default_weight": 50, "watch_endpoint_slices": false,
            }])
        );
        assert!(pod.service(Service::named("shop/cart:http")).is_ok());
        assert!(pod.service(Service::named("a/shop/cart:http")).is_err());
    }

    #[test]
    fn a_service_of_several_clusters_begins_with_ones_id() {
        let cluster = |id: &str| {
            json!({
                "id": id, "service": {"host": "127.0.0.1", "port": "6443", "schema": "http"},
                "client": {"token": "t"},
            })
        };
        let both = kubernetes(json!([cluster("a"), cluster("b2")])).unwrap();
        assert!(both.service(Service::named("b2/shop/cart:http")).is_ok());
        for name in ["shop/cart:http", "c/shop/cart:http"] {
            assert_eq!(
                both.service(Service::named(name)).unwrap_err().0,
                format!(
                    "service_name: expected id/namespace/name:port with the id of a cluster that is set up, got {name:?}"
                )
            );
        }
        assert!(!both.config().to_string().contains("token"));
        let error = kubernetes(json!([cluster("a"), cluster("a")])).err().unwrap();
        assert!(error.to_string().starts_with("setting discovery.kubernetes[1].id: expected"));
    }

    #[test]
    fn names_of_services_are_judged() {
        for name in ["shop/cart:http", "shop/cart:80", "a/shop/cart:http"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["cart:http", "shop/cart", "shop/cart:", "/cart:http", "a/b/c/d:e"] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn settings_that_make_no_sense_are_refused_by_name() {
        for (settings, sentence) in [
            (
                json!({"id": "a"}),
                "setting discovery.kubernetes.id: it is for one of several clusters; write a list",
            ),
            (
                json!({"service": {"schema": "http"}}),
                "setting discovery.kubernetes.service.schema: http is for loopback addresses only",
            ),
            (
                json!({"service": {"host": "${NOPE}"}}),
                "setting discovery.kubernetes.service.host: the environment variable NOPE is not set",
            ),
            (
                json!({"client": {"token": "a", "token_file": "b"}}),
                "setting discovery.kubernetes.client.token: give either token or token_file",
            ),
            (
                json!({"namespace_selector": {"equal": "a", "match": ["b"]}}),
                "setting discovery.kubernetes.namespace_selector: expected at most one of equal, not_equal, match and not_match",
            ),
            (
                json!([{"id": "a", "service": {"host": "h", "port": 1}}]),
                "setting discovery.kubernetes[0].client.token_file: missing",
            ),
        ] {
            let error = kubernetes(settings).err().unwrap();
            assert_eq!(error.to_string(), sentence);
        }
        let misspelt = json!({"label_selectors": "a=b"});
        let error = serde_json::from_value::<KubernetesSettings>(misspelt).unwrap_err().to_string();
        assert!(error.starts_with("unknown field `label_selectors`"), "{error}");
    }
}
