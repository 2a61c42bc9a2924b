//! What stands in the place of a resource that cannot be read, so that it refuses what it might have refused.

use serde_json::{Value, json};

use super::{Body, Kind, Revocation, WorkloadSelector};

/// A plugin that nobody has: what carries it answers 503.
const UNREADABLE: &str = "unreadable";

impl Body {
    /// What stands in the place of a resource that cannot be read. `None` where there is nothing of that sort: for kinds
    /// whose absence refuses already, and for a route of which neither a path nor a host can be read.
    pub fn closed(kind: Kind, value: &Value) -> Option<Self> {
        match kind {
            Kind::Routes => Self::parse(kind, &closed_route(value)?).ok(),
            Kind::Services => Self::parse(kind, &closed_service(value)?).ok(),
            Kind::PluginConfigs | Kind::ConsumerGroups => Self::parse(kind, &refusing()).ok(),
            Kind::Ssls => Self::parse(kind, &closed_ssl(value)?).ok(),
            Kind::Revocations => closed_revocation(value),
            _ => None,
        }
    }

    /// As [`Body::closed`], as JSON, for a route of which nobody can tell whose it is: for every workload that has its door.
    /// It says no more than its place, since it goes to workloads that it was perhaps not meant for.
    ///
    /// `None` when whose it is can be read.
    pub fn closed_for_all(
        kind: Kind,
        value: &Value,
        is_pattern: impl Fn(&str) -> bool,
    ) -> Option<Value> {
        if kind != Kind::Routes {
            return None;
        }
        let selector = value.get("workload_selector").filter(|selector| !selector.is_null())?;
        let read: Option<WorkloadSelector> = serde_json::from_value(selector.clone()).ok();
        let is_known = |read: &WorkloadSelector| read.spiffe_ids.iter().all(|id| is_pattern(id));
        if read.as_ref().is_some_and(is_known) {
            return None;
        }
        let mut closed = closed_route(value)?;
        let listener = read.map_or_else(|| listener_of(selector), |read| json!(read.listener));
        closed["workload_selector"] = json!({ "listener": listener });
        Some(closed)
    }
}

fn refusing() -> Value {
    json!({ "plugins": { UNREADABLE: {} } })
}

/// What of a revocation can be read.
fn closed_revocation(value: &Value) -> Option<Body> {
    let mut closed = Revocation::default();
    let text = |field: &str| value.get(field).and_then(Value::as_str).map(str::to_owned);
    (closed.serial, closed.trust_domain) = (text("serial"), text("trust_domain"));
    (closed.spki_sha256, closed.spiffe_id) = (text("spki_sha256"), text("spiffe_id"));
    let keys = [&closed.serial, &closed.trust_domain, &closed.spki_sha256, &closed.spiffe_id];
    let says_something = keys.iter().any(|key| key.is_some());
    says_something.then(|| Body::Revocation(Box::new(closed)))
}

/// The names of a public certificate, as far as they can be read, and none that could be shown.
fn closed_ssl(value: &Value) -> Option<Value> {
    let value = value.as_object()?;
    if value.get("type").is_some_and(|kind| kind != "server") {
        return None;
    }
    let mut closed = json!({ "cert": UNREADABLE, "key": UNREADABLE });
    for field in ["sni", "snis", "status"] {
        keep(Kind::Ssls, &mut closed, value.get(field), field);
    }
    closed.get("sni").or_else(|| closed.get("snis")).is_some().then_some(closed)
}

/// The hosts of a service, as far as they can be read: its routes stand there, and answer 503.
fn closed_service(value: &Value) -> Option<Value> {
    let mut closed = refusing();
    keep(Kind::Services, &mut closed, value.as_object()?.get("hosts"), "hosts");
    Some(closed)
}

/// What stands in the place of a route that cannot be read: the same hosts and paths, as far as they can be read, and a
/// plugin that nobody has. The data plane answers 503 there, so that no broader and more open route takes the requests.
///
/// Whatever narrows a route and cannot be read narrows nothing. Of a list of paths those that can be read count; where none
/// can, the route is taken to be for all paths of its hosts. `None` where there is no host either.
fn closed_route(value: &Value) -> Option<Value> {
    const NARROWING: [&str; 5] = ["host", "hosts", "methods", "status", "service_id"];
    let value = value.as_object()?;
    let mut closed = refusing();
    closed["uri"] = json!("/*");
    for field in NARROWING {
        keep(Kind::Routes, &mut closed, value.get(field), field);
    }
    // Something that nobody can read may be meant to be tried before everything else.
    let priority = value.get("priority").filter(|priority| !priority.is_null());
    if let Some(priority) = priority {
        closed["priority"] = json!(priority.as_i64().unwrap_or(i64::MAX));
    }
    if let Some(selector) = value.get("workload_selector").filter(|selector| !selector.is_null()) {
        closed["workload_selector"] = selector.clone();
        if Body::parse(Kind::Routes, &closed).is_err() {
            closed["workload_selector"] = json!({ "listener": listener_of(selector) });
        }
    }
    let readable = |path: &&Value| {
        let mut alone = refusing();
        alone["uri"] = (*path).clone();
        path.as_str().is_some_and(|path| path.starts_with('/'))
            && Body::parse(Kind::Routes, &alone).is_ok()
    };
    let named = value.get("uris").and_then(Value::as_array).into_iter().flatten();
    let mut paths: Vec<&Value> = named.chain(value.get("uri")).filter(readable).collect();
    paths.dedup();
    match &paths[..] {
        [] if closed.get("host").or_else(|| closed.get("hosts")).is_none() => return None,
        [] => {}
        [path] => closed["uri"] = (*path).clone(),
        paths => {
            closed["uris"] = paths.iter().map(|path| (*path).clone()).collect();
            closed.as_object_mut()?.remove("uri");
        }
    }
    Some(closed)
}

/// The door that a selector names; the one that protects the workload where that cannot be read.
fn listener_of(selector: &Value) -> Value {
    let known = ["ingress", "inbound", "outbound"];
    let named = selector.get("listener").and_then(Value::as_str);
    json!(named.filter(|name| known.contains(name)).unwrap_or("inbound"))
}

/// Takes a field over if the resource can be read with it.
fn keep(kind: Kind, closed: &mut Value, part: Option<&Value>, field: &str) {
    let Some(part) = part else { return };
    closed[field] = part.clone();
    if Body::parse(kind, closed).is_err()
        && let Some(fields) = closed.as_object_mut()
    {
        fields.remove(field);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Listeners, Status};

    fn place(value: &Value) -> Option<(Vec<String>, Vec<String>, i64)> {
        let body = Body::closed(Kind::Routes, value)?;
        let Body::Route(route) = body else { panic!("{body:?}") };
        assert!(route.plugins.as_ref().is_some_and(|set| set.contains_key(UNREADABLE)));
        let owned = |texts: crate::model::OneOrMany<'_>| texts.iter().map(str::to_owned).collect();
        Some((owned(route.paths()), owned(route.host_list()), route.priority))
    }

    fn found(
        paths: &[&str],
        hosts: &[&str],
        priority: i64,
    ) -> Option<(Vec<String>, Vec<String>, i64)> {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Some((owned(paths), owned(hosts), priority))
    }

    #[test]
    fn a_route_that_cannot_be_read_stands_where_it_can_be_read_to_stand() {
        assert_eq!(place(&json!({"uri": "/a", "plugins": 7})), found(&["/a"], &[], 0));
        assert_eq!(place(&json!({"uris": ["/a", 7, "/b"]})), found(&["/a", "/b"], &[], 0));
        assert_eq!(place(&json!({"uri": 7, "hosts": ["a.b"]})), found(&["/*"], &["a.b"], 0));
        assert_eq!(
            place(&json!({"uri": "/a", "host": 7})),
            found(&["/a"], &[], 0),
            "for all hosts"
        );
        assert_eq!(place(&json!({"uri": "/a", "priority": "x"})), found(&["/a"], &[], i64::MAX));
        assert_eq!(place(&json!({"uri": "/a", "priority": 3, "x": 1})), found(&["/a"], &[], 3));
        for nowhere in [json!(7), json!({"uri": 7}), json!({"uris": [7]}), json!({"plugins": 7})] {
            assert_eq!(place(&nowhere), None);
        }
    }

    #[test]
    fn a_route_that_is_switched_off_closes_nothing() {
        let off = Body::closed(Kind::Routes, &json!({"uri": "/a", "status": 0, "plugins": 7}));
        let Some(Body::Route(off)) = off else { panic!("{off:?}") };
        assert_eq!(off.status, Status::Disabled);
    }

    #[test]
    fn whose_a_route_is_and_cannot_be_read_is_everybodys() {
        let for_all = |selector: Value| {
            let value =
                json!({"uri": "/a", "workload_selector": selector, "plugins": {"secret": {}}});
            Body::closed_for_all(Kind::Routes, &value, |id| !id.contains('?'))
        };
        assert_eq!(for_all(Value::Null), None);
        assert_eq!(for_all(json!({"spiffe_ids": ["spiffe://shop/cart"]})), None);
        for (selector, listener) in [
            (json!({"spiffe_ids": ["?"], "listener": "outbound"}), Listeners::Outbound),
            (json!({"spiffe_ids": 7, "listener": "outbound"}), Listeners::Outbound),
            (json!({"listener": "x"}), Listeners::Inbound),
            (json!(7), Listeners::Inbound),
        ] {
            let closed = for_all(selector).unwrap();
            assert!(!closed.to_string().contains("secret"), "{closed}");
            let Ok(Body::Route(route)) = Body::parse(Kind::Routes, &closed) else {
                panic!("{closed}")
            };
            assert_eq!(route.listener(), listener);
            assert!(route.workload_selector.unwrap().spiffe_ids.is_empty());
        }
    }

    #[test]
    fn what_routes_refer_to_refuses_when_it_cannot_be_read() {
        let service = Body::closed(Kind::Services, &json!({"hosts": ["a.b"], "upstream": 7}));
        let Some(Body::Service(service)) = service else { panic!("{service:?}") };
        assert_eq!(service.hosts, Some(vec!["a.b".to_owned()]));
        assert!(service.plugins.is_some());
        let ssl = json!({"sni": "a.b", "cert": 7, "key": "k"});
        let Some(Body::Ssl(ssl)) = Body::closed(Kind::Ssls, &ssl) else { panic!("{ssl}") };
        assert!(ssl.is_served() && ssl.names().iter().eq(["a.b"]));
        for nothing in [json!({"sni": "a.b", "type": "client"}), json!({"sni": 7})] {
            assert!(Body::closed(Kind::Ssls, &nothing).is_none(), "{nothing}");
        }
        assert!(Body::closed(Kind::PluginConfigs, &json!(7)).is_some());
        assert!(Body::closed(Kind::Upstreams, &json!(7)).is_none(), "its absence refuses already");
    }
}
