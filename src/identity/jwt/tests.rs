//! Rules 59 to 64 and 114 to 128, and attacks 101 to 113, by their numbers.
#![expect(clippy::needless_pass_by_value, reason = "tests write their JSON in place")]

use ring::rand::SystemRandom;
use ring::rsa::{KeyPair as RsaKeyPair, KeyPairComponents, PublicKeyComponents};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair,
    RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384,
    RSA_PSS_SHA512, RsaEncoding,
};
use serde_json::json;

use super::*;
use crate::identity::forge::Forge;
use crate::identity::{BundleDocument, DenyList, Revocations, Rules, TrustBundle, TrustBundles};

const NOW: i64 = 1_800_000_000;
const WEB: &str = "spiffe://a.test/web";

/// The key of RFC 7515, appendix A.2, which everybody knows: n, e, d, p, q, and the three for the Chinese remainder theorem.
const RSA: [&str; 8] = [
    "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ",
    "AQAB",
    "Eq5xpGnNCivDflJsRQBXHx1hdR1k6Ulwe2JZD50LpXyWPEAeP88vLNO97IjlA7_GQ5sLKMgvfTeXZx9SE-7YwVol2NXOoAJe46sui395IW_GO-pWJ1O0BkTGoVEn2bKVRUCgu-GjBVaYLU6f3l9kJfFNS3E0QbVdxzubSu3Mkqzjkn439X0M_V51gfpRLI9JYanrC4D4qAdGcopV_0ZHHzQlBjudU2QvXt4ehNYTCBr6XCLQUShb1juUO1ZdiYoFaFQT5Tw8bGUl_x_jTj3ccPDVZFD9pIuhLhBOneufuBiB4cS98l2SR_RQyGWSeWjnczT0QU91p1DhOVRuOopznQ",
    "4BzEEOtIpmVdVEZNCqS7baC4crd0pqnRH_5IB3jw3bcxGn6QLvnEtfdUdiYrqBdss1l58BQ3KhooKeQTa9AB0Hw_Py5PJdTJNPY8cQn7ouZ2KKDcmnPGBY5t7yLc1QlQ5xHdwW1VhvKn-nXqhJTBgIPgtldC-KDV5z-y2XDwGUc",
    "uQPEfgmVtjL0Uyyx88GZFF1fOunH3-7cepKmtH4pxhtCoHqpWmT8YAmZxaewHgHAjLYsp1ZSe7zFYHj7C6ul7TjeLQeZD_YwD66t62wDmpe_HlB-TnBA-njbglfIsRLtXlnDzQkv5dTltRJ11BKBBypeeF6689rjcJIDEz9RWdc",
    "BwKfV3Akq5_MFZDFZCnW-wzl-CCo83WoZvnLQwCTeDv8uzluRSnm71I3QCLdhrqE2e9YkxvuxdBfpT_PI7Yz-FOKnu1R6HsJeDCjn12Sk3vmAktV2zb34MCdy7cpdTh_YVr7tss2u6vneTwrA86rZtu5Mbr1C1XsmvkxHQAdYo0",
    "h_96-mK1R_7glhsum81dZxjTnYynPbZpHziZjeeHcXYsXaaMwkOlODsWa7I9xXDoRwbKgB719rrmI2oKr6N3Do9U0ajaHF-NKJnwgjMd2w9cjz3_-kyNlxAr2v4IKhGNpmM5iIgOS1VZnOZ68m6_pbLBSp3nssTdlqvd0tIiTHU",
    "IYd7DHOhrWvxkwPQsRM2tOgrjbcrfvtQJipd-DlcxyVuuM9sQLdgjVk2oy26F0EmpScGLq2MowX7fhd_QJQ3ydy5cY7YIBi87w93IKLEdfnbJtoOPLUW0ITrJReOgo1cq9SbsxYawBgfp_gh6A5603k2-ZQwVK0JKSHuLFkuQ3U",
];

/// Keys of all kinds, and tokens of any kind.
struct Mint {
    p256: EcdsaKeyPair,
    p384: EcdsaKeyPair,
    rsa: RsaKeyPair,
    random: SystemRandom,
}

fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Mint {
    fn new() -> Self {
        let random = SystemRandom::new();
        let curve = |algorithm| {
            let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
            EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap()
        };
        let [n, e, d, p, q, d_p, d_q, q_inv] =
            RSA.map(|text| URL_SAFE_NO_PAD.decode(text).unwrap());
        let public_key = PublicKeyComponents { n, e };
        let rsa = KeyPairComponents { public_key, d, p, q, dP: d_p, dQ: d_q, qInv: q_inv };
        Self {
            p256: curve(&ECDSA_P256_SHA256_FIXED_SIGNING),
            p384: curve(&ECDSA_P384_SHA384_FIXED_SIGNING),
            rsa: RsaKeyPair::from_components(&rsa).unwrap(),
            random,
        }
    }

    /// Three keys for tokens: `es256`, `es384` and `rsa`.
    fn jwks(&self) -> Vec<Value> {
        let curve = |name: &str, id: &str, pair: &EcdsaKeyPair| {
            let (x, y) =
                pair.public_key().as_ref()[1..].split_at(pair.public_key().as_ref().len() / 2);
            json!({ "kty": "EC", "crv": name, "kid": id, "use": "jwt-svid", "x": encode(x), "y": encode(y) })
        };
        vec![
            curve("P-256", "es256", &self.p256),
            curve("P-384", "es384", &self.p384),
            json!({ "kty": "RSA", "kid": "rsa", "use": "jwt-svid", "n": RSA[0], "e": RSA[1] }),
        ]
    }

    fn verifier(&self, domain: &str, jwks: Vec<Value>) -> TokenVerifier {
        let document = json!({ "keys": jwks }).to_string();
        let document = BundleDocument::parse(domain.parse().unwrap(), document.as_bytes());
        let bundles: TrustBundles = [document.unwrap().bundle].into_iter().collect();
        TokenVerifier::new(&Trust::from(bundles))
    }

    fn sign(&self, algorithm: &str, signed: &str) -> Vec<u8> {
        let curve = |pair: &EcdsaKeyPair| {
            pair.sign(&self.random, signed.as_bytes()).unwrap().as_ref().to_vec()
        };
        let rsa = |encoding: &'static dyn RsaEncoding| {
            let mut signature = vec![0; self.rsa.public().modulus_len()];
            self.rsa.sign(encoding, &self.random, signed.as_bytes(), &mut signature).unwrap();
            signature
        };
        match algorithm {
            "ES256" => curve(&self.p256),
            "ES384" => curve(&self.p384),
            "RS256" => rsa(&RSA_PKCS1_SHA256),
            "RS384" => rsa(&RSA_PKCS1_SHA384),
            "RS512" => rsa(&RSA_PKCS1_SHA512),
            "PS256" => rsa(&RSA_PSS_SHA256),
            "PS384" => rsa(&RSA_PSS_SHA384),
            "PS512" => rsa(&RSA_PSS_SHA512),
            other => panic!("{other}"),
        }
    }

    /// Exactly these texts, signed.
    fn raw(&self, algorithm: &str, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", encode(header), encode(claims));
        let signature = self.sign(algorithm, &signed);
        format!("{signed}.{}", encode(signature))
    }

    /// ES256 with this header and these claims.
    fn token(&self, header: Value, claims: Value) -> String {
        self.raw("ES256", &header.to_string(), &claims.to_string())
    }

    /// A good token with other claims beside or instead.
    fn with(&self, more: Value) -> String {
        self.token(header_of("ES256", "es256"), merged(claims(), more))
    }

    fn prove(&self, token: &str) -> Result<JwtSvid, TokenFlaw> {
        self.verifier("a.test", self.jwks()).prove(token)
    }
}

fn header_of(algorithm: &str, key_id: &str) -> Value {
    json!({ "alg": algorithm, "kid": key_id, "typ": "JWT" })
}

fn claims() -> Value {
    json!({ "sub": WEB, "aud": ["billing"], "exp": NOW + 300, "iat": NOW, "jti": "one" })
}

/// `null` takes a member away.
fn merged(mut object: Value, more: Value) -> Value {
    for (name, value) in more.as_object().unwrap() {
        match value {
            Value::Null => drop(object.as_object_mut().unwrap().shift_remove(name)),
            value => object[name] = value.clone(),
        }
    }
    object
}

fn rules() -> TokenRules {
    TokenRules {
        audiences: vec!["billing".into()],
        several_audiences: false,
        leeway: 0,
        max_lifetime: Some(3600),
    }
}

#[test]
fn rule_115_each_algorithm_of_the_specification_that_can_be_verified_is() {
    let mint = Mint::new();
    for (algorithm, key_id) in [
        ("ES256", "es256"),
        ("ES384", "es384"),
        ("RS256", "rsa"),
        ("RS384", "rsa"),
        ("RS512", "rsa"),
        ("PS256", "rsa"),
        ("PS384", "rsa"),
        ("PS512", "rsa"),
    ] {
        let header = header_of(algorithm, key_id).to_string();
        let token = mint.raw(algorithm, &header, &claims().to_string());
        let svid = mint.prove(&token).unwrap_or_else(|flaw| panic!("115 {algorithm}: {flaw}"));
        assert_eq!(svid.id.as_str(), WEB);
        assert_eq!(svid.judge(&rules(), NOW), Ok(()));
        let mut damaged = token.into_bytes();
        let last = damaged.len() - 4;
        damaged[last] = if damaged[last] == b'A' { b'B' } else { b'A' };
        let damaged = String::from_utf8(damaged).unwrap();
        assert_eq!(mint.prove(&damaged).unwrap_err(), TokenFlaw::Signature, "{algorithm}");
    }
    let p521 = mint.token(header_of("ES512", "es256"), claims());
    assert_eq!(mint.prove(&p521).unwrap_err(), TokenFlaw::UnsupportedAlgorithm, "115 by name");
}

#[test]
fn rules_114_to_124_and_attacks_101_to_112_a_token_that_breaks_one_proves_nothing() {
    let mint = Mint::new();
    let good = mint.with(json!({}));
    let parts: Vec<&str> = good.split('.').collect();
    let (head, body, signature) = (parts[0], parts[1], parts[2]);
    let header = |more: Value| mint.token(merged(header_of("ES256", "es256"), more), claims());
    let with = |more: Value| mint.with(more);
    let text = |claims: &str| mint.raw("ES256", &header_of("ES256", "es256").to_string(), claims);
    let malformed = |part| TokenFlaw::Malformed { part };
    let time = |claim| TokenFlaw::Time { claim };
    let deep = format!(
        r#"{{"sub":"{WEB}","aud":"billing","exp":{},"x":{}{}}}"#,
        NOW + 1,
        "[".repeat(10_000),
        "]".repeat(10_000)
    );
    let deep_object = format!(
        r#"{{"sub":"{WEB}","aud":"billing","exp":{},"x":{}1{}}}"#,
        NOW + 1,
        r#"{"a":"#.repeat(20),
        "}".repeat(20)
    );
    let json_form =
        json!({ "payload": body, "signatures": [{ "protected": head, "signature": signature }] });
    let hmac = {
        // The public key as the secret of an HMAC: whoever lets the token choose is lost.
        let signed = format!("{}.{body}", encode(r#"{"alg":"HS256","kid":"rsa"}"#));
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, RSA[0].as_bytes());
        let tag = ring::hmac::sign(&key, signed.as_bytes());
        format!("{signed}.{}", encode(tag))
    };
    let jwk = json!({ "kty": "EC", "crv": "P-256", "x": "AA", "y": "AA" });
    let unsigned = |alg: &str| format!("{}.{body}.", encode(json!({ "alg": alg }).to_string()));
    let unsigned_filled =
        |alg: &str| format!("{}.{body}.AAAA", encode(json!({ "alg": alg }).to_string()));
    for (rule, token, flaw) in [
        ("114 JSON form", json_form.to_string(), TokenFlaw::NotCompact),
        ("114 no dots", "abc".into(), TokenFlaw::NotCompact),
        ("114 two parts", format!("{head}.{body}"), TokenFlaw::NotCompact),
        ("114 four parts", format!("{good}.AAAA"), TokenFlaw::NotCompact),
        ("114 empty part", format!("{head}..{signature}"), TokenFlaw::NotCompact),
        ("114 padding", format!("{head}.{body}.{signature}="), TokenFlaw::NotCompact),
        ("114 blank", format!(" {good}"), TokenFlaw::NotCompact),
        ("114 line break", format!("{good}\n"), TokenFlaw::NotCompact),
        ("114 not ASCII", format!("{head}.{body}.ä"), TokenFlaw::NotCompact),
        (
            "114 trailing bits",
            format!("{head}.{body}.{}B", &signature[..signature.len() - 1]),
            malformed("signature"),
        ),
        ("114 no JSON", format!("{}.{body}.{signature}", encode("hello")), malformed("header")),
        ("114 a list", format!("{}.{body}.{signature}", encode("[]")), malformed("header")),
        (
            "114 trailing",
            format!("{}.{body}.{signature}", encode(r#"{"alg":"ES256"} {}"#)),
            malformed("header"),
        ),
        ("114 too long", format!("{head}.{}.{signature}", "A".repeat(20_000)), TokenFlaw::TooLong),
        ("115/101 none", unsigned_filled("none"), TokenFlaw::Algorithm),
        ("101 None", unsigned_filled("None"), TokenFlaw::Algorithm),
        ("101 nOnE", unsigned_filled("nOnE"), TokenFlaw::Algorithm),
        ("101 none without signature", unsigned("none"), TokenFlaw::NotCompact),
        ("115 lower case", unsigned_filled("es256"), TokenFlaw::Algorithm),
        ("115 EdDSA", unsigned_filled("EdDSA"), TokenFlaw::Algorithm),
        ("115 missing", header(json!({ "alg": null })), TokenFlaw::Algorithm),
        ("115 no text", header(json!({ "alg": ["ES256"] })), TokenFlaw::Algorithm),
        ("115/102 HS256 with the public key", hmac, TokenFlaw::Algorithm),
        (
            "115 before anything else",
            header(json!({ "alg": "none", "jku": "x", "typ": 1 })),
            TokenFlaw::Algorithm,
        ),
        (
            "116/104 jku",
            header(json!({ "jku": "https://evil.test/keys" })),
            TokenFlaw::HeaderMember,
        ),
        (
            "116/104 x5u",
            header(json!({ "x5u": "https://evil.test/keys" })),
            TokenFlaw::HeaderMember,
        ),
        ("116/105 jwk", header(json!({ "jwk": jwk })), TokenFlaw::HeaderMember),
        ("116 x5c", header(json!({ "x5c": ["AA"] })), TokenFlaw::HeaderMember),
        ("116 crit", header(json!({ "crit": ["b64"], "b64": false })), TokenFlaw::HeaderMember),
        ("116 cty", header(json!({ "cty": "JWT" })), TokenFlaw::HeaderMember),
        ("117/112 a WIT", header(json!({ "typ": "wit+jwt" })), TokenFlaw::Type),
        ("117 at+jwt", header(json!({ "typ": "at+jwt" })), TokenFlaw::Type),
        ("117 no text", header(json!({ "typ": 7 })), TokenFlaw::Type),
        (
            "103 kid of a path",
            header(json!({ "kid": "../../etc/passwd" })),
            TokenFlaw::UnknownKey { domain: "a.test".parse().unwrap() },
        ),
        (
            "103 kid of SQL",
            header(json!({ "kid": "' OR 1=1 --" })),
            TokenFlaw::UnknownKey { domain: "a.test".parse().unwrap() },
        ),
        ("103 kid of 257 bytes", header(json!({ "kid": "k".repeat(257) })), TokenFlaw::KeyId),
        ("103 kid of 1 MiB", header(json!({ "kid": "k".repeat(1 << 20) })), TokenFlaw::TooLong),
        ("103 kid empty", header(json!({ "kid": "" })), TokenFlaw::KeyId),
        ("103 kid a number", header(json!({ "kid": 1 })), TokenFlaw::KeyId),
        ("118 no sub", with(json!({ "sub": null })), TokenFlaw::Subject(None)),
        ("118 sub no text", with(json!({ "sub": [WEB] })), TokenFlaw::Subject(None)),
        (
            "118 no SPIFFE ID",
            with(json!({ "sub": "https://a.test/web" })),
            TokenFlaw::Subject(Some(spiffe_id::Error::Scheme)),
        ),
        (
            "118 dot segment",
            with(json!({ "sub": "spiffe://a.test/x/../web" })),
            TokenFlaw::Subject(Some(spiffe_id::Error::DotSegment)),
        ),
        (
            "118 upper case",
            with(json!({ "sub": "spiffe://A.test/web" })),
            TokenFlaw::Subject(Some(spiffe_id::Error::TrustDomainByte)),
        ),
        ("118 no path", with(json!({ "sub": "spiffe://a.test" })), TokenFlaw::Subject(None)),
        (
            "119 another domain's keys do not count",
            with(json!({ "sub": "spiffe://b.test/web" })),
            TokenFlaw::UnknownTrustDomain,
        ),
        ("120 no aud", with(json!({ "aud": null })), TokenFlaw::NoAudience),
        ("120 aud a number", with(json!({ "aud": 7 })), TokenFlaw::NoAudience),
        ("120 aud of numbers", with(json!({ "aud": ["billing", 7] })), TokenFlaw::NoAudience),
        ("120 aud empty", with(json!({ "aud": [] })), TokenFlaw::NoAudience),
        ("120 aud an empty text", with(json!({ "aud": "" })), TokenFlaw::NoAudience),
        ("122 no exp", with(json!({ "exp": null })), TokenFlaw::NoExpiry),
        ("122/107 exp a text", with(json!({ "exp": "1800000300" })), time("exp")),
        (
            "122/107 exp a float",
            text(&format!(r#"{{"sub":"{WEB}","aud":"billing","exp":1800000300.5}}"#)),
            time("exp"),
        ),
        (
            "122/107 exp 1e308",
            text(&format!(r#"{{"sub":"{WEB}","aud":"billing","exp":1e308}}"#)),
            time("exp"),
        ),
        (
            "122/107 exp 1e999",
            text(&format!(r#"{{"sub":"{WEB}","aud":"billing","exp":1e999}}"#)),
            malformed("claims"),
        ),
        ("122/107 exp negative", with(json!({ "exp": -1 })), time("exp")),
        (
            "122/107 exp of 2^64",
            text(&format!(r#"{{"sub":"{WEB}","aud":"billing","exp":18446744073709551615}}"#)),
            time("exp"),
        ),
        ("122 exp true", with(json!({ "exp": true })), time("exp")),
        ("123 nbf a text", with(json!({ "nbf": "0" })), time("nbf")),
        (
            "123 iat a float",
            text(&format!(r#"{{"sub":"{WEB}","aud":"billing","exp":1800000300,"iat":1.5}}"#)),
            time("iat"),
        ),
        (
            "108 exp twice",
            text(&format!(r#"{{"sub":"{WEB}","aud":"billing","exp":1,"exp":1800000300}}"#)),
            malformed("claims"),
        ),
        (
            "108 sub twice, one escaped",
            text(&format!(
                r#"{{"sub":"{WEB}","s\u0075b":"{WEB}","aud":"billing","exp":1800000300}}"#
            )),
            malformed("claims"),
        ),
        (
            "108 twice within",
            text(&format!(
                r#"{{"sub":"{WEB}","aud":"billing","exp":1800000300,"x":{{"a":1,"a":2}}}}"#
            )),
            malformed("claims"),
        ),
        (
            "108 alg twice",
            mint.raw("ES256", r#"{"alg":"none","alg":"ES256"}"#, &claims().to_string()),
            malformed("header"),
        ),
        ("109 lists 10,000 deep", text(&deep), TokenFlaw::TooLong),
        ("109 objects 20 deep", text(&deep_object), malformed("claims")),
        (
            "109 lists 1,000 deep",
            text(&format!("{}{}", "[".repeat(1000), "]".repeat(1000))),
            malformed("claims"),
        ),
        ("124 ES384 with a P-256 key", header(json!({ "alg": "ES384" })), TokenFlaw::Signature),
        ("124 RS256 with a P-256 key", header(json!({ "alg": "RS256" })), TokenFlaw::KeyMismatch),
        ("124 ES256 with an RSA key", header(json!({ "kid": "rsa" })), TokenFlaw::KeyMismatch),
        ("124 ES256 with a P-384 key", header(json!({ "kid": "es384" })), TokenFlaw::KeyMismatch),
        ("106 signature 0/0", format!("{head}.{body}.{}", encode([0; 64])), TokenFlaw::Signature),
        ("106 too short", format!("{head}.{body}.{}", encode([1; 63])), TokenFlaw::Signature),
        ("106 too long", format!("{head}.{body}.{}", encode([1; 65])), TokenFlaw::Signature),
        (
            "106 another token's",
            format!(
                "{head}.{}.{signature}",
                encode(merged(claims(), json!({ "sub": "spiffe://a.test/root" })).to_string())
            ),
            TokenFlaw::Signature,
        ),
    ] {
        let found = mint.prove(&token).map(|svid| svid.id);
        assert_eq!(found, Err(flaw.clone()), "{rule}");
        assert!(flaw.code().starts_with("token_"), "{rule}");
    }
    assert!(mint.prove(&good).is_ok());
}

#[test]
fn rule_117_both_types_and_none_are_taken_and_rule_125_a_token_without_kid_is_tried_with_all_keys()
{
    let mint = Mint::new();
    for more in [
        json!({ "typ": "JWT" }),
        json!({ "typ": "JOSE" }),
        json!({ "typ": null }),
        json!({ "kid": null }),
        json!({ "kid": null, "typ": null }),
    ] {
        let token = mint.token(merged(header_of("ES256", "es256"), more.clone()), claims());
        assert_eq!(mint.prove(&token).unwrap().id.as_str(), WEB, "{more}");
    }
    // Keys of another trust domain are not among all.
    let token = mint.token(json!({ "alg": "ES256" }), claims());
    let b_alone = mint.verifier("b.test", mint.jwks());
    assert_eq!(b_alone.prove(&token).unwrap_err(), TokenFlaw::UnknownTrustDomain, "125, 119");
    let other = Mint::new();
    assert_eq!(other.prove(&token).unwrap_err(), TokenFlaw::Signature, "125");
}

#[test]
fn rules_120_to_123_a_genuine_token_must_be_for_us_and_now() {
    let mint = Mint::new();
    let judge = |more: Value, rules: TokenRules, now: i64| {
        mint.prove(&mint.with(more.clone()))
            .unwrap_or_else(|flaw| panic!("{more} {flaw}"))
            .judge(&rules, now)
    };
    let ours = |more: Value| judge(more, rules(), NOW);
    assert_eq!(ours(json!({})), Ok(()), "120");
    assert_eq!(ours(json!({ "aud": "billing" })), Ok(()), "120 one text");
    for (rule, more) in [
        ("120/110 another", json!({ "aud": ["shop"] })),
        ("120 case", json!({ "aud": ["Billing"] })),
        ("120 a part", json!({ "aud": ["billing/x"] })),
        ("120 a slash", json!({ "aud": ["billing/"] })),
        ("120 several others", json!({ "aud": ["a", "b"] })),
    ] {
        assert_eq!(ours(more), Err(TokenFlaw::OtherAudience), "{rule}");
    }
    let two = json!({ "aud": ["billing", "shop"] });
    assert_eq!(ours(two.clone()), Err(TokenFlaw::SeveralAudiences), "121/110");
    let several = TokenRules { several_audiences: true, ..rules() };
    assert_eq!(judge(two, several, NOW), Ok(()), "121 where allowed");

    let late = |leeway, now| judge(json!({}), TokenRules { leeway, ..rules() }, now);
    assert_eq!(late(0, NOW + 299), Ok(()), "122");
    assert_eq!(late(0, NOW + 300), Err(TokenFlaw::Expired), "122 at the very second");
    assert_eq!(late(60, NOW + 359), Ok(()), "122 leeway");
    assert_eq!(late(60, NOW + 360), Err(TokenFlaw::Expired), "122 leeway is over");
    assert_eq!(late(255, NOW + 361), Err(TokenFlaw::Expired), "122 never more than 60 s");
    assert_eq!(ours(json!({ "nbf": NOW + 1 })), Err(TokenFlaw::NotYetValid), "123");
    assert_eq!(ours(json!({ "nbf": NOW })), Ok(()), "123");
    assert_eq!(ours(json!({ "iat": NOW + 1 })), Err(TokenFlaw::IssuedInFuture), "123");
    let lenient = TokenRules { leeway: 5, ..rules() };
    assert_eq!(
        judge(json!({ "iat": NOW + 5, "nbf": NOW + 5 }), lenient, NOW),
        Ok(()),
        "123 leeway"
    );
    assert_eq!(ours(json!({ "exp": NOW + 3600 })), Ok(()), "123");
    assert_eq!(ours(json!({ "exp": NOW + 3601 })), Err(TokenFlaw::Lifetime), "123");
    assert_eq!(
        ours(json!({ "exp": NOW + 3601, "iat": null })),
        Err(TokenFlaw::Lifetime),
        "123 without iat"
    );
    assert_eq!(
        ours(json!({ "exp": i64::MAX, "iat": 0 })),
        Err(TokenFlaw::Lifetime),
        "123 no overflow"
    );
}

#[test]
fn rules_59_to_64_tell_which_keys_verify_tokens() {
    let mint = Mint::new();
    let token = mint.with(json!({}));
    let key = mint.jwks().remove(0);
    let with = |more: Value| merged(key.clone(), more);
    let unknown = || Err(TokenFlaw::UnknownTrustDomain);
    for (rule, entry, expected) in [
        ("64 as it should be", key.clone(), Ok(())),
        ("65 unknown members", with(json!({ "x-own": 1 })), Ok(())),
        ("124 its own algorithm", with(json!({ "alg": "ES256" })), Ok(())),
        ("59 unknown kty", with(json!({ "kty": "QQ" })), unknown()),
        ("60 missing use", with(json!({ "use": null })), unknown()),
        ("60 unknown use", with(json!({ "use": "sig" })), unknown()),
        ("61 case of use", with(json!({ "use": "JWT-SVID" })), unknown()),
        ("64 without kid", with(json!({ "kid": null })), unknown()),
        ("64 kid empty", with(json!({ "kid": "" })), unknown()),
        ("64 kid a number", with(json!({ "kid": 1 })), unknown()),
        ("64 of another use", with(json!({ "use": "x509-svid", "x5c": [] })), unknown()),
        ("64 of another use", with(json!({ "use": "wit-svid" })), unknown()),
        ("124 another algorithm", with(json!({ "alg": "ES384" })), Err(TokenFlaw::KeyMismatch)),
        ("124 a short coordinate", with(json!({ "x": "AAAA" })), unknown()),
        ("124 another curve", with(json!({ "crv": "P-521" })), unknown()),
    ] {
        let verifier = mint.verifier("a.test", vec![entry]);
        assert_eq!(verifier.prove(&token).map(drop), expected, "{rule}");
    }
    // 62, 63, 110: a certificate's key is none for tokens, and a key for tokens vouches for no certificate.
    let forge = Forge::new("a.test");
    let document = BundleDocument {
        bundle: TrustBundle {
            jwt_authorities: mint.jwks().iter().filter_map(JwtAuthority::from_jwk).collect(),
            ..forge.bundle()
        },
        sequence: None,
        refresh_after: std::time::Duration::from_secs(300),
    };
    let both = document.to_json().unwrap();
    let again =
        BundleDocument::parse("a.test".parse().unwrap(), both.to_string().as_bytes()).unwrap();
    assert_eq!(again, document, "both kinds survive");
    assert_eq!(both["keys"][0]["use"], "x509-svid");
    assert_eq!(both["keys"][1]["use"], "jwt-svid");
    assert_eq!((again.bundle.roots.len(), again.bundle.jwt_authorities.len()), (1, 3), "110");
    let roots_only: TrustBundles = [forge.bundle()].into_iter().collect();
    let verifier = TokenVerifier::new(&Trust::from(roots_only));
    assert_eq!(verifier.prove(&token).map(drop), Err(TokenFlaw::UnknownTrustDomain), "64, 110");
}

#[test]
fn the_workload_apis_key_sets_need_no_use_and_private_numbers_are_not_kept() {
    let mint = Mint::new();
    let mut plain = mint.jwks();
    for key in &mut plain {
        *key = merged(key.clone(), json!({ "use": null, "d": "secret" }));
    }
    plain.push(merged(plain[0].clone(), json!({ "use": "x509-svid", "kid": "other" })));
    let set = JwtAuthority::parse_set(json!({ "keys": plain }).to_string().as_bytes()).unwrap();
    assert_eq!(set.iter().map(|key| &*key.key_id).collect::<Vec<_>>(), ["es256", "es384", "rsa"]);
    assert!(!JwtAuthority::to_set(&set).to_string().contains("secret"));
    for wrong in ["", "[]", "{}", r#"{"keys": {}}"#] {
        assert!(JwtAuthority::parse_set(wrong.as_bytes()).is_err(), "{wrong}");
    }
}

#[test]
fn who_stands_in_the_deny_list_is_refused_whatever_his_token_says() {
    let mint = Mint::new();
    let document = json!({ "keys": mint.jwks() }).to_string();
    let document = BundleDocument::parse("a.test".parse().unwrap(), document.as_bytes()).unwrap();
    let bundles: TrustBundles = [document.bundle].into_iter().collect();
    let denied = DenyList { ids: [WEB.parse().unwrap()].into(), ..DenyList::default() };
    let revocation = Revocations { denied, ..Revocations::default() };
    let trust = Trust::new(bundles, revocation, Rules::default());
    let verifier = trust.token_verifier();
    assert_eq!(verifier.prove(&mint.with(json!({}))).unwrap_err(), TokenFlaw::Denied);
    let other = mint.with(json!({ "sub": "spiffe://a.test/other" }));
    assert!(verifier.prove(&other).is_ok());
}

#[test]
fn rule_128_nothing_that_prints_shows_a_token() {
    let mint = Mint::new();
    let token = mint.with(json!({ "secret": "do not tell" }));
    let svid = mint.prove(&token).unwrap();
    let kept = TokenText::new(token.clone());
    let shown = format!("{svid:?} {kept:?} {:?}", mint.verifier("a.test", mint.jwks()));
    for part in token.split('.') {
        assert!(!shown.contains(part), "128 {shown}");
    }
    assert!(!shown.contains("do not tell"), "128 {shown}");
    assert!(shown.contains(&svid.hash) && shown.contains("\"one\""), "128 {shown}");
    assert_eq!((kept.reveal(), svid.hash.len()), (&*token, 16));
}

#[test]
fn random_bytes_are_never_a_panic() {
    let mint = Mint::new();
    let verifier = mint.verifier("a.test", mint.jwks());
    let good = mint.with(json!({})).into_bytes();
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..3_000 {
        let mut token = good.clone();
        for _ in 0..random.usize(1..8) {
            let at = random.usize(..token.len());
            token[at] = random.u8(33..127);
        }
        token.truncate(random.usize(1..=token.len()));
        if token != good {
            assert!(verifier.prove(&String::from_utf8_lossy(&token)).is_err());
        }
    }
}
