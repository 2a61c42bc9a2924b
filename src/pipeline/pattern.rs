//! Regular expressions that operators write, and the replacements that go with them.

use regex::bytes::{Captures, Regex, RegexBuilder};

use crate::model::Invalid;

/// A compiled expression larger than this is refused; so is its work memory.
const SIZE_LIMIT: usize = 1 << 20;

/// A regular expression in PCRE's habit: searched, not anchored; over bytes; classes are ASCII.
///
/// It runs in linear time. What cannot (look-around, back-references, atomic groups) is refused.
#[derive(Clone, Debug)]
pub struct Pattern(Regex);

/// How an expression is read; the letters of `ngx.re`'s options.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PatternOptions {
    /// `i`: without regard to case.
    pub ignore_case: bool,
    /// `m`: `^` and `$` also at lines.
    pub multi_line: bool,
    /// `s`: a dot is also a line's end.
    pub dot_all: bool,
    /// `x`: white space and comments in the expression.
    pub extended: bool,
}

impl PatternOptions {
    /// Reads `ngx.re`'s letters; `j`, `o` (how to compile) and `a`... have no meaning here beyond anchoring, which is refused.
    ///
    /// # Errors
    /// A letter that would change the meaning and is not supported.
    pub fn parse(letters: &str) -> Result<Self, Invalid> {
        let mut options = Self::default();
        for letter in letters.chars() {
            match letter {
                'i' => options.ignore_case = true,
                'm' => options.multi_line = true,
                's' => options.dot_all = true,
                'x' => options.extended = true,
                // How PCRE compiles and caches; nothing to choose here.
                'j' | 'o' => {}
                other => {
                    return Err(Invalid::new(format!(
                        "options: '{other}' is not one of i, m, s, x, j, o"
                    )));
                }
            }
        }
        Ok(options)
    }
}

impl Pattern {
    /// Compiles an expression.
    ///
    /// # Errors
    /// It is none, it is too large, or it needs what is not offered; the sentence quotes it.
    pub fn parse(text: &str, options: PatternOptions) -> Result<Self, Invalid> {
        RegexBuilder::new(text)
            .unicode(false)
            .case_insensitive(options.ignore_case)
            .multi_line(options.multi_line)
            .dot_matches_new_line(options.dot_all)
            .ignore_whitespace(options.extended)
            .size_limit(SIZE_LIMIT)
            .dfa_size_limit(SIZE_LIMIT)
            .build()
            .map(Self)
            .map_err(|error| Invalid::new(explain(text, &error)))
    }

    /// Does it match anywhere?
    pub fn is_match(&self, text: &[u8]) -> bool {
        self.0.is_match(text)
    }

    /// The first match's groups.
    pub fn captures<'t>(&self, text: &'t [u8]) -> Option<Captures<'t>> {
        self.0.captures(text)
    }

    /// How many groups there are, the whole match included.
    pub fn groups(&self) -> usize {
        self.0.captures_len()
    }

    /// `text` with its first match replaced; `None` without a match.
    pub fn replace_first(&self, text: &[u8], by: &Replacement) -> Option<Vec<u8>> {
        let groups = self.0.captures(text)?;
        let whole = groups.get(0)?;
        let mut out = Vec::with_capacity(text.len());
        out.extend_from_slice(&text[..whole.start()]);
        by.expand(&groups, &mut out);
        out.extend_from_slice(&text[whole.end()..]);
        Some(out)
    }

    /// `text` with all its matches replaced.
    pub fn replace_all(&self, text: &[u8], by: &Replacement) -> Vec<u8> {
        let mut out = Vec::with_capacity(text.len());
        let mut end = 0;
        for groups in self.0.captures_iter(text) {
            let Some(whole) = groups.get(0) else { continue };
            out.extend_from_slice(&text[end..whole.start()]);
            by.expand(&groups, &mut out);
            end = whole.end();
        }
        out.extend_from_slice(&text[end..]);
        out
    }
}

fn explain(text: &str, error: &regex::Error) -> String {
    match error {
        regex::Error::CompiledTooBig(_) => {
            format!("the regular expression '{text}' is too large when compiled")
        }
        error => {
            let whole = error.to_string();
            // The library draws the place in several lines; its last line is the sentence.
            let sentence = whole.lines().last().unwrap_or_default();
            let sentence = sentence.strip_prefix("error: ").unwrap_or(sentence);
            format!("the regular expression '{text}' is not supported: {sentence}")
        }
    }
}

/// A replacement: text with `$0` to `$99` or `${1}` for the groups, `$$` for a dollar.
#[derive(Clone, Debug)]
pub struct Replacement(Vec<Piece>);

#[derive(Clone, Debug)]
enum Piece {
    Text(String),
    Group(usize),
}

impl Replacement {
    /// Reads a replacement for `pattern`.
    ///
    /// # Errors
    /// It names a group that the expression does not have, or a dollar stands for nothing.
    pub fn parse(text: &str, pattern: &Pattern) -> Result<Self, Invalid> {
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            literal.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('$') {
                literal.push('$');
                rest = after;
                continue;
            }
            let (digits, after) = match rest.strip_prefix('{') {
                Some(braced) => braced.split_once('}').unwrap_or(("", rest)),
                None => {
                    let end = rest.bytes().take(2).take_while(u8::is_ascii_digit).count();
                    rest.split_at(end)
                }
            };
            let group = digits.parse().map_err(|_| {
                Invalid::new(format!(
                    "the replacement '{text}' has a '$' that is neither a group ($1, ${{1}}) nor '$$'"
                ))
            })?;
            if group >= pattern.groups() {
                return Err(Invalid::new(format!(
                    "the replacement '{text}' names group {group}, the expression has {}",
                    pattern.groups() - 1
                )));
            }
            if !literal.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut literal)));
            }
            pieces.push(Piece::Group(group));
            rest = after;
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            pieces.push(Piece::Text(literal));
        }
        Ok(Self(pieces))
    }

    fn expand(&self, groups: &Captures<'_>, out: &mut Vec<u8>) {
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => out.extend_from_slice(text.as_bytes()),
                Piece::Group(group) => {
                    if let Some(found) = groups.get(*group) {
                        out.extend_from_slice(found.as_bytes());
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text, PatternOptions::default()).unwrap()
    }

    #[test]
    fn matches_are_replaced_as_ngx_re_replaces_them() {
        for (expression, by, text, first, all) in [
            ("^/a/(.*)/b$", "/$1", "/a/x/b", Some("/x"), "/x"),
            ("(b+)", "<${1}0>", "abba b", Some("a<bb0>a b"), "a<bb0>a <b0>"),
            ("b", "$$$0", "abb", Some("a$bb"), "a$b$b"),
            ("z", "y", "abc", None, "abc"),
            ("(x)?b", "[$1]", "ab", Some("a[]"), "a[]"),
        ] {
            let pattern = pattern(expression);
            let by = Replacement::parse(by, &pattern).unwrap();
            let found = pattern.replace_first(text.as_bytes(), &by);
            assert_eq!(found.as_deref(), first.map(str::as_bytes), "{expression}");
            assert_eq!(pattern.replace_all(text.as_bytes(), &by), all.as_bytes(), "{expression}");
        }
    }

    #[test]
    fn what_cannot_run_in_linear_time_is_refused_with_a_sentence() {
        for (bad, says) in [
            ("(?=a)b", "look-around"),
            (r"(a)\1", "backreferences"),
            ("(", "unclosed group"),
            ("(?:a{1000}){1000}", "too large"),
        ] {
            let error = Pattern::parse(bad, PatternOptions::default()).unwrap_err().to_string();
            assert!(error.contains(says) && error.contains(bad), "{error}");
        }
        let one = pattern("(a)");
        for bad in ["$2", "$", "${1", "$name"] {
            assert!(Replacement::parse(bad, &one).is_err(), "{bad}");
        }
        assert!(PatternOptions::parse("jois").is_ok());
        assert!(PatternOptions::parse("u").is_err());
    }
}
