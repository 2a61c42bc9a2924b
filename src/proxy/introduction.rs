//! `Introductions`: who may introduce connections at a door by the PROXY protocol, and how its header is heard.

use std::net::SocketAddr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::model::Invalid;
use crate::pipeline::Networks;
use crate::rt::proxy_protocol::{Beginning, Header, MAX_HEADER, beginning, read};

/// The PROXY protocol (versions 1 and 2) at a door: a balancer before it tells for whom a connection is. The header comes before
/// everything else, TLS included, and within `limits.handshake_seconds`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProxyProtocolSettings {
    /// Addresses and networks of the balancers whose headers are believed.
    pub trusted: Vec<String>,
    /// Connections without a header are closed, and those from anywhere else. With `false` balancers may leave it out, and others
    /// may connect without one.
    #[serde(default = "default_required")]
    pub required: bool,
}

const fn default_required() -> bool {
    true
}

/// Who may introduce connections at a door.
#[derive(Clone, Debug)]
pub struct Introductions {
    trusted: Networks,
    required: bool,
}

impl ProxyProtocolSettings {
    /// As a door takes them.
    ///
    /// # Errors
    /// Nobody is named, or an entry is no network; the sentence says which.
    pub fn parse(&self) -> Result<Introductions, Invalid> {
        if self.trusted.is_empty() {
            return Err(Invalid::new("trusted: at least one network is expected"));
        }
        let trusted = Networks::parse(self.trusted.iter().map(String::as_str))
            .map_err(|error| Invalid::new(format!("trusted: {error}")))?;
        Ok(Introductions { trusted, required: self.required })
    }
}

/// Why nobody is introduced and the connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum Unheard {
    /// It was closed before it said anything: a balancer that looks whether we are there.
    Left,
    /// Who may not introduce anybody did so, or must not connect at all.
    Untrusted,
    /// There is no header.
    Missing,
    /// It did not come in time.
    Late,
    /// It is none.
    Malformed(&'static str),
}

impl Unheard {
    /// A stable code for records; `None` for what leaves none.
    pub(in crate::proxy) const fn code(self) -> Option<&'static str> {
        match self {
            Self::Left => None,
            Self::Untrusted => Some("proxy_protocol_untrusted"),
            Self::Missing => Some("proxy_protocol_missing"),
            Self::Late => Some("proxy_protocol_late"),
            Self::Malformed(_) => Some("proxy_protocol_malformed"),
        }
    }

    /// A sentence for people.
    pub(in crate::proxy) const fn sentence(self) -> &'static str {
        match self {
            Self::Left => "the connection was closed before its PROXY header",
            Self::Untrusted => "the sender is none of those whose PROXY header is believed",
            Self::Missing => "the connection does not begin with a PROXY header",
            Self::Late => "the PROXY header took too long",
            Self::Malformed(sentence) => sentence,
        }
    }
}

impl Introductions {
    /// Hears the header of a connection whose other end is `from`, if it comes `within` that time; `None` where it is lawful that
    /// there is none. What follows the header stays in the socket.
    pub(in crate::proxy) async fn hear(
        &self,
        tcp: &mut TcpStream,
        from: SocketAddr,
        within: Duration,
    ) -> Result<Option<Header>, Unheard> {
        let heard = self.listen(tcp, from);
        match self.required {
            true => tokio::time::timeout(within, heard).await.unwrap_or(Err(Unheard::Late)),
            // Who need not introduce anybody may as well be silent for as long as at any door; the caller limits that.
            false => heard.await,
        }
    }

    async fn listen(
        &self,
        tcp: &mut TcpStream,
        from: SocketAddr,
    ) -> Result<Option<Header>, Unheard> {
        match (self.trusted.contains(from.ip()), self.required) {
            (false, true) => Err(Unheard::Untrusted),
            (false, false) => match begins(tcp).await? {
                true => Err(Unheard::Untrusted),
                false => Ok(None),
            },
            (true, true) => header(tcp).await.map(Some),
            (true, false) => match begins(tcp).await? {
                true => header(tcp).await.map(Some),
                false => Ok(None),
            },
        }
    }
}

/// Does the connection begin with a header? Nothing is taken.
async fn begins(tcp: &TcpStream) -> Result<bool, Unheard> {
    let mut first = [0; 12];
    let mut pause = Duration::from_millis(1);
    loop {
        let count = tcp.peek(&mut first).await.map_err(|_| Unheard::Left)?;
        if count == 0 {
            return Err(Unheard::Left);
        }
        match beginning(&first[..count]) {
            Beginning::Header => return Ok(true),
            Beginning::Other => return Ok(false),
            Beginning::Open => {}
        }
        // The rest is on its way. Looking again returns at once, so pause; longer each time, since who sends no more than that
        // must not keep us busy.
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}

/// Takes the header, and not a byte more: what is looked at is taken only when it is known to be the header's.
async fn header(tcp: &mut TcpStream) -> Result<Header, Unheard> {
    let mut bytes = [0; MAX_HEADER];
    let mut taken = 0;
    loop {
        let seen = tcp.peek(&mut bytes[taken..]).await.map_err(|_| Unheard::Left)?;
        if seen == 0 {
            return Err(match taken {
                0 => Unheard::Left,
                _ => Unheard::Malformed("the connection ends within its PROXY header"),
            });
        }
        let there = &bytes[..taken + seen];
        let (said, end) = match read(there) {
            Ok(None) => (None, taken + seen),
            Ok(Some((said, end))) => (Some(said), end),
            Err(_) if beginning(there) == Beginning::Other => return Err(Unheard::Missing),
            Err(malformed) => return Err(Unheard::Malformed(malformed.0)),
        };
        tcp.read_exact(&mut bytes[taken..end]).await.map_err(|_| Unheard::Left)?;
        taken = end;
        if let Some(said) = said {
            return Ok(said);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    fn of(trusted: &str, required: bool) -> Introductions {
        ProxyProtocolSettings { trusted: vec![trusted.to_owned()], required }.parse().unwrap()
    }

    /// What is heard when these pieces are sent, and what is left behind.
    async fn heard(
        introductions: &Introductions,
        pieces: &[&[u8]],
    ) -> (Result<Option<Header>, Unheard>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        client.set_nodelay(true).unwrap();
        let (mut tcp, from) = listener.accept().await.unwrap();
        let send = async {
            for piece in pieces {
                client.write_all(piece).await.unwrap();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            client.shutdown().await.unwrap();
        };
        let (said, ()) =
            tokio::join!(introductions.hear(&mut tcp, from, Duration::from_secs(20)), send);
        let mut left = Vec::new();
        tcp.read_to_end(&mut left).await.unwrap();
        (said, left)
    }

    #[tokio::test]
    async fn the_header_is_taken_whole_and_nothing_behind_it_however_it_comes() {
        let one: &[u8] = b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\n";
        let two = crate::rt::proxy_protocol::write(
            crate::rt::proxy_protocol::Version::V2,
            Some(crate::rt::proxy_protocol::Ends {
                source: "192.0.2.7:40000".parse().unwrap(),
                destination: "198.51.100.1:443".parse().unwrap(),
            }),
        );
        for whole in [one, &two] {
            for required in [true, false] {
                let believing = of("127.0.0.0/8", required);
                let behind = [whole, b"GET / PROXY"].concat();
                for cut in [1, 5, 6, 7, 13, whole.len() - 1, whole.len(), whole.len() + 3] {
                    let (first, second) = behind.split_at(cut);
                    let (said, left) = heard(&believing, &[first, second]).await;
                    let Ok(Some(Header::For(ends))) = said else { panic!("{cut}: {said:?}") };
                    assert_eq!(ends.source.to_string(), "192.0.2.7:40000");
                    assert_eq!(left, b"GET / PROXY", "{cut}");
                }
            }
        }
    }

    #[tokio::test]
    async fn who_is_not_believed_introduces_nobody() {
        let header: &[u8] = b"PROXY UNKNOWN\r\n";
        let (strict, lenient) = (of("10.0.0.0/8", true), of("10.0.0.0/8", false));
        for (introductions, sent, expected) in [
            (&strict, header, Err(Unheard::Untrusted)),
            (&strict, b"GET / HTTP/1.1\r\n".as_slice(), Err(Unheard::Untrusted)),
            (&lenient, header, Err(Unheard::Untrusted)),
            (&lenient, b"\r\n\r\n\0\r\nQUIT\nxxxx", Err(Unheard::Untrusted)),
            (&lenient, b"PRI * HTTP/2.0\r\n", Ok(None)),
            (&lenient, b"\x16\x03\x01", Ok(None)),
            (&lenient, b"", Err(Unheard::Left)),
        ] {
            assert_eq!(heard(introductions, &[sent]).await.0, expected, "{sent:?}");
        }
    }

    #[tokio::test]
    async fn who_is_believed_says_it_lawfully_or_not_at_all() {
        let (strict, lenient) = (of("127.0.0.1", true), of("127.0.0.1", false));
        for (introductions, sent, expected) in [
            (&strict, b"GET / HTTP/1.1\r\n".as_slice(), Err(Unheard::Missing)),
            (&strict, b"\x16\x03\x01", Err(Unheard::Missing)),
            (&strict, b"PROXY UNKNOWN\r\n", Ok(Some(Header::Own))),
            (&lenient, b"PUT / HTTP/1.1\r\n", Ok(None)),
            (&lenient, b"PROXY UNKNOWN\r\n", Ok(Some(Header::Own))),
        ] {
            assert_eq!(heard(introductions, &[sent]).await.0, expected, "{sent:?}");
        }
        for introductions in [&strict, &lenient] {
            let (said, _) = heard(introductions, &[b"PROXY TCP4 1.2.3.4\r\n"]).await;
            assert!(matches!(said, Err(Unheard::Malformed(_))), "{said:?}");
            let (said, _) = heard(introductions, &[b"PROXY TCP4 1.2.3.4"]).await;
            assert!(matches!(said, Err(Unheard::Malformed(_))), "{said:?}");
        }
    }
}
