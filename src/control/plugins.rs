//! The plugins as the Admin API shows and judges them.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use serde_json::{Map, Value, json};

use super::wording::Checker;
use super::{Error, PluginCatalog, PluginFacts, PluginPart};
use crate::model::{Borne, Invalid, SecretReference};

/// What every plugin has beside its own settings.
static META: LazyLock<Value> = LazyLock::new(|| {
    json!({
        "type": "object",
        "properties": {
            "disable": {"type": "boolean"},
            "error_response": {"oneOf": [{"type": "string"}, {"type": "object"}]},
            "filter": {
                "description": "filter determines whether the plugin needs to be executed at runtime",
                "type": "array",
            },
            "priority": {
                "description": "priority of plugins by customized order",
                "type": "integer",
            },
        },
        "additionalProperties": false,
    })
});

/// All plugins with their compiled schemas.
pub(super) struct Plugins {
    catalog: Arc<dyn PluginCatalog>,
    /// By falling priority, then by name.
    ordered: Vec<Plugin>,
    by_name: HashMap<String, usize>,
}

pub(super) struct Plugin {
    pub(super) name: String,
    priority: i32,
    config: Checker,
    credential: Option<Checker>,
    metadata: Option<Checker>,
}

impl Plugin {
    /// Plugins that authenticate have credentials.
    pub(super) fn authenticates(&self) -> bool {
        self.credential.is_some()
    }

    /// The schema of one of its parts.
    pub(super) fn schema(&self, part: PluginPart) -> Option<&Value> {
        self.checker(part).map(Checker::schema)
    }

    /// The schema of one of its parts as APISIX publishes it: with what every plugin has, and the titles that clients read.
    pub(super) fn published(&self, part: PluginPart) -> Option<Value> {
        let mut schema = self.schema(part)?.clone();
        let Some(fields) = schema.as_object_mut() else { return Some(schema) };
        if fields.get("type") == Some(&json!("object")) {
            fields.entry("properties").or_insert_with(|| json!({}));
        }
        if part == PluginPart::Config {
            fields
                .insert("$comment".into(), json!("this is a mark for our injected plugin schema"));
            if let Some(properties) = fields.get_mut("properties").and_then(Value::as_object_mut) {
                properties.insert("_meta".into(), META.clone());
            }
        }
        let title = match part {
            PluginPart::Config => "work with route or service object",
            PluginPart::Credential => "work with consumer object",
            PluginPart::Metadata => return Some(schema),
        };
        if self.authenticates() {
            fields.insert("title".into(), json!(title));
        }
        Some(schema)
    }

    fn checker(&self, part: PluginPart) -> Option<&Checker> {
        match part {
            PluginPart::Config => Some(&self.config),
            PluginPart::Credential => self.credential.as_ref(),
            PluginPart::Metadata => self.metadata.as_ref(),
        }
    }
}

/// Why a plugin of APISIX's is not here, and what to do instead.
fn absent(name: &str) -> Option<&'static str> {
    Some(match name {
        "gm" => {
            "TLS with SM2, SM3 and SM4 needs a patched OpenSSL; certificates here are ECDSA, RSA or Ed25519"
        }
        "saml-auth" => {
            "signed XML needs a library in C, or one that brings a second cryptographic library; openid-connect logs people in"
        }
        "authz-casbin" => {
            "the library for its models brings a scripting language; opa, acl and identity policies decide"
        }
        "chaitin-waf" => {
            "the protocol of its engine is published nowhere but in the engine's clients; put the engine before the gateway"
        }
        "data-mask" => {
            "no log has queries or bodies here; the headers in the decision log are those that decision_log.headers names"
        }
        "serverless-pre-function" | "serverless-post-function" | "exit-transformer" => {
            "it runs Lua, and there is none here"
        }
        _ => return None,
    })
}

impl Plugins {
    pub(super) fn new(catalog: Arc<dyn PluginCatalog>) -> Result<Self, Error> {
        let compiled = |name: &str, schema: Value| {
            Checker::new(schema)
                .map_err(|why| Error::Schema { name: format!("plugin {name}"), why })
        };
        let mut ordered = Vec::new();
        for PluginFacts { name, priority, schema, credential, metadata } in catalog.plugins() {
            ordered.push(Plugin {
                config: compiled(&name, schema)?,
                credential: credential.map(|schema| compiled(&name, schema)).transpose()?,
                metadata: metadata.map(|schema| compiled(&name, schema)).transpose()?,
                name,
                priority,
            });
        }
        ordered.sort_by(|one, other| {
            other.priority.cmp(&one.priority).then_with(|| one.name.cmp(&other.name))
        });
        let by_name = ordered.iter().enumerate().map(|(at, plugin)| (plugin.name.clone(), at));
        Ok(Self { catalog, by_name: by_name.collect(), ordered })
    }

    pub(super) fn find(&self, name: &str) -> Option<&Plugin> {
        self.by_name.get(name).map(|&at| &self.ordered[at])
    }

    /// The names, by falling priority.
    pub(super) fn names(&self) -> Value {
        self.ordered.iter().map(|plugin| json!(plugin.name)).collect()
    }

    /// `GET /apisix/admin/plugins?all=true`: everything about every plugin.
    pub(super) fn all(&self) -> Value {
        let describe = |plugin: &Plugin| {
            let mut facts = Map::new();
            facts.insert("priority".into(), json!(plugin.priority));
            facts.insert("version".into(), json!(0.1));
            if plugin.authenticates() {
                facts.insert("type".into(), json!("auth"));
            }
            for (name, part) in [
                ("schema", PluginPart::Config),
                ("consumer_schema", PluginPart::Credential),
                ("metadata_schema", PluginPart::Metadata),
            ] {
                if let Some(schema) = plugin.published(part) {
                    facts.insert(name.into(), schema);
                }
            }
            (plugin.name.clone(), Value::Object(facts))
        };
        Value::Object(self.ordered.iter().map(describe).collect())
    }

    /// Judges one plugin's settings, whose `_meta` the resource's schema has judged already.
    pub(super) fn check(
        &self,
        name: &str,
        part: PluginPart,
        config: &Value,
    ) -> Result<(), Invalid> {
        let Some(plugin) = self.find(name) else {
            let why = absent(name).map(|why| format!(": {why}")).unwrap_or_default();
            return Err(Invalid(format!("unknown plugin [{name}]{why}")));
        };
        let failed = |why: &dyn std::fmt::Display| {
            Invalid(format!("failed to check the configuration of plugin {name} err: {why}"))
        };
        // On a consumer, a plugin without credentials runs for that consumer with its usual settings.
        let part = match part {
            PluginPart::Credential if !plugin.authenticates() => PluginPart::Config,
            part => part,
        };
        let checker = match part {
            PluginPart::Credential => plugin.credential.as_ref().unwrap_or(&plugin.config),
            PluginPart::Config | PluginPart::Metadata => &plugin.config,
        };
        let mut config = config.clone();
        let meta = config.as_object_mut().and_then(|fields| fields.shift_remove("_meta"));
        let disabled = meta.is_some_and(|meta| meta.get("disable") == Some(&Value::Bool(true)));
        let judged = checker
            .check(&config)
            .map_err(|invalid| invalid.0)
            .and_then(|()| self.make_sense(name, part, &config));
        match judged {
            Ok(()) => Ok(()),
            // As in APISIX: a plugin that does not run may be wrong.
            Err(why) if disabled => {
                tracing::warn!(plugin = name, %why, "a disabled plugin has settings that it cannot run with");
                Ok(())
            }
            Err(why) => Err(failed(&why)),
        }
    }

    /// Judges a plugin's metadata.
    pub(super) fn check_metadata(&self, name: &str, metadata: &Value) -> Result<(), Invalid> {
        let wrong = |why: &str| Invalid(format!("invalid configuration: {why}"));
        let Some(plugin) = self.find(name) else {
            return Err(Invalid::new("invalid plugin name"));
        };
        let Some(checker) = &plugin.metadata else {
            return Err(wrong(&format!("plugin {name} has no metadata")));
        };
        checker.check(metadata).map_err(|invalid| wrong(&invalid.0))?;
        self.make_sense(name, PluginPart::Metadata, metadata).map_err(|why| wrong(&why))
    }

    /// What the schema cannot say. Where references to secrets stand in for a part of it, only they are judged: what they
    /// stand for is for the data planes to see, which tell when it does not fit.
    fn make_sense(&self, name: &str, part: PluginPart, config: &Value) -> Result<(), String> {
        let references = SecretReference::all_in(config);
        if references.is_empty() {
            return self.catalog.check(name, part, config);
        }
        references.into_iter().try_for_each(|Borne { field, reference }| match reference {
            Ok(_) => Ok(()),
            Err(why) => Err(format!("{field}: {why}")),
        })
    }
}
