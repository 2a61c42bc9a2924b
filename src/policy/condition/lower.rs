//! From the syntax tree to `Code`: names, types as far as they can be told, and what it costs at worst.

use cel::common::ast::{CallExpr, Expr, IdedExpr, LiteralValue, SelectExpr, operators};
use regex::RegexBuilder;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Asks;
use super::code::{Code, Compare, LONGEST_LIST, Look, Loop, Named, Sum, TimePart, Variable};

/// What one evaluation may cost at worst. A comparison costs 1; at this limit it is about a tenth of a millisecond.
const DEAREST: u32 = 4096;
/// How many parts an expression may have.
const MOST_PARTS: u32 = 256;
/// How deep it may be nested.
const DEEPEST: u32 = 48;
/// The longest regular expression, and how large it may be compiled, in bytes.
const LONGEST_PATTERN: usize = 256;
const LARGEST_PATTERN: usize = 64 << 10;

const COST_OF_TEXT: u32 = 4;
const COST_OF_LOOKUP: u32 = 16;
const COST_OF_PATTERN: u32 = 48;

/// What an expression gives, as far as it can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A claim: whatever the token has.
    Any,
    Bool,
    Number,
    Text,
    Time,
    Null,
    List(Of),
    Map,
}

/// What a list has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    Any,
    Bool,
    Number,
    Text,
}

struct Lowered {
    code: Code,
    kind: Kind,
    cost: u32,
}

#[derive(Default)]
struct Lower {
    asks: Asks,
    parts: u32,
    depth: u32,
    /// The names that loops bind, outermost first.
    slots: Vec<(String, Kind)>,
}

/// Checks an expression and makes it ready.
pub(super) fn lower(expression: &IdedExpr) -> Result<(Code, Asks), String> {
    let mut lower = Lower::default();
    let lowered = lower.expression(expression)?;
    if !matches!(lowered.kind, Kind::Bool | Kind::Any) {
        return Err(format!("gives {}; expected true or false", lowered.kind.name()));
    }
    if lowered.cost > DEAREST {
        let cost = lowered.cost;
        return Err(format!("may cost {cost} steps at worst; {DEAREST} are allowed"));
    }
    Ok((lowered.code, lower.asks))
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Any => "anything",
            Self::Bool => "true or false",
            Self::Number => "a number",
            Self::Text => "a text",
            Self::Time => "a time",
            Self::Null => "null",
            Self::List(_) => "a list",
            Self::Map => "a map",
        }
    }

    fn may_be(self, other: Self) -> bool {
        let lists = matches!((self, other), (Self::List(_), Self::List(_)));
        self == Self::Any || other == Self::Any || self == other || lists
    }

    const fn of_items(self) -> Self {
        match self {
            Self::List(Of::Bool) => Self::Bool,
            Self::List(Of::Number) => Self::Number,
            Self::List(Of::Text) => Self::Text,
            _ => Self::Any,
        }
    }

    const fn as_items(self) -> Of {
        match self {
            Self::Bool => Of::Bool,
            Self::Number => Of::Number,
            Self::Text => Of::Text,
            _ => Of::Any,
        }
    }
}

fn variable(name: &str) -> Option<(Variable, Kind)> {
    Some(match name {
        "source.id" => (Variable::SourceId, Kind::Text),
        "source.trust_domain" => (Variable::SourceTrustDomain, Kind::Text),
        "source.path" => (Variable::SourcePath, Kind::Text),
        "source.namespace" => (Variable::SourceNamespace, Kind::Text),
        "source.service_account" => (Variable::SourceServiceAccount, Kind::Text),
        "source.ip" => (Variable::SourceIp, Kind::Text),
        "remote.ip" => (Variable::RemoteIp, Kind::Text),
        "request.method" => (Variable::Method, Kind::Text),
        "request.host" => (Variable::Host, Kind::Text),
        "request.path" => (Variable::Path, Kind::Text),
        "request.time" => (Variable::Time, Kind::Time),
        "port" => (Variable::Port, Kind::Number),
        "token.claims" => (Variable::Claims, Kind::Map),
        "connection.server_name" => (Variable::ServerName, Kind::Text),
        _ => return None,
    })
}

fn named(name: &str) -> Option<Named> {
    match name {
        "request.headers" => Some(Named::Headers),
        "request.query" => Some(Named::Query),
        _ => None,
    }
}

const VARIABLES: &str = "source.id, source.trust_domain, source.path, source.namespace, \
    source.service_account, source.ip, remote.ip, request.method, request.host, request.path, request.query, \
    request.headers, request.time, port, token.claims, connection.server_name";
const FUNCTIONS: &str = "has, size, startsWith, endsWith, contains, lowerAscii, matches, timestamp, getFullYear, getMonth, \
    getDate, getDayOfMonth, getDayOfWeek, getHours, getMinutes, getSeconds, all, exists, exists_one, filter, map";

/// `a.b.c` as a text, where an expression is only that.
fn dotted(expression: &IdedExpr) -> Option<String> {
    match &expression.expr {
        Expr::Ident(name) => Some(name.clone()),
        Expr::Select(SelectExpr { operand, field, test: false }) => {
            Some(format!("{}.{field}", dotted(operand)?))
        }
        _ => None,
    }
}

impl Lower {
    fn expression(&mut self, expression: &IdedExpr) -> Result<Lowered, String> {
        self.parts += 1;
        if self.parts > MOST_PARTS {
            return Err(format!("has more than {MOST_PARTS} parts"));
        }
        if self.depth >= DEEPEST {
            return Err(format!("is nested deeper than {DEEPEST} levels"));
        }
        self.depth += 1;
        let lowered = self.part(&expression.expr, expression);
        self.depth -= 1;
        lowered
    }

    fn part(&mut self, expr: &Expr, whole: &IdedExpr) -> Result<Lowered, String> {
        match expr {
            Expr::Literal(literal) => literal_value(literal),
            Expr::Ident(name) => self.name(name),
            Expr::Select(select) => self.select(select, whole),
            Expr::List(list) if list.optional_indices.is_empty() => {
                if list.elements.len() > LONGEST_LIST {
                    return Err(format!("a list has more than {LONGEST_LIST} entries"));
                }
                let mut items = Vec::new();
                let (mut kind, mut cost) = (None, 1);
                for element in &list.elements {
                    let item = self.expression(element)?;
                    cost += item.cost;
                    kind = match kind {
                        None => Some(item.kind.as_items()),
                        Some(of) if of == item.kind.as_items() => Some(of),
                        Some(_) => Some(Of::Any),
                    };
                    items.push(item.code);
                }
                let kind = Kind::List(kind.unwrap_or(Of::Any));
                Ok(Lowered { code: Code::List(items.into()), kind, cost })
            }
            Expr::Call(call) => self.call(call),
            Expr::List(_) | Expr::Map(_) | Expr::Struct(_) => {
                Err("maps, messages and optional values are not among what a condition may have"
                    .into())
            }
            Expr::Comprehension(_) | Expr::Unspecified => Err("is no expression in CEL".into()),
        }
    }

    /// A name that is bound or known.
    fn name(&mut self, name: &str) -> Result<Lowered, String> {
        if let Some(at) = self.slots.iter().rposition(|(bound, _)| bound == name) {
            return Ok(Lowered { code: Code::Slot(at), kind: self.slots[at].1, cost: 1 });
        }
        if named(name).is_some() {
            return Err(format!("{name} is asked by name: {name}[\"x\"], or \"x\" in {name}"));
        }
        let Some((variable, kind)) = variable(name) else {
            return Err(format!("unknown variable {name}; there are {VARIABLES}"));
        };
        let asks = &mut self.asks;
        match variable {
            Variable::SourceId
            | Variable::SourceTrustDomain
            | Variable::SourcePath
            | Variable::SourceNamespace
            | Variable::SourceServiceAccount => asks.identity = true,
            Variable::Path => (asks.http, asks.path) = (true, true),
            Variable::Method | Variable::Host => asks.http = true,
            Variable::Claims => (asks.http, asks.claims) = (true, true),
            Variable::Time => asks.time = true,
            _ => {}
        }
        let cost = if variable == Variable::Path { COST_OF_LOOKUP } else { 1 };
        Ok(Lowered { code: Code::Variable(variable), kind, cost })
    }

    fn is_bound(&self, expression: &IdedExpr) -> bool {
        match &expression.expr {
            Expr::Ident(name) => self.slots.iter().any(|(bound, _)| bound == name),
            Expr::Select(select) => self.is_bound(&select.operand),
            _ => false,
        }
    }

    /// The request's lists of named values, where the expression is their name.
    fn named_values(&self, expression: &IdedExpr) -> Option<Named> {
        if self.is_bound(expression) {
            return None;
        }
        named(&dotted(expression)?)
    }

    fn select(&mut self, select: &SelectExpr, whole: &IdedExpr) -> Result<Lowered, String> {
        if !self.is_bound(whole)
            && let Some(name) = dotted(whole)
        {
            if variable(&name).is_some() || named(&name).is_some() {
                return self.name(&name);
            }
            let root = name.split('.').next().unwrap_or_default();
            let is_claim = name.starts_with("token.claims.");
            let is_named = ["request.headers.", "request.query."]
                .iter()
                .any(|before| name.starts_with(before));
            if !is_claim && !is_named {
                return Err(match variable(root) {
                    Some(_) => format!("{root} has no members: {name}"),
                    None => format!("unknown variable {name}; there are {VARIABLES}"),
                });
            }
        }
        if let Some(named) = self.named_values(&select.operand) {
            return Ok(self.values(named, Code::Text(select.field.as_str().into()), 1));
        }
        let of = self.expression(&select.operand)?;
        self.index(of, Code::Text(select.field.as_str().into()), Kind::Text, 1)
    }

    fn asks_named(&mut self, named: Named) {
        self.asks.http = true;
        match named {
            Named::Headers => self.asks.headers = true,
            Named::Query => self.asks.query = true,
        }
    }

    fn values(&mut self, named: Named, name: Code, cost: u32) -> Lowered {
        self.asks_named(named);
        let kind = Kind::List(Of::Text);
        Lowered { code: Code::Values(named, Box::new(name)), kind, cost: cost + COST_OF_LOOKUP }
    }

    fn index(&self, of: Lowered, at: Code, by: Kind, cost: u32) -> Result<Lowered, String> {
        let fits = match of.kind {
            Kind::List(_) => by.may_be(Kind::Number),
            Kind::Map => by.may_be(Kind::Text),
            Kind::Any => by.may_be(Kind::Text) || by.may_be(Kind::Number),
            _ => false,
        };
        if !fits {
            return Err(format!("{} has no member by {}", of.kind.name(), by.name()));
        }
        let kind = of.kind.of_items();
        let code = Code::Index(Box::new(of.code), Box::new(at));
        Ok(Lowered { code, kind, cost: of.cost.saturating_add(cost + 2) })
    }

    fn call(&mut self, call: &CallExpr) -> Result<Lowered, String> {
        if let Some(look) = comparison(&call.func_name) {
            let [one, other] = self.two(call)?;
            return compared(look, one, other);
        }
        match call.func_name.as_str() {
            operators::LOGICAL_AND | operators::LOGICAL_OR => {
                let [one, other] = self.two(call)?;
                let cost = one.cost.saturating_add(other.cost + 1);
                let (one, other) = (one.into_bool()?, other.into_bool()?);
                let code = match call.func_name.as_str() {
                    operators::LOGICAL_AND => Code::And(Box::new(one), Box::new(other)),
                    _ => Code::Or(Box::new(one), Box::new(other)),
                };
                Ok(Lowered { code, kind: Kind::Bool, cost })
            }
            operators::LOGICAL_NOT => {
                let [inner] = self.arguments(call)?;
                let cost = inner.cost + 1;
                let code = Code::Not(Box::new(inner.into_bool()?));
                Ok(Lowered { code, kind: Kind::Bool, cost })
            }
            operators::NEGATE => {
                let [inner] = self.arguments(call)?;
                inner.expects(Kind::Number)?;
                let code = Code::Negate(Box::new(inner.code));
                Ok(Lowered { code, kind: Kind::Number, cost: inner.cost + 1 })
            }
            operators::CONDITIONAL => {
                let [condition, yes, no] = self.arguments(call)?;
                let kind = if yes.kind == no.kind { yes.kind } else { Kind::Any };
                let cost = condition.cost.saturating_add(yes.cost.max(no.cost)).saturating_add(1);
                let condition = Box::new(condition.into_bool()?);
                let code = Code::Choose(condition, Box::new(yes.code), Box::new(no.code));
                Ok(Lowered { code, kind, cost })
            }
            operators::INDEX => {
                let [of, at] = &call.args[..] else { return Err(wrong_use("[]")) };
                let name = self.expression(at)?;
                if let Some(named) = self.named_values(of) {
                    name.expects(Kind::Text)?;
                    return Ok(self.values(named, name.code, name.cost));
                }
                let of = self.expression(of)?;
                self.index(of, name.code, name.kind, name.cost)
            }
            operators::IN => {
                let [what, list] = &call.args[..] else { return Err(wrong_use("in")) };
                let what = self.expression(what)?;
                if let Some(named) = self.named_values(list) {
                    what.expects(Kind::Text)?;
                    self.asks_named(named);
                    let cost = what.cost + COST_OF_LOOKUP;
                    let code = Code::HasValues(named, Box::new(what.code));
                    return Ok(Lowered { code, kind: Kind::Bool, cost });
                }
                let list = self.expression(list)?;
                let fits = match list.kind {
                    Kind::Any => true,
                    Kind::Map => what.kind.may_be(Kind::Text),
                    Kind::List(_) => what.kind.may_be(list.kind.of_items()),
                    _ => false,
                };
                if !fits {
                    return Err(format!("{} is never in {}", what.kind.name(), list.kind.name()));
                }
                let entries = list.entries();
                let cost = what.cost.saturating_add(list.cost).saturating_add(entries);
                let code = Code::In(Box::new(what.code), Box::new(list.code));
                Ok(Lowered { code, kind: Kind::Bool, cost })
            }
            operators::ADD => self.sum(Sum::Add, call),
            operators::SUBSTRACT => self.sum(Sum::Subtract, call),
            operators::MULTIPLY => self.sum(Sum::Multiply, call),
            operators::DIVIDE => self.sum(Sum::Divide, call),
            operators::MODULO => self.sum(Sum::Modulo, call),
            name => self.function(name, call),
        }
    }

    fn sum(&mut self, how: Sum, call: &CallExpr) -> Result<Lowered, String> {
        let [one, other] = self.two(call)?;
        let kind = match (one.kind, other.kind) {
            (Kind::Text | Kind::Any, Kind::Text | Kind::Any) if how == Sum::Add => {
                if one.kind == other.kind { one.kind } else { Kind::Text }
            }
            (Kind::Number | Kind::Any, Kind::Number | Kind::Any) => Kind::Number,
            (one, other) => {
                return Err(format!("{} and {} make no sum", one.name(), other.name()));
            }
        };
        let cost = one.cost.saturating_add(other.cost).saturating_add(COST_OF_TEXT);
        let code = Code::Sum(how, Box::new(one.code), Box::new(other.code));
        Ok(Lowered { code, kind, cost })
    }

    fn function(&mut self, name: &str, call: &CallExpr) -> Result<Lowered, String> {
        let each = match name {
            "all" => Some(Loop::All),
            "exists" => Some(Loop::Exists),
            "exists_one" | "existsOne" => Some(Loop::ExistsOne),
            "filter" => Some(Loop::Filter),
            "map" => Some(Loop::Map),
            _ => None,
        };
        if let Some(how) = each {
            return self.each(how, name, call);
        }
        let look = match name {
            "startsWith" => Some(Look::StartsWith),
            "endsWith" => Some(Look::EndsWith),
            "contains" => Some(Look::Contains),
            _ => None,
        };
        if let Some(look) = look {
            let [text, part] = self.method(name, call)?;
            text.expects(Kind::Text)?;
            part.expects(Kind::Text)?;
            let cost = text.cost.saturating_add(part.cost).saturating_add(COST_OF_TEXT);
            let code = Code::Look(look, Box::new(text.code), Box::new(part.code));
            return Ok(Lowered { code, kind: Kind::Bool, cost });
        }
        let part = match name {
            "getFullYear" => Some(TimePart::FullYear),
            "getMonth" => Some(TimePart::Month),
            "getDate" => Some(TimePart::Date),
            "getDayOfMonth" => Some(TimePart::DayOfMonth),
            "getDayOfWeek" => Some(TimePart::DayOfWeek),
            "getHours" => Some(TimePart::Hours),
            "getMinutes" => Some(TimePart::Minutes),
            "getSeconds" => Some(TimePart::Seconds),
            _ => None,
        };
        if let Some(part) = part {
            let [time] = self.method(name, call)?;
            time.expects(Kind::Time)?;
            let code = Code::TimePart(part, Box::new(time.code));
            let cost = time.cost.saturating_add(COST_OF_TEXT);
            return Ok(Lowered { code, kind: Kind::Number, cost });
        }
        match name {
            "size" => {
                let [what] = self.method(name, call)?;
                if !matches!(what.kind, Kind::Any | Kind::Text | Kind::List(_) | Kind::Map) {
                    return Err(format!("size: {} has none", what.kind.name()));
                }
                let cost = what.cost.saturating_add(COST_OF_TEXT);
                let code = Code::Size(Box::new(what.code));
                Ok(Lowered { code, kind: Kind::Number, cost })
            }
            "lowerAscii" => {
                let [text] = self.method(name, call)?;
                text.expects(Kind::Text)?;
                let cost = text.cost.saturating_add(COST_OF_TEXT);
                let code = Code::LowerAscii(Box::new(text.code));
                Ok(Lowered { code, kind: Kind::Text, cost })
            }
            "matches" => self.matches(call),
            "timestamp" => {
                let [Expr::Literal(LiteralValue::String(text))] =
                    &call.args.iter().map(|arg| &arg.expr).collect::<Vec<_>>()[..]
                else {
                    return Err(
                        "timestamp: expected a literal, timestamp(\"2026-01-01T00:00:00Z\")".into(),
                    );
                };
                let text = text.inner();
                let time = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| {
                    format!("timestamp: \"{}\" is no time of RFC 3339", text.escape_debug())
                })?;
                Ok(Lowered { code: Code::Time(time.unix_timestamp()), kind: Kind::Time, cost: 1 })
            }
            "has" => self.has(call),
            other => Err(format!("unknown function {other}; there are {FUNCTIONS}")),
        }
    }

    fn has(&mut self, call: &CallExpr) -> Result<Lowered, String> {
        let expected = "has: expected a member of a map, as has(token.claims.role)";
        let [argument] = &call.args[..] else { return Err(expected.into()) };
        let Expr::Select(select) = &argument.expr else { return Err(expected.into()) };
        let field: Box<str> = select.field.as_str().into();
        if let Some(named) = self.named_values(&select.operand) {
            self.asks_named(named);
            let code = Code::HasValues(named, Box::new(Code::Text(field)));
            return Ok(Lowered { code, kind: Kind::Bool, cost: COST_OF_LOOKUP });
        }
        if !self.is_bound(argument)
            && dotted(argument).is_some_and(|name| variable(&name).is_some())
        {
            return Err(expected.into());
        }
        let of = self.expression(&select.operand)?;
        of.expects(Kind::Map)?;
        let cost = of.cost.saturating_add(2);
        let code = Code::Has(Box::new(of.code), field);
        Ok(Lowered { code, kind: Kind::Bool, cost })
    }

    fn matches(&mut self, call: &CallExpr) -> Result<Lowered, String> {
        let arguments: Vec<&IdedExpr> =
            call.target.as_deref().into_iter().chain(&call.args).collect();
        let [text, pattern] = arguments[..] else { return Err(wrong_use("matches")) };
        let Expr::Literal(LiteralValue::String(pattern)) = &pattern.expr else {
            return Err("matches: the pattern is a literal, never from the request".into());
        };
        let pattern = pattern.inner();
        if pattern.len() > LONGEST_PATTERN {
            return Err(format!("matches: a pattern has at most {LONGEST_PATTERN} bytes"));
        }
        let regex = RegexBuilder::new(pattern)
            .size_limit(LARGEST_PATTERN)
            .dfa_size_limit(LARGEST_PATTERN)
            .nest_limit(16)
            .build()
            .map_err(|error| {
                let last = error.to_string().lines().last().unwrap_or_default().trim().to_owned();
                format!("matches: \"{}\" is no pattern: {last}", pattern.escape_debug())
            })?;
        let text = self.expression(text)?;
        text.expects(Kind::Text)?;
        let cost = text.cost.saturating_add(COST_OF_PATTERN);
        let code = Code::Matches(Box::new(text.code), regex);
        Ok(Lowered { code, kind: Kind::Bool, cost })
    }

    fn each(&mut self, how: Loop, name: &str, call: &CallExpr) -> Result<Lowered, String> {
        let (Some(range), [bound, body]) = (&call.target, &call.args[..]) else {
            return Err(format!("{name}: expected list.{name}(x, condition)"));
        };
        let Expr::Ident(bound) = &bound.expr else {
            return Err(format!("{name}: the first argument is a name"));
        };
        let range = self.expression(range)?;
        if !matches!(range.kind, Kind::List(_) | Kind::Any) {
            return Err(format!("{name}: goes over lists, not over {}", range.kind.name()));
        }
        let entries = range.entries();
        self.slots.push((bound.clone(), range.kind.of_items()));
        let body = self.expression(body);
        self.slots.pop();
        let body = body?;
        let kind = match how {
            Loop::Map => Kind::List(body.kind.as_items()),
            Loop::Filter => range.kind,
            Loop::All | Loop::Exists | Loop::ExistsOne => Kind::Bool,
        };
        if how != Loop::Map {
            body.expects(Kind::Bool)?;
        }
        let turns = body.cost.saturating_add(2).saturating_mul(entries);
        let cost = range.cost.saturating_add(turns);
        let code = Code::Loop(how, Box::new(range.code), Box::new(body.code));
        Ok(Lowered { code, kind, cost })
    }

    fn two(&mut self, call: &CallExpr) -> Result<[Lowered; 2], String> {
        self.arguments(call)
    }

    fn arguments<const N: usize>(&mut self, call: &CallExpr) -> Result<[Lowered; N], String> {
        self.exactly(&call.func_name, call.args.iter())
    }

    /// `x.f(y)`, or the same as `f(x, y)`.
    fn method<const N: usize>(
        &mut self,
        name: &str,
        call: &CallExpr,
    ) -> Result<[Lowered; N], String> {
        self.exactly(name, call.target.as_deref().into_iter().chain(&call.args))
    }

    fn exactly<'e, const N: usize>(
        &mut self,
        name: &str,
        arguments: impl Iterator<Item = &'e IdedExpr>,
    ) -> Result<[Lowered; N], String> {
        let lowered: Result<Vec<_>, _> =
            arguments.map(|argument| self.expression(argument)).collect();
        lowered?.try_into().map_err(|_| wrong_use(name))
    }
}

impl Lowered {
    fn expects(&self, kind: Kind) -> Result<(), String> {
        if self.kind.may_be(kind) {
            return Ok(());
        }
        Err(format!("{} stands where {} is expected", self.kind.name(), kind.name()))
    }

    fn into_bool(self) -> Result<Code, String> {
        self.expects(Kind::Bool)?;
        Ok(self.code)
    }

    /// How many entries it can have as a list.
    fn entries(&self) -> u32 {
        let longest = match &self.code {
            Code::List(items) => items.len(),
            _ => LONGEST_LIST,
        };
        u32::try_from(longest).unwrap_or(u32::MAX)
    }
}

fn wrong_use(name: &str) -> String {
    format!("{name}: wrong number of arguments")
}

fn comparison(operator: &str) -> Option<Compare> {
    Some(match operator {
        operators::EQUALS => Compare::Equal,
        operators::NOT_EQUALS => Compare::NotEqual,
        operators::LESS => Compare::Less,
        operators::LESS_EQUALS => Compare::LessOrEqual,
        operators::GREATER => Compare::Greater,
        operators::GREATER_EQUALS => Compare::GreaterOrEqual,
        _ => return None,
    })
}

fn compared(how: Compare, one: Lowered, other: Lowered) -> Result<Lowered, String> {
    let equality = matches!(how, Compare::Equal | Compare::NotEqual);
    let null = one.kind == Kind::Null || other.kind == Kind::Null;
    let comparable = |kind: Kind| match kind {
        Kind::Map => false,
        Kind::List(_) | Kind::Null => equality,
        _ => true,
    };
    let fits = comparable(one.kind) && comparable(other.kind);
    let alike = one.kind.may_be(other.kind) || (null && equality);
    if !(fits && alike) {
        return Err(format!("{} cannot be compared with {}", one.kind.name(), other.kind.name()));
    }
    let lists = matches!(one.kind, Kind::List(_)) || matches!(other.kind, Kind::List(_));
    let step = if lists { u32::try_from(LONGEST_LIST).unwrap_or(u32::MAX) } else { 1 };
    let cost = one.cost.saturating_add(other.cost).saturating_add(step);
    let code = Code::Compare(how, Box::new(one.code), Box::new(other.code));
    Ok(Lowered { code, kind: Kind::Bool, cost })
}

fn literal_value(literal: &LiteralValue) -> Result<Lowered, String> {
    let (code, kind) = match literal {
        LiteralValue::Boolean(value) => (Code::Bool(*value.inner()), Kind::Bool),
        LiteralValue::Double(value) => (Code::Double(*value.inner()), Kind::Number),
        LiteralValue::Int(value) => (Code::Int(*value.inner()), Kind::Number),
        LiteralValue::Null => (Code::Null, Kind::Null),
        LiteralValue::String(text) => (Code::Text(text.inner().into()), Kind::Text),
        LiteralValue::Bytes(_) | LiteralValue::UInt(_) => {
            return Err("bytes and unsigned numbers are not among what a condition may have".into());
        }
    };
    Ok(Lowered { code, kind, cost: 1 })
}
