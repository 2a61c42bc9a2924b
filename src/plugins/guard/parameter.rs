//! `Parameter`: one of an operation's parameters, and how a text is read as its value (OpenAPI 3.0, section 4.7.12.2).

use std::collections::BTreeMap;

use jsonschema::Validator;
use serde_json::{Map, Value};

use super::openapi::{by_name, valid};

/// Where a parameter stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Path,
    Query,
    Header,
    Cookie,
}

impl Place {
    pub(super) fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "path" => Self::Path,
            "query" => Self::Query,
            "header" => Self::Header,
            "cookie" => Self::Cookie,
            _ => return None,
        })
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Path => "path",
            Self::Query => "query",
            Self::Header => "header",
            Self::Cookie => "cookie",
        }
    }
}

/// How lists and objects are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    /// Members behind one another, with this between them.
    Joined(char),
    /// One field for each member of a list; of an object one of each member's name.
    Exploded,
    /// `name[member]=value`.
    Deep,
}

/// A parameter of an operation.
pub(super) struct Parameter {
    pub(super) name: String,
    pub(super) place: Place,
    is_required: bool,
    shape: Shape,
    validator: Option<Validator>,
    style: Style,
    /// In joined objects members are `name=value`.
    pairs: bool,
    allows_empty: bool,
    is_json: bool,
}

/// What a request gives for a parameter.
pub(super) struct Given {
    /// How it may be read; one reading has to be valid.
    readings: Vec<Value>,
    is_empty: bool,
}

impl Parameter {
    pub(super) fn new(
        name: &str,
        place: Place,
        is_required: bool,
        shape: Shape,
        validator: Option<Validator>,
    ) -> Self {
        let name = name.to_owned();
        let style = Style::Joined(',');
        Self {
            name,
            place,
            is_required,
            shape,
            validator,
            style,
            pairs: false,
            allows_empty: false,
            is_json: false,
        }
    }

    /// As the document says that it is written.
    pub(super) fn written(
        self,
        style: Option<&str>,
        explode: Option<bool>,
        allows_empty: bool,
        is_json: bool,
    ) -> Result<Self, String> {
        let is_form = matches!(self.place, Place::Query | Place::Cookie);
        let explode = explode.unwrap_or(is_form && style.is_none_or(|style| style == "form"));
        let style = match (self.place, style) {
            (Place::Path | Place::Header, None | Some("simple")) => Style::Joined(','),
            (Place::Query, None | Some("form")) if explode => Style::Exploded,
            (Place::Query, Some("deepObject")) => Style::Deep,
            (Place::Query, Some("spaceDelimited" | "pipeDelimited")) if explode => Style::Exploded,
            (Place::Query, Some("spaceDelimited")) => Style::Joined(' '),
            (Place::Query, Some("pipeDelimited")) => Style::Joined('|'),
            (Place::Query | Place::Cookie, None | Some("form")) => Style::Joined(','),
            (place, Some(style)) => {
                return Err(format!("style: '{style}' is not supported in {}", place.name()));
            }
        };
        Ok(Self { style, pairs: explode, allows_empty, is_json, ..self })
    }

    /// Its value in one text.
    pub(super) fn of_text(&self, text: &str) -> Given {
        let is_empty = text.is_empty();
        if self.is_json {
            let value = super::plain_json::read(text.as_bytes());
            return Given { readings: value.into_iter().collect(), is_empty };
        }
        let between = match self.style {
            Style::Joined(between) => between,
            Style::Exploded | Style::Deep => ',',
        };
        let parts = || text.split(between).map(str::trim);
        let mut readings = Vec::new();
        if self.shape.array {
            let items = if is_empty { Vec::new() } else { parts().collect() };
            readings.push(self.shape.list(&items));
        }
        if self.shape.object {
            let fields: Vec<(String, String)> = match self.pairs {
                true => parts()
                    .filter_map(|pair| pair.split_once('='))
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .collect(),
                false => {
                    let parts: Vec<&str> = parts().collect();
                    let pairs = parts.chunks_exact(2);
                    pairs.map(|pair| (pair[0].to_owned(), pair[1].to_owned())).collect()
                }
            };
            readings.push(self.shape.object(&fields));
        }
        readings.extend(self.shape.readings(text));
        Given { readings, is_empty }
    }

    /// Its value among a query's arguments.
    pub(super) fn of_query(&self, query: &[(String, String)]) -> Option<Given> {
        let prefix = format!("{}[", self.name);
        if self.style == Style::Deep && !self.is_json {
            let member = |(name, value): &(String, String)| {
                let member = name.strip_prefix(&prefix)?.strip_suffix(']')?;
                Some((member.to_owned(), value.clone()))
            };
            let members: Vec<(String, String)> = query.iter().filter_map(member).collect();
            let readings = vec![self.shape.object(&members)];
            return (!members.is_empty()).then_some(Given { readings, is_empty: false });
        }
        let own = query.iter().filter(|(name, _)| *name == self.name);
        let own: Vec<&str> = own.map(|(_, value)| &**value).collect();
        if self.style == Style::Exploded && self.shape.object && own.is_empty() {
            // Its members stand among the other arguments.
            let known = |name: &str| self.shape.properties.contains_key(name);
            let members = query.iter().filter(|(name, _)| known(name));
            let members: Vec<(String, String)> = members.cloned().collect();
            let readings = vec![self.shape.object(&members)];
            return (!members.is_empty()).then_some(Given { readings, is_empty: false });
        }
        match own[..] {
            [] => None,
            _ if self.style == Style::Exploded && self.shape.array && !self.is_json => {
                let readings = vec![self.shape.list(&own)];
                Some(Given { readings, is_empty: own == [""] })
            }
            [one] => Some(self.of_text(one)),
            // Nobody knows which of them the application takes.
            _ => Some(Given { readings: Vec::new(), is_empty: false }),
        }
    }

    /// Is what was given what is expected?
    pub(super) fn check(&self, given: Option<Given>) -> Result<(), String> {
        let told = |why: &str| format!("parameter '{}' in {}: {why}", self.name, self.place.name());
        let Some(given) = given else {
            return match self.is_required {
                true => Err(told("is required")),
                false => Ok(()),
            };
        };
        if given.is_empty && self.allows_empty {
            return Ok(());
        }
        let Some(validator) = &self.validator else { return Ok(()) };
        let mut first = None;
        for reading in &given.readings {
            match valid(validator, reading) {
                Ok(()) => return Ok(()),
                Err(why) => drop(first.get_or_insert(why)),
            }
        }
        Err(told(&first.unwrap_or_else(|| "it cannot be read".into())))
    }
}

/// Of which types a value may be.
#[derive(Clone, Debug, Default)]
pub(super) struct Shape {
    number: bool,
    boolean: bool,
    null: bool,
    array: bool,
    object: bool,
    items: Option<Box<Self>>,
    properties: BTreeMap<String, Self>,
}

impl Shape {
    pub(super) fn add(&mut self, kind: &str) {
        match kind {
            "integer" | "number" => self.number = true,
            "boolean" => self.boolean = true,
            "null" => self.null = true,
            "array" => self.array = true,
            "object" => self.object = true,
            // A text is a text without being asked.
            _ => {}
        }
    }

    pub(super) fn set_items(&mut self, items: Self) {
        self.items = Some(Box::new(items));
    }

    pub(super) fn set_property(&mut self, name: &str, shape: Self) {
        self.properties.insert(name.to_owned(), shape);
    }

    /// Either of the two.
    pub(super) fn join(&mut self, other: Self) {
        self.number |= other.number;
        self.boolean |= other.boolean;
        self.null |= other.null;
        self.array |= other.array;
        self.object |= other.object;
        if self.items.is_none() {
            self.items = other.items;
        }
        self.properties.extend(other.properties);
    }

    /// What a text may mean.
    fn readings(&self, text: &str) -> Vec<Value> {
        let mut readings = Vec::new();
        let number = || serde_json::from_str(text).ok().filter(Value::is_number);
        if self.number
            && let Some(number) = number()
        {
            readings.push(number);
        }
        match text {
            "true" if self.boolean => readings.push(Value::Bool(true)),
            "false" if self.boolean => readings.push(Value::Bool(false)),
            "" if self.null => readings.push(Value::Null),
            _ => {}
        }
        readings.push(text.into());
        readings
    }

    /// What a text most likely means.
    fn reading(&self, text: &str) -> Value {
        self.readings(text).swap_remove(0)
    }

    fn list(&self, items: &[&str]) -> Value {
        let any = Self::default();
        let shape = self.items.as_deref().unwrap_or(&any);
        items.iter().map(|item| shape.reading(item)).collect()
    }

    /// An object of these fields; those that are lists, or come more than once, are lists.
    pub(super) fn object(&self, fields: &[(String, String)]) -> Value {
        let any = Self::default();
        let member = |(name, values): (&str, Vec<&str>)| {
            let shape = self.properties.get(name).unwrap_or(&any);
            let value = match values[..] {
                [one] if !shape.array => shape.reading(one),
                _ => shape.list(&values),
            };
            (name.to_owned(), value)
        };
        Value::Object(by_name(fields).into_iter().map(member).collect::<Map<_, _>>())
    }
}
