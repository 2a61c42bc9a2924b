//! What limits are told by: numbers that may come from a request, and keys that tell requests apart.

use std::fmt::Write as _;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::pipeline::{Exchange, Invalid, Template, Variable};
use crate::plugins::bounds;

/// A number, or a text with variables that gives one.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum Amount {
    /// The number itself.
    Fixed(#[schemars(range(min = 0))] u64),
    /// A text with variables.
    Text(String),
}

/// An [`Amount`], compiled.
pub(super) enum Number {
    Fixed(u64),
    Text { template: Template, least: u64 },
}

impl Number {
    /// A number from `least` on.
    pub(super) fn parse(field: &str, amount: &Amount, least: u64) -> Result<Self, Invalid> {
        let refuse = || Invalid::new(format!("{field}: a number from {least} is expected"));
        match amount {
            Amount::Fixed(number) if *number < least => Err(refuse()),
            Amount::Fixed(number) => Ok(Self::Fixed(*number)),
            Amount::Text(text) => {
                let template = Template::parse(text).map_err(|why| bounds::at(field, &why))?;
                match template.fixed() {
                    Some(text) => match text.parse() {
                        Ok(number) if number >= least => Ok(Self::Fixed(number)),
                        _ => Err(refuse()),
                    },
                    None => Ok(Self::Text { template, least }),
                }
            }
        }
    }

    /// Its value for a request; `None` when that is no such number.
    pub(super) fn of(&self, exchange: &Exchange) -> Option<u64> {
        match self {
            Self::Fixed(number) => Some(*number),
            Self::Text { template, least } => {
                let mut text = String::new();
                template.render(exchange, &mut text);
                text.trim().parse().ok().filter(|number| number >= least)
            }
        }
    }
}

/// What requests are told apart by.
pub(super) enum Key {
    Variable(Variable),
    Combination(Template),
    Constant(String),
}

impl Key {
    /// One variable's value.
    pub(super) fn variable(field: &str, name: &str) -> Result<Self, Invalid> {
        Variable::parse(name).map(Self::Variable).map_err(|why| bounds::at(field, &why))
    }

    /// A text in which one variable at least is filled in.
    pub(super) fn combination(field: &str, text: &str) -> Result<Self, Invalid> {
        let template = Template::parse(text).map_err(|why| bounds::at(field, &why))?;
        match template.fixed() {
            None => Ok(Self::Combination(template)),
            Some(_) => Err(Invalid::new(format!("{field}: '{text}' names no variable"))),
        }
    }

    /// The key of this request, and whether anything in it had a value.
    pub(super) fn write(&self, exchange: &Exchange, out: &mut String) -> bool {
        match self {
            Self::Variable(variable) => match variable.read(exchange) {
                Some(reading) => {
                    reading.write(out);
                    !out.is_empty()
                }
                None => false,
            },
            Self::Combination(template) => template.render(exchange, out) > 0,
            Self::Constant(text) => {
                out.push_str(text);
                true
            }
        }
    }

    /// As in APISIX: who has no key is told apart by address. Apart from all keys, too (that is what the result says): nobody may
    /// use up another's quota by naming its address.
    pub(super) fn write_or_address(&self, exchange: &Exchange, out: &mut String) -> bool {
        let has_key = self.write(exchange, out);
        if !has_key {
            out.clear();
            let _ = write!(out, "{}", exchange.remote().ip().to_canonical());
        }
        has_key
    }
}

/// How a key is read, where it cannot be a constant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum KeyType {
    /// One variable's name.
    #[default]
    Var,
    /// A text with variables.
    VarCombination,
}

impl KeyType {
    pub(super) fn read(self, field: &str, text: &str) -> Result<Key, Invalid> {
        match self {
            Self::Var => Key::variable(field, text),
            Self::VarCombination => Key::combination(field, text),
        }
    }
}
