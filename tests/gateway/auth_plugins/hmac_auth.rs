//! `hmac-auth`: requests signed as APISIX's documentation signs them.

use std::fmt::Write as _;

use ring::{digest, hmac};
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use super::{Edge, base64, consumer};

/// A date as HTTP writes it, so many seconds from now.
fn date(off: i64) -> String {
    let at = OffsetDateTime::now_utc() + time::Duration::seconds(off);
    at.format(&Rfc2822).unwrap().replace("+0000", "GMT")
}

struct Signed {
    key_id: &'static str,
    secret: &'static str,
    algorithm: &'static str,
    method: &'static str,
    target: &'static str,
    /// What is signed beside the target, in this order.
    headers: Vec<(&'static str, String)>,
}

impl Default for Signed {
    fn default() -> Self {
        Self {
            key_id: "john-key",
            secret: "john-secret",
            algorithm: "hmac-sha256",
            method: "GET",
            target: "/get?a=b%20c",
            headers: vec![("date", date(0))],
        }
    }
}

impl Signed {
    fn authorization(&self) -> String {
        let mut text = format!("{}\n{} {}\n", self.key_id, self.method, self.target);
        let mut names = "@request-target".to_owned();
        for (name, value) in &self.headers {
            writeln!(text, "{name}: {value}").unwrap();
            write!(names, " {name}").unwrap();
        }
        let algorithm = match self.algorithm {
            "hmac-sha1" => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            "hmac-sha512" => hmac::HMAC_SHA512,
            _ => hmac::HMAC_SHA256,
        };
        let key = hmac::Key::new(algorithm, self.secret.as_bytes());
        let signature = base64(hmac::sign(&key, text.as_bytes()));
        format!(
            "Signature keyId=\"{}\",algorithm=\"{}\",headers=\"{names}\",signature=\"{signature}\"",
            self.key_id, self.algorithm
        )
    }
}

fn edge() -> Edge {
    Edge::new(
        &[
            ("/get", json!({ "hmac-auth": {} })),
            (
                "/strict",
                json!({ "hmac-auth": {
                "allowed_algorithms": ["hmac-sha512"], "clock_skew": 10, "realm": "shop",
                "signed_headers": ["@request-target", "date", "x-a"], "hide_credentials": true,
            } }),
            ),
            (
                "/body",
                json!({ "hmac-auth": {
                "validate_request_body": true, "max_req_body_size": 1000 } }),
            ),
            ("/anybody", json!({ "hmac-auth": { "anonymous_consumer": "guest" } })),
        ],
        &json!({ "consumers": [
            consumer("john", "hmac-auth", json!({ "key_id": "john-key", "secret_key": "john-secret" })),
            { "username": "guest" },
        ] }),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signature_proves_the_consumer_and_covers_what_it_names() {
    let edge = edge();
    for algorithm in ["hmac-sha1", "hmac-sha256", "hmac-sha512"] {
        let signed = Signed { algorithm, ..Signed::default() };
        let line = signed.authorization();
        let headers = [("authorization", &*line), ("date", &*signed.headers[0].1)];
        let answer = edge.get(signed.target, &headers).await;
        assert_eq!(answer.seen("x-consumer-username").as_deref(), Some("john"), "{algorithm}");
        assert_eq!(answer.seen("authorization"), Some(line), "the upstream may have it");
    }

    let good = Signed::default();
    let (line, today) = (good.authorization(), good.headers[0].1.clone());
    let wrong = "client request can't be validated";
    let other = |change: &dyn Fn(&mut Signed)| {
        let mut signed = Signed::default();
        change(&mut signed);
        (signed.authorization(), signed.headers.first().map_or(String::new(), |(_, at)| at.clone()))
    };
    for (what, target, (line, date), message) in [
        ("another query", "/get?a=b%20d", (line.clone(), today.clone()), wrong),
        ("another date", good.target, (line.clone(), date(1)), wrong),
        ("no date", good.target, (line.clone(), String::new()), wrong),
        ("an old date", good.target, other(&|s| s.headers[0].1 = date(-400)), wrong),
        ("a date to come", good.target, other(&|s| s.headers[0].1 = date(400)), wrong),
        ("a wrong secret", good.target, other(&|s| s.secret = "jane-secret"), wrong),
        ("no secret", good.target, other(&|s| (s.key_id, s.secret) = ("nobody", "")), wrong),
        ("a path as key", good.target, other(&|s| s.key_id = "../john-key"), wrong),
        ("another algorithm", good.target, other(&|s| s.algorithm = "none"), wrong),
        ("a date not signed", good.target, (other(&|s| s.headers.clear()).0, today.clone()), wrong),
        ("another method", good.target, other(&|s| s.method = "POST"), wrong),
        (
            "no scheme",
            good.target,
            ("x".into(), today.clone()),
            "client request can't be validated: Authorization header does not start with 'Signature'",
        ),
        (
            "no field",
            good.target,
            ("Signature ".to_owned() + "x", today.clone()),
            "client request can't be validated: keyId or signature missing",
        ),
        (
            "a key twice",
            good.target,
            (line.replace("Signature ", "Signature keyId=\"x\","), today.clone()),
            "client request can't be validated: a field of the signature is there twice",
        ),
    ] {
        let mut headers = vec![("authorization", &*line)];
        if !date.is_empty() {
            headers.push(("date", &*date));
        }
        let refused = edge.get(target, &headers).await;
        assert_eq!(refused.message(), (401, message.into()), "{what}");
        assert_eq!(refused.header("www-authenticate"), Some("hmac realm=\"hmac\""));
        let path = target.replace("/get", "/anybody");
        let guest = edge.get(&path, &headers).await;
        assert_eq!(guest.seen("x-consumer-username").as_deref(), Some("guest"), "{what}");
    }
    let missing = edge.get("/get", &[]).await.message();
    assert_eq!(missing.1, "client request can't be validated: missing Authorization header");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_says_which_algorithms_headers_and_clocks_it_takes() {
    let edge = edge();
    let strict = || Signed {
        algorithm: "hmac-sha512",
        target: "/strict",
        headers: vec![("date", date(0)), ("x-a", "1".into())],
        ..Signed::default()
    };
    let ask = async |signed: &Signed, more: &[(&str, &str)]| {
        let line = signed.authorization();
        let mut headers = vec![("authorization", &*line)];
        headers.extend(signed.headers.iter().map(|(name, value)| (*name, &**value)));
        headers.extend(more);
        edge.get("/strict", &headers).await
    };
    assert_eq!(ask(&strict(), &[]).await.seen("authorization"), None, "hidden");
    let refused = ask(&Signed { algorithm: "hmac-sha256", ..strict() }, &[]).await;
    assert_eq!(refused.header("www-authenticate"), Some("hmac realm=\"shop\""));
    assert_eq!(refused.status, 401);
    let late = Signed { headers: vec![("date", date(-20)), ("x-a", "1".into())], ..strict() };
    assert_eq!(ask(&late, &[]).await.status, 401);
    let short = Signed { headers: vec![("date", date(0))], ..strict() };
    assert_eq!(ask(&short, &[("x-a", "1")]).await.status, 401, "x-a is not signed");
    assert_eq!(ask(&strict(), &[("x-a", "2")]).await.status, 401, "one more line is not signed");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_body_is_compared_with_its_digest_and_goes_upstream_all_the_same() {
    let edge = edge();
    let ask = async |body: &str, digest: Option<&str>| {
        let signed = Signed { method: "POST", target: "/body", ..Signed::default() };
        let line = signed.authorization();
        let mut headers = vec![("authorization", &*line), ("date", &*signed.headers[0].1)];
        headers.extend(digest.map(|digest| ("digest", digest)));
        edge.ask("POST", "/body", &headers, body).await
    };
    let sum = |body: &str| {
        format!("SHA-256={}", base64(digest::digest(&digest::SHA256, body.as_bytes())))
    };
    let body = "x".repeat(1000);
    for body in ["", "hello", &body] {
        let answer = ask(body, Some(&sum(body))).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json()["body"], body, "what was read is still sent");
    }
    for digest in [None, Some(&*sum("hullo")), Some("SHA-256="), Some("MD5=x")] {
        let refused = ask("hello", digest).await;
        assert_eq!(refused.message(), (401, "client request can't be validated".into()));
    }
    let long = "x".repeat(1001);
    assert_eq!(ask(&long, Some(&sum(&long))).await.status, 413);
}
