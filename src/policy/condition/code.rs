//! `Code`: a condition as it is evaluated. Everything is borrowed; what has to be decoded or listed is built, and only when asked for.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::net::IpAddr;
use std::rc::Rc;

use regex::Regex;
use serde_json::Value as Json;
use smallvec::SmallVec;
use time::OffsetDateTime;

use crate::identity::SpiffeId;
use crate::policy::action::{Action, Content, Request, Token};
use crate::policy::host;
use crate::policy::path::{Readings, read};
use crate::policy::query;

/// How many entries a list of the request or of a token may have.
pub(super) const LONGEST_LIST: usize = 64;
/// How many bytes a text of the request or of a token may have.
const LONGEST_TEXT: usize = 4096;

/// A fact that an expression names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Variable {
    SourceId,
    SourceTrustDomain,
    SourcePath,
    SourceNamespace,
    SourceServiceAccount,
    SourceIp,
    RemoteIp,
    Method,
    Host,
    Path,
    Time,
    Port,
    Claims,
    ServerName,
}

/// The request's lists of named values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Named {
    Headers,
    Query,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compare {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sum {
    Add,
    Subtract,
    Multiply,
    Divide,
    Modulo,
}

/// A function of texts that tells yes or no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    StartsWith,
    EndsWith,
    Contains,
}

/// A part of a time, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimePart {
    Hours,
    Minutes,
    Seconds,
    /// 0 is Sunday, as CEL counts.
    DayOfWeek,
    /// From 1.
    Date,
    /// From 0, as CEL counts.
    DayOfMonth,
    /// From 0, as CEL counts.
    Month,
    FullYear,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loop {
    All,
    Exists,
    ExistsOne,
    Filter,
    Map,
}

#[derive(Debug)]
pub(super) enum Code {
    Null,
    Bool(bool),
    Int(i64),
    Double(f64),
    Text(Box<str>),
    Time(i64),
    List(Box<[Self]>),
    Variable(Variable),
    /// What a loop stands at.
    Slot(usize),
    /// All values of that name.
    Values(Named, Box<Self>),
    HasValues(Named, Box<Self>),
    Index(Box<Self>, Box<Self>),
    Has(Box<Self>, Box<str>),
    In(Box<Self>, Box<Self>),
    And(Box<Self>, Box<Self>),
    Or(Box<Self>, Box<Self>),
    Not(Box<Self>),
    Choose(Box<Self>, Box<Self>, Box<Self>),
    Compare(Compare, Box<Self>, Box<Self>),
    Sum(Sum, Box<Self>, Box<Self>),
    Negate(Box<Self>),
    Size(Box<Self>),
    Look(Look, Box<Self>, Box<Self>),
    LowerAscii(Box<Self>),
    Matches(Box<Self>, Regex),
    TimePart(TimePart, Box<Self>),
    Loop(Loop, Box<Self>, Box<Self>),
}

/// It cannot be told.
#[derive(Debug)]
struct Unknown;

type Outcome<'v> = Result<Value<'v>, Unknown>;

#[derive(Clone, Debug)]
enum Value<'v> {
    Null,
    Bool(bool),
    Int(i64),
    Double(f64),
    Text(Cow<'v, str>),
    Time(i64),
    List(Rc<[Self]>),
    /// A list or an object of a token's claims.
    Json(&'v Json),
    Claims(&'v serde_json::Map<String, Json>),
}

struct World<'v> {
    caller: Option<&'v SpiffeId>,
    action: &'v Action<'v>,
    slots: SmallVec<[Value<'v>; 2]>,
}

impl Code {
    pub(super) fn holds(&self, caller: Option<&SpiffeId>, action: &Action<'_>) -> Option<bool> {
        let mut world = World { caller, action, slots: SmallVec::new() };
        world.truth(self).ok()
    }
}

impl<'v> World<'v> {
    fn truth(&mut self, code: &'v Code) -> Result<bool, Unknown> {
        match self.value(code)? {
            Value::Bool(value) => Ok(value),
            _ => Err(Unknown),
        }
    }

    fn value(&mut self, code: &'v Code) -> Outcome<'v> {
        Ok(match code {
            Code::Null => Value::Null,
            Code::Bool(value) => Value::Bool(*value),
            Code::Int(value) => Value::Int(*value),
            Code::Double(value) => Value::Double(*value),
            Code::Text(text) => Value::Text(Cow::Borrowed(text)),
            Code::Time(value) => Value::Time(*value),
            Code::List(items) => {
                let items: Result<Vec<_>, _> = items.iter().map(|item| self.value(item)).collect();
                Value::List(items?.into())
            }
            Code::Variable(variable) => return self.variable(*variable),
            Code::Slot(at) => self.slots.get(*at).cloned().ok_or(Unknown)?,
            Code::Values(named, name) => {
                let name = self.text(name)?;
                match self.values(*named, &name)? {
                    // As for any map: what is not there cannot be told.
                    values if values.is_empty() => return Err(Unknown),
                    values => Value::List(values.into()),
                }
            }
            Code::HasValues(named, name) => {
                let name = self.text(name)?;
                Value::Bool(self.has_values(*named, &name)?)
            }
            Code::Index(of, at) => {
                let (of, at) = (self.value(of)?, self.value(at)?);
                return index(of, &at);
            }
            Code::Has(of, name) => match self.value(of)? {
                Value::Claims(map) => Value::Bool(map.contains_key(&**name)),
                Value::Json(Json::Object(map)) => Value::Bool(map.contains_key(&**name)),
                _ => return Err(Unknown),
            },
            Code::In(what, list) => {
                let (what, list) = (self.value(what)?, self.value(list)?);
                Value::Bool(is_in(&what, &list)?)
            }
            // As CEL has it: what decides alone decides, also when the other side cannot be told.
            Code::And(one, other) => match (self.truth(one), other) {
                (Ok(false), _) => Value::Bool(false),
                (Ok(true), other) => Value::Bool(self.truth(other)?),
                (Err(Unknown), other) => match self.truth(other)? {
                    false => Value::Bool(false),
                    true => return Err(Unknown),
                },
            },
            Code::Or(one, other) => match (self.truth(one), other) {
                (Ok(true), _) => Value::Bool(true),
                (Ok(false), other) => Value::Bool(self.truth(other)?),
                (Err(Unknown), other) => match self.truth(other)? {
                    true => Value::Bool(true),
                    false => return Err(Unknown),
                },
            },
            Code::Not(inner) => Value::Bool(!self.truth(inner)?),
            Code::Choose(condition, yes, no) => {
                return match self.truth(condition)? {
                    true => self.value(yes),
                    false => self.value(no),
                };
            }
            Code::Compare(how, one, other) => {
                let (one, other) = (self.value(one)?, self.value(other)?);
                Value::Bool(compare(*how, &one, &other)?)
            }
            Code::Sum(how, one, other) => {
                let (one, other) = (self.value(one)?, self.value(other)?);
                return sum(*how, one, other);
            }
            Code::Negate(inner) => match self.value(inner)? {
                Value::Int(value) => Value::Int(value.checked_neg().ok_or(Unknown)?),
                Value::Double(value) => Value::Double(-value),
                _ => return Err(Unknown),
            },
            Code::Size(inner) => {
                let size = match self.value(inner)? {
                    Value::Text(text) => text.chars().count(),
                    Value::List(items) => items.len(),
                    Value::Json(Json::Array(items)) => items.len(),
                    Value::Json(Json::Object(map)) => map.len(),
                    Value::Claims(map) => map.len(),
                    _ => return Err(Unknown),
                };
                Value::Int(i64::try_from(size).map_err(|_| Unknown)?)
            }
            Code::Look(how, text, part) => {
                let (text, part) = (self.text(text)?, self.text(part)?);
                Value::Bool(match how {
                    Look::StartsWith => text.starts_with(&*part),
                    Look::EndsWith => text.ends_with(&*part),
                    Look::Contains => text.contains(&*part),
                })
            }
            Code::LowerAscii(text) => {
                let text = self.text(text)?;
                Value::Text(match text.bytes().any(|b| b.is_ascii_uppercase()) {
                    true => Cow::Owned(text.to_ascii_lowercase()),
                    false => text,
                })
            }
            Code::Matches(text, pattern) => Value::Bool(pattern.is_match(&self.text(text)?)),
            Code::TimePart(part, time) => {
                let Value::Time(seconds) = self.value(time)? else { return Err(Unknown) };
                Value::Int(time_part(*part, seconds)?)
            }
            Code::Loop(how, range, body) => return self.each(*how, range, body),
        })
    }

    fn text(&mut self, code: &'v Code) -> Result<Cow<'v, str>, Unknown> {
        match self.value(code)? {
            Value::Text(text) => Ok(text),
            _ => Err(Unknown),
        }
    }

    fn request(&self) -> Result<&'v Request<'v>, Unknown> {
        match &self.action.content {
            Content::Request(request) => Ok(request),
            Content::Connection { .. } => Err(Unknown),
        }
    }

    fn variable(&self, variable: Variable) -> Outcome<'v> {
        let caller = || self.caller.ok_or(Unknown);
        let address = |address: Option<IpAddr>| {
            address.map(|address| Value::Text(address.to_string().into())).ok_or(Unknown)
        };
        let action = self.action;
        match variable {
            Variable::SourceId => text_of(caller()?.as_str()),
            Variable::SourceTrustDomain => text_of(caller()?.trust_domain_name()),
            Variable::SourcePath => text_of(caller()?.path()),
            Variable::SourceNamespace => text_of(kubernetes(caller()?).ok_or(Unknown)?.0),
            Variable::SourceServiceAccount => text_of(kubernetes(caller()?).ok_or(Unknown)?.1),
            Variable::SourceIp => address(action.source),
            Variable::RemoteIp => address(action.remote.or(action.source)),
            Variable::Method => text_of(self.request()?.method),
            Variable::Host => {
                let host = host::name(self.request()?.host).ok_or(Unknown)?;
                match host.bytes().any(|b| b.is_ascii_uppercase()) {
                    true => Ok(Value::Text(Cow::Owned(host.to_ascii_lowercase()))),
                    false => text_of(host),
                }
            }
            Variable::Path => match read(self.request()?.path) {
                Readings::One(path) => text_of(path),
                Readings::Several(_) | Readings::Unclear => Err(Unknown),
            },
            Variable::Time => Ok(Value::Time(action.unix_seconds)),
            Variable::Port => Ok(Value::Int(action.port.into())),
            Variable::Claims => match self.request()?.token {
                Token::Verified(claims) => Ok(Value::Claims(claims)),
                Token::Awaited | Token::Absent => Err(Unknown),
            },
            Variable::ServerName => match action.content {
                Content::Connection { server_name: Some(name) } => text_of(name),
                Content::Connection { server_name: None } | Content::Request(_) => Err(Unknown),
            },
        }
    }

    /// All values of that name; none where it is absent.
    ///
    /// A line of a header with a comma in it can be one value or several (RFC 9110, section 5.3): it cannot be told.
    fn values(&self, named: Named, name: &str) -> Result<Vec<Value<'v>>, Unknown> {
        let mut values: Vec<Value<'v>> = Vec::new();
        let mut sound = true;
        let mut add = |value: &[u8]| match std::str::from_utf8(value) {
            Ok(value) if value.len() <= LONGEST_TEXT && values.len() < LONGEST_LIST => {
                values.push(Value::Text(Cow::Owned(value.to_owned())));
            }
            _ => sound = false,
        };
        match named {
            Named::Headers => {
                let mut several = false;
                self.request()?.fields.each(name, &mut |line| {
                    several |= memchr::memchr(b',', line).is_some();
                    add(line);
                });
                sound &= !several;
            }
            Named::Query => query::each(self.query()?, name, add),
        }
        if sound { Ok(values) } else { Err(Unknown) }
    }

    fn has_values(&self, named: Named, name: &str) -> Result<bool, Unknown> {
        let mut found = false;
        match named {
            Named::Headers => self.request()?.fields.each(name, &mut |_| found = true),
            Named::Query => query::each(self.query()?, name, |_| found = true),
        }
        Ok(found)
    }

    fn query(&self) -> Result<&'v str, Unknown> {
        let query = self.request()?.query.unwrap_or_default();
        if query::is_clear(query) { Ok(query) } else { Err(Unknown) }
    }

    fn each(&mut self, how: Loop, range: &'v Code, body: &'v Code) -> Outcome<'v> {
        let items: Rc<[Value<'v>]> = match self.value(range)? {
            Value::List(items) => items,
            Value::Json(Json::Array(items)) if items.len() <= LONGEST_LIST => {
                let items: Result<Vec<_>, _> = items.iter().map(of_json).collect();
                items?.into()
            }
            _ => return Err(Unknown),
        };
        if items.len() > LONGEST_LIST {
            return Err(Unknown);
        }
        let (mut found, mut unknown, mut list) = (0_usize, false, Vec::new());
        for item in items.iter() {
            self.slots.push(item.clone());
            let value = self.value(body);
            self.slots.pop();
            let truth = match (&value, how) {
                (_, Loop::Map) => {
                    list.push(value?);
                    continue;
                }
                (Ok(Value::Bool(truth)), _) => Ok(*truth),
                _ => Err(Unknown),
            };
            match (how, truth) {
                (Loop::All, Ok(false)) => return Ok(Value::Bool(false)),
                (Loop::Exists, Ok(true)) => return Ok(Value::Bool(true)),
                (Loop::All | Loop::Exists, Err(Unknown)) => unknown = true,
                (Loop::All | Loop::Exists, Ok(_)) => {}
                (_, Err(Unknown)) => return Err(Unknown),
                (Loop::Filter, Ok(true)) => list.push(item.clone()),
                (_, Ok(truth)) => found += usize::from(truth),
            }
        }
        match how {
            Loop::All | Loop::Exists if unknown => Err(Unknown),
            Loop::All => Ok(Value::Bool(true)),
            Loop::Exists => Ok(Value::Bool(false)),
            Loop::ExistsOne => Ok(Value::Bool(found == 1)),
            Loop::Filter | Loop::Map => Ok(Value::List(list.into())),
        }
    }
}

fn text_of<'v>(text: &'v str) -> Outcome<'v> {
    match text.len() <= LONGEST_TEXT {
        true => Ok(Value::Text(Cow::Borrowed(text))),
        false => Err(Unknown),
    }
}

/// The namespace and the service account of an ID that is shaped as Kubernetes' are.
fn kubernetes(id: &SpiffeId) -> Option<(&str, &str)> {
    let mut segments = id.path().trim_start_matches('/').split('/');
    match (segments.next(), segments.next(), segments.next(), segments.next(), segments.next()) {
        (Some("ns"), Some(namespace), Some("sa"), Some(account), None) => {
            Some((namespace, account))
        }
        _ => None,
    }
}

fn of_json(json: &Json) -> Outcome<'_> {
    Ok(match json {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(number), _) => Value::Int(number),
            (None, Some(number)) => Value::Double(number),
            (None, None) => return Err(Unknown),
        },
        Json::String(text) => return text_of(text),
        Json::Array(_) | Json::Object(_) => Value::Json(json),
    })
}

fn index<'v>(of: Value<'v>, at: &Value<'v>) -> Outcome<'v> {
    let found = match (of, at) {
        (Value::List(items), Value::Int(at)) => {
            return usize::try_from(*at).ok().and_then(|at| items.get(at).cloned()).ok_or(Unknown);
        }
        (Value::Json(Json::Array(items)), Value::Int(at)) => {
            usize::try_from(*at).ok().and_then(|at| items.get(at))
        }
        (Value::Json(Json::Object(map)), Value::Text(name)) => map.get(&**name),
        (Value::Claims(map), Value::Text(name)) => map.get(&**name),
        _ => None,
    };
    of_json(found.ok_or(Unknown)?)
}

fn is_in(what: &Value<'_>, list: &Value<'_>) -> Result<bool, Unknown> {
    let among = |items: &mut dyn Iterator<Item = Result<Value<'_>, Unknown>>| {
        let mut unknown = false;
        for item in items {
            match item.and_then(|item| compare(Compare::Equal, what, &item)) {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(Unknown) => unknown = true,
            }
        }
        if unknown { Err(Unknown) } else { Ok(false) }
    };
    match (list, what) {
        (Value::List(items), _) => among(&mut items.iter().cloned().map(Ok)),
        (Value::Json(Json::Array(items)), _) if items.len() <= LONGEST_LIST => {
            among(&mut items.iter().map(of_json))
        }
        (Value::Json(Json::Object(map)), Value::Text(name)) => Ok(map.contains_key(&**name)),
        (Value::Claims(map), Value::Text(name)) => Ok(map.contains_key(&**name)),
        _ => Err(Unknown),
    }
}

/// Values of different types cannot be compared, as in CEL's typed form; numbers of both sorts can.
fn compare(how: Compare, one: &Value<'_>, other: &Value<'_>) -> Result<bool, Unknown> {
    #[expect(clippy::cast_precision_loss, reason = "claims are numbers of JSON")]
    let order = match (one, other) {
        (Value::Int(one), Value::Int(other)) => one.cmp(other),
        (Value::Time(one), Value::Time(other)) => one.cmp(other),
        (Value::Int(one), Value::Double(other)) => {
            (*one as f64).partial_cmp(other).ok_or(Unknown)?
        }
        (Value::Double(one), Value::Int(other)) => {
            one.partial_cmp(&(*other as f64)).ok_or(Unknown)?
        }
        (Value::Double(one), Value::Double(other)) => one.partial_cmp(other).ok_or(Unknown)?,
        (Value::Text(one), Value::Text(other)) => one.cmp(other),
        (Value::Bool(one), Value::Bool(other)) => one.cmp(other),
        (one, other) => {
            let equal = equal(one, other)?;
            return match how {
                Compare::Equal => Ok(equal),
                Compare::NotEqual => Ok(!equal),
                _ => Err(Unknown),
            };
        }
    };
    Ok(match how {
        Compare::Equal => order == Ordering::Equal,
        Compare::NotEqual => order != Ordering::Equal,
        Compare::Less => order == Ordering::Less,
        Compare::LessOrEqual => order != Ordering::Greater,
        Compare::Greater => order == Ordering::Greater,
        Compare::GreaterOrEqual => order != Ordering::Less,
    })
}

fn equal(one: &Value<'_>, other: &Value<'_>) -> Result<bool, Unknown> {
    match (one, other) {
        (Value::Null, Value::Null) => Ok(true),
        // Whether something is null can be asked of everything.
        (Value::Null, _) | (_, Value::Null) => Ok(false),
        (Value::List(one), Value::List(other)) => {
            if one.len() != other.len() {
                return Ok(false);
            }
            let mut same = true;
            for (one, other) in one.iter().zip(other.iter()) {
                same &= compare(Compare::Equal, one, other)?;
            }
            Ok(same)
        }
        (Value::Json(Json::Array(items)), list @ Value::List(_))
        | (list @ Value::List(_), Value::Json(Json::Array(items)))
            if items.len() <= LONGEST_LIST =>
        {
            let items: Result<Vec<_>, _> = items.iter().map(of_json).collect();
            equal(&Value::List(items?.into()), list)
        }
        _ => Err(Unknown),
    }
}

fn sum<'v>(how: Sum, one: Value<'v>, other: Value<'v>) -> Outcome<'v> {
    match (one, other) {
        (Value::Int(one), Value::Int(other)) => {
            let result = match how {
                Sum::Add => one.checked_add(other),
                Sum::Subtract => one.checked_sub(other),
                Sum::Multiply => one.checked_mul(other),
                Sum::Divide => one.checked_div(other),
                Sum::Modulo => one.checked_rem(other),
            };
            result.map(Value::Int).ok_or(Unknown)
        }
        (Value::Double(one), Value::Double(other)) => Ok(Value::Double(match how {
            Sum::Add => one + other,
            Sum::Subtract => one - other,
            Sum::Multiply => one * other,
            Sum::Divide => one / other,
            Sum::Modulo => return Err(Unknown),
        })),
        (Value::Text(one), Value::Text(other))
            if how == Sum::Add && one.len() + other.len() <= LONGEST_TEXT =>
        {
            Ok(Value::Text(Cow::Owned(one.into_owned() + &other)))
        }
        _ => Err(Unknown),
    }
}

fn time_part(part: TimePart, seconds: i64) -> Result<i64, Unknown> {
    let time = OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| Unknown)?;
    Ok(match part {
        TimePart::Hours => time.hour().into(),
        TimePart::Minutes => time.minute().into(),
        TimePart::Seconds => time.second().into(),
        TimePart::DayOfWeek => time.weekday().number_days_from_sunday().into(),
        TimePart::Date => time.day().into(),
        TimePart::DayOfMonth => i64::from(time.day()) - 1,
        TimePart::Month => i64::from(u8::from(time.month())) - 1,
        TimePart::FullYear => time.year().into(),
    })
}
