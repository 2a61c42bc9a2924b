//! AWS Signature Version 4: a request signed with a secret that is not sent along.

use http::{HeaderMap, Method, Uri};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use time::OffsetDateTime;

use crate::model::Redacted;
use crate::rt::crypto::digest::{SHA256, digest};
use crate::rt::crypto::hmac;

/// Who signs, for whom, when.
pub(super) struct Signer<'a> {
    pub(super) access_key_id: &'a str,
    pub(super) secret_access_key: &'a Redacted<String>,
    pub(super) region: &'a str,
    pub(super) service: &'a str,
    pub(super) at: OffsetDateTime,
}

const KEPT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// As `x-amz-date` has it.
pub(super) fn timestamp(at: OffsetDateTime) -> String {
    let (year, month, day) = (at.year(), u8::from(at.month()), at.day());
    let (hour, minute, second) = (at.hour(), at.minute(), at.second());
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

impl Signer<'_> {
    /// The value of `authorization` for a request whose headers, all of them signed, contain `host` and `x-amz-date`.
    pub(super) fn authorization(
        &self,
        method: &Method,
        url: &Uri,
        headers: &HeaderMap,
        body: &[u8],
    ) -> String {
        let timestamp = timestamp(self.at);
        let day = &timestamp[..8];
        let scope = format!("{day}/{}/{}/aws4_request", self.region, self.service);
        let mut fields: Vec<(&str, String)> = headers
            .keys()
            .map(|name| {
                let values = headers.get_all(name).iter();
                let values: Vec<String> = values
                    .map(|value| collapsed(&String::from_utf8_lossy(value.as_bytes())))
                    .collect();
                (name.as_str(), values.join(","))
            })
            .collect();
        fields.sort_unstable();
        let names: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
        let names = names.join(";");
        let mut request = format!("{method}\n{}\n{}\n", path(url), query(url));
        for (name, value) in &fields {
            request.push_str(&format!("{name}:{value}\n"));
        }
        request.push_str(&format!("\n{names}\n{}", hash(body)));
        let to_sign =
            format!("AWS4-HMAC-SHA256\n{timestamp}\n{scope}\n{}", hash(request.as_bytes()));
        let signature = hex::encode(mac(&self.key(day), &to_sign));
        format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={signature}",
            self.access_key_id
        )
    }

    fn key(&self, day: &str) -> Vec<u8> {
        let first = Redacted::new(format!("AWS4{}", self.secret_access_key.reveal()));
        let of_day = mac(first.reveal().as_bytes(), day);
        let of_region = mac(&of_day, self.region);
        let of_service = mac(&of_region, self.service);
        mac(&of_service, "aws4_request")
    }
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
}

fn hash(bytes: &[u8]) -> String {
    hex::encode(digest(&SHA256, bytes))
}

/// Without blanks around it, and with one in the place of several.
fn collapsed(value: &str) -> String {
    value.split(' ').filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

fn path(url: &Uri) -> String {
    let parts = url.path().split('/');
    let parts: Vec<String> =
        parts.map(|part| utf8_percent_encode(part, KEPT).to_string()).collect();
    parts.join("/")
}

fn query(url: &Uri) -> String {
    let canonical = |text: &str| {
        let decoded: Vec<u8> = percent_decode_str(text).collect();
        percent_encoding::percent_encode(&decoded, KEPT).to_string()
    };
    let parts = url.query().unwrap_or_default().split('&').filter(|part| !part.is_empty());
    let mut parts: Vec<(String, String)> = parts
        .map(|part| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            (canonical(name), canonical(value))
        })
        .collect();
    parts.sort_unstable();
    let parts: Vec<String> =
        parts.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    parts.join("&")
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use time::macros::datetime;

    use super::*;

    /// What AWS publishes: its test suite for Signature Version 4 (`aws-sig-v4-test-suite`), and the example of its manual.
    #[test]
    fn the_signatures_that_aws_publishes_come_out() {
        let token = "AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQWLWsKWHGBuFqwAeMicRXmxfpSPfIeoIYRqTflfKD8YUuwthAx7mSEI/qkPpKPi/kMcGdQrmGdeehM4IC1NtBmUpp2wUE8phUZampKsburEDy0KPkyQDYwT7WZ0wq5VSXDvp75YU9HFvlRd8Tx6q6fE8YQcHNVXAkiY9q6d+xo0rKwT38xVqr7ZD0u0iPPkUL64lIZbqBAz+scqKmlzm8FDrypNC9Yjc8fPOLn9FX9KSYvKTr4rvx3iSIlTJabIQwj2ICCR/oLxBA==";
        let form = ("content-type", "application/x-www-form-urlencoded");
        let host = ("host", "example.amazonaws.com");
        for (name, service, method, target, headers, body, signature) in [
            (
                "get-vanilla",
                "service",
                Method::GET,
                "/",
                vec![host],
                "",
                "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
            ),
            (
                "get-vanilla-query-order-key-case",
                "service",
                Method::GET,
                "/?Param2=value2&Param1=value1",
                vec![host],
                "",
                "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
            ),
            (
                "post-vanilla",
                "service",
                Method::POST,
                "/",
                vec![host],
                "",
                "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
            ),
            (
                "post-x-www-form-urlencoded",
                "service",
                Method::POST,
                "/",
                vec![host, form],
                "Param1=value1",
                "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
            ),
            (
                "post-sts-header-before",
                "service",
                Method::POST,
                "/",
                vec![host, ("x-amz-security-token", token)],
                "",
                "85d96828115b5dc0cfc3bd16ad9e210dd772bbebba041836c64533a82be05ead",
            ),
            (
                "the manual's ListUsers",
                "iam",
                Method::GET,
                "/?Action=ListUsers&Version=2010-05-08",
                vec![
                    ("host", "iam.amazonaws.com"),
                    ("content-type", "application/x-www-form-urlencoded; charset=utf-8"),
                ],
                "",
                "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7",
            ),
        ] {
            let secret = Redacted::new("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".to_owned());
            let signer = Signer {
                access_key_id: "AKIDEXAMPLE",
                secret_access_key: &secret,
                region: "us-east-1",
                service,
                at: datetime!(2015-08-30 12:36:00 UTC),
            };
            let mut all = HeaderMap::new();
            all.insert("x-amz-date", HeaderValue::from_static("20150830T123600Z"));
            for (name, value) in headers {
                all.insert(name, HeaderValue::from_static(value));
            }
            let url: Uri = format!("https://example.amazonaws.com{target}").parse().unwrap();
            let authorization = signer.authorization(&method, &url, &all, body.as_bytes());
            let expected = format!("Signature={signature}");
            assert!(authorization.ends_with(&expected), "{name}: {authorization}");
            let scope = format!(
                "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/{service}/aws4_request, SignedHeaders="
            );
            assert!(authorization.starts_with(&scope), "{name}: {authorization}");
        }
    }
}
