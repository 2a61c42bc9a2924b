//! `acl`: admits or refuses by labels of the consumer, or by what an identity provider says of the user.

use std::collections::BTreeMap;

use async_trait::async_trait;
use regex::Regex;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::pipeline::{Access, Build, Exchange, ExternalUser, Fault, Flow, Hooks, Invalid, Plugin};

/// Which labels let a caller in, and which keep it out. At least one of the two is given.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("anyOf" = [{"required": ["allow_labels"]}, {"required": ["deny_labels"]}]))]
pub(super) struct Config {
    /// Whoever has one of these values in one of these labels may call, and nobody else.
    #[serde(default)]
    #[schemars(extend("minProperties" = 1))]
    allow_labels: Option<Labels>,
    /// Whoever has one of these values in one of these labels may not call.
    #[serde(default)]
    #[schemars(extend("minProperties" = 1))]
    deny_labels: Option<Labels>,
    /// Of a user that is no consumer: where its groups stand, as a JSONPath of names, `[n]` and `..`.
    #[serde(default = "default_field")]
    #[schemars(length(min = 1))]
    external_user_label_field: String,
    /// What these groups are called in the two lists; the field itself when not given.
    #[serde(default)]
    #[schemars(length(min = 1))]
    external_user_label_field_key: Option<String>,
    /// How the field is read; by what it looks like when not given.
    #[serde(default)]
    external_user_label_field_parser: Option<Parser>,
    /// What `segmented_text` is split at: a regular expression.
    #[serde(default)]
    #[schemars(length(min = 1))]
    external_user_label_field_separator: Option<String>,
    /// The status of a refusal.
    #[serde(default = "default_code")]
    #[schemars(range(min = 200, max = 599))]
    rejected_code: u16,
    /// What a refused caller reads.
    #[serde(default)]
    rejected_msg: Option<String>,
}

type Labels = BTreeMap<String, Values>;

/// Values of a label, one or more.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
struct Values(#[schemars(length(min = 1))] Vec<String>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Parser {
    SegmentedText,
    Json,
    Table,
}

fn default_field() -> String {
    "groups".into()
}
const fn default_code() -> u16 {
    403
}

pub(super) struct Acl {
    allow: Option<Labels>,
    deny: Option<Labels>,
    external: External,
    status: u16,
    refusal: Value,
}

/// How labels of a user that is no consumer are found.
struct External {
    path: Vec<Step>,
    key: String,
    parser: Option<Parser>,
    separator: Regex,
}

/// One step of a path into a value.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Name(String),
    Index(usize),
    /// That name, at any depth.
    Anywhere(String),
}

impl Plugin for Acl {
    const NAME: &'static str = "acl";
    const PRIORITY: i32 = 2410;
    const EXAMPLE: &'static str = r#"{"allow_labels": {"team": ["platform", "infra"]}, "deny_labels": {"suspended": ["true"]}}"#;
    type Config = Config;

    fn compile(config: Config, _: &Build<'_>) -> Result<Hooks, Invalid> {
        if config.allow_labels.is_none() && config.deny_labels.is_none() {
            return Err(Invalid::new("at least one of allow_labels and deny_labels is expected"));
        }
        let both = [("allow_labels", &config.allow_labels), ("deny_labels", &config.deny_labels)];
        for (field, labels) in both {
            let Some(labels) = labels else { continue };
            if labels.is_empty() {
                return Err(Invalid::new(format!("{field}: at least one label is expected")));
            }
            if let Some((label, _)) = labels.iter().find(|(_, Values(values))| values.is_empty()) {
                return Err(Invalid::new(format!(
                    "{field}.{label}: at least one value is expected"
                )));
            }
        }
        if !(200..=599).contains(&config.rejected_code) {
            return Err(Invalid::new("rejected_code: 200 to 599 is expected"));
        }
        let separator = config.external_user_label_field_separator.as_deref();
        let parser = config.external_user_label_field_parser;
        match (parser, separator) {
            (Some(Parser::SegmentedText), None | Some("")) => {
                return Err(Invalid::new(
                    "external_user_label_field_separator: segmented_text is split at one",
                ));
            }
            (Some(Parser::Json | Parser::Table) | None, Some(_)) => {
                return Err(Invalid::new(
                    "external_user_label_field_separator: only segmented_text is split",
                ));
            }
            _ => {}
        }
        let separator = format!(r"\s*(?:{})\s*", separator.unwrap_or(","));
        let separator = regex::RegexBuilder::new(&separator).size_limit(1 << 20).build();
        let separator = separator.map_err(|_| {
            Invalid::new("external_user_label_field_separator: a regular expression is expected")
        })?;
        let field = config.external_user_label_field;
        let external = External {
            path: path(&field)?,
            key: config.external_user_label_field_key.unwrap_or(field),
            parser,
            separator,
        };
        let message = config.rejected_msg.as_deref().unwrap_or("The consumer is forbidden.");
        let plugin = Self {
            refusal: json!({ "message": message }),
            allow: config.allow_labels,
            deny: config.deny_labels,
            external,
            status: config.rejected_code,
        };
        Ok(Hooks::of(plugin).access().done())
    }
}

#[async_trait]
impl Access for Acl {
    async fn access(&self, exchange: &mut Exchange) -> Result<Flow, Fault> {
        let has = |wanted: &Labels| -> Option<bool> {
            if let Some(consumer) = &exchange.consumer {
                return Some(wanted.iter().any(|(label, Values(values))| {
                    let own = consumer.labels.get(label).map(|own| plain(own));
                    own.is_some_and(|own| own.iter().any(|one| values.contains(one)))
                }));
            }
            let ExternalUser(user) = exchange.notes.find()?;
            let own = self.external.values(user);
            let values = wanted.get(&self.external.key);
            Some(values.is_some_and(|Values(values)| own.iter().any(|one| values.contains(one))))
        };
        let (denied, allowed) = (self.deny.as_ref().map(has), self.allow.as_ref().map(has));
        if denied == Some(None) || allowed == Some(None) {
            return Ok(Flow::json(401, &json!({ "message": "Missing authentication." })));
        }
        let refuses = denied == Some(Some(true)) || allowed == Some(Some(false));
        Ok(if refuses { Flow::json(self.status, &self.refusal) } else { Flow::Next })
    }
}

/// The values of a consumer's label: a JSON list, a list with commas, or one.
fn plain(label: &str) -> Vec<String> {
    if label.starts_with('[') {
        return texts(&serde_json::from_str(label).unwrap_or_default());
    }
    label.split(',').map(|part| part.trim().to_owned()).collect()
}

fn texts(list: &Value) -> Vec<String> {
    let items = list.as_array().into_iter().flatten();
    items.filter_map(Value::as_str).map(str::to_owned).collect()
}

impl External {
    fn values(&self, user: &Value) -> Vec<String> {
        let Some(found) = walk(user, &self.path) else { return Vec::new() };
        match (self.parser, found) {
            (Some(Parser::Table) | None, Value::Array(_)) => texts(found),
            (Some(Parser::Json), Value::String(text)) if text.starts_with('[') => {
                texts(&serde_json::from_str(text).unwrap_or_default())
            }
            (Some(Parser::SegmentedText), Value::String(text)) => {
                self.separator.split(text).map(str::to_owned).collect()
            }
            (None, Value::String(text)) => plain(text),
            _ => Vec::new(),
        }
    }
}

/// Reads a path: `groups`, `$.a.b`, `$.a['b c'][0]`, `$..groups`.
fn path(text: &str) -> Result<Vec<Step>, Invalid> {
    let wrong = || {
        Invalid::new(
            "external_user_label_field: names, [n], ['name'] and .. are expected in a JSONPath",
        )
    };
    let mut steps = Vec::new();
    let mut rest = text.strip_prefix('$').unwrap_or(text);
    while !rest.is_empty() {
        let name_end = |from: &str| from.find(['.', '[']).unwrap_or(from.len());
        if let Some(inside) = rest.strip_prefix('[') {
            let (index, after) = inside.split_once(']').ok_or_else(wrong)?;
            let quoted = ['\'', '"'].into_iter().find_map(|quote| {
                index.strip_prefix(quote)?.strip_suffix(quote).map(str::to_owned)
            });
            steps.push(match quoted {
                Some(name) => Step::Name(name),
                None => Step::Index(index.parse().map_err(|_| wrong())?),
            });
            rest = after;
            continue;
        }
        let (anywhere, from) = match (rest.strip_prefix(".."), rest.strip_prefix('.')) {
            (Some(from), _) => (true, from),
            (None, Some(from)) => (false, from),
            (None, None) if steps.is_empty() => (false, rest),
            (None, None) => return Err(wrong()),
        };
        let (name, after) = from.split_at(name_end(from));
        if name.is_empty() || name.contains(['*', '?', '(', '@']) {
            return Err(wrong());
        }
        let name = name.to_owned();
        steps.push(if anywhere { Step::Anywhere(name) } else { Step::Name(name) });
        rest = after;
    }
    if steps.is_empty() { Err(wrong()) } else { Ok(steps) }
}

/// The first value at a path.
fn walk<'v>(value: &'v Value, path: &[Step]) -> Option<&'v Value> {
    let Some((step, rest)) = path.split_first() else { return Some(value) };
    match step {
        Step::Name(name) => walk(value.get(name)?, rest),
        Step::Index(at) => walk(value.get(*at)?, rest),
        Step::Anywhere(name) => {
            let here = value.get(name).and_then(|found| walk(found, rest));
            here.or_else(|| match value {
                Value::Object(members) => members.values().find_map(|below| walk(below, path)),
                Value::Array(items) => items.iter().find_map(|below| walk(below, path)),
                _ => None,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::tests::exchange;
    use crate::plugins::tests::{compile, refused};

    #[test]
    fn a_path_leads_to_the_first_value() {
        let user = json!({"groups": ["a"], "x": {"y z": [{"groups": "b"}]}});
        for (text, found) in [
            ("groups", Some(json!(["a"]))),
            ("$.groups[0]", Some(json!("a"))),
            ("$.x['y z'][0].groups", Some(json!("b"))),
            ("$.x..groups", Some(json!("b"))),
            ("$..nothing", None),
            ("x.y", None),
        ] {
            assert_eq!(walk(&user, &path(text).unwrap()), found.as_ref(), "{text}");
        }
        for bad in ["$", "", "a[", "a[x]", "a..", "$.a[*]", "$.a[?(@.b)]", "a]b["] {
            assert!(path(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_user_of_an_identity_provider_has_the_labels_that_it_says() {
        for (more, user, admitted) in [
            (json!({}), json!({"groups": ["ops", "dev"]}), true),
            (json!({}), json!({"groups": "dev,ops"}), true),
            (json!({}), json!({"groups": "[\"ops\"]"}), true),
            (json!({}), json!({"groups": ["dev"]}), false),
            (json!({}), json!({}), false),
            (
                json!({"external_user_label_field": "$.realm.roles", "external_user_label_field_key": "groups"}),
                json!({"realm": {"roles": ["ops"]}}),
                true,
            ),
            (
                json!({"external_user_label_field_parser": "segmented_text", "external_user_label_field_separator": "\\|"}),
                json!({"groups": "dev | ops"}),
                true,
            ),
            (json!({"external_user_label_field_parser": "table"}), json!({"groups": "ops"}), false),
            (
                json!({"external_user_label_field_parser": "json"}),
                json!({"groups": "[\"ops\"]"}),
                true,
            ),
        ] {
            let mut config = json!({"allow_labels": {"groups": ["ops"]}});
            for (name, value) in more.as_object().unwrap() {
                config[name] = value.clone();
            }
            let mut exchange = exchange("GET", "/", "h");
            exchange.notes.leave(ExternalUser(user.clone()));
            let flow = compile::<Acl>(config).access(&mut exchange).await.unwrap();
            assert_eq!(matches!(flow, Flow::Next), admitted, "{more} {user}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let labels = || json!({"a": ["b"]});
        for (config, says) in [
            (json!({}), "at least one of"),
            (json!({"allow_labels": {}}), "allow_labels"),
            (json!({"deny_labels": {"a": []}}), "deny_labels.a"),
            (json!({"deny_labels": labels(), "rejected_code": 100}), "rejected_code"),
            (
                json!({"deny_labels": labels(), "external_user_label_field": "a[*]"}),
                "external_user_label_field",
            ),
            (
                json!({"deny_labels": labels(), "external_user_label_field_parser": "segmented_text"}),
                "separator",
            ),
            (
                json!({"deny_labels": labels(), "external_user_label_field_separator": ","}),
                "separator",
            ),
            (
                json!({"deny_labels": labels(), "external_user_label_field_parser": "segmented_text", "external_user_label_field_separator": "("}),
                "regular expression",
            ),
        ] {
            let error = refused::<Acl>(config.clone());
            assert!(error.contains(says), "{config}: {error}");
        }
    }
}
