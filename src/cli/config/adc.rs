//! ADC's `adc.yaml`: services with their routes, consumers with their credentials, and no ids: names are what identifies, and ids are
//! derived from them as ADC does, so that both may take turns.

use anyhow::{Context, bail};
use serde_json::{Map, Value, json};

use crate::rt::crypto::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};

/// The label by which ADC finds the further upstreams of a service.
const UPSTREAM_OF: &str = "__ADC_UPSTREAM_SERVICE_ID";

type Fields = Map<String, Value>;

/// Does it look like ADC's? What only ADC has: maps of plugins, and what is nested.
pub(super) fn is_adc(top: &Fields) -> bool {
    let is_map = |name: &str| {
        top.get(name).and_then(Value::as_object).is_some_and(|fields| !fields.is_empty())
    };
    let any = |list: &str, has: &dyn Fn(&Value) -> bool| {
        top.get(list).and_then(Value::as_array).is_some_and(|values| values.iter().any(has))
    };
    is_map("global_rules")
        || is_map("plugin_metadata")
        || any("services", &|service| {
            let nested = ["routes", "stream_routes", "upstreams"];
            nested.iter().any(|list| service.get(*list).is_some()) || service.get("id").is_none()
        })
        || any("consumers", &|consumer| consumer.get("credentials").is_some())
        || any("ssls", &|ssl| ssl.get("certificates").is_some())
}

/// An id from names, as ADC derives it.
fn derived(name: &str) -> String {
    hex::encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, name.as_bytes()))
}

/// The same as lists of kinds.
///
/// # Errors
/// A field that has no counterpart here, or a name that is missing; the error says where.
pub(super) fn converted(top: Fields) -> anyhow::Result<Fields> {
    let mut lists = Lists::default();
    for (name, value) in top {
        match (name.as_str(), value) {
            (_, Value::Null) => {}
            ("services", Value::Array(services)) => {
                for (index, service) in services.into_iter().enumerate() {
                    lists.service(service).with_context(|| format!("services[{index}]"))?;
                }
            }
            ("consumers", Value::Array(consumers)) => {
                for (index, consumer) in consumers.into_iter().enumerate() {
                    lists.consumer(consumer).with_context(|| format!("consumers[{index}]"))?;
                }
            }
            ("ssls", Value::Array(ssls)) => {
                for (index, ssl) in ssls.into_iter().enumerate() {
                    lists.ssl(ssl).with_context(|| format!("ssls[{index}]"))?;
                }
            }
            ("global_rules", Value::Object(rules)) => {
                for (plugin, config) in rules {
                    let plugins = Value::Object(Fields::from_iter([(plugin.clone(), config)]));
                    lists.push("global_rules", json!({ "id": plugin, "plugins": plugins }));
                }
            }
            ("plugin_metadata", Value::Object(all)) => {
                for (plugin, config) in all {
                    let Value::Object(mut config) = config else {
                        bail!("plugin_metadata: {plugin}: expected an object")
                    };
                    config.insert("id".into(), json!(plugin));
                    lists.push("plugin_metadata", Value::Object(config));
                }
            }
            (other, _) => bail!("{other}: ADC has no such field, or not in this shape"),
        }
    }
    Ok(lists.0)
}

#[derive(Default)]
struct Lists(Fields);

impl Lists {
    fn push(&mut self, list: &str, value: Value) {
        let values = self.0.entry(list).or_insert_with(|| json!([]));
        if let Some(values) = values.as_array_mut() {
            values.push(value);
        }
    }

    fn service(&mut self, service: Value) -> anyhow::Result<()> {
        let mut service = common(service)?;
        let name = text(&service, "name")?;
        let id = id_or(&service, || derived(&name));
        for ours in ["path_prefix", "strip_path_prefix"] {
            if service.contains_key(ours) {
                bail!("{ours}: not supported; write it into the routes");
            }
        }
        if let Some(upstream) = service.shift_remove("upstream") {
            let mut upstream = common(upstream)?;
            upstream.insert("id".into(), json!(id));
            upstream.entry("name").or_insert_with(|| json!(name));
            self.push("upstreams", Value::Object(upstream));
            service.insert("upstream_id".into(), json!(id));
        }
        for upstream in nested(&mut service, "upstreams")? {
            let mut upstream = common(upstream)?;
            let own = text(&upstream, "name")?;
            let own = id_or(&upstream, || derived(&format!("{name}.{own}")));
            upstream.insert("id".into(), json!(own));
            let labels = upstream.entry("labels").or_insert_with(|| json!({}));
            let Some(labels) = labels.as_object_mut() else { bail!("labels: expected an object") };
            labels.insert(UPSTREAM_OF.into(), json!(id));
            self.push("upstreams", Value::Object(upstream));
        }
        for route in nested(&mut service, "routes")? {
            let mut route = common(route)?;
            let own = text(&route, "name").context("routes")?;
            let own = id_or(&route, || derived(&format!("{name}.{own}")));
            route.insert("id".into(), json!(own));
            route.insert("service_id".into(), json!(id));
            self.push("routes", Value::Object(route));
        }
        for route in nested(&mut service, "stream_routes")? {
            self.push("stream_routes", route);
        }
        service.insert("id".into(), json!(id));
        self.push("services", Value::Object(service));
        Ok(())
    }

    fn consumer(&mut self, consumer: Value) -> anyhow::Result<()> {
        let mut consumer = common(consumer)?;
        let username = text(&consumer, "username")?;
        let credentials = nested(&mut consumer, "credentials")?;
        self.push("consumers", Value::Object(consumer));
        for credential in credentials {
            let mut credential = common(credential)?;
            let name = text(&credential, "name").context("credentials")?;
            let plugin = text(&credential, "type").context("credentials")?;
            let id = id_or(&credential, || derived(&format!("{username}.{name}")));
            credential.shift_remove("type");
            let config = credential.shift_remove("config").unwrap_or_else(|| json!({}));
            let plugins = Value::Object(Fields::from_iter([(plugin, config)]));
            credential.insert("plugins".into(), plugins);
            credential.insert("id".into(), json!(format!("{username}/credentials/{id}")));
            self.push("consumers", Value::Object(credential));
        }
        Ok(())
    }

    fn ssl(&mut self, ssl: Value) -> anyhow::Result<()> {
        let mut ssl = common(ssl)?;
        let snis: Vec<&str> = ssl
            .get("snis")
            .and_then(Value::as_array)
            .context("snis: missing; expected a list")?
            .iter()
            .filter_map(Value::as_str)
            .collect();
        let id = id_or(&ssl, || derived(&snis.join(",")));
        let mut certificates = nested(&mut ssl, "certificates")?.into_iter();
        let part = |one: Value, field: &str| {
            one.get(field).cloned().with_context(|| format!("certificates: {field}: missing"))
        };
        let first = certificates.next().context("certificates: missing; expected at least one")?;
        ssl.insert("cert".into(), part(first.clone(), "certificate")?);
        ssl.insert("key".into(), part(first, "key")?);
        let (mut certs, mut keys) = (Vec::new(), Vec::new());
        for one in certificates {
            certs.push(part(one.clone(), "certificate")?);
            keys.push(part(one, "key")?);
        }
        if !certs.is_empty() {
            ssl.insert("certs".into(), Value::Array(certs));
            ssl.insert("keys".into(), Value::Array(keys));
        }
        ssl.insert("id".into(), json!(id));
        self.push("ssls", Value::Object(ssl));
        Ok(())
    }
}

/// What all of ADC's resources have under other names: `description`, and labels that may be lists.
fn common(value: Value) -> anyhow::Result<Fields> {
    let Value::Object(mut fields) = value else { bail!("expected an object") };
    if let Some(description) = fields.shift_remove("description") {
        fields.insert("desc".into(), description);
    }
    if let Some(labels) = fields.get_mut("labels").and_then(Value::as_object_mut) {
        for (_, label) in labels {
            if !label.is_string() {
                *label = json!(label.to_string());
            }
        }
    }
    Ok(fields)
}

fn nested(fields: &mut Fields, list: &str) -> anyhow::Result<Vec<Value>> {
    match fields.shift_remove(list) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(values)) => Ok(values),
        Some(_) => bail!("{list}: expected a list"),
    }
}

fn text(fields: &Fields, name: &str) -> anyhow::Result<String> {
    let text = fields.get(name).and_then(Value::as_str);
    text.map(str::to_owned).with_context(|| format!("{name}: missing; expected a text"))
}

fn id_or(fields: &Fields, derived: impl FnOnce() -> String) -> String {
    match fields.get("id").and_then(Value::as_str) {
        Some(id) => id.to_owned(),
        None => derived(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_ids_and_what_is_nested_stands_alone() {
        let Value::Object(top) = json!({
            "services": [{
                "name": "billing", "description": "invoices", "labels": {"team": ["a", "b"]},
                "upstream": {"nodes": [{"host": "a", "port": 80, "weight": 1}]},
                "routes": [{"name": "read", "uris": ["/invoices"]}],
            }],
            "consumers": [{"username": "john", "credentials": [
                {"name": "k", "type": "key-auth", "config": {"key": "s"}},
            ]}],
            "ssls": [{"snis": ["a", "b"], "certificates": [{"certificate": "C", "key": "K"}]}],
            "global_rules": {"cors": {}}, "plugin_metadata": {"http-logger": {"log_format": {}}},
        }) else {
            panic!("an object")
        };
        assert!(is_adc(&top));
        let lists = Value::Object(converted(top).unwrap());
        // What `printf billing | sha1sum` says.
        let id = derived("billing");
        assert_eq!(derived(""), "da39a3ee5e6b4b0d3255bfef95601890afd80709");
        assert_eq!(
            lists["services"],
            json!([{"name": "billing", "labels": {"team": "[\"a\",\"b\"]"}, "desc": "invoices",
                    "upstream_id": id, "id": id}])
        );
        assert_eq!(lists["upstreams"][0]["id"], json!(id));
        assert_eq!(
            lists["routes"],
            json!([{"name": "read", "uris": ["/invoices"], "id": derived("billing.read"), "service_id": id}])
        );
        let credential = format!("john/credentials/{}", derived("john.k"));
        assert_eq!(
            lists["consumers"],
            json!([{"username": "john"},
                   {"name": "k", "plugins": {"key-auth": {"key": "s"}}, "id": credential}])
        );
        assert_eq!(lists["ssls"][0]["id"], json!(derived("a,b")));
        assert_eq!(
            (&lists["ssls"][0]["cert"], &lists["ssls"][0]["key"]),
            (&json!("C"), &json!("K"))
        );
        assert_eq!(lists["global_rules"], json!([{"id": "cors", "plugins": {"cors": {}}}]));
        assert_eq!(lists["plugin_metadata"], json!([{"log_format": {}, "id": "http-logger"}]));
    }

    #[test]
    fn what_apisix_writes_is_not_taken_for_adc_s() {
        let lists = |value: Value| value.as_object().unwrap().clone();
        let apisix = json!({"services": [{"id": "s", "upstream_id": "u"}], "routes": [{"id": "r"}],
            "consumers": [{"username": "j"}], "global_rules": [{"id": "g"}]});
        assert!(!is_adc(&lists(apisix)));
        let error = converted(lists(json!({"services": [{"name": "s", "path_prefix": "/a"}]})));
        assert_eq!(
            format!("{:#}", error.unwrap_err()),
            "services[0]: path_prefix: not supported; write it into the routes"
        );
    }
}
