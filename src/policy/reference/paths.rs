//! Paths in the reference: all readings, and what templates mean of them.

use std::collections::BTreeSet;

use super::{Binding, Match, same};
use Match::{No, Unclear, Yes};

/// `strictly`: what the names stand for is compared as to allow, or to exempt from a refusal.
pub(super) fn path_match(
    list: &[String],
    path: &str,
    binding: &Binding,
    fold: bool,
    strictly: bool,
) -> Match {
    let Some(readings) = readings(path) else { return Unclear };
    let trimmed = |text: &str| text.strip_suffix('/').unwrap_or(text).to_string();
    let exactly = |path: &String| {
        list.iter().any(|template| means(template, path, binding, fold, true, strictly))
    };
    let widely = |path: &String| {
        list.iter().any(|template| {
            let (short, path_short) = (trimmed(template), trimmed(path));
            means(template, path, binding, fold, false, strictly)
                || (template != "/"
                    && path != "/"
                    && path != "//"
                    && means(&short, &path_short, binding, fold, false, strictly))
        })
    };
    match () {
        () if readings.iter().all(exactly) => Yes,
        () if !readings.iter().any(widely) => No,
        () => Unclear,
    }
}

fn means(
    template: &str,
    path: &str,
    binding: &Binding,
    fold: bool,
    literally: bool,
    strictly: bool,
) -> bool {
    let is_segment = |wanted: &str, found: &str| {
        if let Some(name) = wanted.strip_prefix('{') {
            let known = binding.get(name.trim_end_matches('}'));
            return !found.is_empty()
                && known.is_none_or(|known| same(known, &(found.to_string(), fold), strictly));
        }
        let (lower, upper) = (str::to_lowercase, str::to_uppercase);
        match (fold, literally) {
            _ if wanted == "*" => !found.is_empty(),
            (false, _) => wanted == found,
            (true, true) => wanted.eq_ignore_ascii_case(found),
            (true, false) => lower(wanted) == lower(found) || upper(wanted) == upper(found),
        }
    };
    // "/a/" and "/a/**" differ from "/a" by their last, empty or missing, segment.
    let template: Vec<&str> = template.split('/').skip(1).collect();
    let path: Vec<&str> = path.split('/').skip(1).collect();
    if template.is_empty() || path.is_empty() {
        return template == path;
    }
    let open = template.last() == Some(&"**");
    let closed = &template[..template.len() - usize::from(open)];
    (if open { path.len() >= closed.len() } else { path.len() == closed.len() })
        && closed.iter().zip(&path).all(|(wanted, found)| match (*wanted, *found) {
            ("", found) => found.is_empty(),
            (wanted, found) => is_segment(wanted, found),
        })
}

/// All readings; `None` when the path is unclear.
fn readings(path: &str) -> Option<BTreeSet<String>> {
    if !path.starts_with('/') || path.contains(|c: char| c.is_ascii_control()) {
        return None;
    }
    unescape(path, |_| true, false)?;
    let start = unescape(path, |byte| !b"/\\.;%?#".contains(&byte), false)?;
    let mut all = BTreeSet::from([(start, 0)]);
    loop {
        let mut more = all.clone();
        for (text, depth) in &all {
            for changed in [
                merge(text),
                resolve(text),
                text.split('/').map(|s| s.split(';').next().unwrap()).collect::<Vec<_>>().join("/"),
                text.replace('\\', "/"),
                text.split(['?', '#']).next().unwrap().to_string(),
            ] {
                more.insert((changed, *depth));
            }
            let deeper = unescape(text, |_| true, true)?;
            if deeper != *text {
                if *depth == 2 {
                    return None;
                }
                more.insert((deeper, depth + 1));
            }
        }
        // The bound is part of the language: what can be read in more ways is unclear.
        if more.len() > 32 {
            return None;
        }
        if more == all {
            break;
        }
        all = more;
    }
    Some(all.into_iter().map(|(text, _)| text).collect())
}

fn merge(path: &str) -> String {
    let mut merged = path.to_string();
    while merged.contains("//") {
        merged = merged.replace("//", "/");
    }
    merged
}

fn resolve(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    for (at, segment) in segments.iter().enumerate() {
        let last = at + 1 == segments.len();
        match *segment {
            "." | ".." => {
                if *segment == ".." {
                    kept.pop();
                }
                if last {
                    kept.push("");
                }
            }
            other => kept.push(other),
        }
    }
    format!("/{}", kept.join("/"))
}

pub(super) fn unescape(text: &str, which: impl Fn(u8) -> bool, lenient: bool) -> Option<String> {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, behind @ ..] = rest {
        let escaped = behind
            .get(..2)
            .filter(|_| *first == b'%')
            .and_then(|pair| std::str::from_utf8(pair).ok())
            .filter(|pair| pair.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|pair| u8::from_str_radix(pair, 16).ok());
        match escaped {
            Some(byte) if which(byte) => {
                out.push(byte);
                rest = &behind[2..];
            }
            Some(_) => {
                out.extend_from_slice(&rest[..3]);
                rest = &behind[2..];
            }
            None if *first == b'%' && !lenient => return None,
            None => {
                out.push(*first);
                rest = behind;
            }
        }
    }
    String::from_utf8(out).ok().filter(|text| !text.contains(|c: char| c.is_ascii_control()))
}
