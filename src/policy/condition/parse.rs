//! From text to a syntax tree, with the crate's parser. A text is bounded before the parser sees it.

use cel::common::ast::IdedExpr;

/// How deep brackets, signs and choices may be nested.
const DEEPEST: usize = 24;
/// How many words, numbers and signs a text may have.
const MOST_TOKENS: usize = 512;

/// Reads a text. Macros (`has`, `all`, `exists`, …) stay the calls that they are written as.
pub(super) fn parse(text: &str) -> Result<IdedExpr, String> {
    bound(text)?;
    let parser = cel::Env::default().with_optional_support(false).parser();
    let parser = parser.max_recursion_depth(96).error_recovery_limit(1);
    parser.parse(text).map_err(|errors| {
        let first = errors.errors.first();
        let (column, sentence) = first.map_or((0, String::new()), |error| {
            (error.pos.1, error.msg.lines().next().unwrap_or_default().to_owned())
        });
        format!("is no expression in CEL: column {column}: {sentence}")
    })
}

/// A parser's time and stack grow with nesting: what nobody writes by hand is refused before it is parsed.
fn bound(text: &str) -> Result<(), String> {
    let (mut depth, mut deepest, mut tokens, mut signs) = (0_usize, 0, 0, 0_usize);
    let mut rest = text.char_indices().peekable();
    while let Some((_, char)) = rest.next() {
        let sign = matches!(char, '!' | '-' | '?');
        signs = if sign {
            signs + 1
        } else if char.is_whitespace() {
            signs
        } else {
            0
        };
        match char {
            '\'' | '"' => {
                // Texts in three quotes, raw texts and bytes are not of the subset; here they only have to end.
                loop {
                    match rest.next() {
                        Some((_, '\\')) => drop(rest.next()),
                        Some((_, end)) if end == char => break,
                        Some((_, '\n')) | None => return Err("a text does not end".into()),
                        Some(_) => {}
                    }
                }
                tokens += 1;
            }
            '(' | '[' | '{' => {
                depth += 1;
                tokens += 1;
            }
            ')' | ']' | '}' => {
                depth = depth.checked_sub(1).ok_or("a bracket closes what is not open")?;
            }
            char if char.is_ascii_alphanumeric() || char == '_' => {
                let word = |char: &char| char.is_ascii_alphanumeric() || *char == '_';
                while rest.next_if(|(_, char)| word(char)).is_some() {}
                tokens += 1;
            }
            char if char.is_whitespace() => {}
            char if char.is_ascii_punctuation() && char != '`' => tokens += 1,
            other => return Err(format!("\"{}\" stands outside a text", other.escape_debug())),
        }
        deepest = deepest.max(depth + signs);
    }
    let choices = text.matches('?').count();
    if depth != 0 {
        return Err("a bracket is not closed".into());
    }
    if deepest + choices > DEEPEST {
        return Err(format!("is nested deeper than {DEEPEST} levels"));
    }
    if tokens > MOST_TOKENS {
        return Err(format!("has more than {MOST_TOKENS} words and signs"));
    }
    Ok(())
}
