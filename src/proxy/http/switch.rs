//! Leaving HTTP behind on a connection or a stream: WebSocket by `Upgrade` (RFC 6455) and by extended CONNECT (RFC 8441), each
//! translated into the other where the upstream speaks another version, and CONNECT (RFC 9110 section 9.3.6).

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::forward::{Attempt, Failure};
use super::headers::Hop;
use super::origin::Origin;
use super::{BodyLength, Downstream};
use crate::pipeline::{Exchange, Fault, Head, Reply};
use crate::rt::crypto::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use crate::snapshot::CompiledRoute;
use crate::upstream::{Place, Protocol, Reuse, Security};

/// What the caller asks to switch to, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum Wish<'a> {
    /// `Upgrade` of HTTP/1.1; the field names the protocol.
    Upgrade,
    /// Extended CONNECT of HTTP/2, with its `:protocol`.
    Extended(&'a str),
    /// CONNECT.
    Connect,
}

/// What an exchange may turn into: its bytes go through unread from then on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum Switch {
    /// WebSocket.
    WebSocket,
    /// The caller's bytes to the route's upstream.
    Connect,
}

const WEBSOCKET: &str = "websocket";
const KEY: &str = "sec-websocket-key";
const ACCEPT: &str = "sec-websocket-accept";

/// What the caller may switch to on `route`; `Err` is the refusal. A wish that the caller can do without is passed over.
///
/// Any other protocol, h2c above all, would carry requests past routes and policy.
pub(super) fn granted<D: Downstream>(
    caller: &D,
    route: Option<&CompiledRoute>,
    hop: &Hop,
) -> Result<Option<Switch>, Box<Reply>> {
    let refusal = |status, sentence| {
        let body = serde_json::json!({ "error_msg": sentence });
        Err(Box::new(Reply::json(status, &body)))
    };
    let is_websocket = |name: &[u8]| name.eq_ignore_ascii_case(b"websocket");
    let websocket = route.is_some_and(|route| route.websocket);
    match caller.wish() {
        None => Ok(None),
        Some(Wish::Upgrade) => {
            // A body leaves no place for a switch.
            let may = websocket && caller.request_body() == BodyLength::None;
            let asks = hop.upgrade.as_deref().is_some_and(is_websocket);
            Ok((may && asks).then_some(Switch::WebSocket))
        }
        // Where there is no route, that is the answer.
        Some(Wish::Extended(_)) if route.is_none() => Ok(None),
        Some(Wish::Extended(name)) if websocket && is_websocket(name.as_bytes()) => {
            Ok(Some(Switch::WebSocket))
        }
        Some(Wish::Extended(name)) if is_websocket(name.as_bytes()) => {
            refusal(501, "the route carries no WebSocket")
        }
        Some(Wish::Extended(_)) => refusal(501, "the one known protocol is websocket"),
        Some(Wish::Connect) if route.is_some_and(|route| route.connect) => {
            Ok(Some(Switch::Connect))
        }
        Some(Wish::Connect) => refusal(405, "CONNECT is not served here"),
    }
}

/// The protocol that the request is about to be switched to, as policy asks for it. A wish that is passed over is none.
pub(super) fn wanted<D: Downstream>(
    caller: &D,
    granted: &Result<Option<Switch>, Box<Reply>>,
) -> Option<Cow<'static, str>> {
    match (caller.wish()?, granted) {
        (_, Ok(Some(Switch::WebSocket))) => Some(WEBSOCKET.into()),
        (Wish::Connect, _) => Some("connect".into()),
        (Wish::Extended(name), _) if name.eq_ignore_ascii_case(WEBSOCKET) => Some(WEBSOCKET.into()),
        (Wish::Extended(name), _) => Some(name.to_ascii_lowercase().into()),
        (Wish::Upgrade, _) => None,
    }
}

/// Completes the request's head for `switch`: a handshake of HTTP/1.1 has a key, one of HTTP/2 has none.
pub(super) fn prepare<D: Downstream>(switch: Switch, caller: &D, request: &mut Head) {
    if switch == Switch::WebSocket && caller.is_http2() {
        let mut key = [0; 16];
        fastrand::fill(&mut key);
        request.set(KEY, STANDARD.encode(key).as_bytes());
    }
}

/// What a server that knows WebSocket makes of the key (RFC 6455 section 4.2.2).
fn accept(key: &[u8]) -> String {
    let magic = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, &[key, magic].concat()))
}

/// The upstream has switched: its answer's head becomes the caller's version's.
pub(super) fn translate<D: Downstream>(
    caller: &D,
    origin: &Origin,
    exchange: &mut Exchange,
) -> Result<(), Fault> {
    match (caller.is_http2(), matches!(origin, Origin::Http2(_))) {
        (true, false) => {
            let key = exchange.request.value(KEY).unwrap_or_default();
            let expected = accept(key);
            if exchange.response.value(ACCEPT) != Some(expected.as_bytes()) {
                let cause = "the key of the handshake was not answered";
                let sentence = "the upstream gave no valid answer";
                return Err(Fault::upstream(502, sentence, cause, false));
            }
            exchange.response.remove(ACCEPT);
            exchange.response.remove("upgrade");
            exchange.response.set_status(200);
        }
        (false, true) => {
            let key = exchange.request.value(KEY).ok_or_else(|| {
                Fault::client(400, "a WebSocket handshake needs a Sec-WebSocket-Key")
            })?;
            let accept = accept(key);
            exchange.response.set(ACCEPT, accept.as_bytes());
            exchange.response.set_status(101);
        }
        (true, true) | (false, false) => {}
    }
    Ok(())
}

/// An answer without a switch, where a success would be taken for one.
pub(super) fn refused<D: Downstream>(caller: &D, exchange: &Exchange) -> Result<(), Fault> {
    if caller.is_http2() && (200..300).contains(&exchange.response.status()) {
        let cause = "the upstream answers and does not switch";
        return Err(Fault::upstream(502, "the upstream gave no valid answer", cause, false));
    }
    Ok(())
}

impl Attempt<'_> {
    /// A connection to the endpoint, or a stream of one, that can switch.
    pub(super) async fn obtain_for(
        &self,
        switch: Switch,
        http2: bool,
        may_reuse: bool,
        host: &str,
        place: Place,
    ) -> Result<(Origin, Reuse, bool), Failure> {
        let is_mesh = matches!(self.endpoint.security, Security::Mesh(_));
        match switch {
            // The next sidecar is asked in turn, and decides.
            Switch::Connect if is_mesh => self.obtain(false, may_reuse, host, place).await,
            Switch::Connect => {
                let (stream, reuse) = self.connect_counted(host, Protocol::Http1, place).await?;
                let mut origin = self.over(stream);
                origin.switch_at_once();
                Ok((origin, reuse, false))
            }
            Switch::WebSocket if !http2 => self.obtain(false, may_reuse, host, place).await,
            Switch::WebSocket => {
                // What a connection's peer offers is known when its settings have come; a new one waits for them.
                for may_reuse in [may_reuse, false] {
                    let obtained = self.obtain_http2(may_reuse, true, host, place).await?;
                    if obtained.0.offers_extended_connect() {
                        return Ok(obtained);
                    }
                    if !obtained.2 {
                        break;
                    }
                }
                if is_mesh {
                    return self.obtain(false, may_reuse, host, place).await;
                }
                let cause = "the upstream does not offer extended CONNECT (RFC 8441)";
                let sentence = "the upstream takes no WebSocket";
                Err(Failure::Fault(Fault::upstream(502, sentence, cause, false)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_answered_as_the_example_of_rfc_6455_has_it() {
        assert_eq!(accept(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
