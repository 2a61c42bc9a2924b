//! `jwt-auth`: every algorithm and setting, and tokens that were made to get through.

use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm, Ed25519KeyPair, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512,
    RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PSS_SHA512, RsaEncoding,
};
use ring::{hmac, rand::SystemRandom, rsa};
use serde_json::{Value, json};

use super::{Edge, base64, base64url, consumer, routes};
use crate::world::{App, World, send};

/// A key for tests: modulus, exponent, d, p, q, dP, dQ, qInv. Making one takes seconds.
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

const SECRET: &str = "a-secret-that-both-sides-share!!";

/// Keys of every kind, each with its public half as PEM.
pub(super) struct Keys {
    rsa: (rsa::KeyPair, String),
    pub(super) p256: rcgen::KeyPair,
    p384: rcgen::KeyPair,
    ed25519: rcgen::KeyPair,
}

pub(super) fn keys() -> &'static Keys {
    static KEYS: OnceLock<Keys> = OnceLock::new();
    KEYS.get_or_init(|| {
        let [n, e, d, p, q, d_p, d_q, q_inv] =
            RSA.map(|text| URL_SAFE_NO_PAD.decode(text).unwrap());
        let public_key = rsa::PublicKeyComponents { n, e };
        let parts = rsa::KeyPairComponents { public_key, d, p, q, dP: d_p, dQ: d_q, qInv: q_inv };
        let rsa = rsa::KeyPair::from_components(&parts).unwrap();
        let public = base64(rsa.public());
        let pem =
            format!("-----BEGIN RSA PUBLIC KEY-----\n{public}\n-----END RSA PUBLIC KEY-----\n");
        let generate = |kind| rcgen::KeyPair::generate_for(kind).unwrap();
        Keys {
            rsa: (rsa, pem),
            p256: generate(&rcgen::PKCS_ECDSA_P256_SHA256),
            p384: generate(&rcgen::PKCS_ECDSA_P384_SHA384),
            ed25519: generate(&rcgen::PKCS_ED25519),
        }
    })
}

pub(super) fn public_key(algorithm: &str) -> String {
    match algorithm {
        "ES256" => keys().p256.public_key_pem(),
        "ES384" => keys().p384.public_key_pem(),
        "EdDSA" => keys().ed25519.public_key_pem(),
        _ => keys().rsa.1.clone(),
    }
}

fn sign(algorithm: &str, secret: &[u8], signed: &[u8]) -> Vec<u8> {
    let random = SystemRandom::new();
    let shared = |known| hmac::sign(&hmac::Key::new(known, secret), signed).as_ref().to_vec();
    let with_rsa = |encoding: &'static dyn RsaEncoding| {
        let key = &keys().rsa.0;
        let mut signature = vec![0; key.public().modulus_len()];
        key.sign(encoding, &random, signed, &mut signature).unwrap();
        signature
    };
    let with_curve = |known: &'static EcdsaSigningAlgorithm, key: &rcgen::KeyPair| {
        let key = EcdsaKeyPair::from_pkcs8(known, key.serialized_der(), &random).unwrap();
        key.sign(&random, signed).unwrap().as_ref().to_vec()
    };
    match algorithm {
        "HS256" => shared(hmac::HMAC_SHA256),
        "HS384" => shared(hmac::HMAC_SHA384),
        "HS512" => shared(hmac::HMAC_SHA512),
        "RS256" => with_rsa(&RSA_PKCS1_SHA256),
        "RS384" => with_rsa(&RSA_PKCS1_SHA384),
        "RS512" => with_rsa(&RSA_PKCS1_SHA512),
        "PS256" => with_rsa(&RSA_PSS_SHA256),
        "PS384" => with_rsa(&RSA_PSS_SHA384),
        "PS512" => with_rsa(&RSA_PSS_SHA512),
        "ES256" => with_curve(&ECDSA_P256_SHA256_FIXED_SIGNING, &keys().p256),
        "ES384" => with_curve(&ECDSA_P384_SHA384_FIXED_SIGNING, &keys().p384),
        "EdDSA" => {
            let key = keys().ed25519.serialized_der();
            let key = Ed25519KeyPair::from_pkcs8_maybe_unchecked(key).unwrap();
            key.sign(signed).as_ref().to_vec()
        }
        _ => Vec::new(),
    }
}

/// A token with this header, signed with `algorithm` whatever the header says.
pub(super) fn forged(header: &str, claims: &str, algorithm: &str, secret: &[u8]) -> String {
    let signed = format!("{}.{}", base64url(header), base64url(claims));
    let signature = sign(algorithm, secret, signed.as_bytes());
    format!("{signed}.{}", base64url(signature))
}

fn token(algorithm: &str, claims: &Value) -> String {
    let header = json!({ "alg": algorithm, "typ": "JWT" }).to_string();
    forged(&header, &claims.to_string(), algorithm, SECRET.as_bytes())
}

pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_algorithm_proves_a_consumer_with_its_own_key_and_no_other() {
    let shared = ["HS256", "HS384", "HS512"];
    let public = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"];
    let mut consumers: Vec<Value> = Vec::new();
    for name in shared {
        let credential = json!({ "key": name, "algorithm": name, "secret": SECRET });
        consumers.push(consumer(&format!("c-{name}"), "jwt-auth", credential));
    }
    for name in public {
        let credential = json!({ "key": name, "algorithm": name, "public_key": public_key(name) });
        consumers.push(consumer(&format!("c-{name}"), "jwt-auth", credential));
    }
    let in_base64 = json!({ "key": "b64", "secret": base64(SECRET), "base64_secret": true });
    consumers.push(consumer("c-b64", "jwt-auth", in_base64));
    let edge = Edge::new(&[("/", json!({ "jwt-auth": {} }))], &json!({ "consumers": consumers }));
    let ask = async |token: &str| edge.get("/", &[("authorization", token)]).await;

    for name in shared.iter().chain(&public) {
        let good = token(name, &json!({ "key": name }));
        for presented in [good.clone(), format!("Bearer {good}"), format!("bearer {good}")] {
            let answer = ask(&presented).await;
            let found = answer.seen("x-consumer-username");
            assert_eq!(found, Some(format!("c-{name}")), "{name}");
        }
        // Another consumer's key, whatever its algorithm, signs nothing for this one.
        for other in ["HS256", "RS256", "PS256", "ES256", "EdDSA"] {
            if other != *name {
                let refused = ask(&token(other, &json!({ "key": name }))).await;
                assert_eq!(refused.message(), (401, "failed to verify jwt".into()), "{name}");
            }
        }
    }
    let answer = ask(&token("HS256", &json!({ "key": "b64" }))).await;
    assert_eq!(answer.seen("x-consumer-username").as_deref(), Some("c-b64"));

    // What has been a way in elsewhere.
    let claims = json!({ "key": "RS256" }).to_string();
    let pem = public_key("RS256");
    let header = |algorithm: &str| json!({ "alg": algorithm }).to_string();
    let unsigned = format!("{}.{}.", base64url(header("none")), base64url(&claims));
    let good = token("HS256", &json!({ "key": "HS256" }));
    let (head, _) = good.rsplit_once('.').unwrap();
    let other = token("HS256", &json!({ "key": "b64" }));
    let (_, tail) = other.rsplit_once('.').unwrap();
    let verify = "failed to verify jwt";
    let invalid = "JWT token invalid";
    let huge = format!("{good}{}", "A".repeat(16 * 1024));
    let pad = json!({ "key": "HS256", "pad": "x".repeat(13_000) });
    for (what, token, message) in [
        ("none", unsigned.clone(), verify),
        ("None", unsigned.replace(&base64url(header("none")), &base64url(header("nOnE"))), verify),
        (
            "the public key as a secret",
            forged(&header("HS256"), &claims, "HS256", pem.as_bytes()),
            verify,
        ),
        ("a header that lies", forged(&header("RS256"), &claims, "HS256", pem.as_bytes()), verify),
        ("no algorithm", forged("{}", &claims, "HS256", b""), invalid),
        ("a list of algorithms", forged(r#"{"alg":["HS256"]}"#, &claims, "HS256", b""), invalid),
        (
            "extensions",
            forged(
                r#"{"alg":"HS256","crit":["exp"]}"#,
                r#"{"key":"HS256"}"#,
                "HS256",
                SECRET.as_bytes(),
            ),
            invalid,
        ),
        (
            "a claim twice",
            forged(
                &header("HS256"),
                r#"{"key":"HS256","key":"RS256"}"#,
                "HS256",
                SECRET.as_bytes(),
            ),
            invalid,
        ),
        ("no signature", format!("{head}."), verify),
        ("another signature", format!("{head}.{tail}"), verify),
        ("two parts", head.to_owned(), invalid),
        ("four parts", format!("{good}.x"), invalid),
        ("padding", format!("{good}=="), invalid),
        ("no JSON", "a.b.c".to_owned(), invalid),
        ("too long", huge, invalid),
        ("deep", forged(&header("HS256"), &"[".repeat(5000), "HS256", SECRET.as_bytes()), invalid),
        ("no key", token("HS256", &json!({ "sub": "HS256" })), "missing user key in JWT token"),
        (
            "a key that is no text",
            token("HS256", &json!({ "key": 7 })),
            "missing user key in JWT token",
        ),
        (
            "nobody's key",
            token("HS256", &json!({ "key": "nobody" })),
            "Invalid user key in JWT token",
        ),
        (
            "a key with a path",
            token("HS256", &json!({ "key": "../c-HS256" })),
            "Invalid user key in JWT token",
        ),
        (
            "a key ID is no key",
            forged(r#"{"alg":"HS256","kid":"../../dev/null"}"#, r#"{"key":"HS256"}"#, "HS256", b""),
            verify,
        ),
    ] {
        let refused = ask(&token).await;
        assert_eq!(refused.message(), (401, message.into()), "{what}");
        assert_eq!(refused.header("www-authenticate"), Some("Bearer realm=\"jwt\""));
    }
    assert_eq!(ask(&token("HS256", &pad)).await.status, 401, "longer than 16 KiB in base64");
    assert_eq!(edge.get("/", &[]).await.message(), (401, "Missing JWT token in request".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_setting_does_what_it_says() {
    let edge = Edge::new(
        &[
            (
                "/own",
                json!({ "jwt-auth": {
                "header": "X-Token", "query": "t", "cookie": "c", "hide_credentials": true,
                "key_claim_name": "iss", "realm": "shop",
            } }),
            ),
            ("/exp", json!({ "jwt-auth": { "claims_to_verify": ["exp"] } })),
            ("/nbf", json!({ "jwt-auth": { "claims_to_verify": ["nbf"] } })),
            ("/both", json!({ "jwt-auth": {} })),
            ("/anybody", json!({ "jwt-auth": { "anonymous_consumer": "guest" } })),
        ],
        &json!({ "consumers": [
            consumer("jack", "jwt-auth", json!({ "key": "jack", "secret": SECRET, "exp": 60 })),
            consumer("lax", "jwt-auth", json!({
                "key": "lax", "secret": SECRET, "lifetime_grace_period": 600 })),
            { "username": "guest" },
        ] }),
    );
    let named = token("HS256", &json!({ "iss": "jack" }));
    let cookie = format!("a=1; c={named}; b=2");
    let by_query = format!("/own?a=1&t={named}");
    for (path, header) in [
        ("/own", ("x-token", &*named)),
        (&*by_query, ("x-other", "1")),
        ("/own", ("cookie", &*cookie)),
    ] {
        let answer = edge.get(path, &[header]).await;
        assert_eq!(answer.seen("x-consumer-username").as_deref(), Some("jack"));
        assert!(!answer.text().contains(&named), "nothing of it goes upstream: {}", answer.text());
    }
    let answer = edge.get("/own", &[("cookie", &cookie)]).await;
    assert_eq!(answer.seen("cookie").as_deref(), Some("a=1; b=2"));
    let refused = edge.get("/own", &[("authorization", &named)]).await;
    assert_eq!(refused.header("www-authenticate"), Some("Bearer realm=\"shop\""));
    // Header before query before cookie: the first one counts, good or not.
    let refused = edge.get(&by_query, &[("x-token", "a.b.c")]).await;
    assert_eq!(refused.message(), (401, "JWT token invalid".into()));

    let (past, future) = (now() - 300, now() + 300);
    for (path, claims, status) in [
        ("/both", json!({ "key": "jack", "exp": future, "nbf": past }), 200),
        ("/both", json!({ "key": "jack", "exp": past }), 401),
        ("/both", json!({ "key": "jack", "nbf": future }), 401),
        ("/both", json!({ "key": "jack", "exp": "never" }), 401),
        ("/both", json!({ "key": "jack", "exp": null }), 401),
        ("/both", json!({ "key": "lax", "exp": past, "nbf": future }), 200),
        ("/both", json!({ "key": "lax", "exp": now() - 700 }), 401),
        ("/exp", json!({ "key": "jack", "exp": past }), 401),
        ("/exp", json!({ "key": "jack", "nbf": future }), 200),
        ("/nbf", json!({ "key": "jack", "exp": past }), 200),
        ("/nbf", json!({ "key": "jack", "nbf": future }), 401),
        ("/anybody", json!({ "key": "nobody" }), 200),
    ] {
        let token = token("HS256", &claims);
        let answer = edge.get(path, &[("authorization", &token)]).await;
        assert_eq!(answer.status, status, "{path} {claims} {}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_may_be_references() {
    let world = World::new();
    let app = App::echo("app");
    let mut resources = json!({ "consumers": [
        consumer("jwt", "jwt-auth", json!({ "key": "jwt", "secret": "$env://TEST_AUTH_SECRET" })),
        consumer("basic", "basic-auth", json!({
            "username": "basic", "password": "$env://TEST_AUTH_SECRET" })),
        consumer("lost", "basic-auth", json!({ "username": "lost", "password": "$env://TEST_AUTH_LOST" })),
    ] });
    resources["routes"] = routes(
        &app,
        &[("/jwt", json!({ "jwt-auth": {} })), ("/basic", json!({ "basic-auth": {} }))],
    );
    let ingress = world
        .ingress()
        .env("TEST_AUTH_SECRET", SECRET)
        .set("secrets", &json!({ "environment": ["TEST_AUTH_*"] }))
        .resources(&resources)
        .start();
    let get = async |path: &str, line: &str| {
        send(ingress.address("ingress"), "GET", path, &[("authorization", line)], "").await
    };
    let basic = |text: &str| format!("Basic {}", base64(text));
    let answer = get("/jwt", &token("HS256", &json!({ "key": "jwt" }))).await;
    assert_eq!(answer.seen("x-consumer-username").as_deref(), Some("jwt"));
    let answer = get("/basic", &basic(&format!("basic:{SECRET}"))).await;
    assert_eq!(answer.seen("x-consumer-username").as_deref(), Some("basic"));
    for text in ["basic:$env://TEST_AUTH_SECRET", "lost:$env://TEST_AUTH_LOST", "lost:"] {
        assert_eq!(get("/basic", &basic(text)).await.status, 401, "a reference is no secret");
    }
}
