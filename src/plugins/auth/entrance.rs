//! `Entrance`: what the plugins that find consumers share: who is let in, as whom, and how a refusal reads.

use std::borrow::Cow;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use subtle::ConstantTimeEq;

use crate::pipeline::{
    Consumer, Directory, Exchange, Fault, Flow, Head, Invalid, Reply, argument, without_argument,
};
use crate::rt::crypto::digest::{SHA256, digest};

/// Lets callers in as a consumer, or refuses them with a challenge.
pub(super) struct Entrance {
    challenge: String,
    anonymous: Option<String>,
}

impl Entrance {
    /// Challenges with `scheme` and `realm`; callers that nobody knows count as the consumer `anonymous`, where there is one.
    pub(super) fn new(
        scheme: &str,
        realm: &str,
        anonymous: Option<String>,
    ) -> Result<Self, Invalid> {
        let unfit = |c: char| matches!(c, '"' | '\\') || c.is_control();
        if !(1..=128).contains(&realm.len()) || realm.contains(unfit) {
            return Err(Invalid::new(
                "realm: 1 to 128 bytes without quotes, backslashes and control characters are expected",
            ));
        }
        if anonymous.as_deref() == Some("") {
            return Err(Invalid::new("anonymous_consumer: a name is expected"));
        }
        Ok(Self { challenge: format!("{scheme} realm=\"{realm}\""), anonymous })
    }

    /// Ends the search for a consumer. `Err` is the sentence for a caller that is not let in.
    pub(super) fn end(
        &self,
        exchange: &mut Exchange,
        found: Result<Arc<Consumer>, Cow<'static, str>>,
    ) -> Result<Flow, Fault> {
        let consumer = match (found, &self.anonymous) {
            (Ok(consumer), _) => consumer,
            (Err(message), None) => return Ok(self.refuse(&message)),
            (Err(_), Some(name)) => match directory(exchange)?.named(name) {
                Some(consumer) => consumer,
                None => return Ok(self.refuse("Invalid user authorization")),
            },
        };
        exchange.attach(consumer);
        Ok(Flow::Next)
    }

    /// 401 with the challenge.
    pub(super) fn refuse(&self, message: &str) -> Flow {
        let reply = Reply::json(401, &json!({ "message": message }));
        Flow::Reply(Box::new(reply.with("WWW-Authenticate", &self.challenge)))
    }
}

/// The consumers of this snapshot.
pub(super) fn directory(exchange: &Exchange) -> Result<Arc<dyn Directory>, Fault> {
    let none = || Fault::gateway("consumers are not known", "the exchange has no directory");
    exchange.consumers.clone().ok_or_else(none)
}

/// The consumer whose credential for `plugin` has `key`, and that credential made ready as an `R`.
pub(super) fn found<R: Send + Sync + 'static>(
    directory: &dyn Directory,
    plugin: &str,
    key: &str,
) -> Option<(Arc<Consumer>, Arc<R>)> {
    let (consumer, ready) = directory.ready(plugin, key)?;
    Some((consumer, ready.downcast().ok()?))
}

/// A secret that can only be compared. Comparing tells nothing by the time that it takes, not even the secret's length.
pub(super) struct Verifier([u8; 32]);

impl Verifier {
    pub(super) fn of(secret: &[u8]) -> Self {
        let mut sum = [0; 32];
        sum.copy_from_slice(digest(&SHA256, secret).as_ref());
        Self(sum)
    }

    pub(super) fn is(&self, presented: &[u8]) -> bool {
        Self::of(presented).0.ct_eq(&self.0).into()
    }
}

/// Are two texts the same? The time that it takes tells nothing of what is in them.
pub(super) fn is_same(one: &str, other: &str) -> bool {
    one.as_bytes().ct_eq(other.as_bytes()).into()
}

/// The value of the token in a header: without the word `Bearer`, which may be missing.
pub(super) fn token_in<'h>(head: &'h Head, header: &str) -> Option<&'h str> {
    let text = head.text(header)?;
    Some(match text.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim_matches(' '),
        _ => text,
    })
}

/// Why a request presents no name and password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unpresented {
    Missing,
    Malformed,
}

impl Unpresented {
    /// As APISIX says it.
    pub(super) const fn told(self) -> &'static str {
        match self {
            Self::Missing => "Missing authorization in request",
            Self::Malformed => "Invalid authorization in request",
        }
    }
}

/// The name and the password that a header's line presents under `scheme`, as RFC 7617 writes them.
pub(super) fn name_and_password(
    line: Option<&[u8]>,
    scheme: &str,
) -> Result<(String, Vec<u8>), Unpresented> {
    use Unpresented::{Malformed, Missing};
    let line = std::str::from_utf8(line.ok_or(Missing)?).map_err(|_| Malformed)?;
    let (found, encoded) = line.split_once(' ').ok_or(Malformed)?;
    if !found.eq_ignore_ascii_case(scheme) {
        return Err(Malformed);
    }
    let decoded = STANDARD.decode(encoded.trim_matches(' ')).map_err(|_| Malformed)?;
    let colon = decoded.iter().position(|byte| *byte == b':').ok_or(Malformed)?;
    let name = std::str::from_utf8(&decoded[..colon]).map_err(|_| Malformed)?;
    Ok((name.to_owned(), decoded[colon + 1..].to_vec()))
}

/// The first cookie of that name.
pub(super) fn cookie<'h>(head: &'h Head, name: &str) -> Option<&'h str> {
    let lines = head.all("cookie").filter_map(|line| std::str::from_utf8(line).ok());
    lines.flat_map(cookies).find_map(|(found, value)| (found == name).then_some(value))
}

fn cookies(line: &str) -> impl Iterator<Item = (&str, &str)> {
    line.split(';').filter_map(|pair| pair.trim().split_once('='))
}

/// Takes every cookie of that name out of the request.
pub(super) fn remove_cookie(head: &mut Head, name: &str) {
    if cookie(head, name).is_none() {
        return;
    }
    let lines: Vec<String> =
        head.all("cookie").map(|line| String::from_utf8_lossy(line).into_owned()).collect();
    let other = |pair: &&str| pair.trim().split_once('=').is_none_or(|(found, _)| found != name);
    let kept: Vec<&str> = lines
        .iter()
        .flat_map(|line| line.split(';'))
        .filter(other)
        .map(str::trim)
        .filter(|pair| !pair.is_empty())
        .collect();
    head.remove("cookie");
    if !kept.is_empty() {
        head.append("Cookie", kept.join("; ").as_bytes());
    }
}

/// Takes an argument out of the query, of what came as of what goes upstream: `$args`, a redirect's address and logs do not read
/// it either.
pub(super) fn remove_argument(exchange: &mut Exchange, name: &str) {
    let without = |target: &str| {
        let (path, query) = target.split_once('?')?;
        argument(query, name).next()?;
        let rest = without_argument(query, name);
        let separator = if rest.is_empty() { "" } else { "?" };
        Some(format!("{path}{separator}{rest}"))
    };
    if let Some(target) = without(exchange.request.target()) {
        exchange.request.set_target(&target);
    }
    if let Some(target) = exchange.rewritten.target.as_deref().and_then(without) {
        exchange.rewritten.target = Some(target);
    }
}

/// A field that must not be empty, and no longer than `most` bytes.
pub(super) fn named(field: &str, value: &str, most: usize) -> Result<(), Invalid> {
    match value.len() {
        0 => Err(Invalid::new(format!("{field}: a name is expected"))),
        length if length > most => {
            Err(Invalid::new(format!("{field}: at most {most} bytes are expected")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::tests::exchange;

    #[test]
    fn credentials_are_taken_out_wherever_they_stand() {
        let mut exchange = exchange("GET", "/a?x=1&jwt=t&jwt=u", "h");
        exchange.rewritten.target = Some("/b?jwt=t".into());
        exchange.request.append("Cookie", b"a=1; jwt=t;b=2");
        exchange.request.append("Cookie", b"jwt=u");
        assert_eq!(cookie(&exchange.request, "jwt"), Some("t"));
        remove_cookie(&mut exchange.request, "jwt");
        remove_argument(&mut exchange, "jwt");
        assert_eq!(exchange.request.text("cookie"), Some("a=1; b=2"));
        assert_eq!(exchange.request.all("cookie").count(), 1);
        assert_eq!(exchange.request.target(), "/a?x=1");
        assert_eq!(exchange.rewritten.target.as_deref(), Some("/b"));
    }

    #[test]
    fn what_is_presented_is_read_strictly() {
        let read = |line: &str| name_and_password(Some(line.as_bytes()), "basic");
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
        assert_eq!(read(&basic("jack:a:b")).unwrap(), ("jack".into(), b"a:b".to_vec()));
        assert_eq!(read(&basic(":")).unwrap(), (String::new(), Vec::new()));
        assert!(read(&basic("jack:p").to_lowercase()).is_err(), "base64 has cases");
        assert!(read(&basic("jack:p").replace("Basic", "bAsIc")).is_ok(), "the scheme has not");
        for bad in
            ["", "Basic", "Basic ", "Basic !!", "Bearer amFjazpw", &basic("jack"), "Basicamp"]
        {
            assert_eq!(read(bad).unwrap_err().told(), "Invalid authorization in request", "{bad}");
        }
        let none = name_and_password(None, "basic").unwrap_err();
        assert_eq!(none.told(), "Missing authorization in request");
    }

    #[test]
    fn a_verifier_knows_its_secret_and_nothing_else() {
        let verifier = Verifier::of(b"secret");
        assert!(verifier.is(b"secret"));
        for other in [&b""[..], b"secre", b"secret1", b"Secret"] {
            assert!(!verifier.is(other));
        }
    }
}
