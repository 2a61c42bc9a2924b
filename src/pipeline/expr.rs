//! `Expr`: conditions on an exchange as APISIX writes them (lua-resty-expr 1.3.2, the `vars` of routes and plugins).

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;

use super::variables::{Reading, Variable, number_of};
use super::{Exchange, Networks, Pattern, PatternOptions};
use crate::model::Invalid;

/// A condition on an exchange. Compiled once; cannot fail when it is asked.
///
/// A rule is `[variable, operator, value]`, `[variable, "!", operator, value]` or `[variable, value]`; rules in a list must all
/// hold, at the top and below; `["OR", rule, rule, ..]` and `AND`, `!AND`, `!OR` nest. An empty list always holds.
/// ```
/// # use wardgate::pipeline::Expr;
/// assert!(Expr::parse(&serde_json::json!([["arg_name", "==", "jack"], ["http_age", ">", 18]])).is_ok());
/// let error = Expr::parse(&serde_json::json!(["arg_name", "==", "jack"])).unwrap_err();
/// assert_eq!(error, "rule should be wrapped inside brackets");
/// ```
#[derive(Clone, Debug)]
pub struct Expr {
    /// Names the expression among all others of the process, for verdicts that an exchange remembers.
    id: u64,
    root: Node,
}

#[derive(Clone, Debug)]
enum Node {
    Group { nodes: Vec<Self>, any: bool, negated: bool },
    Test { variable: Variable, test: Test, negated: bool },
}

#[derive(Clone, Debug)]
enum Test {
    Is(Literal),
    IsNot(Literal),
    Compare(Comparison, f64),
    Matches(Pattern),
    In(Vec<Literal>),
    Has(Literal),
    Within(Networks),
}

#[derive(Clone, Copy, Debug)]
enum Comparison {
    Greater,
    GreaterOrEqual,
    Less,
    LessOrEqual,
}

#[derive(Clone, Debug)]
enum Literal {
    Text(String),
    Number(f64),
    /// No variable is a truth value, so nothing equals one.
    Flag,
    Null,
}

const OPERATORS: [&str; 12] =
    ["==", "~=", "!=", ">", ">=", "<", "<=", "~~", "~*", "in", "has", "ipmatch"];

/// Deeper nesting is refused: nobody means it, and reading it is recursive.
const MAX_DEPTH: usize = 32;

impl Expr {
    /// Reads an expression.
    ///
    /// # Errors
    /// lua-resty-expr's sentences, and ours where it would only fail later: unknown variables, values that an operator
    /// cannot use.
    pub fn parse(value: &Value) -> Result<Self, String> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let Value::Array(rules) = value else {
            return Err("rule should be wrapped inside brackets".into());
        };
        let root = match rules.first() {
            Some(Value::String(head)) if operator(head).is_some() => group(rules, 0)?,
            None | Some(Value::Array(_)) => all(rules, 0)?,
            Some(_) => return Err("rule should be wrapped inside brackets".into()),
        };
        Ok(Self { id: NEXT.fetch_add(1, Ordering::Relaxed), root })
    }

    /// Does it hold now?
    pub fn holds(&self, exchange: &Exchange) -> bool {
        self.root.holds(exchange)
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }
}

/// `AND`, `OR`, `!AND`, `!OR` as (any, negated).
fn operator(head: &str) -> Option<(bool, bool)> {
    Some(match head.to_ascii_uppercase().as_str() {
        "AND" => (false, false),
        "OR" => (true, false),
        "!AND" => (false, true),
        "!OR" => (true, true),
        _ => return None,
    })
}

fn all(rules: &[Value], depth: usize) -> Result<Node, String> {
    let nodes = rules.iter().map(|rule| node(rule, depth + 1)).collect::<Result<_, _>>()?;
    Ok(Node::Group { nodes, any: false, negated: false })
}

fn group(rules: &[Value], depth: usize) -> Result<Node, String> {
    let head = rules.first().and_then(Value::as_str).unwrap_or_default();
    let (any, negated) = operator(head).ok_or("invalid expression")?;
    if rules.len() < 3 {
        return Err("rule too short".into());
    }
    let nodes = rules[1..].iter().map(|rule| node(rule, depth + 1)).collect::<Result<_, _>>()?;
    Ok(Node::Group { nodes, any, negated })
}

fn node(rule: &Value, depth: usize) -> Result<Node, String> {
    if depth > MAX_DEPTH {
        return Err(format!("expressions nest at most {MAX_DEPTH} deep"));
    }
    let Value::Array(parts) = rule else {
        return Err("rule should be wrapped inside brackets".into());
    };
    let head = match parts.first() {
        Some(Value::String(head)) => head,
        Some(Value::Array(_)) => return all(parts, depth),
        Some(_) => return Err("invalid expression".into()),
        None => return Err("rule too short".into()),
    };
    if operator(head).is_some() {
        return group(parts, depth);
    }
    let variable = Variable::parse(head).map_err(|error| error.0)?;
    let text = |value: &Value| value.as_str().map(str::to_ascii_lowercase);
    let (negated, name, value) = match parts.as_slice() {
        // APISIX takes it for a comparison with nothing; who writes it forgot the value.
        [_, Value::String(name)] if OPERATORS.contains(&&*name.to_ascii_lowercase()) => {
            return Err(format!("operator '{name}' has no value"));
        }
        [_, value] => (false, "==".to_owned(), value),
        [_, name, value] => (false, text(name).ok_or("invalid expression")?, value),
        [_, not, name, value] => {
            if not.as_str() != Some("!") {
                return Err("bad 'not' expression".into());
            }
            (true, text(name).ok_or("invalid expression")?, value)
        }
        _ => return Err("invalid expression".into()),
    };
    Ok(Node::Test { variable, test: test(&name, value)?, negated })
}

fn test(operator: &str, value: &Value) -> Result<Test, String> {
    let number = || match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => number_of(text),
        _ => None,
    };
    let compare = |comparison| {
        let number =
            number().ok_or_else(|| format!("operator '{operator}' needs a number, not {value}"))?;
        Ok(Test::Compare(comparison, number))
    };
    let matches = |ignore_case| {
        let text = value
            .as_str()
            .ok_or_else(|| format!("operator '{operator}' needs a regular expression"))?;
        Pattern::parse(text, PatternOptions { ignore_case, ..PatternOptions::default() })
            .map(Test::Matches)
            .map_err(|error| error.0)
    };
    match operator {
        "==" => Ok(Test::Is(literal(value)?)),
        "~=" | "!=" => Ok(Test::IsNot(literal(value)?)),
        ">" => compare(Comparison::Greater),
        ">=" => compare(Comparison::GreaterOrEqual),
        "<" => compare(Comparison::Less),
        "<=" => compare(Comparison::LessOrEqual),
        "~~" => matches(false),
        "~*" => matches(true),
        "in" => match value {
            Value::Array(items) => {
                Ok(Test::In(items.iter().map(literal).collect::<Result<_, _>>()?))
            }
            _ => Err("operator 'in' needs an array".into()),
        },
        "has" => Ok(Test::Has(literal(value)?)),
        "ipmatch" => {
            let texts: Option<Vec<&str>> = match value {
                Value::String(one) => Some(vec![one]),
                Value::Array(items) => items.iter().map(Value::as_str).collect(),
                _ => None,
            };
            let texts = texts.ok_or("operator 'ipmatch' needs an array of addresses")?;
            Networks::parse(texts).map(Test::Within).map_err(|error: Invalid| error.0)
        }
        other => Err(format!("invalid operator '{other}'")),
    }
}

fn literal(value: &Value) -> Result<Literal, String> {
    Ok(match value {
        Value::String(text) => Literal::Text(text.clone()),
        Value::Number(number) => Literal::Number(number.as_f64().ok_or("a number out of range")?),
        Value::Bool(_) => Literal::Flag,
        Value::Null => Literal::Null,
        Value::Array(_) | Value::Object(_) => {
            return Err(format!("a variable cannot be compared with {value}"));
        }
    })
}

impl Node {
    fn holds(&self, exchange: &Exchange) -> bool {
        match self {
            Self::Group { nodes, any: true, negated } => {
                nodes.iter().any(|node| node.holds(exchange)) != *negated
            }
            Self::Group { nodes, any: false, negated } => {
                nodes.iter().all(|node| node.holds(exchange)) != *negated
            }
            Self::Test { variable, test, negated } => test.holds(variable, exchange) != *negated,
        }
    }
}

impl Test {
    fn holds(&self, variable: &Variable, exchange: &Exchange) -> bool {
        if let Self::Has(wanted) = self {
            return variable.read_all(exchange).iter().any(|found| wanted.equals(Some(found)));
        }
        let found = variable.read(exchange);
        match self {
            Self::Is(wanted) => wanted.equals(found.as_ref()),
            Self::IsNot(wanted) => !wanted.equals(found.as_ref()),
            Self::In(wanted) => wanted.iter().any(|wanted| wanted.equals(found.as_ref())),
            Self::Compare(comparison, right) => {
                let Some(left) = found.and_then(|found| found.number()) else { return false };
                match comparison {
                    Comparison::Greater => left > *right,
                    Comparison::GreaterOrEqual => left >= *right,
                    Comparison::Less => left < *right,
                    Comparison::LessOrEqual => left <= *right,
                }
            }
            Self::Matches(pattern) => {
                found.is_some_and(|found| pattern.is_match(found.text().as_bytes()))
            }
            Self::Within(networks) => {
                found.and_then(|found| found.address()).is_some_and(|at| networks.contains(at))
            }
            Self::Has(_) => false,
        }
    }
}

impl Literal {
    fn equals(&self, found: Option<&Reading<'_>>) -> bool {
        match (self, found) {
            (Self::Text(wanted), Some(found)) => found.text() == *wanted,
            (Self::Number(wanted), Some(found)) => found.number() == Some(*wanted),
            (Self::Null, found) => found.is_none(),
            (Self::Flag, _) | (_, None) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::tests::exchange;
    use serde_json::json;

    #[test]
    fn the_table_of_operators() {
        let mut exchange = exchange("GET", "/a?name=jack&age=20&hex=0x10&x=a&x=b", "shop");
        exchange.request.append("X-Tag", b"red");
        exchange.request.append("X-Tag", b"green");
        for (expression, holds) in [
            (json!([]), true),
            (json!([["arg_name", "==", "jack"]]), true),
            (json!([["arg_name", "jack"]]), true),
            (json!([["arg_name", "==", "Jack"]]), false),
            (json!([["arg_none", "==", "jack"]]), false),
            (json!([["arg_none", "==", null]]), true),
            (json!([["arg_name", "==", null]]), false),
            (json!([["arg_none", "~=", null]]), false),
            (json!([["arg_name", "~=", "json"]]), true),
            (json!([["arg_none", "~=", "json"]]), true),
            (json!([["arg_age", "==", 20]]), true),
            (json!([["arg_age", "==", "20"]]), true),
            (json!([["arg_hex", "==", 16]]), true),
            (json!([["arg_name", "==", 20]]), false),
            (json!([["arg_name", "~=", 20]]), true),
            (json!([["arg_none", "~=", 20]]), true),
            (json!([["arg_name", "==", true]]), false),
            (json!([["arg_name", "~=", true]]), true),
            (json!([["arg_age", ">", 18]]), true),
            (json!([["arg_age", ">", "18"]]), true),
            (json!([["arg_age", ">", 20]]), false),
            (json!([["arg_age", ">=", 20]]), true),
            (json!([["arg_age", "<", 21]]), true),
            (json!([["arg_age", "<=", 19]]), false),
            (json!([["arg_name", ">", 18]]), false),
            (json!([["arg_none", "<", 18]]), false),
            (json!([["arg_name", "~~", "^j"]]), true),
            (json!([["arg_name", "~~", "J"]]), false),
            (json!([["arg_name", "~*", "J"]]), true),
            (json!([["arg_none", "~~", ".*"]]), false),
            (json!([["arg_name", "in", ["jack", "joe"]]]), true),
            (json!([["arg_name", "IN", ["joe"]]]), false),
            (json!([["arg_age", "in", [20, 21]]]), true),
            (json!([["http_x_tag", "has", "green"]]), true),
            (json!([["http_x_tag", "has", "blue"]]), false),
            (json!([["arg_x", "has", "b"]]), true),
            (json!([["arg_none", "has", "b"]]), false),
            (json!([["remote_addr", "ipmatch", ["192.0.2.0/24"]]]), true),
            (json!([["remote_addr", "ipmatch", ["10.0.0.1", "::1"]]]), false),
            (json!([["arg_name", "ipmatch", ["0.0.0.0/0"]]]), false),
            (json!([["arg_name", "!", "==", "jack"]]), false),
            (json!([["arg_none", "!", "==", "jack"]]), true),
            (json!([["arg_none", "!", "~~", "a"]]), true),
            (json!([["arg_none", "!", "in", ["a"]]]), true),
            (json!([["remote_addr", "!", "ipmatch", ["10.0.0.0/8"]]]), true),
            (json!([["arg_name", "==", "jack"], ["arg_age", "==", 21]]), false),
            (json!(["OR", ["arg_name", "==", "x"], ["arg_age", "==", 20]]), true),
            (json!(["or", ["arg_name", "==", "x"], ["arg_age", "==", 21]]), false),
            (json!(["AND", ["arg_name", "==", "jack"], ["arg_age", "==", 20]]), true),
            (json!(["!AND", ["arg_name", "==", "jack"], ["arg_age", "==", 21]]), true),
            (json!(["!OR", ["arg_name", "==", "x"], ["arg_age", "==", 21]]), true),
            (json!(["!OR", ["arg_name", "==", "jack"], ["arg_age", "==", 21]]), false),
            // Lists within lists are rules that must all hold.
            (json!([[["arg_name", "==", "jack"], ["arg_age", "==", 20]]]), true),
            (json!([[["arg_name", "==", "jack"], ["arg_age", "==", 21]]]), false),
            (
                json!([
                    "OR",
                    [["arg_name", "==", "jack"], ["arg_age", "==", 21]],
                    [["arg_name", "==", "jack"], ["arg_hex", "==", 16]]
                ]),
                true,
            ),
            (
                json!([
                    ["arg_age", ">", 1],
                    [
                        "OR",
                        ["arg_name", "==", "x"],
                        ["AND", ["arg_age", "<", 30], ["host", "shop"]]
                    ]
                ]),
                true,
            ),
        ] {
            let parsed = Expr::parse(&expression).unwrap_or_else(|e| panic!("{expression}: {e}"));
            assert_eq!(parsed.holds(&exchange), holds, "{expression}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_in_lua_resty_exprs_words() {
        for (expression, says) in [
            (json!({}), "rule should be wrapped inside brackets"),
            (json!("arg_a"), "rule should be wrapped inside brackets"),
            (json!(["arg_a", "==", "b"]), "rule should be wrapped inside brackets"),
            (json!([["arg_a", "==", "b"], "x"]), "rule should be wrapped inside brackets"),
            (json!([["arg_a", "=>", "b"]]), "invalid operator '=>'"),
            (json!([["arg_a", "not", "==", "b"]]), "bad 'not' expression"),
            (json!(["OR", ["arg_a", "==", "b"]]), "rule too short"),
            (json!(["OR"]), "rule too short"),
            (json!([["arg_a"]]), "invalid expression"),
            (json!([[]]), "rule too short"),
            (json!([["arg_a", "=="]]), "operator '==' has no value"),
            (json!([["arg_a", "IN"]]), "operator 'IN' has no value"),
            (json!([["post_arg_x", "==", "b"]]), "before the body has come"),
            (json!([["post_arg.a.b[*]", "==", "b"]]), "before the body has come"),
            (json!([["graphql_name", "==", "b"]]), "before the body has come"),
            (json!([["mqtt_client_id", "==", "b"]]), "stream routes"),
            (json!([[1, "==", 1]]), "invalid expression"),
            (json!([["arg_a", "==", "b", "c", "d"]]), "invalid expression"),
            (json!([["nothing_known", "==", "b"]]), "unknown variable 'nothing_known'"),
            (json!([["arg_a", "ipmatch", ["10.0.0.0/33"]]]), "'10.0.0.0/33' is no IP address"),
            (json!([["arg_a", "in", "b"]]), "operator 'in' needs an array"),
            (json!([["arg_a", ">", "b"]]), "operator '>' needs a number"),
            (json!([["arg_a", "~~", "(?!a)"]]), "look-around"),
            (json!([["arg_a", "==", ["b"]]]), "cannot be compared"),
        ] {
            let error = Expr::parse(&expression).unwrap_err();
            assert!(error.contains(says), "{expression}: {error}");
        }
        let mut deep = json!(["arg_a", "b"]);
        for _ in 0..40 {
            deep = json!(["OR", deep, ["arg_a", "b"]]);
        }
        assert!(Expr::parse(&deep).unwrap_err().contains("at most 32 deep"));
    }
}
