//! `jwe-decrypt`: what goes upstream in clear, and what never does.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use serde_json::json;

use super::{Edge, base64, base64url, consumer};

const KEY: &[u8; 32] = b"0123456789abcdef0123456789abcdef";

/// A token as RFC 7516 has it, or (`along` false) as APISIX made them.
fn token(key_id: &str, key: &[u8; 32], text: &[u8], along: bool) -> String {
    let header = json!({ "alg": "dir", "enc": "A256GCM", "kid": key_id }).to_string();
    sealed(&base64url(header), key, text, along)
}

fn sealed(header: &str, key: &[u8; 32], text: &[u8], along: bool) -> String {
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).unwrap());
    let mut text = text.to_vec();
    let aad = Aad::from(if along { header.as_bytes() } else { b"" });
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key([9; 12]), aad, &mut text).unwrap();
    let (text, tag) = text.split_at(text.len() - 16);
    format!("{header}..{}.{}.{}", base64url([9; 12]), base64url(text), base64url(tag))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_goes_upstream_in_clear_and_a_bad_one_not_at_all() {
    let edge = Edge::new(
        &[
            (
                "/own",
                json!({ "jwe-decrypt": { "header": "X-Sealed", "forward_header": "X-Open" } }),
            ),
            ("/default", json!({ "jwe-decrypt": {} })),
            ("/lax", json!({ "jwe-decrypt": { "strict": false } })),
        ],
        &json!({ "consumers": [
            consumer("jack", "jwe-decrypt", json!({
                "key": "jack-key", "secret": String::from_utf8(KEY.to_vec()).unwrap() })),
            consumer("jane", "jwe-decrypt", json!({
                "key": "jane-key", "secret": base64([7; 32]), "is_base64_encoded": true })),
        ] }),
    );
    for along in [true, false] {
        let jack = token("jack-key", KEY, b"for the upstream", along);
        let answer = edge.get("/own", &[("x-sealed", &jack), ("x-open", "forged")]).await;
        assert_eq!(answer.seen("x-open").as_deref(), Some("for the upstream"));
        let jane = format!("Bearer {}", token("jane-key", &[7; 32], b"Bearer x", along));
        let answer = edge.get("/default", &[("authorization", &jane)]).await;
        assert_eq!(answer.seen("authorization").as_deref(), Some("Bearer x"));
    }
    assert_eq!(edge.get("/lax", &[]).await.seen("authorization"), None);
    let missing = edge.get("/own", &[("authorization", "x")]).await;
    assert_eq!(missing.message(), (403, "missing JWE token in request".into()));

    let header = |json: &str| sealed(&base64url(json), KEY, b"x", true);
    let good = token("jack-key", KEY, b"x", true);
    let undone = "failed to decrypt JWE token";
    for (what, token, message) in [
        ("no token", "abc".to_owned(), "JWE token invalid"),
        (
            "another algorithm",
            header(r#"{"alg":"none","enc":"A256GCM","kid":"jack-key"}"#),
            "JWE token invalid",
        ),
        (
            "another cipher",
            header(r#"{"alg":"dir","enc":"A128CBC-HS256","kid":"jack-key"}"#),
            "JWE token invalid",
        ),
        ("six parts", format!("{good}.x"), "JWE token invalid"),
        ("too long", format!("{good}{}", "A".repeat(16 * 1024)), "JWE token invalid"),
        ("no key ID", header(r#"{"alg":"dir","enc":"A256GCM"}"#), "missing kid in JWE token"),
        ("nobody's key", token("nobody", KEY, b"x", true), "invalid kid in JWE token"),
        (
            "a path as key ID",
            token("../../etc/passwd", KEY, b"x", true),
            "invalid kid in JWE token",
        ),
        ("another's key", token("jane-key", KEY, b"x", true), undone),
        ("a header in the text", token("jack-key", KEY, b"a\r\nx-admin: 1", true), undone),
    ] {
        let seen = edge.app.requests();
        let refused = edge.get("/lax", &[("authorization", &token)]).await;
        assert_eq!(refused.message(), (400, message.into()), "{what}");
        assert_eq!(edge.app.requests(), seen, "{what}");
    }
}
