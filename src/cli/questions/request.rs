//! A supposed request, as people type it.

use std::net::IpAddr;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::identity::SpiffeId;
use crate::policy::questions::Target;

/// What is known of a request beside its method and URL.
#[derive(Args, Debug)]
pub(super) struct FactArgs {
    /// A header field, as name:value; may be given several times
    #[arg(short = 'H', long = "header", value_name = "NAME:VALUE")]
    headers: Vec<String>,
    /// The listener's port; the URL's where this is left out
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// The connection's other end
    #[arg(long, value_name = "IP")]
    source: Option<IpAddr>,
    /// The caller that a trusted sender named
    #[arg(long, value_name = "IP")]
    remote: Option<IpAddr>,
    /// When, as 2026-11-21T10:00:00Z; now where this is left out
    #[arg(long, value_name = "RFC3339")]
    time: Option<String>,
    /// The claims of a token that a plugin has verified, as a JSON object
    #[arg(long, value_name = "JSON")]
    claims: Option<String>,
    /// The protocol that the connection is to be switched to, as websocket
    #[arg(long, value_name = "PROTOCOL")]
    upgrade: Option<String>,
    /// The connection's lot, 0 to 99, for rules in canary mode
    #[arg(long, value_name = "LOT", value_parser = clap::value_parser!(u8).range(0..100))]
    lot: Option<u8>,
}

impl FactArgs {
    /// The whole target: what is not said is absent, the time is now.
    pub(super) fn target(&self, method: &str, url: &str) -> anyhow::Result<Target> {
        let connection = method.eq_ignore_ascii_case("tcp");
        let (host, path, query, port) = taken_apart(url)?;
        let headers = self.headers.iter().map(|text| {
            let (name, value) = text.split_once(':').context("a header field is name:value")?;
            Ok((name.trim().to_owned(), value.trim().to_owned()))
        });
        let headers = headers.collect::<anyhow::Result<Vec<_>>>()?;
        let moment = match &self.time {
            None => OffsetDateTime::now_utc(),
            Some(text) => OffsetDateTime::parse(text, &Rfc3339)
                .with_context(|| format!("--time {text:?} is no time of RFC 3339"))?,
        };
        let claims = self.claims.as_ref().map(|text| {
            serde_json::from_str::<Map<String, Value>>(text).context("--claims is no JSON object")
        });
        let upgrade = self.upgrade.as_ref().map(|name| name.to_ascii_lowercase());
        let upgrade = upgrade.or_else(|| (method == "CONNECT").then(|| "connect".to_owned()));
        let http = !connection;
        Ok(Target {
            connection,
            method: http.then(|| method.to_owned()),
            host,
            path: http.then_some(path),
            query: http.then_some(query),
            port: self.port.or(port),
            headers: http.then_some(headers),
            upgrade: upgrade.filter(|_| http),
            claims: claims.transpose()?,
            source: self.source,
            remote: self.remote,
            unix_seconds: Some(moment.unix_timestamp()),
            lot: self.lot,
            ..Target::default()
        })
    }
}

type Url = (Option<String>, String, String, Option<u16>);

/// Host, path, query and port of a URL, or of a path alone.
fn taken_apart(url: &str) -> anyhow::Result<Url> {
    let (authority, rest, usual) = if let Some(rest) = url.strip_prefix("http://") {
        split_at_path(rest, Some(80))
    } else if let Some(rest) = url.strip_prefix("https://") {
        split_at_path(rest, Some(443))
    } else if url.starts_with('/') {
        (None, url, None)
    } else if url.contains("://") {
        bail!("{url:?}: http://HOST[:PORT]/PATH, https://.. or /PATH is expected")
    } else {
        split_at_path(url, None)
    };
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let path = if path.is_empty() { "/" } else { path };
    let port = authority.and_then(|authority| authority.rsplit_once(':')).map(|(_, port)| port);
    let port = match port {
        Some(port) => Some(port.parse().with_context(|| format!("{port:?} is no port"))?),
        None => usual,
    };
    let host = authority.map(str::to_owned);
    Ok((host, path.to_owned(), query.to_owned(), port))
}

fn split_at_path(text: &str, port: Option<u16>) -> (Option<&str>, &str, Option<u16>) {
    let end = text.find(['/', '?']).unwrap_or(text.len());
    (Some(&text[..end]), &text[end..], port)
}

/// `--as`: an identity, or nobody.
pub(super) fn caller(text: &str) -> anyhow::Result<Option<String>> {
    if text == "nobody" {
        return Ok(None);
    }
    let id: SpiffeId = text.parse().with_context(|| format!("{text:?} is no SPIFFE ID"))?;
    Ok(Some(id.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart_as_a_client_does() {
        for (url, host, path, query, port) in [
            ("http://billing/invoices/7?x=1", Some("billing"), "/invoices/7", "x=1", Some(80)),
            ("https://billing:8443", Some("billing:8443"), "/", "", Some(8443)),
            ("/a?b", None, "/a", "b", None),
            ("billing/a", Some("billing"), "/a", "", None),
        ] {
            let found = taken_apart(url).unwrap();
            let expected = (host.map(str::to_owned), path.to_owned(), query.to_owned(), port);
            assert_eq!(found, expected, "{url}");
        }
        assert!(taken_apart("ftp://a/b").is_err() && taken_apart("http://a:b/").is_err());
    }
}
