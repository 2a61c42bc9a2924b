//! What `gzip` and `brotli` have in common: which answers are compressed, and what their heads say then.

use schemars::JsonSchema;
use serde::Deserialize;

use super::body;
use crate::pipeline::{Exchange, Head, Invalid};
use crate::plugins::bounds;

/// `text/html`, or `*` for all.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum Types {
    /// These.
    Some(#[schemars(length(min = 1), inner(length(min = 1)))] Vec<String>),
    /// All of them.
    All(All),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
pub(super) enum All {
    #[serde(rename = "*")]
    Star,
}

impl Default for Types {
    fn default() -> Self {
        Self::Some(vec!["text/html".to_owned()])
    }
}

/// The least version of HTTP that a caller must speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    Http10,
    Http11,
}

impl Version {
    pub(super) fn of(value: f64) -> Result<Self, Invalid> {
        let is = |wanted: f64| (value - wanted).abs() < 1e-9;
        match (is(1.0), is(1.1)) {
            (true, _) => Ok(Self::Http10),
            (_, true) => Ok(Self::Http11),
            _ => Err(Invalid::new("http_version: 1.0 or 1.1 is expected")),
        }
    }
}

/// Which answers are compressed.
#[derive(Clone, Debug)]
pub(super) struct Selection {
    types: Option<Vec<String>>,
    min_length: u64,
    version: Version,
    vary: bool,
}

impl Selection {
    pub(super) fn new(
        types: Types,
        min_length: u64,
        http_version: f64,
        vary: bool,
    ) -> Result<Self, Invalid> {
        let version = Version::of(http_version)?;
        bounds::number("min_length", min_length, 1..=u64::MAX)?;
        let types = match types {
            Types::All(All::Star) => None,
            Types::Some(types) => {
                bounds::some("types", &types)?;
                for (at, name) in types.iter().enumerate() {
                    let is_type = name.split_once('/').is_some_and(|(kind, sort)| {
                        let token = |part: &str| {
                            !part.is_empty()
                                && part.bytes().all(|b| {
                                    b.is_ascii_alphanumeric() || b"!#$&^_.+-*".contains(&b)
                                })
                        };
                        token(kind) && token(sort)
                    });
                    if !is_type {
                        return Err(Invalid::new(format!(
                            "types[{at}]: a media type such as text/html is expected"
                        )));
                    }
                }
                Some(types)
            }
        };
        Ok(Self { types, min_length, version, vary })
    }

    /// Decides about the answer whose head is there, and changes the head of one that is to be compressed as `coding`.
    pub(super) fn takes(&self, exchange: &mut Exchange, coding: &str) -> bool {
        if !self.may_be(exchange) {
            return false;
        }
        // Whether it is compressed depends on what the caller takes: other caches must know.
        if self.vary {
            vary(&mut exchange.response);
        }
        let is_too_old = exchange.is_http10 && self.version == Version::Http11;
        if is_too_old || !accepts(&exchange.request, coding) {
            return false;
        }
        let response = &mut exchange.response;
        response.set("Content-Encoding", coding.as_bytes());
        for name in ["Content-Length", "Content-MD5", "Digest", "Content-Digest", "Accept-Ranges"] {
            response.remove(name);
        }
        // The same meaning in other bytes (RFC 9110 section 8.8.3).
        if let Some(tag) = response.text("etag").filter(|tag| !tag.starts_with("W/")) {
            let weak = format!("W/{tag}");
            response.set("ETag", weak.as_bytes());
        }
        true
    }

    fn may_be(&self, exchange: &Exchange) -> bool {
        let response = &exchange.response;
        let says = |name: &str, wanted: &str| {
            let mut values = response.all(name).flat_map(|line| line.split(|b| *b == b','));
            values.any(|value| value.trim_ascii().eq_ignore_ascii_case(wanted.as_bytes()))
        };
        let length = response.text("content-length").and_then(|text| text.parse::<u64>().ok());
        body::may_be_there(exchange)
            && !body::is_encoded(exchange)
            && response.status() != 206
            && response.value("content-range").is_none()
            && !says("cache-control", "no-transform")
            && length.is_none_or(|length| length >= self.min_length)
            && self.is_of_type(response)
            // What the caller answers to piece by piece must not wait in a window.
            && !is_stream(response)
    }

    fn is_of_type(&self, response: &Head) -> bool {
        let Some(types) = &self.types else { return true };
        let Some(own) = media_type(response) else { return false };
        types.iter().any(|one| match one.strip_suffix("/*") {
            Some(kind) => {
                own.split_once('/').is_some_and(|(own, _)| own.eq_ignore_ascii_case(kind))
            }
            None => own.eq_ignore_ascii_case(one),
        })
    }
}

fn media_type(response: &Head) -> Option<&str> {
    let value = response.text("content-type")?;
    Some(value.split(';').next().unwrap_or_default().trim())
}

fn is_stream(response: &Head) -> bool {
    media_type(response).is_some_and(|own| {
        own.eq_ignore_ascii_case("text/event-stream")
            || own.get(..16).is_some_and(|start| start.eq_ignore_ascii_case("application/grpc"))
    })
}

fn vary(response: &mut Head) {
    let is_named = response.all("vary").any(|line| {
        line.split(|b| *b == b',')
            .map(<[u8]>::trim_ascii)
            .any(|name| name == b"*" || name.eq_ignore_ascii_case(b"accept-encoding"))
    });
    if !is_named {
        response.append("Vary", b"Accept-Encoding");
    }
}

/// Does the caller take this coding (RFC 9110 section 12.5.3)? Of one that it names twice the first counts.
fn accepts(request: &Head, coding: &str) -> bool {
    let mut star = None;
    for line in request.all("accept-encoding") {
        let Ok(line) = std::str::from_utf8(line) else { return false };
        for member in line.split(',') {
            let mut parts = member.split(';');
            let name = parts.next().unwrap_or_default().trim();
            let weight = parts.find_map(|part| {
                let (name, value) = part.split_once('=')?;
                name.trim()
                    .eq_ignore_ascii_case("q")
                    .then(|| value.trim().parse::<f64>().unwrap_or(0.0))
            });
            let is_taken = weight.unwrap_or(1.0) > 0.0;
            let is_alias = coding == "gzip" && name.eq_ignore_ascii_case("x-gzip");
            if name.eq_ignore_ascii_case(coding) || is_alias {
                return is_taken;
            }
            if name == "*" && star.is_none() {
                star = Some(is_taken);
            }
        }
    }
    star.unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::tests::exchange;

    fn decided(accept: &str, fields: &[(&str, &str)], status: u16) -> (Exchange, bool) {
        let mut exchange = exchange("GET", "/", "h");
        exchange.request.append("Accept-Encoding", accept.as_bytes());
        exchange.response.set_status(status);
        for (name, value) in fields {
            exchange.response.append(name, value.as_bytes());
        }
        let types = Types::Some(vec!["text/html".into(), "application/*".into()]);
        let takes = Selection::new(types, 20, 1.1, true).unwrap().takes(&mut exchange, "gzip");
        (exchange, takes)
    }

    #[test]
    fn only_what_gains_and_may_be_changed_is_compressed() {
        let html = ("Content-Type", "Text/HTML; charset=utf-8");
        for (fields, status, expected) in [
            (vec![html], 200, true),
            (vec![html, ("Content-Length", "20")], 200, true),
            (vec![html, ("Content-Length", "19")], 200, false),
            (vec![("Content-Type", "application/json")], 404, true),
            (vec![("Content-Type", "text/plain")], 200, false),
            (vec![], 200, false),
            (vec![html, ("Content-Encoding", "br")], 200, false),
            (vec![html, ("Content-Encoding", "identity")], 200, true),
            (vec![html, ("Cache-Control", "max-age=1, No-Transform")], 200, false),
            (vec![html, ("Content-Range", "bytes 0-1/2")], 206, false),
            (vec![html], 204, false),
            (vec![html], 304, false),
            (vec![("Content-Type", "application/grpc+proto")], 200, false),
        ] {
            let (_, takes) = decided("gzip", &fields, status);
            assert_eq!(takes, expected, "{fields:?} {status}");
        }
    }

    #[test]
    fn callers_get_what_they_take() {
        for (accept, expected) in [
            ("gzip", true),
            ("br, GZIP;q=0.5", true),
            ("x-gzip", true),
            ("gzip;q=0", false),
            ("gzip; q=0.0, *", false),
            ("*", true),
            ("*;q=0", false),
            ("br", false),
            ("", false),
            ("gzip;q=x", false),
        ] {
            let (exchange, takes) =
                decided(accept, &[("Content-Type", "text/html"), ("ETag", "\"1\"")], 200);
            let response = &exchange.response;
            assert_eq!(takes, expected, "{accept}");
            assert_eq!(response.text("vary"), Some("Accept-Encoding"), "{accept}");
            let tag = if expected { "W/\"1\"" } else { "\"1\"" };
            assert_eq!(response.text("etag"), Some(tag), "{accept}");
        }
    }
}
