//! `Document`: what an OpenAPI document (3.0 or 3.1) says of requests, compiled.

use std::collections::HashMap;

use jsonschema::{Draft, PatternOptions as SchemaPatterns, Registry, Validator};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde_json::{Map, Value};

use super::parameter::{Parameter, Place, Shape};
use super::plain_json;
use crate::pipeline::arguments;

/// An OpenAPI document, as far as it speaks of requests.
pub(super) struct Document {
    templates: Vec<Template>,
    /// The paths of its servers, without the slash at the end.
    bases: Vec<String>,
}

/// A path of the document.
struct Template {
    segments: Vec<Segment>,
    operations: Vec<(&'static str, Operation)>,
}

enum Segment {
    Literal(String),
    /// A parameter, and what stands around it in its segment.
    Parameter {
        before: String,
        name: String,
        after: String,
    },
}

struct Operation {
    parameters: Vec<Parameter>,
    body: Option<Body>,
}

struct Body {
    is_required: bool,
    /// By media type or range, in lower case; `None` where only the type counts.
    content: Vec<(String, Option<Content>)>,
}

enum Content {
    Json(Validator),
    Form(Shape, Validator),
}

/// Which parts of requests are not looked at.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Skips {
    pub(super) path: bool,
    pub(super) query: bool,
    pub(super) headers: bool,
    pub(super) body: bool,
}

/// What is looked at.
pub(super) struct Request<'r> {
    pub(super) query: &'r str,
    /// A header's value, all its lines.
    pub(super) header: &'r dyn Fn(&str) -> Option<String>,
}

/// An operation that a request means, and its path's parameters.
pub(super) struct Meant<'d> {
    operation: &'d Operation,
    path: Vec<(&'d str, String)>,
}

const METHODS: [&str; 8] = ["GET", "PUT", "POST", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE"];
/// Under which the document's own references are found.
const HERE: &str = "urn:openapi";
/// References to references.
const MAX_HOPS: usize = 16;
/// Types within types that a text may be read as.
const MAX_DEPTH: usize = 3;

impl Document {
    /// Reads a document as JSON.
    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        let mut root: Value =
            serde_json::from_slice(text).map_err(|why| format!("it is no JSON: {why}"))?;
        let version = root["openapi"].as_str().unwrap_or_default();
        let draft = match version.split('.').collect::<Vec<_>>()[..] {
            ["3", "0", ..] => Draft::Draft4,
            ["3", "1", ..] => Draft::Draft202012,
            _ => return Err("openapi: 3.0 or 3.1 is expected".into()),
        };
        if draft == Draft::Draft4 {
            allow_null(&mut root);
        }
        let bases = bases(&root);
        let registry = Registry::new().draft(draft).add(HERE, root.clone());
        let registry = registry.and_then(|registry| registry.prepare());
        let registry = registry.map_err(|why| why.to_string())?;
        let source = Source { root: &root, registry: &registry, draft };
        let paths = root.get("paths").and_then(Value::as_object).cloned().unwrap_or_default();
        let mut templates = Vec::new();
        for path in paths.keys().filter(|path| path.starts_with('/')) {
            let at = format!("/paths/{}", part(path));
            let operations =
                source.operations(&at).map_err(|why| format!("paths {path}: {why}"))?;
            let segments = segments(path).map_err(|why| format!("paths {path}: {why}"))?;
            templates.push(Template { segments, operations });
        }
        // What is written out comes before what stands for anything.
        templates.sort_by_key(Template::vagueness);
        Ok(Self { templates, bases })
    }

    /// The operation that a request means.
    pub(super) fn find(&self, method: &str, path: &str) -> Option<Meant<'_>> {
        let below = self.bases.iter().filter_map(|base| path.strip_prefix(&**base));
        std::iter::once(path).chain(below).find_map(|path| {
            let segments: Vec<&str> = path.strip_prefix('/')?.split('/').collect();
            self.templates.iter().find_map(|template| {
                let operation = template.operations.iter().find(|(known, _)| *known == method)?;
                let path = template.read(&segments)?;
                Some(Meant { operation: &operation.1, path })
            })
        })
    }
}

impl Meant<'_> {
    /// Does anybody have to bring the body in?
    pub(super) const fn has_body(&self) -> bool {
        self.operation.body.is_some()
    }

    /// Looks at everything but the body. `Err` says what is wrong.
    pub(super) fn check(&self, request: &Request<'_>, skips: Skips) -> Result<(), String> {
        let query: Vec<(String, String)> = arguments(request.query)
            .map(|(name, value)| (name.into_owned(), value.into_owned()))
            .collect();
        let cookies = (request.header)("cookie").unwrap_or_default();
        for parameter in &self.operation.parameters {
            let value = match parameter.place {
                Place::Path if skips.path => continue,
                Place::Query if skips.query => continue,
                Place::Header | Place::Cookie if skips.headers => continue,
                Place::Path => {
                    let value = self.path.iter().find(|(name, _)| *name == parameter.name);
                    value.map(|(_, value)| parameter.of_text(value))
                }
                Place::Query => parameter.of_query(&query),
                Place::Header => {
                    (request.header)(&parameter.name).map(|value| parameter.of_text(&value))
                }
                Place::Cookie => {
                    let pairs = cookies.split(';').filter_map(|pair| pair.trim().split_once('='));
                    let mut found = pairs.filter(|(name, _)| *name == parameter.name);
                    found.next().map(|(_, value)| parameter.of_text(&decoded(value)))
                }
            };
            parameter.check(value)?;
        }
        Ok(())
    }

    /// Looks at the body.
    pub(super) fn check_body(&self, media: Option<&str>, body: &[u8]) -> Result<(), String> {
        let Some(expected) = &self.operation.body else { return Ok(()) };
        if body.is_empty() {
            return match expected.is_required {
                true => Err("a body is required".into()),
                false => Ok(()),
            };
        }
        let media = media.unwrap_or_default().split(';').next().unwrap_or_default();
        let media = media.trim().to_ascii_lowercase();
        let range = media.split_once('/').map(|(kind, _)| format!("{kind}/*")).unwrap_or_default();
        let wanted = [media.as_str(), range.as_str(), "*/*"];
        let content = wanted.iter().find_map(|wanted| {
            expected.content.iter().find(|(known, _)| known == wanted).map(|(_, content)| content)
        });
        match content {
            None => Err(format!("a body of type '{media}' is not expected")),
            Some(None) => Ok(()),
            Some(Some(Content::Json(validator))) => {
                let value =
                    plain_json::read(body).map_err(|why| format!("the body is no JSON: {why}"))?;
                valid(validator, &value).map_err(|why| format!("the body: {why}"))
            }
            Some(Some(Content::Form(shape, validator))) => {
                let text = std::str::from_utf8(body).map_err(|_| "the form is no text")?;
                let fields: Vec<(String, String)> = arguments(text)
                    .map(|(name, value)| (name.into_owned(), value.into_owned()))
                    .collect();
                let value = shape.object(&fields);
                valid(validator, &value).map_err(|why| format!("the body: {why}"))
            }
        }
    }
}

pub(super) fn valid(validator: &Validator, value: &Value) -> Result<(), String> {
    match validator.iter_errors(value).next() {
        None => Ok(()),
        Some(why) => {
            let at = why.instance_path().to_string();
            Err(if at.is_empty() { why.to_string() } else { format!("{at}: {why}") })
        }
    }
}

fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// Where a document is compiled from.
struct Source<'s> {
    root: &'s Value,
    registry: &'s Registry<'s>,
    draft: Draft,
}

impl Source<'_> {
    /// What a place in the document is, wherever it refers to, and where that stands.
    fn resolve(&self, at: &str) -> Result<(String, &Map<String, Value>), String> {
        let mut at = at.to_owned();
        for _ in 0..MAX_HOPS {
            let found = self.root.pointer(&at).and_then(Value::as_object);
            let found = found.ok_or_else(|| format!("{at}: an object is expected"))?;
            match found.get("$ref").and_then(Value::as_str) {
                None => return Ok((at, found)),
                Some(to) => {
                    let to = to
                        .strip_prefix('#')
                        .ok_or_else(|| format!("{at}: '{to}' leaves the document"))?;
                    at = decoded(to);
                }
            }
        }
        Err(format!("{at}: too many references"))
    }

    fn operations(&self, at: &str) -> Result<Vec<(&'static str, Operation)>, String> {
        let (at, item) = self.resolve(at)?;
        let mut operations = Vec::new();
        for method in METHODS {
            let name = method.to_ascii_lowercase();
            if item.contains_key(&name) {
                let at_operation = format!("{at}/{name}");
                let operation = self.operation(&at, &at_operation);
                operations.push((method, operation.map_err(|why| format!("{name}: {why}"))?));
            }
        }
        Ok(operations)
    }

    fn operation(&self, item: &str, at: &str) -> Result<Operation, String> {
        let mut parameters: Vec<Parameter> = Vec::new();
        // The operation's own ones stand in place of its path's.
        for at in [item, at] {
            let list = self.root.pointer(&format!("{at}/parameters")).and_then(Value::as_array);
            for number in 0..list.map_or(0, Vec::len) {
                let (at, parameter) = self.resolve(&format!("{at}/parameters/{number}"))?;
                let Some(parameter) = self.parameter(&at, parameter)? else { continue };
                parameters.retain(|known| {
                    (known.place, &known.name) != (parameter.place, &parameter.name)
                });
                parameters.push(parameter);
            }
        }
        let body = self.root.pointer(at).and_then(|operation| operation.get("requestBody"));
        let body = body.map(|_| self.body(&format!("{at}/requestBody"))).transpose()?;
        Ok(Operation { parameters, body })
    }

    fn parameter(&self, at: &str, given: &Map<String, Value>) -> Result<Option<Parameter>, String> {
        let text = |field: &str| given.get(field).and_then(Value::as_str);
        let name = text("name").ok_or_else(|| format!("{at}: name is missing"))?;
        let place = Place::parse(text("in").unwrap_or_default())
            .ok_or_else(|| format!("parameter '{name}': in: path, query, header or cookie"))?;
        // OpenAPI 3.0, section 4.7.12.1: these are said elsewhere.
        let said = ["accept", "content-type", "authorization"];
        if place == Place::Header && said.iter().any(|said| name.eq_ignore_ascii_case(said)) {
            return Ok(None);
        }
        let wrong = |why: String| format!("parameter '{name}': {why}");
        let is_required = given.get("required").and_then(Value::as_bool).unwrap_or(false);
        let (at_schema, is_json) = match given.get("content").and_then(Value::as_object) {
            None => (format!("{at}/schema"), false),
            Some(content) => {
                let media = content.keys().next().filter(|media| is_json(media));
                let media = media.ok_or_else(|| wrong("content: JSON is expected".into()))?;
                (format!("{at}/content/{}/schema", part(media)), true)
            }
        };
        let has_schema = self.root.pointer(&at_schema).is_some();
        let (shape, validator) = match has_schema {
            true => (self.shape(&at_schema, 0), Some(self.validator(&at_schema).map_err(wrong)?)),
            false => (Shape::default(), None),
        };
        let explode = given.get("explode").and_then(Value::as_bool);
        let empty = given.get("allowEmptyValue").and_then(Value::as_bool).unwrap_or(false);
        Parameter::new(name, place, is_required || place == Place::Path, shape, validator)
            .written(text("style"), explode, empty, is_json)
            .map(Some)
            .map_err(wrong)
    }

    fn body(&self, at: &str) -> Result<Body, String> {
        let (at, body) = self.resolve(at)?;
        let mut content = Vec::new();
        for media in body.get("content").and_then(Value::as_object).into_iter().flat_map(Map::keys)
        {
            let at = format!("{at}/content/{}/schema", part(media));
            let name = media.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
            let is_form = name == "application/x-www-form-urlencoded";
            let compiled = match self.root.pointer(&at).is_some() {
                true if is_json(&name) => Some(Content::Json(self.validator(&at)?)),
                true if is_form => Some(Content::Form(self.shape(&at, 0), self.validator(&at)?)),
                _ => None,
            };
            content.push((name, compiled));
        }
        let is_required = body.get("required").and_then(Value::as_bool).unwrap_or(false);
        Ok(Body { is_required, content })
    }

    /// Patterns run without backtracking, and references stay inside: nothing is fetched.
    fn validator(&self, at: &str) -> Result<Validator, String> {
        let at: String = at
            .split('/')
            .map(|part| utf8_percent_encode(part, NON_ALPHANUMERIC).to_string())
            .collect::<Vec<_>>()
            .join("/");
        jsonschema::options()
            .with_draft(self.draft)
            .with_pattern_options(SchemaPatterns::regex())
            .with_registry(self.registry)
            .build(&serde_json::json!({ "$ref": format!("{HERE}#{at}") }))
            .map_err(|why| why.to_string())
    }

    /// Of which types a value may be, so that a text can be read as one.
    fn shape(&self, at: &str, depth: usize) -> Shape {
        let mut shape = Shape::default();
        let Ok((at, schema)) = self.resolve(at) else { return shape };
        if depth > MAX_DEPTH {
            return shape;
        }
        match schema.get("type") {
            Some(Value::String(kind)) => shape.add(kind),
            Some(Value::Array(kinds)) => {
                kinds.iter().filter_map(Value::as_str).for_each(|kind| shape.add(kind));
            }
            _ => {}
        }
        if schema.get("items").is_some_and(Value::is_object) {
            shape.set_items(self.shape(&format!("{at}/items"), depth + 1));
        }
        let properties = schema.get("properties").and_then(Value::as_object);
        for name in properties.into_iter().flat_map(Map::keys) {
            let of = self.shape(&format!("{at}/properties/{}", part(name)), depth + 1);
            shape.set_property(name, of);
        }
        for several in ["allOf", "anyOf", "oneOf"] {
            let list = schema.get(several).and_then(Value::as_array);
            for number in 0..list.map_or(0, Vec::len) {
                shape.join(self.shape(&format!("{at}/{several}/{number}"), depth + 1));
            }
        }
        shape
    }
}

fn is_json(media: &str) -> bool {
    let media = media.split(';').next().unwrap_or_default().trim();
    media.eq_ignore_ascii_case("application/json") || media.to_ascii_lowercase().ends_with("+json")
}

/// A name as a part of a JSON pointer.
fn part(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

fn bases(root: &Value) -> Vec<String> {
    let servers = root.get("servers").and_then(Value::as_array).into_iter().flatten();
    let base = |server: &Value| {
        let url = server.get("url")?.as_str()?;
        let path = match url.split_once("://") {
            Some((_, rest)) => rest.find('/').map(|at| &rest[at..])?,
            None => url,
        };
        let path = path.trim_end_matches('/');
        (path.starts_with('/') && !path.contains('{')).then(|| path.to_owned())
    };
    servers.filter_map(base).collect()
}

/// OpenAPI 3.0 says `nullable` where JSON Schema has a type of that name.
fn allow_null(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(allow_null),
        Value::Object(fields) => {
            fields.values_mut().for_each(allow_null);
            if fields.get("nullable") != Some(&Value::Bool(true)) {
                return;
            }
            if let Some(kind) = fields.get_mut("type")
                && kind.is_string()
            {
                *kind = Value::Array(vec![kind.take(), "null".into()]);
            }
            if let Some(Value::Array(values)) = fields.get_mut("enum")
                && !values.contains(&Value::Null)
            {
                values.push(Value::Null);
            }
        }
        _ => {}
    }
}

fn segments(path: &str) -> Result<Vec<Segment>, String> {
    let segment = |text: &str| match text.split_once('{') {
        None if text.contains('}') => Err(format!("'{text}' has a brace too many")),
        None => Ok(Segment::Literal(text.to_owned())),
        Some((before, rest)) => match rest.split_once('}') {
            Some((name, after)) if !name.is_empty() && !after.contains(['{', '}']) => {
                Ok(Segment::Parameter {
                    before: before.to_owned(),
                    name: name.to_owned(),
                    after: after.to_owned(),
                })
            }
            _ => Err(format!("'{text}': one parameter at most stands in a segment")),
        },
    };
    path[1..].split('/').map(segment).collect()
}

impl Template {
    /// What is written out before what stands for anything, segment by segment.
    fn vagueness(&self) -> Vec<bool> {
        self.segments.iter().map(|segment| matches!(segment, Segment::Parameter { .. })).collect()
    }

    fn read(&self, path: &[&str]) -> Option<Vec<(&str, String)>> {
        if path.len() != self.segments.len() {
            return None;
        }
        let mut found = Vec::new();
        for (segment, text) in self.segments.iter().zip(path) {
            match segment {
                Segment::Literal(literal) if literal == text => {}
                Segment::Literal(_) => return None,
                Segment::Parameter { before, name, after } => {
                    let value = text.strip_prefix(&**before)?.strip_suffix(&**after)?;
                    if value.is_empty() {
                        return None;
                    }
                    found.push((&**name, value.to_owned()));
                }
            }
        }
        Some(found)
    }
}

/// Fields by name, in the order in which they came.
pub(super) fn by_name(fields: &[(String, String)]) -> HashMap<&str, Vec<&str>> {
    let mut by_name: HashMap<&str, Vec<&str>> = HashMap::new();
    for (name, value) in fields {
        by_name.entry(name).or_default().push(value);
    }
    by_name
}
