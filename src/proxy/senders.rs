//! `Senders`: who may say in fields of a request for whom it comes, and how a caller is found there.
//!
//! Nobody may unless the settings name its address. What is said there never touches an identity.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr as _;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::model::Invalid;
use crate::pipeline::{Head, Networks};

/// Where the caller's address is taken from when a trusted sender tells it. `$remote_addr` and everything that looks at the
/// caller's address goes by it: `remote_addrs` of routes, `ip-restriction`, limits, logs, `X-Real-IP`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RealIpSettings {
    /// The field: `X-Real-IP`, `X-Forwarded-For`, `Forwarded` (RFC 7239), or another one with addresses separated by commas.
    #[serde(default = "default_header")]
    pub header: String,
    /// Addresses and networks of the senders that are believed.
    pub from: Vec<String>,
    /// Of several addresses takes the last one that is not one of `from`; the very last one when not given.
    #[serde(default)]
    pub recursive: bool,
}

fn default_header() -> String {
    "X-Real-IP".to_owned()
}

/// Who may say in fields of a request for whom it comes.
#[derive(Clone, Debug, Default)]
pub struct Senders {
    /// Whose `X-Forwarded-…` and `Forwarded` are believed; nobody was named.
    trusted: Option<Networks>,
    real_ip: Option<RealIp>,
}

/// How the caller's address is found.
#[derive(Clone, Debug)]
pub(in crate::proxy) struct RealIp {
    field: Field,
    from: Networks,
    recursive: bool,
}

#[derive(Clone, Debug)]
enum Field {
    Forwarded,
    /// Addresses, separated by commas.
    List(Box<str>),
}

impl Senders {
    /// Reads the settings `trusted_addresses` and `real_ip`.
    ///
    /// # Errors
    /// An address or network is none, or the field's name is none; the sentence says which.
    pub fn parse(
        trusted_addresses: Option<&[String]>,
        real_ip: Option<&RealIpSettings>,
    ) -> Result<Self, Invalid> {
        let networks = |field: &str, texts: &[String]| {
            if texts.is_empty() {
                return Err(Invalid::new(format!("{field}: at least one network is expected")));
            }
            Networks::parse(texts.iter().map(String::as_str))
                .map_err(|error| Invalid::new(format!("{field}: {error}")))
        };
        let trusted =
            trusted_addresses.map(|texts| networks("trusted_addresses", texts)).transpose()?;
        let real_ip = real_ip
            .map(|settings| {
                let field = match http::HeaderName::from_str(&settings.header) {
                    Ok(name) if name == http::header::FORWARDED => Field::Forwarded,
                    Ok(name) => Field::List(name.as_str().into()),
                    Err(_) => {
                        let sentence =
                            format!("real_ip.header: {:?} is no field name", settings.header);
                        return Err(Invalid::new(sentence));
                    }
                };
                let from = networks("real_ip.from", &settings.from)?;
                Ok(RealIp { field, from, recursive: settings.recursive })
            })
            .transpose()?;
        Ok(Self { trusted, real_ip })
    }

    /// Is `X-Forwarded-…` of this sender believed? `None` where nobody was named whom to believe.
    pub(in crate::proxy) fn trusts(&self, sender: IpAddr) -> Option<bool> {
        self.trusted.as_ref().map(|trusted| trusted.contains(sender))
    }

    /// The field by which others name the caller and this sender may not: it is nobody's word. `X-Forwarded-For` is a way that
    /// goes on, whoever began it.
    pub(in crate::proxy) fn field_refused_of(&self, sender: IpAddr) -> Option<&str> {
        let real_ip = self.real_ip.as_ref().filter(|real_ip| !real_ip.from.contains(sender))?;
        match &real_ip.field {
            Field::List(name) if **name != *"x-forwarded-for" => Some(name),
            Field::List(_) | Field::Forwarded => None,
        }
    }

    /// How callers of this sender are found, if it may name any.
    pub(in crate::proxy) fn real_ip(&self, sender: IpAddr) -> Option<&RealIp> {
        self.real_ip.as_ref().filter(|real_ip| real_ip.from.contains(sender))
    }
}

impl RealIp {
    /// Whom the request's fields name, when `sender`, which is one of `from`, sent them. As nginx does it, from the last address
    /// to the first; what is no address ends the search, and the one before it counts.
    pub(in crate::proxy) fn find(&self, request: &Head) -> Option<SocketAddr> {
        let mut found = None;
        match &self.field {
            Field::List(name) => {
                // Several lines of a field are one list (RFC 9110 section 5.3).
                let mut lines = request.all(name).collect::<smallvec::SmallVec<[&[u8]; 4]>>();
                while let Some(line) = lines.pop() {
                    for element in line.rsplit(|b| *b == b',').map(<[u8]>::trim_ascii) {
                        match address(element) {
                            Some(address) => found = Some(address),
                            None => return found,
                        }
                        if !self.goes_on(found) {
                            return found;
                        }
                    }
                }
            }
            Field::Forwarded => {
                let mut lines =
                    request.all("forwarded").collect::<smallvec::SmallVec<[&[u8]; 4]>>();
                while let Some(line) = lines.pop() {
                    let Some(elements) = elements(line) else { return found };
                    for element in elements.iter().rev() {
                        match element.and_then(address) {
                            Some(address) => found = Some(address),
                            None => return found,
                        }
                        if !self.goes_on(found) {
                            return found;
                        }
                    }
                }
            }
        }
        found
    }

    /// Is the one that was found a sender itself, so that the one before it counts?
    fn goes_on(&self, found: Option<SocketAddr>) -> bool {
        self.recursive && found.is_some_and(|found| self.from.contains(found.ip()))
    }
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`; the port is 0 where there is none. Nothing
/// that a resolver or another notation would make an address of.
fn address(text: &[u8]) -> Option<SocketAddr> {
    let text = std::str::from_utf8(text).ok()?;
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Some(SocketAddr::new(ip, 0));
    }
    if let Some(bare) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return bare.parse().ok().map(|ip| SocketAddr::new(IpAddr::V6(ip), 0));
    }
    let port = text.rsplit_once(':').map(|(_, port)| port)?;
    if !port.bytes().all(|b| b.is_ascii_digit()) || text.contains('%') {
        return None;
    }
    text.parse().ok()
}

/// Elements of a `Forwarded` field (RFC 7239 section 4): the `for` of each, unquoted. `None` when the field is none.
pub(in crate::proxy) fn elements(field: &[u8]) -> Option<smallvec::SmallVec<[Option<&[u8]>; 4]>> {
    let mut elements = smallvec::SmallVec::new();
    let mut rest = field.trim_ascii();
    loop {
        let mut found: Option<&[u8]> = None;
        loop {
            let (name, after) = token(rest)?;
            let after = after.strip_prefix(b"=")?;
            let (value, after) = match after.first() {
                Some(b'"') => quoted(&after[1..])?,
                _ => token(after)?,
            };
            if name.eq_ignore_ascii_case(b"for") {
                if found.is_some() {
                    return None;
                }
                found = Some(value);
            }
            rest = after.trim_ascii_start();
            match rest.first() {
                Some(b';') => rest = rest[1..].trim_ascii_start(),
                _ => break,
            }
        }
        elements.push(found);
        match rest.first() {
            None => return Some(elements),
            Some(b',') => rest = rest[1..].trim_ascii_start(),
            Some(_) => return None,
        }
    }
}

/// A token (RFC 9110 section 5.6.2) at the start, and what follows it.
fn token(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let is_of_token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
    let length = text.iter().take_while(|b| is_of_token(b)).count();
    (length > 0).then(|| text.split_at(length))
}

/// A quoted string whose opening quote is gone, and what follows it. One with an escape is none of ours: no address needs any.
fn quoted(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr::memchr2(b'"', b'\\', text)?;
    (text[end] == b'"').then(|| (&text[..end], &text[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn senders(header: &str, from: &[&str], recursive: bool) -> Senders {
        let from = from.iter().map(|&text| text.to_owned()).collect();
        let settings = RealIpSettings { header: header.to_owned(), from, recursive };
        Senders::parse(None, Some(&settings)).unwrap()
    }

    fn found(senders: &Senders, fields: &[(&str, &str)]) -> Option<String> {
        let mut head = Head::request("GET", "/", "a");
        for (name, value) in fields {
            head.append(name, value.as_bytes());
        }
        let real_ip = senders.real_ip("10.0.0.1".parse().unwrap()).unwrap();
        real_ip.find(&head).map(|address| address.to_string())
    }

    #[test]
    fn the_last_address_counts_or_recursively_the_last_one_that_is_no_sender() {
        let last = senders("X-Forwarded-For", &["10.0.0.0/8"], false);
        let chain = senders("X-Forwarded-For", &["10.0.0.0/8", "fd00::/8"], true);
        for (value, by_last, by_chain) in [
            ("203.0.113.9", Some("203.0.113.9:0"), Some("203.0.113.9:0")),
            ("1.1.1.1, 203.0.113.9", Some("203.0.113.9:0"), Some("203.0.113.9:0")),
            ("1.1.1.1, 203.0.113.9, 10.0.0.7", Some("10.0.0.7:0"), Some("203.0.113.9:0")),
            ("203.0.113.9,[fd00::1]:80 ,10.0.0.7:81", Some("10.0.0.7:81"), Some("203.0.113.9:0")),
            ("10.0.0.5, 10.0.0.7", Some("10.0.0.7:0"), Some("10.0.0.5:0")),
            ("garbage, 10.0.0.7", Some("10.0.0.7:0"), Some("10.0.0.7:0")),
            ("203.0.113.9, unknown", None, None),
            ("203.0.113.9,", None, None),
            ("", None, None),
            ("2001:db8::1", Some("[2001:db8::1]:0"), Some("[2001:db8::1]:0")),
            ("0x7f.1", None, None),
            ("127.1", None, None),
            ("010.0.0.1", None, None),
            ("1.2.3.4:", None, None),
            ("1.2.3.4:99999", None, None),
            ("[::1%lo]", None, None),
            ("fe80::1%1", None, None),
            ("[fe80::1%1]:80", None, None),
            ("\"1.2.3.4\"", None, None),
            ("1.2.3.4;", None, None),
        ] {
            let fields = [("X-Forwarded-For", value)];
            assert_eq!(found(&last, &fields).as_deref(), by_last, "{value:?}");
            assert_eq!(found(&chain, &fields).as_deref(), by_chain, "{value:?}");
        }
        // Lines of one field are one list.
        let lines = [("X-Forwarded-For", "203.0.113.9"), ("x-forwarded-for", "10.0.0.7")];
        assert_eq!(found(&chain, &lines).as_deref(), Some("203.0.113.9:0"));
        assert_eq!(found(&chain, &[]), None);
        // Another spelling is another field.
        assert_eq!(found(&chain, &[("X_Forwarded_For", "1.1.1.1")]), None);
        assert!(chain.real_ip("203.0.113.9".parse().unwrap()).is_none());
    }

    #[test]
    fn forwarded_is_read_as_rfc_7239_writes_it() {
        let chain = senders("forwarded", &["10.0.0.0/8"], true);
        for (value, expected) in [
            ("for=192.0.2.60;proto=http;by=203.0.113.43", Some("192.0.2.60:0")),
            ("For=\"[2001:db8:cafe::17]:4711\"", Some("[2001:db8:cafe::17]:4711")),
            ("for=192.0.2.43, for=10.0.0.17", Some("192.0.2.43:0")),
            ("for=192.0.2.43 , proto=https ; FOR=\"10.0.0.17:80\"", Some("192.0.2.43:0")),
            ("for=192.0.2.43, for=\"_hidden\"", None),
            ("for=unknown", None),
            ("for=192.0.2.43, proto=https", None),
            ("for=1.1.1.1;for=192.0.2.43", None),
            ("for=[::1]", None),
            ("for=\"192.0.2.43", None),
            ("for=\"192.0.2.\\43\"", None),
            ("for = 192.0.2.43", None),
            ("for=192.0.2.43 for=10.0.0.1", None),
            ("for=192.0.2.43,", None),
            ("", None),
            ("for=x\", for=1.1.1.1", None),
        ] {
            assert_eq!(found(&chain, &[("Forwarded", value)]).as_deref(), expected, "{value:?}");
        }
    }

    #[test]
    fn settings_that_make_no_sense_are_refused_by_name() {
        let bad = |trusted: Option<&[String]>, header: &str, from: &[&str]| {
            let from = from.iter().map(|&text| text.to_owned()).collect();
            let real_ip = RealIpSettings { header: header.to_owned(), from, recursive: false };
            Senders::parse(trusted, Some(&real_ip)).unwrap_err().to_string()
        };
        assert!(bad(None, "a b", &["10.0.0.0/8"]).starts_with("real_ip.header"));
        assert!(bad(None, "a", &[]).starts_with("real_ip.from"));
        assert!(bad(None, "a", &["10.0.0.0/33"]).contains("'10.0.0.0/33'"));
        assert!(bad(Some(&[]), "a", &["10.0.0.1"]).starts_with("trusted_addresses"));
        assert!(bad(Some(&["host".to_owned()]), "a", &["10.0.0.1"]).contains("'host'"));
    }
}
