//! Hosts of rules: exact names and `*.suffix`; compared without case, port and final dot.

use super::callers::check_name;

/// The name in an authority, without port and final dot; `None` when it is no host name.
///
/// An empty label, user information, blanks or a port that is not a number make it none.
pub(super) fn name(authority: &str) -> Option<&str> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(literal) => {
            let end = literal.find(']')? + 2;
            (&authority[..end], &authority[end..])
        }
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let digits = if port.is_empty() { port } else { port.strip_prefix(':')? };
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    if host.starts_with('[') {
        let inside = &host[1..host.len() - 1];
        let fits = |b: u8| b.is_ascii_hexdigit() || matches!(b, b':' | b'.');
        return (!inside.is_empty() && inside.bytes().all(fits)).then_some(host);
    }
    let host = host.strip_suffix('.').unwrap_or(host);
    let mut label = 0;
    for byte in host.bytes() {
        match byte {
            b'.' if label == 0 => return None,
            b'.' => label = 0,
            // Everything that could end or begin something else in somebody's reading of an authority.
            0..=b' ' | 0x7f.. | b'@' | b'/' | b'\\' | b'?' | b'#' | b',' | b'%' | b'[' | b']' => {
                return None;
            }
            _ => label += 1,
        }
    }
    (label > 0).then_some(host)
}

/// Which hosts a rule means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum HostPattern {
    /// This name, in lower case.
    Exactly(Box<str>),
    /// One or more labels before this suffix, which starts with its dot, in lower case.
    Below(Box<str>),
    /// One label, which has a name, before this suffix, which starts with its dot, in lower case.
    Captured(Box<str>, Box<str>),
}

impl HostPattern {
    /// Reads what an operator wrote.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (below, rest) = match text.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let captured = text.strip_prefix('{').and_then(|rest| rest.split_once("}."));
        let rest = captured.map_or(rest, |(_, rest)| rest);
        if let Some((label, _)) = captured {
            check_name(label).map_err(|why| format!("\"{text}\": {why}"))?;
        }
        if rest.contains(['{', '}']) {
            return Err(format!(
                "\"{text}\": a name in braces stands only as the whole first label, {{name}}.suffix"
            ));
        }
        if text == "*" {
            return Err("\"*\" is no host; leave the list out to mean all hosts".into());
        }
        if rest.contains('*') {
            return Err(format!(
                "\"{text}\": a star stands only as the whole first label, *.suffix"
            ));
        }
        let found = name(rest).ok_or_else(|| format!("\"{text}\" is no host name"))?;
        if found.len() + 1 < rest.len() {
            return Err(format!("\"{text}\" has a port; ports belong into the list \"ports\""));
        }
        let lower = found.to_ascii_lowercase();
        Ok(match captured {
            Some((label, _)) => Self::Captured(label.into(), format!(".{lower}").into()),
            None if below => Self::Below(format!(".{lower}").into()),
            None => Self::Exactly(lower.into()),
        })
    }

    /// The name of its first label.
    pub(super) fn capture(&self) -> Option<&str> {
        match self {
            Self::Captured(label, _) => Some(label),
            Self::Exactly(_) | Self::Below(_) => None,
        }
    }

    /// Does the rule mean this name (as [`name`] gives it)?
    pub(super) fn matches(&self, host: &str) -> bool {
        match self {
            Self::Exactly(name) => name.eq_ignore_ascii_case(host),
            Self::Below(suffix) => before(host, suffix).is_some(),
            Self::Captured(_, suffix) => {
                before(host, suffix).is_some_and(|label| !label.contains('.'))
            }
        }
    }
}

/// What stands before the suffix, if anything does.
fn before<'h>(host: &'h str, suffix: &str) -> Option<&'h str> {
    let at = host.len().checked_sub(suffix.len()).filter(|at| *at > 0)?;
    let (found, end) = host.split_at_checked(at)?;
    suffix.eq_ignore_ascii_case(end).then_some(found)
}

impl std::fmt::Display for HostPattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exactly(name) => f.write_str(name),
            Self::Below(suffix) => write!(f, "*{suffix}"),
            Self::Captured(label, suffix) => write!(f, "{{{label}}}{suffix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_compared_without_case_port_and_final_dot_and_never_has_an_empty_label() {
        for (pattern, host, meant) in [
            ("admin.example.com", "admin.example.com", true),
            ("admin.example.com", "ADMIN.example.com:443", true),
            ("admin.example.com", "admin.example.com.", true),
            ("admin.example.com", "admin.example.com.:8443", true),
            ("admin.example.com", "admin.example.com..", false),
            ("admin.example.com", "x.admin.example.com", false),
            ("Admin.Example.com.", "admin.example.com", true),
            ("*.example.com", "a.example.com", true),
            ("*.example.com", "a.b.example.com:80", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", ".example.com", false),
            ("*.example.com", "a..example.com", false),
            ("*.example.com", "aexample.com", false),
            ("[::1]", "[::1]:80", true),
            ("[::1]", "[::1]", true),
            ("10.0.0.1", "10.0.0.1:9080", true),
            ("billing", "billing", true),
            ("{tenant}.example.com", "a.example.com:80", true),
            ("{tenant}.example.com", "a.b.example.com", false),
            ("{tenant}.example.com", "example.com", false),
            ("{tenant}.example.com", ".example.com", false),
        ] {
            let parsed = HostPattern::parse(pattern).unwrap();
            let got = name(host).is_some_and(|name| parsed.matches(name));
            assert_eq!(got, meant, "{pattern} {host}");
        }
    }

    #[test]
    fn what_is_no_host_name_is_none() {
        for bad in [
            "",
            ".",
            ":80",
            "a b",
            "u@h",
            "h:8o",
            "h:80:90",
            "a,b",
            "[::1",
            "[]",
            "[::1]x",
            "a/b",
            "h\u{0}",
            "hä",
            "[::1%25eth0]",
            "[::1]ä",
            "[ä]",
        ] {
            assert_eq!(name(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn patterns_that_cannot_be_meant_are_refused() {
        for bad in [
            "*",
            "a.*.b",
            "*a.b",
            "**.a",
            "a.b:80",
            "",
            "a..b",
            "*.",
            "a b",
            "{a}",
            "{}.b",
            "{1}.b",
            "a.{b}.c",
            "x{a}.b",
            "{a}.{b}.c",
        ] {
            assert!(HostPattern::parse(bad).is_err(), "{bad:?}");
        }
    }
}
