//! OCSP stapling: fetches what a certificate's issuer says of it, and has it shown in handshakes. No handshake waits for it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{Request, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::federation::is_private;
use crate::mtls::{
    MAX_OCSP_ANSWER_BYTES, OcspAnswer, OcspError, OcspQuestion, PublicCertificate, Sites,
};
use crate::observe::{Counter, MetricKind, Registry};
use crate::rt::{Backoff, Clock, Live, causes, spawn};

/// How answers are fetched.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stapling {
    /// Responders at private addresses are asked as well.
    pub private_addresses: bool,
}

/// One exchange with a responder, from the name to the last byte.
const WITHIN: Duration = Duration::from_secs(10);
/// Responders that are asked at one time.
const AT_ONCE: usize = 4;
/// How often is looked at what is due: by the wall clock, which may be set and may have slept.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long changes are gathered.
const GATHER: Duration = Duration::from_millis(50);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{url:?} is no URL of a responder")]
    Url { url: String },
    #[error("{host} cannot be resolved")]
    Resolve { host: String, source: std::io::Error },
    #[error("{host} is no public address; ingress.ocsp_private_addresses allows it")]
    Private { host: String },
    #[error("{address} cannot be reached")]
    Connect { address: SocketAddr, source: std::io::Error },
    #[error("the exchange with {host} failed")]
    Exchange { host: String, source: hyper::Error },
    #[error("{host} answered with status {status}")]
    Status { host: String, status: u16 },
    #[error("the answer of {host} broke off or is longer than {MAX_OCSP_ANSWER_BYTES} bytes")]
    Body { host: String },
    #[error("no answer within {WITHIN:?}")]
    Late,
    #[error(transparent)]
    Answer(#[from] OcspError),
}

/// What is known of one certificate.
struct Due {
    /// One certificate, of all resources that have it; never none.
    certificates: Vec<Arc<PublicCertificate>>,
    question: Arc<OcspQuestion>,
    /// When to ask next, seconds since 1970.
    at: i64,
    backoff: Backoff,
    said: Option<String>,
}

/// Keeps answers stapled to these certificates, for ever.
pub(super) async fn run(
    settings: Stapling,
    mut sites: Live<Sites>,
    registry: Registry,
    clock: Clock,
) {
    registry.describe(
        "wardgate_ocsp_fetches_total",
        MetricKind::Counter,
        "OCSP answers asked for, by outcome.",
    );
    let counter =
        |outcome| registry.counter("wardgate_ocsp_fetches_total", &[("outcome", outcome)]);
    let (good, bad) = (counter("good"), counter("failed"));
    let mut known: HashMap<String, Due> = HashMap::new();
    let mut seen: Option<Arc<Sites>> = None;
    loop {
        let now = clock.now();
        let current = sites.load();
        if seen.as_ref().is_none_or(|seen| !Arc::ptr_eq(seen, &current)) {
            follow(&mut known, &current, now);
            seen = Some(current);
        }
        for due in known.values_mut() {
            if due.certificate().stapled().is_some_and(|answer| answer.next_update <= now) {
                tracing::warn!(
                    names = due.certificate().names().join(" "),
                    "the stapled OCSP answer is over; none is shown"
                );
                due.staple(None);
            }
        }
        let asked: Vec<&mut Due> = known.values_mut().filter(|due| due.at <= now).collect();
        stream::iter(asked)
            .for_each_concurrent(AT_ONCE, |due| due.ask(settings, &clock, &good, &bad))
            .await;
        let changed = async {
            if !sites.changed().await {
                std::future::pending::<()>().await;
            }
            // Of thousands of certificates that change one after the other not each is worth a look at all.
            tokio::time::sleep(GATHER).await;
        };
        tokio::select! {
            () = changed => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

/// What is known follows what is served.
fn follow(known: &mut HashMap<String, Due>, sites: &Sites, now: i64) {
    let mut served: HashMap<&str, Vec<&Arc<PublicCertificate>>> = HashMap::new();
    for certificate in sites.certificates() {
        served.entry(certificate.sha256()).or_default().push(certificate);
    }
    known.retain(|sha256, _| served.contains_key(sha256.as_str()));
    for (sha256, all) in served {
        match known.get_mut(sha256) {
            None => {
                let due = Due::new(all.into_iter().cloned().collect(), now);
                known.extend(due.map(|due| (sha256.to_owned(), due)));
            }
            // The same certificate, from a resource that was written anew or from another one.
            Some(due) => {
                let stapled = due.certificate().stapled();
                due.certificates = all.into_iter().cloned().collect();
                due.staple(stapled.as_ref());
            }
        }
    }
}

impl Due {
    fn certificate(&self) -> &PublicCertificate {
        &self.certificates[0]
    }

    fn staple(&self, answer: Option<&Arc<OcspAnswer>>) {
        for certificate in &self.certificates {
            if certificate.stapled().as_ref() != answer {
                certificate.staple(answer.cloned());
            }
        }
    }

    fn new(certificates: Vec<Arc<PublicCertificate>>, now: i64) -> Option<Self> {
        let certificate = certificates.first()?;
        let question = certificate.ocsp_question();
        if question.is_none() && certificate.must_staple() {
            tracing::warn!(
                names = certificate.names().join(" "),
                "the certificate demands a stapled OCSP answer and names no responder, or its chain lacks the issuer"
            );
        }
        let question = Arc::new(question?);
        Some(Self {
            certificates,
            question,
            at: now,
            backoff: Backoff::new(Duration::from_secs(2), Duration::from_secs(3600)),
            said: None,
        })
    }

    async fn ask(&mut self, settings: Stapling, clock: &Clock, good: &Counter, bad: &Counter) {
        let mut last = None;
        for url in &self.question.responders {
            let fetched =
                tokio::time::timeout(WITHIN, fetch(url, self.question.request(), settings)).await;
            let judged = fetched
                .unwrap_or(Err(Error::Late))
                .and_then(|der| Ok(self.question.answered(der, clock.now())?));
            match judged {
                Ok(answer) => {
                    good.increment();
                    self.at = refresh_at(&answer, clock.now(), fastrand::f64());
                    self.backoff.reset();
                    self.said = None;
                    self.staple(Some(&Arc::new(answer)));
                    return;
                }
                Err(error) => last = Some(error),
            }
        }
        bad.increment();
        let pause = i64::try_from(self.backoff.next().as_secs()).unwrap_or(3600).max(1);
        self.at = clock.now() + pause;
        let Some(error) = last else { return };
        // What was good before stays until its end; but not against the issuer's word.
        if matches!(error, Error::Answer(OcspError::Revoked)) {
            self.staple(None);
        }
        let text = causes(&error);
        if self.said.as_ref() != Some(&text) {
            tracing::warn!(
                names = self.certificate().names().join(" "),
                must_staple = self.certificate().must_staple(),
                "no new OCSP answer: {text}"
            );
            self.said = Some(text);
        }
    }
}

/// At half of the answer's time, up to a tenth of it earlier; what is half over is asked for again soon.
fn refresh_at(answer: &OcspAnswer, now: i64, spread: f64) -> i64 {
    let whole = answer.next_update - answer.this_update;
    #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "seconds")]
    let earlier = (whole as f64 * spread.clamp(0.0, 1.0) / 10.0) as i64;
    let half = answer.this_update + whole / 2 - earlier;
    let soon = now + (answer.next_update - now).clamp(2, 60) / 2;
    half.max(soon)
}

/// Asks one responder. Redirections are not followed.
async fn fetch(url: &str, request: &[u8], settings: Stapling) -> Result<Vec<u8>, Error> {
    let wrong = || Error::Url { url: url.to_owned() };
    let uri: Uri = url.parse().map_err(|_| wrong())?;
    let host = uri.host().ok_or_else(wrong)?.to_owned();
    let port = uri.port_u16().unwrap_or(80);
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let resolved = tokio::net::lookup_host((name, port)).await;
    let resolved: Vec<SocketAddr> = resolved
        .map_err(|source| Error::Resolve { host: host.clone(), source })?
        .filter(|address| settings.private_addresses || !is_private(address.ip()))
        .collect();
    // A certificate's text must not send us into inner networks; what is connected to is what was judged.
    let address = *resolved.first().ok_or_else(|| Error::Private { host: host.clone() })?;
    let tcp =
        TcpStream::connect(address).await.map_err(|source| Error::Connect { address, source })?;
    let failed = |source| Error::Exchange { host: host.clone(), source };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await.map_err(failed)?;
    let driver = Aborted(spawn(async move { drop(connection.await) }));
    let target = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let authority = uri.authority().ok_or_else(wrong)?.as_str();
    let request = Request::post(target)
        .header("host", authority)
        .header("content-type", "application/ocsp-request")
        .header("accept", "application/ocsp-response")
        .header("connection", "close")
        .body(Full::new(Bytes::copy_from_slice(request)))
        .map_err(|_| wrong())?;
    let response = sender.send_request(request).await.map_err(failed)?;
    let status = response.status().as_u16();
    if status != 200 {
        return Err(Error::Status { host, status });
    }
    let body = Limited::new(response.into_body(), MAX_OCSP_ANSWER_BYTES).collect().await;
    drop(driver);
    Ok(body.map_err(|_| Error::Body { host })?.to_bytes().to_vec())
}

/// Ends a task with its owner.
struct Aborted(tokio::task::JoinHandle<()>);

impl Drop for Aborted {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_renewed_at_half_of_their_time() {
        let answer = OcspAnswer { der: Vec::new(), this_update: 0, next_update: 1000 };
        assert_eq!(refresh_at(&answer, 0, 0.0), 500);
        assert_eq!(refresh_at(&answer, 0, 1.0), 400);
        assert_eq!(refresh_at(&answer, 600, 0.0), 630, "half over already");
        assert_eq!(refresh_at(&answer, 996, 0.0), 998);
    }

    #[tokio::test]
    async fn responders_at_private_addresses_are_not_asked_unless_allowed() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"] {
            let url = format!("http://{host}:{port}/");
            let refused = fetch(&url, b"?", Stapling::default()).await;
            assert!(matches!(refused, Err(Error::Private { .. })), "{url}: {refused:?}");
        }
        let nobody = tokio::time::timeout(Duration::from_millis(50), listener.accept()).await;
        assert!(nobody.is_err(), "somebody came");
    }
}
