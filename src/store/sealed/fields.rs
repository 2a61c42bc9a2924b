//! Which texts of a resource nobody may read at rest.

use serde_json::Value;

use crate::model::Kind;

/// The fields that APISIX's plugins encrypt, settings, credentials and metadata alike. A field that is an object or a list
/// stands for all texts in it, and lists on the way are walked through.
const PLUGINS: &[(&str, &[&str])] = &[
    ("ai-aliyun-content-moderation", &["access_key_secret"]),
    ("ai-aws-content-moderation", &["comprehend.secret_access_key"]),
    (
        "ai-cache",
        &[
            "redis_password",
            "semantic.embedding.azure_openai.api_key",
            "semantic.embedding.openai.api_key",
        ],
    ),
    ("ai-lakera-guard", &["api_key"]),
    (
        "ai-proxy",
        &[
            "auth.aws.secret_access_key",
            "auth.aws.session_token",
            "auth.gcp.service_account_json",
            "auth.header",
            "auth.query",
        ],
    ),
    (
        "ai-proxy-multi",
        &[
            "instances.auth.aws.secret_access_key",
            "instances.auth.aws.session_token",
            "instances.auth.gcp.service_account_json",
            "instances.auth.header",
            "instances.auth.query",
            "semantic_opts.embeddings.auth.header",
            "semantic_opts.embeddings.auth.query",
        ],
    ),
    (
        "ai-rag",
        &[
            "embeddings_provider.azure_openai.api_key",
            "vector_search_provider.azure_ai_search.api_key",
        ],
    ),
    ("ai-rate-limiting", &["redis_password", "sentinel_password"]),
    ("authz-casdoor", &["client_secret"]),
    ("authz-keycloak", &["client_secret"]),
    (
        "aws-lambda",
        &["authorization.apikey", "authorization.iam.accesskey", "authorization.iam.secretkey"],
    ),
    ("azure-functions", &["authorization.apikey", "master_apikey"]),
    ("basic-auth", &["password"]),
    ("cas-auth", &["cookie.secret"]),
    ("clickhouse-logger", &["password"]),
    ("csrf", &["key"]),
    ("dingtalk-auth", &["app_secret", "secret", "secret_fallbacks"]),
    ("elasticsearch-logger", &["auth.password", "headers"]),
    ("error-log-logger", &["clickhouse.password", "kafka.brokers.sasl_config.password"]),
    ("feishu-auth", &["app_secret", "secret", "secret_fallbacks"]),
    ("google-cloud-logging", &["auth_config.private_key"]),
    ("graphql-limit-count", &["introspection_headers", "redis_password", "sentinel_password"]),
    ("hmac-auth", &["secret_key"]),
    ("http-logger", &["auth_header"]),
    ("jwe-decrypt", &["key", "secret"]),
    ("jwt-auth", &["secret"]),
    ("kafka-logger", &["brokers.sasl_config.password"]),
    ("kafka-proxy", &["sasl.password"]),
    ("key-auth", &["key"]),
    ("lago", &["token"]),
    ("ldap-auth-advanced", &["ldap_password"]),
    // Not in APISIX's list: these know no sentinels there.
    ("limit-conn", &["redis_password", "sentinel_password"]),
    ("limit-count", &["redis_password", "sentinel_password"]),
    ("limit-req", &["redis_password", "sentinel_password"]),
    ("loggly", &["customer_token"]),
    ("loki-logger", &["headers"]),
    // Not in APISIX's list: plugins in plugins have secrets, too.
    ("multi-auth", &["auth_plugins.ldap-auth-advanced.ldap_password"]),
    // Not in APISIX's list: a token for the server of documents.
    ("oas-validator", &["spec_url_request_headers"]),
    ("openfunction", &["authorization.service_token"]),
    (
        "openid-connect",
        &[
            "client_rsa_private_key",
            "client_secret",
            "dpop.private_key",
            "session.redis.password",
            "session.secret",
        ],
    ),
    ("openwhisk", &["service_token"]),
    ("rocketmq-logger", &["secret_key"]),
    ("saml-auth", &["secret", "secret_fallbacks", "sp_private_key"]),
    ("sls-logger", &["access_key_secret"]),
    ("splunk-hec-logging", &["endpoint.token"]),
    ("tencent-cloud-cls", &["secret_key"]),
    // Not in APISIX's list: an upstream's key is a secret wherever it stands.
    ("traffic-split", &["rules.weighted_upstreams.upstream.tls.client_key"]),
    ("workflow", &["rules.actions.redis_password", "rules.actions.sentinel_password"]),
];

/// The texts of the resource under `key` (prefix taken off) that nobody may read.
pub(super) fn secrets<'v>(key: &str, value: &'v mut Value) -> Vec<&'v mut String> {
    let mut found = Vec::new();
    let Some((kind, id)) = Kind::split_key(key) else { return found };
    match kind {
        Kind::Ssls => at(value, &["key", "keys"], &mut found),
        Kind::Upstreams => at(value, &["tls.client_key"], &mut found),
        Kind::Secrets => {
            let fields = ["token", "secret_access_key", "session_token", "auth_config.private_key"];
            at(value, &fields, &mut found);
        }
        Kind::PluginMetadata => at(value, of_plugin(id.as_str()), &mut found),
        Kind::Routes | Kind::Services | Kind::StreamRoutes => {
            for (name, part) in value.as_object_mut().into_iter().flatten() {
                match name.as_str() {
                    "upstream" => at(part, &["tls.client_key"], &mut found),
                    "plugins" => of_plugins(part, &mut found),
                    _ => {}
                }
            }
        }
        Kind::PluginConfigs
        | Kind::ConsumerGroups
        | Kind::Consumers
        | Kind::Credentials
        | Kind::GlobalRules => {
            if let Some(plugins) = value.get_mut("plugins") {
                of_plugins(plugins, &mut found);
            }
        }
        Kind::Protos
        | Kind::IdentityPolicies
        | Kind::IdentityModes
        | Kind::Workloads
        | Kind::TrustDomains
        | Kind::Revocations => {}
    }
    found
}

fn of_plugin(name: &str) -> &'static [&'static str] {
    PLUGINS.iter().find(|(plugin, _)| *plugin == name).map_or(&[], |(_, fields)| fields)
}

fn of_plugins<'v>(plugins: &'v mut Value, found: &mut Vec<&'v mut String>) {
    for (name, settings) in plugins.as_object_mut().into_iter().flatten() {
        at(settings, of_plugin(name), found);
    }
}

fn at<'v>(value: &'v mut Value, fields: &[&str], found: &mut Vec<&'v mut String>) {
    // Level by level: all fields that begin alike go into the same part.
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| at(item, fields, found)),
        Value::Object(members) => {
            for (name, part) in members {
                let mut inner = Vec::new();
                let mut whole = false;
                for field in fields {
                    match field.split_once('.') {
                        Some((first, rest)) if first == name => inner.push(rest),
                        None if field == name => whole = true,
                        _ => {}
                    }
                }
                if whole {
                    texts(part, found);
                } else if !inner.is_empty() {
                    at(part, &inner, found);
                }
            }
        }
        _ => {}
    }
}

fn texts<'v>(value: &'v mut Value, found: &mut Vec<&'v mut String>) {
    match value {
        Value::String(text) => found.push(text),
        Value::Array(items) => items.iter_mut().for_each(|item| texts(item, found)),
        Value::Object(members) => members.values_mut().for_each(|part| texts(part, found)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn found(key: &str, mut value: Value) -> Vec<String> {
        let mut texts: Vec<String> =
            secrets(key, &mut value).into_iter().map(|text| text.clone()).collect();
        texts.sort();
        texts
    }

    #[test]
    fn secrets_are_found_wherever_they_stand_and_nothing_else_is() {
        let proxy = json!({"instances": [
            {"name": "n", "auth": {"header": {"a": "S1", "b": "S2"}, "aws": {"access_key_id": "n", "secret_access_key": "S3"}}},
            {"auth": {"query": {"q": "S4"}}}
        ]});
        let plugins = json!({"ai-proxy-multi": proxy, "key-auth": {"key": "S5", "header": "n"}, "unknown": {"key": "n"}});
        let route = json!({"plugins": plugins, "upstream": {"tls": {"client_key": "S6", "client_cert": "n"}}});
        assert_eq!(found("/routes/1", route), ["S1", "S2", "S3", "S4", "S5", "S6"]);
        let credential = json!({"plugins": {"jwt-auth": {"key": "n", "secret": "S"}}});
        assert_eq!(found("/consumers/a/credentials/b", credential), ["S"]);
        assert_eq!(
            found("/ssls/1", json!({"key": "S1", "keys": ["S2"], "cert": "n"})),
            ["S1", "S2"]
        );
        assert_eq!(found("/secrets/vault/1", json!({"uri": "n", "token": "S"})), ["S"]);
        let metadata = json!({"clickhouse": {"password": "S", "user": "n"}});
        assert_eq!(found("/plugin_metadata/error-log-logger", metadata), ["S"]);
        let count = json!(["limit-count", {"redis_password": "S1", "redis_host": "n", "sentinel_password": "S2"}]);
        let ways = json!([{"key-auth": {"header": "n"}}, {"ldap-auth-advanced": {"bind_dn": "n", "ldap_password": "S3"}}]);
        let within = json!({"plugins": {"workflow": {"rules": [{"case": ["n"], "actions": [count]}]},
            "multi-auth": {"auth_plugins": ways}, "oas-validator": {"spec_url_request_headers": {"n": "S4"}}}});
        assert_eq!(found("/global_rules/1", within), ["S1", "S2", "S3", "S4"]);
        assert!(found("/identity_policies/1", json!({"key": "n"})).is_empty());
        assert!(found("/gen_id", json!({"key": "n"})).is_empty());
    }
}
