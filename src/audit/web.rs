//! `Post`: requests to one URL over HTTP/1.1, on a connection that stays open.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri};
use http_body_util::Full;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use super::destination::Undelivered;
use super::remote::{Basis, Remote};
use super::settings::{HeaderSettings, OutputTls};
use crate::identity::Identity;
use crate::model::Redacted;
use crate::mtls::Alpn;
use crate::rt::{Conversation, Live, causes, whole};

/// Bytes of an answer that are read.
const MAX_ANSWER: usize = 256 << 10;
/// Characters of an answer that stand in an error.
const MAX_TOLD: usize = 200;

/// The headers of each request.
#[derive(Clone, Debug)]
pub(super) struct Headers(Vec<(HeaderName, HeaderFrom)>);

#[derive(Clone, Debug)]
enum HeaderFrom {
    Text(HeaderValue),
    File { path: PathBuf, prefix: String },
}

impl Headers {
    /// # Errors
    /// A name or a value cannot be in a header, or is ours to set.
    pub(super) fn new(settings: &BTreeMap<String, HeaderSettings>) -> Result<Self, String> {
        let ours = [
            HOST.as_str(),
            CONTENT_TYPE.as_str(),
            "content-length",
            "transfer-encoding",
            "connection",
        ];
        let one = |(name, value): (&String, &HeaderSettings)| {
            let parsed: HeaderName =
                name.parse().map_err(|error| format!("headers.{name}: {error}"))?;
            if ours.contains(&parsed.as_str()) {
                return Err(format!("headers.{name} is set by the output itself"));
            }
            let from = match value {
                HeaderSettings::Text(text) => HeaderFrom::Text(
                    secret(text).map_err(|error| format!("headers.{name}: {error}"))?,
                ),
                HeaderSettings::File(file) => {
                    HeaderFrom::File { path: file.file.clone(), prefix: file.prefix.clone() }
                }
            };
            Ok((parsed, from))
        };
        settings.iter().map(one).collect::<Result<_, _>>().map(Self)
    }

    /// As they are now.
    ///
    /// # Errors
    /// A file cannot be read, or holds what no header can.
    pub(super) async fn load(&self) -> Result<HeaderMap, String> {
        let mut headers = HeaderMap::new();
        for (name, from) in &self.0 {
            let value = match from {
                HeaderFrom::Text(value) => value.clone(),
                HeaderFrom::File { path, prefix } => {
                    let told = |why: &dyn std::fmt::Display| {
                        format!("headers.{name}: {}: {why}", path.display())
                    };
                    let text =
                        tokio::fs::read_to_string(path).await.map_err(|error| told(&error))?;
                    let text = Redacted::new(text);
                    let whole = Redacted::new(format!("{prefix}{}", text.reveal().trim()));
                    secret(&whole).map_err(|error| told(&error))?
                }
            };
            headers.append(name.clone(), value);
        }
        Ok(headers)
    }
}

fn secret(text: &Redacted<String>) -> Result<HeaderValue, http::header::InvalidHeaderValue> {
    let mut value = HeaderValue::from_str(text.reveal())?;
    value.set_sensitive(true);
    Ok(value)
}

/// Where a URL points.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) is_tls: bool,
    pub(super) host: String,
    pub(super) port: u16,
    /// As `Host` has it.
    pub(super) authority: String,
    pub(super) path: String,
}

impl Target {
    /// # Errors
    /// It is no URL of HTTP; the sentence begins with `field`.
    pub(super) fn parse(field: &str, url: &str, usual: [u16; 2]) -> Result<Self, String> {
        let wrong = || format!("{field}: {url:?} is no URL; expected https://host[:port]/path");
        let parsed: Uri = url.parse().map_err(|_| wrong())?;
        let is_tls = match parsed.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(wrong()),
        };
        let authority = parsed.authority().ok_or_else(wrong)?;
        if authority.as_str().contains('@') {
            return Err(format!("{field}: {url:?} has a user in it; put that into headers"));
        }
        let port = authority.port_u16().unwrap_or(usual[usize::from(is_tls)]);
        let path = parsed.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        Ok(Self {
            is_tls,
            host: authority.host().to_owned(),
            port,
            authority: authority.as_str().to_owned(),
            path: path.to_owned(),
        })
    }
}

/// Requests to one URL.
pub(super) struct Post {
    remote: Remote,
    target: Target,
    headers: Headers,
    content_type: &'static str,
    within: Duration,
    open: Option<(Conversation, Basis)>,
}

/// What was answered.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
    retry_after: Option<Duration>,
}

impl Post {
    /// # Errors
    /// See [`Remote::new`].
    pub(super) fn new(
        target: Target,
        headers: Headers,
        content_type: &'static str,
        within: Duration,
        tls: &OutputTls,
        identity: Option<&Live<Identity>>,
    ) -> Result<Self, String> {
        if !target.is_tls && *tls != OutputTls::default() {
            return Err("tls: the URL is http://".into());
        }
        let tls = target.is_tls.then_some(tls);
        let remote = Remote::new(&target.host, target.port, tls, identity)?;
        Ok(Self { remote, target, headers, content_type, within, open: None })
    }

    /// Sends one body. A connection that the other side has closed meanwhile is made anew.
    pub(super) async fn send(&mut self, body: Bytes) -> Result<Answer, Undelivered> {
        let headers = self.headers.load().await.map_err(Undelivered::Later)?;
        let kept = self
            .open
            .take()
            .filter(|(conversation, basis)| !conversation.is_over() && self.remote.holds(*basis));
        if let Some((conversation, basis)) = kept
            && let Ok(answer) = self.ask(conversation, basis, &headers, body.clone()).await
        {
            return Ok(answer);
        }
        // Here nothing was open yet, or it broke off: records may arrive twice, but not never.
        let (stream, basis) = self.remote.connect(Alpn::Http1).await.map_err(Undelivered::Later)?;
        let conversation = Conversation::over(stream).await;
        let conversation = conversation.map_err(|error| Undelivered::Later(causes(&error)))?;
        let answer = self.ask(conversation, basis, &headers, body).await;
        answer.map_err(|why| Undelivered::Later(format!("{}: {why}", self.target.authority)))
    }

    async fn ask(
        &mut self,
        mut conversation: Conversation,
        basis: Basis,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<Answer, String> {
        let mut request = Request::post(self.target.path.as_str())
            .header(HOST, self.target.authority.as_str())
            .header(CONTENT_TYPE, self.content_type)
            .header(USER_AGENT, concat!("wardgate/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(body))
            .map_err(|error| error.to_string())?;
        for (name, value) in headers {
            request.headers_mut().insert(name, value.clone());
        }
        let asking = async {
            let (head, body) =
                conversation.ask(request).await.map_err(|error| causes(&error))?.into_parts();
            let body = whole(body, MAX_ANSWER).await.map_err(|error| causes(&error))?;
            let retry_after = head
                .headers
                .get(RETRY_AFTER)
                .and_then(|value| retry_after(value.to_str().ok()?, OffsetDateTime::now_utc()));
            Ok::<_, String>(Answer { status: head.status, body, retry_after })
        };
        let within = self.within;
        let answer = tokio::time::timeout(within, asking).await;
        let answer = answer.map_err(|_| format!("no answer within {within:?}"))??;
        self.open = Some((conversation, basis));
        Ok(answer)
    }
}

/// Seconds, or a date (RFC 9110, section 10.2.3).
fn retry_after(text: &str, now: OffsetDateTime) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = OffsetDateTime::parse(&text.trim().replace("GMT", "+0000"), &Rfc2822).ok()?;
    Duration::try_from(date - now).ok()
}

/// What an answer means for the records of its request.
pub(super) enum Verdict {
    /// They are there.
    Taken,
    /// Not now.
    Later(Undelivered),
    /// One of them at least is not what the other side takes.
    Refused(String),
}

impl Answer {
    /// What it means. Refused are records alone for which the other side blames the content (400, 413, 422): an address, a path or
    /// a key that are wrong (401, 403, 404, ...) are no record's fault, and records wait until somebody has put that right.
    pub(super) fn verdict(&self) -> Verdict {
        let why = self.told();
        match self.status.as_u16() {
            200..=299 => Verdict::Taken,
            400 | 413 | 422 => Verdict::Refused(why),
            _ => Verdict::Later(match self.retry_after {
                Some(wait) => Undelivered::NotBefore { wait, why },
                None => Undelivered::Later(why),
            }),
        }
    }

    fn told(&self) -> String {
        let body = String::from_utf8_lossy(&self.body);
        let body: String = body.chars().filter(|c| !c.is_control()).take(MAX_TOLD).collect();
        match body.is_empty() {
            true => format!("answered {}", self.status),
            false => format!("answered {}: {body}", self.status),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = OffsetDateTime::from_unix_timestamp(1_445_412_470).unwrap();
        assert_eq!(retry_after("120", now), Some(Duration::from_secs(120)));
        let date = "Wed, 21 Oct 2015 07:28:00 GMT";
        assert_eq!(retry_after(date, now), Some(Duration::from_secs(10)));
        let later = now + Duration::from_secs(60);
        assert_eq!(retry_after(date, later), None, "that is over");
        assert_eq!(retry_after("soon", now), None);
    }

    #[test]
    fn targets_are_urls_of_http() {
        let parse = |url: &str| Target::parse("http.url", url, [80, 443]);
        let target = parse("https://siem.test/in?x=1").unwrap();
        assert_eq!((target.port, &*target.path, &*target.authority), (443, "/in?x=1", "siem.test"));
        let target = parse("http://[::1]:8080").unwrap();
        assert_eq!((target.port, &*target.path, &*target.host), (8080, "/", "[::1]"));
        for wrong in ["siem.test", "ftp://siem.test/", "https://u:p@siem.test/", "https:///x"] {
            assert!(parse(wrong).unwrap_err().starts_with("http.url: "), "{wrong}");
        }
    }

    #[test]
    fn a_key_that_is_wrong_refuses_no_record() {
        let answer = |status: u16| Answer {
            status: StatusCode::from_u16(status).unwrap(),
            body: Bytes::from_static(b"no\nway"),
            retry_after: None,
        };
        assert!(matches!(answer(202).verdict(), Verdict::Taken));
        for status in [301, 401, 403, 404, 408, 429, 500, 503] {
            assert!(matches!(answer(status).verdict(), Verdict::Later(_)), "{status}");
        }
        for status in [400, 413, 422] {
            let Verdict::Refused(why) = answer(status).verdict() else { panic!("{status}") };
            assert!(why.ends_with(": noway"), "{why}");
        }
    }
}
