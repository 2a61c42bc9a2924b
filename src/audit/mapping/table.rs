//! `Table`: what becomes of each type of record, as data.
//!
//! A table is JSON: `{"parts": {name: template}, "records": {type: template}, "other": template}`. A template is what comes out,
//! with these in place of values that the record knows:
//!
//! | | |
//! |---|---|
//! | `"$/src/addr"` | that field of the record; absent, the field that it stands in is left out |
//! | `"$@/node"` | the same of what is known beside the record |
//! | `{"$part": "peer"}` | that part of the table |
//! | `{"$first": [..]}` | the first that is there |
//! | `{"$case": of, "allow": .., "$else": ..}` | the one named as `of` |
//! | `{"$if": of, "$then": .., "$else": ..}` | by whether `of` is there |
//! | `{"$join": [..]}` | all of them as one text; nothing when one is absent |
//! | `{"$merge": [..]}` | objects, one laid over the other |
//! | `{"$sum": [..]}` | numbers, added |
//! | `{"$text": of}` | as text |
//! | `{"$millis": of}`, `{"$nanos": of}` | a time (RFC 3339) as a number since 1970 |
//! | `{"$ip": of}`, `{"$port": of}` | the halves of a socket's address |
//! | `{"$domain": of}` | the trust domain of a SPIFFE ID |
//!
//! Objects and lists without content are left out.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A table, ready to be used.
#[derive(Debug)]
pub(super) struct Table {
    records: BTreeMap<String, Template>,
    other: Template,
}

#[derive(Clone, Debug)]
enum Template {
    Constant(Value),
    Record(String),
    Here(String),
    Object(Vec<(String, Self)>),
    List(Vec<Self>),
    First(Vec<Self>),
    Case { of: Box<Self>, cases: Vec<(String, Self)>, otherwise: Option<Box<Self>> },
    If { of: Box<Self>, then: Box<Self>, otherwise: Option<Box<Self>> },
    Join(Vec<Self>),
    Merge(Vec<Self>),
    Sum(Vec<Self>),
    Apply(Function, Box<Self>),
}

type Function = fn(&Value) -> Option<Value>;

/// What a template is filled from.
#[derive(Clone, Copy)]
pub(super) struct Source<'s> {
    pub(super) record: &'s Value,
    pub(super) here: &'s Value,
}

impl Table {
    /// # Errors
    /// The text is no table; the sentence says where.
    pub(super) fn read(text: &str) -> Result<Self, String> {
        let mut table: Map<String, Value> =
            serde_json::from_str(text).map_err(|error| error.to_string())?;
        let mut take = |name: &str| table.remove(name).unwrap_or_default();
        let (parts, records, other) = (take("parts"), take("records"), take("other"));
        if let Some(name) = table.keys().next() {
            return Err(format!("{name:?} is no part of a table"));
        }
        let reader = Reader { parts: parts.as_object().cloned().unwrap_or_default() };
        let Value::Object(records) = records else { return Err("there are no records".into()) };
        let read = |(name, template): (String, Value)| {
            let template = reader.template(&template, 0).map_err(|why| format!("{name}: {why}"));
            template.map(|template| (name, template))
        };
        let records = records.into_iter().map(read).collect::<Result<_, _>>()?;
        Ok(Self { records, other: reader.template(&other, 0)? })
    }

    /// The record in the table's words.
    pub(super) fn map(&self, source: Source<'_>) -> Value {
        let kind = source.record["type"].as_str().unwrap_or_default();
        let template = self.records.get(kind).unwrap_or(&self.other);
        template.fill(source).unwrap_or_default()
    }
}

/// Parts within parts, at most.
const DEEPEST: usize = 32;

struct Reader {
    parts: Map<String, Value>,
}

impl Reader {
    fn template(&self, value: &Value, depth: usize) -> Result<Template, String> {
        if depth > DEEPEST {
            return Err("parts name each other without an end".into());
        }
        match value {
            Value::String(text) => Ok(match text.strip_prefix('$') {
                None => Template::Constant(value.clone()),
                Some(path) if path.starts_with('/') => Template::Record(path.to_owned()),
                Some(path) => match path.strip_prefix('@') {
                    Some(path) => Template::Here(path.to_owned()),
                    None => return Err(format!("{text:?} is no field")),
                },
            }),
            Value::Array(values) => self.all(values, depth).map(Template::List),
            Value::Object(fields) => match fields.keys().find(|key| key.starts_with('$')) {
                None => {
                    let read = |(name, value): (&String, &Value)| {
                        Ok((name.clone(), self.template(value, depth + 1)?))
                    };
                    fields.iter().map(read).collect::<Result<_, _>>().map(Template::Object)
                }
                Some(_) => self.operation(fields, depth + 1),
            },
            Value::Null | Value::Bool(_) | Value::Number(_) => {
                Ok(Template::Constant(value.clone()))
            }
        }
    }

    fn all(&self, values: &[Value], depth: usize) -> Result<Vec<Template>, String> {
        values.iter().map(|value| self.template(value, depth + 1)).collect()
    }

    fn operation(&self, fields: &Map<String, Value>, depth: usize) -> Result<Template, String> {
        let optional = |name: &str| {
            let found = fields.get(name).map(|value| self.template(value, depth));
            Ok::<_, String>(found.transpose()?.map(Box::new))
        };
        if let Some(of) = fields.get("$case") {
            let named = fields.iter().filter(|(name, _)| !name.starts_with('$'));
            let cases = named.map(|(name, value)| Ok((name.clone(), self.template(value, depth)?)));
            return Ok(Template::Case {
                of: Box::new(self.template(of, depth)?),
                cases: cases.collect::<Result<_, String>>()?,
                otherwise: optional("$else")?,
            });
        }
        if let Some(of) = fields.get("$if") {
            let then = optional("$then")?.ok_or("$if without $then")?;
            let of = Box::new(self.template(of, depth)?);
            return Ok(Template::If { of, then, otherwise: optional("$else")? });
        }
        let (Some((name, value)), 1) = (fields.iter().next(), fields.len()) else {
            return Err(format!("{:?} are not one operation", fields.keys().collect::<Vec<_>>()));
        };
        if name == "$part" {
            let part = value.as_str().and_then(|name| self.parts.get(name));
            return self.template(part.ok_or_else(|| format!("there is no part {value}"))?, depth);
        }
        if let Some(function) = function(name) {
            return Ok(Template::Apply(function, Box::new(self.template(value, depth)?)));
        }
        let all = value.as_array().ok_or_else(|| format!("{name} wants a list"))?;
        let all = self.all(all, depth)?;
        match name.as_str() {
            "$first" => Ok(Template::First(all)),
            "$join" => Ok(Template::Join(all)),
            "$merge" => Ok(Template::Merge(all)),
            "$sum" => Ok(Template::Sum(all)),
            _ => Err(format!("{name} is no operation")),
        }
    }
}

fn function(name: &str) -> Option<Function> {
    Some(match name {
        "$text" => |value| text_of(value).map(Value::from),
        "$millis" => |value| {
            let nanos = nanos_of(value)?;
            Some(Value::from(i64::try_from(nanos / 1_000_000).ok()?))
        },
        "$nanos" => |value| Some(Value::from(u64::try_from(nanos_of(value)?).ok()?)),
        "$ip" => |value| Some(Value::from(halves_of(value)?.0.to_string())),
        "$port" => |value| halves_of(value)?.1.map(Value::from),
        "$domain" => |value| {
            let rest = value.as_str()?.strip_prefix("spiffe://")?;
            rest.split('/').next().map(Value::from)
        },
        _ => return None,
    })
}

fn nanos_of(value: &Value) -> Option<i128> {
    OffsetDateTime::parse(value.as_str()?, &Rfc3339).ok().map(OffsetDateTime::unix_timestamp_nanos)
}

fn halves_of(value: &Value) -> Option<(IpAddr, Option<u16>)> {
    let text = value.as_str()?;
    let socket = text.parse::<SocketAddr>().ok();
    let socket = socket.map(|socket| (socket.ip().to_canonical(), Some(socket.port())));
    socket.or_else(|| text.parse::<IpAddr>().ok().map(|ip| (ip, None)))
}

fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(is) => Some(is.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

impl Template {
    fn fill(&self, source: Source<'_>) -> Option<Value> {
        let some = |value: &Value| Some(value.clone()).filter(|value| !value.is_null());
        match self {
            Self::Constant(value) => Some(value.clone()),
            Self::Record(path) => source.record.pointer(path).and_then(some),
            Self::Here(path) => source.here.pointer(path).and_then(some),
            Self::Object(fields) => {
                let filled = fields.iter().filter_map(|(name, template)| {
                    template.fill(source).map(|value| (name.clone(), value))
                });
                let filled: Map<String, Value> = filled.collect();
                (!filled.is_empty()).then_some(Value::Object(filled))
            }
            Self::List(all) => {
                let filled: Vec<Value> = all.iter().filter_map(|one| one.fill(source)).collect();
                (!filled.is_empty()).then_some(Value::Array(filled))
            }
            Self::First(all) => all.iter().find_map(|one| one.fill(source)),
            Self::Case { of, cases, otherwise } => {
                let text = of.fill(source).as_ref().and_then(text_of);
                let fits = |(name, _): &&(String, Self)| Some(name) == text.as_ref();
                match cases.iter().find(fits) {
                    Some((_, template)) => template.fill(source),
                    None => otherwise.as_ref()?.fill(source),
                }
            }
            Self::If { of, then, otherwise } => match of.fill(source) {
                Some(value) if value != Value::Bool(false) => then.fill(source),
                _ => otherwise.as_ref()?.fill(source),
            },
            Self::Join(all) => {
                let mut joined = String::new();
                for one in all {
                    joined.push_str(&text_of(&one.fill(source)?)?);
                }
                Some(Value::String(joined))
            }
            Self::Merge(all) => {
                let mut merged = Map::new();
                for value in all.iter().filter_map(|one| one.fill(source)) {
                    lay_over(&mut merged, value);
                }
                (!merged.is_empty()).then_some(Value::Object(merged))
            }
            Self::Sum(all) => {
                let mut sum = 0;
                for one in all {
                    sum += one.fill(source)?.as_i64()?;
                }
                Some(sum.into())
            }
            Self::Apply(function, of) => function(&of.fill(source)?),
        }
    }
}

/// Objects within objects are laid over each other as well.
fn lay_over(below: &mut Map<String, Value>, above: Value) {
    let Value::Object(above) = above else { return };
    for (name, value) in above {
        match (below.get_mut(&name), value) {
            (Some(Value::Object(below)), value @ Value::Object(_)) => lay_over(below, value),
            (_, value) => _ = below.insert(name, value),
        }
    }
}
