//! The upstream's side of one exchange over HTTP/1.1.

use std::task::{Context, Poll, ready};

use super::connection::{Http1, Incoming, Outgoing};
use super::head::{Framing, HeadLimits, ResponseFacts, read_response_within};
use super::write::{self, RequestLine};
use crate::pipeline::Head;
use crate::proxy::http::origin::{Answer, MAX_INTERIM, early_end};
use crate::proxy::http::{BodyLength, Broken};

/// The upstream's side of one exchange over HTTP/1.1.
pub(in crate::proxy) struct UpstreamHttp1 {
    pub(in crate::proxy) http: Http1,
    limits: HeadLimits,
    facts: Option<ResponseFacts>,
    scanned: usize,
    interim: u8,
    asked_to_switch: bool,
}

impl UpstreamHttp1 {
    pub(in crate::proxy) fn new(http: Http1, limits: HeadLimits) -> Self {
        Self { http, limits, facts: None, scanned: 0, interim: 0, asked_to_switch: false }
    }

    pub(in crate::proxy) fn send(&mut self, line: &RequestLine<'_>, head: &Head) {
        (self.http.received, self.http.sent) = (0, 0);
        self.asked_to_switch = line.upgrade.is_some();
        write::request(self.http.output(), line, head);
        self.http.announce(line.body, true, false);
    }

    pub(in crate::proxy) fn has_answered(&self) -> bool {
        self.http.received > 0
    }

    pub(in crate::proxy) fn poll_head(
        &mut self,
        context: &mut Context<'_>,
        method: &str,
        head: &mut Head,
    ) -> Poll<Result<Answer, Broken>> {
        loop {
            if !self.http.input.is_empty() {
                let input = self.http.input.data();
                let read = read_response_within(input, self.scanned, method, &self.limits, head);
                match read.map_err(|refused| Broken::Protocol(refused.sentence.to_owned()))? {
                    Some(facts) => return Poll::Ready(self.answer(facts, head)),
                    None => self.scanned = self.http.input.data().len(),
                }
            }
            if ready!(self.http.poll_fill(context))? == 0 {
                return Poll::Ready(Err(early_end()));
            }
        }
    }

    fn answer(&mut self, facts: ResponseFacts, head: &Head) -> Result<Answer, Broken> {
        self.http.input.consume(facts.length);
        self.scanned = 0;
        if head.status() == 101 {
            if !facts.upgrade || !self.asked_to_switch {
                return Err(Broken::Protocol("101 that nobody asked for".to_owned()));
            }
            self.facts = Some(facts);
            return Ok(Answer::Switched);
        }
        if head.status() < 200 {
            self.interim += 1;
            if self.interim > MAX_INTERIM {
                return Err(Broken::Protocol("too many interim responses".to_owned()));
            }
            return Ok(Answer::Interim);
        }
        self.http.incoming = Incoming::from(facts.framing);
        self.facts = Some(facts);
        Ok(Answer::Final(match facts.framing {
            Framing::None => BodyLength::None,
            Framing::Length(length) => BodyLength::Known(length),
            Framing::Chunked | Framing::UntilClose => BodyLength::Unknown,
        }))
    }

    /// May the connection serve another exchange? The body that came and the body that went must both be over.
    pub(in crate::proxy) fn is_reusable(&self) -> bool {
        self.facts.is_some_and(|facts| facts.keep_alive)
            && self.http.is_body_taken()
            && self.http.outgoing == Outgoing::Done
    }
}
