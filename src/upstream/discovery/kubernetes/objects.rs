//! What is read of Kubernetes' objects: the nodes behind the ports of services.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::model::Node;
use crate::upstream::discovery::service::node;

/// The label by which an EndpointSlice names its service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// Which objects are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Endpoints,
    EndpointSlices,
}

impl Kind {
    pub(super) const fn group(self) -> &'static str {
        match self {
            Self::Endpoints => "/api/v1",
            Self::EndpointSlices => "/apis/discovery.k8s.io/v1",
        }
    }

    pub(super) const fn plural(self) -> &'static str {
        match self {
            Self::Endpoints => "endpoints",
            Self::EndpointSlices => "endpointslices",
        }
    }

    /// Reads an object; `None` when it belongs to no service.
    pub(super) fn read(
        self,
        object: &RawValue,
        weight: u32,
    ) -> Result<Option<Object>, serde_json::Error> {
        match self {
            Self::Endpoints => Endpoints::read(object, weight).map(Some),
            Self::EndpointSlices => EndpointSlice::read(object, weight),
        }
    }
}

/// `namespace/name` of a service.
pub(super) type ServiceKey = (String, String);

/// Nodes by the ports' names.
pub(super) type Ports = BTreeMap<String, Vec<Node>>;

/// An object, or what is left to know of one that is gone.
#[derive(Debug, PartialEq)]
pub(super) struct Object {
    pub(super) service: ServiceKey,
    /// Its own name: a service may have several slices.
    pub(super) name: String,
    pub(super) ports: Ports,
}

/// The objects of a cluster, by service.
#[derive(Default)]
pub(super) struct Objects {
    services: HashMap<ServiceKey, BTreeMap<String, Ports>>,
}

impl Objects {
    /// Puts an object in its place, or takes it away.
    pub(super) fn put(&mut self, object: Object, is_gone: bool) {
        let slices = self.services.entry(object.service.clone()).or_default();
        match is_gone {
            true => drop(slices.remove(&object.name)),
            false => drop(slices.insert(object.name, object.ports)),
        }
        if slices.is_empty() {
            self.services.remove(&object.service);
        }
    }

    /// The services that there are.
    pub(super) fn keys(&self) -> impl Iterator<Item = &ServiceKey> {
        self.services.keys()
    }

    /// All nodes of a service, in order, each once: an endpoint may stand in two slices for a moment.
    pub(super) fn ports(&self, service: &ServiceKey) -> Ports {
        let mut ports = Ports::new();
        for slice in self.services.get(service).into_iter().flat_map(BTreeMap::values) {
            for (name, nodes) in slice {
                ports.entry(name.clone()).or_default().extend(nodes.iter().cloned());
            }
        }
        for nodes in ports.values_mut() {
            nodes.sort_by(|a, b| (&a.host, a.port).cmp(&(&b.host, b.port)));
            nodes.dedup_by(|a, b| a.host == b.host && a.port == b.port);
        }
        ports
    }
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    labels: Option<HashMap<String, String>>,
}

#[derive(Deserialize)]
struct Endpoints {
    metadata: Metadata,
    #[serde(default)]
    subsets: Option<Vec<Subset>>,
}

#[derive(Deserialize)]
struct Subset {
    /// Those that are ready; the others stand in `notReadyAddresses`.
    #[serde(default)]
    addresses: Option<Vec<Address>>,
    #[serde(default)]
    ports: Option<Vec<Port>>,
}

#[derive(Deserialize)]
struct Address {
    ip: String,
}

#[derive(Deserialize)]
struct Port {
    #[serde(default)]
    name: Option<String>,
    /// Without one it means every port.
    #[serde(default)]
    port: Option<u16>,
}

impl Port {
    /// The name by which upstreams know it, and its number.
    fn named(&self) -> Option<(String, u16)> {
        let port = self.port?;
        let name = self.name.clone().filter(|name| !name.is_empty());
        Some((name.unwrap_or_else(|| port.to_string()), port))
    }
}

impl Endpoints {
    fn read(object: &RawValue, weight: u32) -> Result<Object, serde_json::Error> {
        let Self { metadata, subsets } = serde_json::from_str(object.get())?;
        let mut ports = Ports::new();
        for subset in subsets.unwrap_or_default() {
            let addresses = subset.addresses.unwrap_or_default();
            for (name, port) in subset.ports.iter().flatten().filter_map(Port::named) {
                let nodes = addresses.iter().map(|address| node(&address.ip, Some(port), weight));
                ports.entry(name).or_default().extend(nodes);
            }
        }
        let name = metadata.name.clone();
        Ok(Object { service: (metadata.namespace, metadata.name), name, ports })
    }
}

#[derive(Deserialize)]
struct EndpointSlice {
    metadata: Metadata,
    #[serde(default)]
    endpoints: Option<Vec<Endpoint>>,
    #[serde(default)]
    ports: Option<Vec<Port>>,
}

#[derive(Deserialize)]
struct Endpoint {
    #[serde(default)]
    addresses: Option<Vec<String>>,
    #[serde(default)]
    conditions: Option<Conditions>,
}

#[derive(Deserialize)]
struct Conditions {
    #[serde(default)]
    ready: Option<bool>,
}

impl EndpointSlice {
    fn read(object: &RawValue, weight: u32) -> Result<Option<Object>, serde_json::Error> {
        let Self { metadata, endpoints, ports: numbers } = serde_json::from_str(object.get())?;
        let labels = metadata.labels.unwrap_or_default();
        let Some(service) = labels.get(SERVICE_LABEL) else { return Ok(None) };
        let mut ports = Ports::new();
        for endpoint in endpoints.unwrap_or_default() {
            // Unknown is to be read as ready.
            let ready = endpoint.conditions.and_then(|conditions| conditions.ready);
            if ready == Some(false) {
                continue;
            }
            let addresses = endpoint.addresses.unwrap_or_default();
            for (name, port) in numbers.iter().flatten().filter_map(Port::named) {
                let nodes = addresses.iter().map(|address| node(address, Some(port), weight));
                ports.entry(name).or_default().extend(nodes);
            }
        }
        let service = (metadata.namespace, service.clone());
        Ok(Some(Object { service, name: metadata.name, ports }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(kind: Kind, object: &Value) -> Option<Object> {
        let raw = RawValue::from_string(object.to_string()).unwrap();
        kind.read(&raw, 50).unwrap()
    }

    fn places(ports: &Ports) -> Vec<String> {
        let place = |(name, node): (&String, &Node)| {
            format!("{name} {}:{} {}", node.host, node.port.unwrap(), node.weight)
        };
        ports.iter().flat_map(|(name, nodes)| nodes.iter().map(move |n| place((name, n)))).collect()
    }

    #[test]
    fn endpoints_are_read_by_the_names_of_their_ports() {
        let object = read(
            Kind::Endpoints,
            &json!({
                "metadata": {"namespace": "shop", "name": "cart"},
                "subsets": [
                    {"addresses": [{"ip": "10.0.0.2"}, {"ip": "10.0.0.1"}],
                     "notReadyAddresses": [{"ip": "10.0.0.9"}],
                     "ports": [{"name": "http", "port": 80}, {"port": 90}]},
                    {"notReadyAddresses": [{"ip": "10.0.0.8"}], "ports": [{"port": 90}]},
                ],
            }),
        );
        let mut objects = Objects::default();
        objects.put(object.unwrap(), false);
        let service = ("shop".to_owned(), "cart".to_owned());
        assert_eq!(
            places(&objects.ports(&service)),
            [
                "90 10.0.0.1:90 50",
                "90 10.0.0.2:90 50",
                "http 10.0.0.1:80 50",
                "http 10.0.0.2:80 50"
            ]
        );
        let gone = json!({"metadata": {"namespace": "shop", "name": "cart"}});
        objects.put(read(Kind::Endpoints, &gone).unwrap(), true);
        assert_eq!(objects.keys().count(), 0);
    }

    #[test]
    fn a_service_has_the_ready_endpoints_of_all_its_slices_each_once() {
        let slice = |name: &str, addresses: &[(&str, Option<bool>)]| {
            let endpoint = |(address, ready): &(&str, Option<bool>)| json!({"addresses": [address], "conditions": {"ready": ready}});
            let endpoints: Vec<Value> = addresses.iter().map(endpoint).collect();
            let value = json!({
                "metadata": {"namespace": "shop", "name": name,
                             "labels": {"kubernetes.io/service-name": "cart"}},
                "addressType": "IPv4", "endpoints": endpoints,
                "ports": [{"name": "http", "port": 80}, {"name": "all", "port": null}],
            });
            read(Kind::EndpointSlices, &value).unwrap()
        };
        let mut objects = Objects::default();
        objects.put(slice("cart-a", &[("10.0.0.1", Some(true)), ("10.0.0.3", None)]), false);
        objects.put(slice("cart-b", &[("10.0.0.1", Some(true)), ("10.0.0.2", Some(false))]), false);
        let service = ("shop".to_owned(), "cart".to_owned());
        assert_eq!(
            places(&objects.ports(&service)),
            ["http 10.0.0.1:80 50", "http 10.0.0.3:80 50"]
        );
        objects.put(slice("cart-a", &[]), true);
        assert_eq!(places(&objects.ports(&service)), ["http 10.0.0.1:80 50"]);

        let nobodys = json!({"metadata": {"namespace": "shop", "name": "x"}, "endpoints": null});
        assert_eq!(read(Kind::EndpointSlices, &nobodys), None);
    }
}
