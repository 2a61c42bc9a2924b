//! Paths of rules: templates, and all the ways in which a path can be read.
//!
//! Programs behind us decode, merge slashes and resolve dots differently. A rule that allows must hold for every reading of
//! a path, a rule that refuses for one. The bytes themselves are never changed.

use std::borrow::Cow;

use smallvec::SmallVec;

use super::callers::check_name;

/// Longer paths with anything to decode or resolve are not read but refused: their readings would cost too much.
const MAX_READ: usize = 2048;
/// More readings than this make a path unclear.
const MAX_READINGS: usize = 32;
/// The longest template.
const MAX_TEMPLATE: usize = 4096;

/// All readings of a path.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Readings<'p> {
    /// It reads the same for everybody.
    One(&'p str),
    /// It reads differently, or had to be decoded to be compared.
    Several(SmallVec<[String; 2]>),
    /// It is no path, is not properly encoded, or hides something: no reading can be trusted.
    Unclear,
}

impl Readings<'_> {
    /// Does `holds` hold for every reading? Never, when the path is unclear.
    pub(super) fn all(&self, mut holds: impl FnMut(&str) -> bool) -> bool {
        match self {
            Self::One(path) => holds(path),
            Self::Several(paths) => paths.iter().all(|path| holds(path)),
            Self::Unclear => false,
        }
    }

    /// Does `holds` hold for one reading? Always, when the path is unclear.
    pub(super) fn any(&self, mut holds: impl FnMut(&str) -> bool) -> bool {
        match self {
            Self::One(path) => holds(path),
            Self::Several(paths) => paths.iter().any(|path| holds(path)),
            Self::Unclear => true,
        }
    }
}

/// Reads a path as received, without its query. Allocates nothing for a plain one.
pub(super) fn read(path: &str) -> Readings<'_> {
    if is_plain(path) {
        return Readings::One(path);
    }
    if !path.starts_with('/') || path.len() > MAX_READ || has_control(path) {
        return Readings::Unclear;
    }
    // What is not properly encoded has no reading at all: overlong UTF-8, %u002f, %zz, encoded control bytes.
    match decode(path, Escapes::All) {
        Some(decoded) if !has_control(&decoded) => {}
        _ => return Readings::Unclear,
    }
    let Some(as_sent) = decode(path, Escapes::Harmless) else { return Readings::Unclear };

    // Everything that can be reached by these steps, in any order and number; decoding happens at most twice.
    let mut reached: SmallVec<[(String, u8); 4]> = SmallVec::new();
    reached.push((as_sent.into_owned(), 0));
    let mut at = 0;
    while let Some((text, decoded)) = reached.get(at).cloned() {
        at += 1;
        let mut next: SmallVec<[(String, u8); 6]> = SmallVec::new();
        for step in [merge_slashes, remove_dots, strip_parameters, turn_backslashes, cut_query] {
            if let Some(changed) = step(&text) {
                next.push((changed, decoded));
            }
        }
        match decode(&text, Escapes::Lenient) {
            Some(Cow::Borrowed(_)) => {}
            // A third layer of encoding has no honest use.
            Some(Cow::Owned(_)) if decoded == 2 => return Readings::Unclear,
            Some(Cow::Owned(deeper)) if !has_control(&deeper) => next.push((deeper, decoded + 1)),
            _ => return Readings::Unclear,
        }
        for state in next {
            if reached.contains(&state) {
                continue;
            }
            if reached.len() == MAX_READINGS {
                return Readings::Unclear;
            }
            reached.push(state);
        }
    }
    let mut readings: SmallVec<[String; 2]> = SmallVec::new();
    for (text, _) in reached {
        if !readings.contains(&text) {
            readings.push(text);
        }
    }
    Readings::Several(readings)
}

/// The readings of a path that are not the path itself, the first eight of them and at most 4 KiB: for records. None for a path
/// that everybody reads the same, and none for one that cannot be read.
///
/// ```
/// # use wardgate::policy::other_readings;
/// assert_eq!(other_readings("/a//b"), ["/a/b"]);
/// assert!(other_readings("/a/b").is_empty());
/// ```
pub fn other_readings(path: &str) -> Vec<String> {
    let Readings::Several(readings) = read(path) else { return Vec::new() };
    let mut room = 4096;
    let fits = |reading: &String| {
        room -= reading.len().min(room);
        room > 0
    };
    readings.into_iter().filter(|reading| reading != path).take(8).take_while(fits).collect()
}

/// No byte of it invites a second reading.
fn is_plain(path: &str) -> bool {
    let bytes = path.as_bytes();
    if bytes.first() != Some(&b'/') {
        return false;
    }
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'%' | b';' | b'\\' | b'?' | b'#' | 0..=0x1f | 0x7f => return false,
            b'/' => match bytes.get(at + 1) {
                Some(b'/') => return false,
                Some(b'.') => {
                    let rest = &bytes[at + 2..];
                    let rest = rest.strip_prefix(b".").unwrap_or(rest);
                    if matches!(rest.first(), None | Some(b'/')) {
                        return false;
                    }
                }
                _ => {}
            },
            _ => {}
        }
    }
    true
}

fn has_control(text: &str) -> bool {
    text.bytes().any(|b| b < 0x20 || b == 0x7f)
}

#[derive(Clone, Copy, PartialEq)]
enum Escapes {
    /// All; a malformed one is an error.
    All,
    /// Those of bytes that cannot change the path's structure, for a path whose escapes are well formed.
    Harmless,
    /// The well-formed ones; the others stand as they are.
    Lenient,
}

/// Bytes whose escapes are kept where only harmless ones are decoded.
fn is_structural(byte: u8) -> bool {
    matches!(byte, b'/' | b'\\' | b'.' | b';' | b'%' | b'?' | b'#' | 0..=0x1f | 0x7f)
}

/// `None` when an escape is malformed or the result is not UTF-8 (overlong forms are not).
fn decode(text: &str, escapes: Escapes) -> Option<Cow<'_, str>> {
    let bytes = text.as_bytes();
    let Some(first) = memchr::memchr(b'%', bytes) else { return Some(Cow::Borrowed(text)) };
    let mut out = Vec::with_capacity(bytes.len());
    out.extend_from_slice(&bytes[..first]);
    let mut changed = false;
    let mut at = first;
    while at < bytes.len() {
        let byte = bytes[at];
        if byte != b'%' {
            out.push(byte);
            at += 1;
            continue;
        }
        let digit = |at: usize| bytes.get(at).and_then(|b| char::from(*b).to_digit(16));
        let escaped = match (digit(at + 1), digit(at + 2)) {
            (Some(high), Some(low)) => u8::try_from(high * 16 + low).ok()?,
            _ if escapes == Escapes::Lenient => {
                out.push(b'%');
                at += 1;
                continue;
            }
            _ => return None,
        };
        if escapes == Escapes::Harmless && is_structural(escaped) {
            out.extend_from_slice(&bytes[at..at + 3]);
        } else {
            out.push(escaped);
            changed = true;
        }
        at += 3;
    }
    if !changed {
        return Some(Cow::Borrowed(text));
    }
    String::from_utf8(out).ok().map(Cow::Owned)
}

// Each step gives the changed path, or nothing when it changes nothing.

fn merge_slashes(path: &str) -> Option<String> {
    path.contains("//").then(|| {
        let mut out = String::with_capacity(path.len());
        for char in path.chars() {
            if char != '/' || !out.ends_with('/') {
                out.push(char);
            }
        }
        out
    })
}

/// RFC 3986, section 5.2.4. `..` above the root stays at the root.
fn remove_dots(path: &str) -> Option<String> {
    let segments = || path.split('/').skip(1);
    if !segments().any(|segment| matches!(segment, "." | "..")) {
        return None;
    }
    let mut kept: Vec<&str> = Vec::new();
    let mut closed = false;
    for segment in segments() {
        closed = matches!(segment, "." | "..");
        match segment {
            "." => {}
            ".." => {
                kept.pop();
            }
            _ => kept.push(segment),
        }
    }
    // A last dot segment names a folder: "/a/." is "/a/".
    if closed {
        kept.push("");
    }
    let mut out = String::with_capacity(path.len());
    for segment in kept {
        out.push('/');
        out.push_str(segment);
    }
    Some(out)
}

fn strip_parameters(path: &str) -> Option<String> {
    path.contains(';').then(|| {
        let segments = path.split('/').map(|segment| segment.split(';').next().unwrap_or_default());
        segments.collect::<Vec<_>>().join("/")
    })
}

fn turn_backslashes(path: &str) -> Option<String> {
    path.contains('\\').then(|| path.replace('\\', "/"))
}

/// A question mark or a hash that was encoded may end the path for whoever decodes before splitting.
fn cut_query(path: &str) -> Option<String> {
    path.find(['?', '#']).map(|end| path[..end].to_string())
}

/// How strictly a template is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// As written: for what is to be allowed.
    Strict,
    /// A slash at the end more or less is the same: for what is to be refused.
    Wide,
}

/// A path template: literal segments, `{name}` or `*` for any one segment, a last `**` for any rest, also none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template {
    text: Box<str>,
    segments: Box<[Segment]>,
    /// Names in braces, and which segments they stand for.
    names: Box<[(usize, Box<str>)]>,
    ignore_case: bool,
    /// A last `**`.
    open: bool,
    /// Ends with a slash.
    slash: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Exactly(Box<str>),
    Any,
}

impl Template {
    /// Reads what an operator wrote; the error is a sentence about it.
    pub(super) fn parse(text: &str, ignore_case: bool) -> Result<Self, String> {
        let sentence = |what: &str| format!("\"{text}\": {what}");
        let wrong = |what: &str| Err(sentence(what));
        let Some(body) = text.strip_prefix('/') else {
            return wrong("a path template starts with a slash");
        };
        if text.len() > MAX_TEMPLATE {
            return Err(format!("a path template has at most {MAX_TEMPLATE} bytes"));
        }
        let (body, open) = match body {
            "**" => ("", true),
            _ => match body.strip_suffix("/**") {
                Some(closed) => (closed, true),
                None => (body, false),
            },
        };
        let (body, slash) = match body.strip_suffix('/') {
            Some(_) if open => return wrong("a path template has no empty segment"),
            Some(closed) => (closed, true),
            None => (body, body.is_empty() && !open),
        };
        let mut segments = Vec::new();
        let mut names: Vec<(usize, Box<str>)> = Vec::new();
        // "/" and "/**" have no segment; "//" has an empty one.
        let none = body.is_empty() && text != "//";
        for part in body.split('/').filter(|_| !none) {
            if let Some(name) = part.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
                check_name(name).map_err(sentence)?;
                if names.iter().any(|(_, known)| **known == *name) {
                    return wrong("a name in braces stands only once");
                }
                names.push((segments.len(), name.into()));
                segments.push(Segment::Any);
                continue;
            }
            match part {
                "*" => segments.push(Segment::Any),
                "**" => return wrong("** stands only at the end, for any rest"),
                "" => return wrong("a path template has no empty segment"),
                _ if part.contains(['*', '{', '}']) => {
                    return wrong("a star or a name in braces stands for a whole segment");
                }
                _ => segments.push(Segment::Exactly(literal(part).map_err(sentence)?)),
            }
        }
        let (segments, names) = (segments.into(), names.into());
        Ok(Self { text: text.into(), segments, names, ignore_case, open, slash })
    }

    /// Names in braces, and which segments they stand for.
    pub(super) fn names(&self) -> &[(usize, Box<str>)] {
        &self.names
    }

    pub(super) fn ignores_case(&self) -> bool {
        self.ignore_case
    }

    /// Does the template mean this reading?
    pub(super) fn matches(&self, path: &str, look: Look) -> bool {
        let Some(body) = path.strip_prefix('/') else { return false };
        let (body, slash) = match body.strip_suffix('/') {
            Some(closed) => (closed, true),
            None => (body, body.is_empty()),
        };
        // "/" has no segment; "//" has an empty one.
        let mut rest = (path.len() > 1).then_some(body);
        for segment in &self.segments {
            let Some(text) = rest else { return false };
            let (first, behind) = match text.split_once('/') {
                Some((first, behind)) => (first, Some(behind)),
                None => (text, None),
            };
            let holds = match segment {
                Segment::Any => !first.is_empty(),
                Segment::Exactly(literal) if self.ignore_case => is_same(literal, first, look),
                Segment::Exactly(literal) => **literal == *first,
            };
            if !holds {
                return false;
            }
            rest = behind;
        }
        self.open || (rest.is_none() && (look == Look::Wide || slash == self.slash))
    }

    /// The literal segments that a path must begin with, joined, and how many they are (at most `most`). The root alone is
    /// one empty segment. `None` when it begins with no certain one.
    pub(super) fn beginning(&self, most: usize) -> Option<(String, usize)> {
        if self.ignore_case {
            return None;
        }
        if self.segments.is_empty() && !self.open {
            return Some((String::new(), 1));
        }
        let literal = self.segments.iter().map_while(|segment| match segment {
            Segment::Exactly(literal) => Some(&**literal),
            Segment::Any => None,
        });
        let literal: Vec<&str> = literal.take(most).collect();
        (!literal.is_empty()).then(|| (literal.join("/"), literal.len()))
    }
}

/// Compares without case. Programs differ in what case is beyond ASCII: to refuse, any will do.
fn is_same(literal: &str, segment: &str, look: Look) -> bool {
    let lower = |text: &str, other: &str| {
        text.chars().flat_map(char::to_lowercase).eq(other.chars().flat_map(char::to_lowercase))
    };
    let upper = |text: &str, other: &str| {
        text.chars().flat_map(char::to_uppercase).eq(other.chars().flat_map(char::to_uppercase))
    };
    literal.eq_ignore_ascii_case(segment)
        || (look == Look::Wide && (lower(literal, segment) || upper(literal, segment)))
}

/// The text of a literal segment, decoded.
fn literal(part: &str) -> Result<Box<str>, &'static str> {
    if part.bytes().any(|b| b != b'%' && b != b'.' && is_structural(b)) {
        return Err("a path template has no ; \\ ? # and no control characters");
    }
    let Some(text) = decode(part, Escapes::All) else {
        return Err("a percent sign is followed by two hexadecimal digits, which make UTF-8");
    };
    if text.bytes().any(|b| b != b'.' && is_structural(b)) {
        return Err(
            "an encoded / \\ ; % ? # or control character reads differently everywhere; use {name} for that segment",
        );
    }
    if matches!(&*text, "." | "..") {
        return Err("a path template has no dot segments");
    }
    Ok(text.into())
}

impl std::fmt::Display for Template {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_mean_whole_segments() {
        use Look::{Strict, Wide};
        for (template, path, strict, wide) in [
            ("/", "/", true, true),
            ("/", "/a", false, false),
            ("/a", "/a", true, true),
            ("/a", "/a/", false, true),
            ("/a/", "/a", false, true),
            ("/a/", "/a/", true, true),
            ("/a", "/A", false, false),
            ("/a", "/ab", false, false),
            ("/a", "/", false, false),
            ("/invoices/{id}", "/invoices/7", true, true),
            ("/invoices/{id}", "/invoices/7/", false, true),
            ("/invoices/{id}", "/invoices/", false, false),
            ("/invoices/{id}", "/invoices", false, false),
            ("/invoices/{id}", "/invoices/7/lines", false, false),
            ("/invoices/*/lines", "/invoices/7/lines", true, true),
            ("/{x}", "/", false, false),
            ("/{x}", "//", false, false),
            ("/**", "/", true, true),
            ("/**", "/a/b", true, true),
            ("/**", "//", true, true),
            ("/docs/**", "/docs", true, true),
            ("/docs/**", "/docs/", true, true),
            ("/docs/**", "/docs/a/b", true, true),
            ("/docs/**", "/docsx", false, false),
            ("/docs/{a}/**", "/docs", false, false),
            ("/docs/{a}/**", "/docs/a", true, true),
            ("/a b", "/a b", true, true),
            ("/a%20b", "/a b", true, true),
            ("/.well-known/x", "/.well-known/x", true, true),
        ] {
            let parsed = Template::parse(template, false).unwrap();
            assert_eq!(parsed.matches(path, Strict), strict, "{template} {path}");
            assert_eq!(parsed.matches(path, Wide), wide, "{template} {path} wide");
            assert_eq!(parsed.to_string(), template);
        }
    }

    #[test]
    fn a_template_that_cannot_be_meant_is_refused_with_a_sentence() {
        for bad in [
            "",
            "a",
            "*",
            "//",
            "/a//b",
            "//a",
            "/a//",
            "/a//**",
            "/**/a",
            "/a/**/b",
            "/a*",
            "/*.json",
            "/{a}x",
            "/{}",
            "/{1a}",
            "/{a-b}",
            "/{a}/{a}",
            "/a;b",
            "/a?b",
            "/a#b",
            "/a\\b",
            "/./a",
            "/a/..",
            "/%2e%2e/a",
            "/a%2fb",
            "/a%5cb",
            "/a%00",
            "/%zz",
            "/%",
            "/%c0%af",
            "/a%25b",
            "/a\n",
        ] {
            let sentence = Template::parse(bad, false).unwrap_err();
            assert!(sentence.contains(' '), "{bad:?}: {sentence}");
        }
    }

    fn readings(path: &str) -> Vec<String> {
        match read(path) {
            Readings::One(path) => vec![path.to_string()],
            Readings::Several(paths) => paths.into_vec(),
            Readings::Unclear => Vec::new(),
        }
    }

    #[test]
    fn a_plain_path_has_one_reading() {
        for path in [
            "/",
            "/a",
            "/a/",
            "/a.b/c",
            "/.well-known/x",
            "/...",
            "/a/..b",
            "/ä",
            "/a+b:c@d!$&'()*,=",
        ] {
            assert_eq!(read(path), Readings::One(path), "{path}");
        }
        // Encoding what is harmless makes no second reading.
        assert_eq!(readings("/a%20b%C3%A4%41"), ["/a bäA"]);
    }

    #[test]
    fn every_plausible_reading_is_found() {
        for (path, reading) in [
            ("//admin", "/admin"),
            ("/./admin", "/admin"),
            ("/x/../admin", "/admin"),
            ("/x/..//admin", "/admin"),
            ("/a//../admin", "/admin"),
            ("/a//../admin", "/a/admin"),
            ("/../admin", "/admin"),
            ("/%2fadmin", "/admin"),
            ("/%5cadmin", "/admin"),
            ("/x/%2e%2e/admin", "/admin"),
            ("/x/.%2E/admin", "/admin"),
            ("/x/%252e%252e/admin", "/admin"),
            ("/x%2f..%2fadmin", "/admin"),
            ("/admin;x=1", "/admin"),
            ("/admin%3bx", "/admin"),
            ("/x/..;/admin", "/admin"),
            ("/x/..;a=b/admin", "/admin"),
            ("/x\\..\\admin", "/admin"),
            ("/%61dmin", "/admin"),
            ("/%2561dmin", "/admin"),
            ("/admin%3fx", "/admin"),
            ("/admin%23x", "/admin"),
            ("/admin/.", "/admin/"),
            ("/admin/x/..", "/admin/"),
        ] {
            let all = readings(path);
            assert!(all.iter().any(|found| found == reading), "{path}: {all:?}");
            assert!(all.len() > 1 || path == "/%61dmin", "{path}: {all:?}");
        }
    }

    #[test]
    fn what_is_not_properly_encoded_is_unclear() {
        for path in [
            "",
            "*",
            "admin",
            "/%",
            "/%2",
            "/%zz",
            "/%u002f",
            "/%c0%af",
            "/%e0%80%af",
            "/%ff",
            "/a%00b",
            "/a%0ab",
            "/a%2500b",
            "/a\u{7}b",
            "/%25252e",
            "/a%7f",
        ] {
            assert_eq!(read(path), Readings::Unclear, "{path:?}");
        }
        assert_eq!(read(&format!("/%41{}", "a".repeat(MAX_READ))), Readings::Unclear);
        assert!(matches!(read("/100%25"), Readings::Several(_)));
        // However it is built, the work has a bound.
        let nasty = format!("/{}", "a;b//..\\%2f%252e;?x/".repeat(90));
        let _ = read(&nasty);
    }
}
