//! What differs between two versions of a resource, field by field, without its secrets.

use serde_json::{Value, json};

/// The most differences that are told of one resource.
const MOST: usize = 200;

/// Fields of plugins' settings whose values are nobody's business.
const SECRET: [&str; 10] = [
    "key",
    "secret",
    "password",
    "passwd",
    "token",
    "credential",
    "private",
    "apikey",
    "api_key",
    "auth_header",
];

/// The differences as `{"path", "op", "before", "after"}`, paths as JSON pointers. `*_shown` are the versions as any answer shows
/// them: what they leave out, or what looks like a secret in a plugin's settings, is told as changed and not how.
pub(super) fn differences(
    (before, before_shown): (&Value, &Value),
    (after, after_shown): (&Value, &Value),
) -> Vec<Value> {
    let mut found = Vec::new();
    compare(&mut String::new(), Some(before), Some(after), &mut found);
    let more = found.len().saturating_sub(MOST);
    let mut told: Vec<Value> = found
        .into_iter()
        .take(MOST)
        .map(|Difference { path, before, after }| {
            let op = match (before, after) {
                (None, _) => "add",
                (_, None) => "remove",
                _ => "replace",
            };
            let hidden = is_secret(&path)
                || before.is_some_and(|before| before_shown.pointer(&path) != Some(before))
                || after.is_some_and(|after| after_shown.pointer(&path) != Some(after));
            if hidden {
                return json!({"path": path, "op": op, "secret": true});
            }
            let mut told = json!({"path": path, "op": op});
            if let Some(before) = before {
                told["before"] = before.clone();
            }
            if let Some(after) = after {
                told["after"] = after.clone();
            }
            // A plugin that comes or goes as a whole brings its secrets along.
            for side in ["before", "after"] {
                if let Some(value) = told.get_mut(side) {
                    blank(&path, value);
                }
            }
            told
        })
        .collect();
    if more > 0 {
        told.push(json!({"path": "", "op": "more", "count": more}));
    }
    told
}

struct Difference<'a> {
    path: String,
    before: Option<&'a Value>,
    after: Option<&'a Value>,
}

fn compare<'a>(
    path: &mut String,
    before: Option<&'a Value>,
    after: Option<&'a Value>,
    found: &mut Vec<Difference<'a>>,
) {
    if before == after {
        return;
    }
    match (before, after) {
        (Some(Value::Object(old)), Some(Value::Object(new))) => {
            let added = new.keys().filter(|name| !old.contains_key(*name));
            for name in old.keys().chain(added) {
                let length = path.len();
                path.push('/');
                path.push_str(&name.replace('~', "~0").replace('/', "~1"));
                compare(path, old.get(name), new.get(name), found);
                path.truncate(length);
            }
        }
        (Some(Value::Array(old)), Some(Value::Array(new))) => {
            for index in 0..old.len().max(new.len()) {
                let length = path.len();
                path.push('/');
                path.push_str(&index.to_string());
                compare(path, old.get(index), new.get(index), found);
                path.truncate(length);
            }
        }
        _ => found.push(Difference { path: path.clone(), before, after }),
    }
}

/// Settings of plugins lie below this.
fn in_plugins(path: &str) -> bool {
    path.starts_with("/plugins")
}

fn is_secret(path: &str) -> bool {
    let depth = path.matches('/').count();
    let name = path.rsplit('/').next().unwrap_or_default();
    in_plugins(path) && depth > 2 && is_secret_name(name)
}

fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET.iter().any(|secret| name.contains(secret))
}

/// Blanks what looks like a secret below a plugin.
fn blank(path: &str, value: &mut Value) {
    if !in_plugins(path) {
        return;
    }
    let depth = path.matches('/').count();
    match value {
        Value::Object(fields) => {
            for (name, inner) in fields {
                // `/plugins/<name>` is a plugin, not a setting.
                if depth >= 2 && is_secret_name(name) {
                    *inner = json!("(secret)");
                } else {
                    blank(&format!("{path}/{name}"), inner);
                }
            }
        }
        Value::Array(values) => {
            values.iter_mut().for_each(|inner| blank(&format!("{path}/0"), inner));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::listing::shown;
    use crate::model::Kind;

    fn told(kind: Kind, before: &Value, after: &Value) -> Value {
        let (before_shown, after_shown) = (shown(kind, before.clone()), shown(kind, after.clone()));
        json!(differences((before, &before_shown), (after, &after_shown)))
    }

    #[test]
    fn differences_are_told_by_field() {
        let before = json!({"uri": "/a", "upstream": {"nodes": {"a:1": 1, "b/c:1": 1}}, "hosts": ["a", "b"]});
        let after =
            json!({"uri": "/b", "upstream": {"nodes": {"a:1": 2}}, "hosts": ["a"], "name": "n"});
        assert_eq!(
            told(Kind::Routes, &before, &after),
            json!([
                {"path": "/uri", "op": "replace", "before": "/a", "after": "/b"},
                {"path": "/upstream/nodes/a:1", "op": "replace", "before": 1, "after": 2},
                {"path": "/upstream/nodes/b~1c:1", "op": "remove", "before": 1},
                {"path": "/hosts/1", "op": "remove", "before": "b"},
                {"path": "/name", "op": "add", "after": "n"},
            ])
        );
        assert_eq!(told(Kind::Routes, &before, &before), json!([]));
    }

    #[test]
    fn secrets_change_without_being_told() {
        let ssl = |key: &str| json!({"snis": ["a"], "key": key});
        assert_eq!(
            told(Kind::Ssls, &ssl("PRIVATE 1"), &ssl("PRIVATE 2")),
            json!([{"path": "/key", "op": "replace", "secret": true}])
        );
        let person = |plugins: Value| json!({"username": "j", "plugins": plugins});
        let one = person(json!({"key-auth": {"key": "s1"}}));
        let two =
            person(json!({"key-auth": {"key": "s2"}, "jwt-auth": {"key": "who", "secret": "s3"}}));
        let all = told(Kind::Consumers, &one, &two);
        assert_eq!(
            all,
            json!([
                {"path": "/plugins/key-auth/key", "op": "replace", "secret": true},
                {"path": "/plugins/jwt-auth", "op": "add", "after": {"key": "(secret)", "secret": "(secret)"}},
            ])
        );
        let whole = told(Kind::Consumers, &json!({"username": "j"}), &two).to_string();
        assert!(!whole.contains("s2") && !whole.contains("s3"), "{whole}");
    }
}
