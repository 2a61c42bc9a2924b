//! The upstream's side of one exchange over HTTP/1.1.

use std::io;
use std::task::{Context, Poll, ready};

use bytes::Bytes;

use super::chunk::{Chunks, Step};
use super::connection::{Http1, Incoming, Outgoing};
use super::head::{Framing, ResponseFacts, read_response};
use super::write::{self, RequestLine};
use crate::pipeline::Head;
use crate::proxy::http::origin::{Answer, MAX_INTERIM, early_end};
use crate::proxy::http::switch::Switch;
use crate::proxy::http::{BodyLength, Broken};

/// The upstream's side of one exchange over HTTP/1.1.
pub(in crate::proxy) struct UpstreamHttp1 {
    pub(in crate::proxy) http: Http1,
    facts: Option<ResponseFacts>,
    scanned: usize,
    interim: u8,
    switch: Option<Switch>,
    /// It carries no HTTP.
    at_once: bool,
    head_length: usize,
    is_chunked: bool,
}

impl UpstreamHttp1 {
    pub(in crate::proxy) fn new(http: Http1) -> Self {
        Self {
            http,
            facts: None,
            scanned: 0,
            interim: 0,
            switch: None,
            at_once: false,
            head_length: 0,
            is_chunked: false,
        }
    }

    pub(in crate::proxy) fn send(&mut self, line: &RequestLine<'_>, head: &Head) {
        (self.http.received, self.http.sent, self.http.writes) = (0, 0, 0);
        self.switch = line.switch;
        if self.at_once {
            return;
        }
        let output = self.http.output();
        output.keep();
        let body = write::request(output, line, head);
        self.head_length = output.data().len();
        self.is_chunked = body == BodyLength::Unknown;
        self.http.announce(body, true, false);
    }

    pub(in crate::proxy) fn switch_at_once(&mut self) {
        self.at_once = true;
    }

    /// What was taken of the body, where all of it is still there: in the output buffer, framed as it went out.
    pub(in crate::proxy) fn hand_back(&mut self) -> Option<Bytes> {
        let body = self.http.output().kept()?.get(self.head_length..)?;
        if !self.is_chunked {
            return Some(Bytes::copy_from_slice(body));
        }
        let (mut chunks, mut at, mut data) = (Chunks::default(), 0, Vec::new());
        loop {
            match chunks.step(&body[at..]).ok()? {
                Step::Skip(count) => at += count,
                Step::Data(count) => {
                    data.extend_from_slice(&body[at..at + count]);
                    at += count;
                    chunks.took(count);
                }
                Step::More | Step::End(_) => return Some(data.into()),
            }
        }
    }

    /// Can the upstream not have acted on the request, which ended with `cause`?
    pub(in crate::proxy) fn is_untouched(&self, cause: &io::Error) -> bool {
        !self.has_answered() && self.http.is_untouched(cause, self.head_length)
    }

    pub(in crate::proxy) fn has_answered(&self) -> bool {
        self.http.received > 0 || !self.http.input.is_empty()
    }

    pub(in crate::proxy) fn poll_head(
        &mut self,
        context: &mut Context<'_>,
        method: &str,
        head: &mut Head,
    ) -> Poll<Result<Answer, Broken>> {
        if self.at_once {
            head.clear();
            head.set_status(200);
            self.http.open_tunnel();
            return Poll::Ready(Ok(Answer::Switched));
        }
        let method = if self.switch == Some(Switch::Connect) { "CONNECT" } else { method };
        loop {
            if !self.http.input.is_empty() {
                let read = read_response(self.http.input.data(), self.scanned, method, head);
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
        self.http.take(facts.length);
        self.scanned = 0;
        if head.status() == 101 {
            if !facts.upgrade || self.switch != Some(Switch::WebSocket) {
                return Err(Broken::Protocol("101 that nobody asked for".to_owned()));
            }
            self.http.open_tunnel();
            return Ok(Answer::Switched);
        }
        if head.status() < 200 {
            self.interim += 1;
            if self.interim > MAX_INTERIM {
                return Err(Broken::Protocol("too many interim responses".to_owned()));
            }
            return Ok(Answer::Interim);
        }
        if self.switch == Some(Switch::Connect) && head.status() < 300 {
            self.http.open_tunnel();
            return Ok(Answer::Switched);
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
