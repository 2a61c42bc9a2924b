//! What settings may be: the schema says the same to those who write; this holds for what comes past the Admin API.

use std::fmt::Display;
use std::ops::RangeInclusive;

use crate::pipeline::{Expr, Invalid, Pattern, PatternOptions};

/// A regular expression longer than this is refused.
const MAX_PATTERN: usize = 4096;

/// A number within its bounds.
pub(super) fn number<T: PartialOrd + Display>(
    field: &str,
    value: T,
    bounds: RangeInclusive<T>,
) -> Result<T, Invalid> {
    if bounds.contains(&value) {
        return Ok(value);
    }
    let (from, to) = bounds.into_inner();
    Err(Invalid::new(format!("{field}: a number from {from} to {to} is expected, not {value}")))
}

/// A text of so many characters.
pub(super) fn text(field: &str, value: &str, length: RangeInclusive<usize>) -> Result<(), Invalid> {
    if length.contains(&value.chars().count()) {
        return Ok(());
    }
    let (from, to) = length.into_inner();
    Err(Invalid::new(match to {
        usize::MAX => format!("{field}: at least {from} characters are expected"),
        _ => format!("{field}: {from} to {to} characters are expected"),
    }))
}

/// A list that has something in it.
pub(super) fn some<T>(field: &str, list: &[T]) -> Result<(), Invalid> {
    match list.is_empty() {
        true => Err(Invalid::new(format!("{field}: at least one entry is expected"))),
        false => Ok(()),
    }
}

/// Regular expressions, of which one at least is given.
pub(super) fn patterns(
    field: &str,
    texts: &[String],
    options: PatternOptions,
) -> Result<Vec<Pattern>, Invalid> {
    some(field, texts)?;
    texts
        .iter()
        .enumerate()
        .map(|(at, one)| pattern(&format!("{field}[{at}]"), one, options))
        .collect()
}

/// A regular expression.
pub(super) fn pattern(field: &str, one: &str, options: PatternOptions) -> Result<Pattern, Invalid> {
    text(field, one, 1..=MAX_PATTERN)?;
    Pattern::parse(one, options).map_err(|why| at(field, &why))
}

/// A condition as `vars` has it.
pub(super) fn condition(field: &str, value: &serde_json::Value) -> Result<Expr, Invalid> {
    Expr::parse(value).map_err(|why| Invalid::new(format!("{field}: {why}")))
}

/// A header's value that stands as it is written: no byte that no field may have.
pub(super) fn field_value(field: &str, value: &str) -> Result<(), Invalid> {
    if value.bytes().any(|b| b.is_ascii_control() && b != b'\t') {
        return Err(Invalid::new(format!("{field}: a header's value has no control characters")));
    }
    Ok(())
}

/// Names the field in a sentence from further below.
pub(super) fn at(field: &str, why: &Invalid) -> Invalid {
    Invalid::new(format!("{field}: {why}"))
}
