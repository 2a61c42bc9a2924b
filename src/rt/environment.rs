//! `${{NAME}}` in texts that operators write: the environment's value in its place.

/// Puts variables into a text: `${{NAME}}`, or `${{NAME:=default}}`. `None` when the text has none.
///
/// # Errors
/// The name of a variable that is not set and has no default.
/// ```
/// # use wardgate::rt::substitute;
/// let lookup = |name: &str| (name == "HOST").then(|| "a.test".to_owned());
/// assert_eq!(substitute("http://${{HOST}}:${{PORT:=80}}", lookup), Ok(Some("http://a.test:80".into())));
/// assert_eq!(substitute("${{TOKEN}}", lookup), Err("TOKEN".into()));
/// assert_eq!(substitute("plain", lookup), Ok(None));
/// ```
pub fn substitute(
    text: &str,
    lookup: impl Fn(&str) -> Option<String>,
) -> Result<Option<String>, String> {
    let mut resolved = String::new();
    let mut rest = text;
    let mut found = false;
    while let Some(start) = rest.find("${{") {
        let Some(length) = rest[start + 3..].find("}}") else { break };
        let inside = rest[start + 3..start + 3 + length].trim();
        let (name, default) = match inside.split_once(":=") {
            Some((name, default)) => (name.trim(), Some(default.trim())),
            None => (inside, None),
        };
        resolved.push_str(&rest[..start]);
        let end = start + 3 + length + 2;
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            // Not a variable: it stays as it is written.
            resolved.push_str(&rest[start..end]);
        } else {
            let value = lookup(name).or_else(|| default.map(str::to_owned));
            resolved.push_str(&value.ok_or_else(|| name.to_owned())?);
            found = true;
        }
        rest = &rest[end..];
    }
    resolved.push_str(rest);
    Ok(found.then_some(resolved))
}
