//! Paths of Istio: exact, with a star at the end or the start, and templates.

use super::wildcard::{Wildcard, quoted};

/// A path of Istio in our words.
pub(super) struct PathText {
    /// A template that means at least as much; `None`: none does.
    pub(super) template: Option<String>,
    /// Does the template mean the same?
    pub(super) exact: bool,
    /// The same in CEL.
    pub(super) cel: String,
}

/// Paths of Istio, as exactly as our language can say them.
pub(super) fn path_texts(paths: &[String]) -> Vec<PathText> {
    let texts = paths.iter().map(|path| {
        let mut text = path_text(path);
        // Beside `/a`, `/a/**` means no more than `/a/*` does.
        if let Wildcard::Prefix(prefix) = Wildcard::of(path)
            && let Some(folder) = prefix.strip_suffix('/')
            && paths.iter().any(|other| other == folder)
        {
            text.exact = text.template.is_some();
        }
        text
    });
    texts.collect()
}

fn path_text(path: &str) -> PathText {
    let subject = "request.path";
    if path.contains("{*}") || path.contains("{**}") {
        return templated(path);
    }
    let cel = Wildcard::of(path).cel(subject);
    match Wildcard::of(path) {
        Wildcard::Any | Wildcard::Prefix("/") => {
            PathText { template: Some("/**".into()), exact: true, cel }
        }
        Wildcard::Exact(path) => {
            let template = is_template(path).then(|| path.to_owned());
            let exact = template.is_some();
            PathText { template, exact, cel }
        }
        Wildcard::Prefix(prefix) if prefix.ends_with('/') => {
            let template = format!("{prefix}**");
            let template = is_template(&template).then_some(template);
            PathText { template, exact: false, cel }
        }
        Wildcard::Prefix(_) | Wildcard::Suffix(_) => PathText { template: None, exact: false, cel },
    }
}

/// `/tenants/{*}/files/{**}`.
fn templated(path: &str) -> PathText {
    let mut pattern = String::from("^");
    let mut rest = path;
    while let Some(at) = rest.find("{*") {
        pattern += &regex::escape(&rest[..at]);
        rest = match rest[at..].strip_prefix("{*}") {
            Some(after) => {
                pattern += "[^/]+";
                after
            }
            None => match rest[at..].strip_prefix("{**}") {
                Some(after) => {
                    pattern += ".*";
                    after
                }
                None => {
                    pattern += &regex::escape("{*");
                    &rest[at + 2..]
                }
            },
        };
    }
    pattern += &regex::escape(rest);
    pattern.push('$');
    let cel = format!("request.path.matches({})", quoted(&pattern));
    let template = path.replace("{*}", "*").replace("{**}", "**");
    let whole =
        path.split('/').all(|segment| matches!(segment, "{*}" | "{**}") || !segment.contains('{'));
    let inner = template.strip_suffix("/**").unwrap_or(&template);
    let usable = whole && !inner.contains("**") && is_template(&template);
    let exact = usable && !template.ends_with("**");
    PathText { template: usable.then_some(template), exact, cel }
}

/// Can it stand as a template, and does it mean itself?
fn is_template(path: &str) -> bool {
    !path.contains('{') && crate::policy::path::Template::parse(path, false).is_ok()
}
