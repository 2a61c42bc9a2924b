//! PATCH as APISIX does it: a whole object is merged, a sub-path is replaced.

use serde_json::{Map, Value};

/// Merges `change` into `value`: objects field by field, everything else replaces, `null` removes.
pub(super) fn merge(value: &mut Value, change: Value) {
    match (value, change) {
        (Value::Object(fields), Value::Object(changes)) => {
            for (name, change) in changes {
                if change.is_null() {
                    fields.shift_remove(&name);
                } else {
                    merge(fields.entry(name).or_insert(Value::Null), change);
                }
            }
        }
        (value, Value::Object(changes)) => {
            // Nulls inside of something new remove nothing and must not stay either.
            *value = Value::Object(Map::new());
            merge(value, Value::Object(changes));
        }
        (value, change) => *value = change,
    }
}

/// Puts `change` at `path`, making objects on the way; `null` removes. The error is APISIX's sentence.
pub(super) fn replace(value: &mut Value, path: &[&str], change: Value) -> Result<(), String> {
    let Some((last, way)) = path.split_last() else {
        *value = change;
        return Ok(());
    };
    let mut place = value;
    for (depth, name) in way.iter().enumerate() {
        let Value::Object(fields) = place else { return Err(invalid(&path[..depth])) };
        place = fields.entry(*name).or_insert_with(|| Value::Object(Map::new()));
        if !place.is_object() {
            return Err(invalid(&path[..=depth]));
        }
    }
    let Value::Object(fields) = place else { return Err(invalid(path)) };
    if change.is_null() {
        fields.shift_remove(*last);
    } else {
        fields.insert((*last).to_owned(), change);
    }
    Ok(())
}

fn invalid(path: &[&str]) -> String {
    format!("invalid sub-path: /{}", path.join("/"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn objects_merge_and_everything_else_replaces() {
        let mut value = json!({"a": {"b": 1, "c": [1, 2]}, "d": 1, "e": {"f": 1}});
        merge(&mut value, json!({"a": {"c": [3], "n": null}, "d": {"x": {"y": null}}, "e": null}));
        assert_eq!(value, json!({"a": {"b": 1, "c": [3]}, "d": {"x": {}}}));
    }

    #[test]
    fn a_sub_path_is_replaced_below_objects_only() {
        let mut value = json!({"upstream": {"nodes": {"a:1": 1}}, "uri": "/a"});
        replace(&mut value, &["upstream", "nodes"], json!({"b:2": 2})).unwrap();
        replace(&mut value, &["plugins", "key-auth"], json!({})).unwrap();
        assert_eq!(
            value,
            json!({"upstream": {"nodes": {"b:2": 2}}, "uri": "/a", "plugins": {"key-auth": {}}})
        );
        replace(&mut value, &["plugins"], Value::Null).unwrap();
        assert_eq!(value.get("plugins"), None);
        let error = replace(&mut value, &["uri", "deep", "er"], json!(1)).unwrap_err();
        assert_eq!(error, "invalid sub-path: /uri");
        let error = replace(&mut value, &["uri", "deep"], json!(1)).unwrap_err();
        assert_eq!(error, "invalid sub-path: /uri");
    }
}
