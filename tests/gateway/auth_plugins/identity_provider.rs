//! An OpenID provider over real HTTP, as far as a relying party sees one: it authenticates clients, checks PKCE, takes codes and
//! refresh tokens once, and knows who has logged out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt as _, Full};
use ring::hmac;
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use serde_json::{Value, json};

use super::jwt_auth::{forged, keys, now};
use super::{base64, base64url};
use crate::world::App;

pub(super) const SECRET: &str = "s3cret of+the&shop";

/// A provider.
pub(super) struct IdentityProvider {
    pub(super) app: App,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) issuer: String,
    /// What is put into ID tokens in place of, or beside, what belongs there. `null` takes it out.
    pub(super) claims: Value,
    /// The key that ID tokens name.
    pub(super) key_id: String,
    pub(super) expires_in: Option<u64>,
    pub(super) user: Value,
    /// Nobody is logged in at the provider.
    pub(super) nobody: bool,
    /// What the token endpoint was asked, and with which credentials.
    pub(super) forms: Vec<(BTreeMap<String, String>, String)>,
    pub(super) authorized: Vec<BTreeMap<String, String>>,
    pub(super) ended: Vec<BTreeMap<String, String>>,
    pub(super) revoked: BTreeSet<String>,
    codes: BTreeMap<String, BTreeMap<String, String>>,
    pushed: BTreeMap<String, BTreeMap<String, String>>,
    refresh_tokens: BTreeMap<String, String>,
    /// A refresh token came twice: somebody has stolen one.
    pub(super) stolen: bool,
    assertions: BTreeSet<String>,
    count: usize,
}

type Told = (u16, Option<String>, Value);

pub(super) fn arguments(text: &str) -> BTreeMap<String, String> {
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let decode = |text: &str| {
            percent_encoding::percent_decode_str(&text.replace('+', " "))
                .decode_utf8()
                .unwrap()
                .into_owned()
        };
        (decode(name), decode(value))
    };
    text.split('&').filter(|piece| !piece.is_empty()).map(pair).collect()
}

impl IdentityProvider {
    pub(super) fn new() -> Self {
        let state = Arc::<Mutex<State>>::default();
        let known = state.clone();
        let app = App::serving(move |request: http::Request<hyper::body::Incoming>| {
            let known = known.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let form = arguments(std::str::from_utf8(&body).unwrap());
                let query = arguments(head.uri.query().unwrap_or_default());
                let credentials = head.headers.get("authorization");
                let credentials = credentials.map(|line| line.to_str().unwrap().to_owned());
                let (status, location, answer) = known.lock().unwrap().answer(
                    head.uri.path(),
                    &query,
                    form,
                    credentials.unwrap_or_default(),
                );
                let mut response = Response::builder().status(status);
                if let Some(location) = location {
                    response = response.header("location", location);
                }
                response.body(Full::new(Bytes::from(answer.to_string()))).unwrap()
            }
        });
        let provider = Self { app, state };
        {
            let mut state = provider.state();
            state.issuer = provider.issuer();
            state.key_id = "one".into();
            state.claims = json!({});
            state.expires_in = Some(600);
            state.user = json!({ "sub": "ann", "email": "ann@example" });
        }
        provider
    }

    pub(super) fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(super) fn issuer(&self) -> String {
        format!("http://{}", self.app.address)
    }
}

impl State {
    fn answer(
        &mut self,
        path: &str,
        query: &BTreeMap<String, String>,
        form: BTreeMap<String, String>,
        credentials: String,
    ) -> Told {
        let ok = |answer: Value| (200, None, answer);
        let at = |path: &str| format!("{}{path}", self.issuer);
        match path {
            "/d" => ok(json!({
                "issuer": self.issuer, "jwks_uri": at("/jwks"), "token_endpoint": at("/token"),
                "authorization_endpoint": at("/authorize?tenant=1"), "userinfo_endpoint": at("/me"),
                "end_session_endpoint": at("/bye"), "revocation_endpoint": at("/revoke"),
                "pushed_authorization_request_endpoint": at("/par"),
                "introspection_endpoint": at("/introspect"),
                "authorization_response_iss_parameter_supported": true,
            })),
            // Without a way out, and without anything that is not needed.
            "/bare" => ok(json!({
                "issuer": self.issuer, "jwks_uri": at("/jwks"), "token_endpoint": at("/token"),
                "authorization_endpoint": at("/authorize"),
            })),
            "/jwks" => {
                let point = keys().p256.public_key_raw();
                ok(json!({ "keys": [{ "kty": "EC", "crv": "P-256", "kid": "one", "use": "sig",
                    "x": base64url(&point[1..33]), "y": base64url(&point[33..]) }] }))
            }
            "/authorize" => self.authorize(query),
            "/token" | "/par" | "/introspect" | "/revoke" => {
                if !self.knows(&form, &credentials, path) {
                    return (401, None, json!({ "error": "invalid_client" }));
                }
                self.asked_by_client(path, form, credentials)
            }
            "/me" => match credentials.strip_prefix("Bearer access-") {
                Some(_) => ok(self.user.clone()),
                None => (401, None, Value::Null),
            },
            "/bye" => {
                self.ended.push(query.clone());
                ok(Value::Null)
            }
            _ => (404, None, Value::Null),
        }
    }

    /// Is it the shop, by any of the ways to prove it?
    fn knows(&mut self, form: &BTreeMap<String, String>, credentials: &str, path: &str) -> bool {
        let encoded = "s3cret%20of%2Bthe%26shop";
        if credentials == format!("Basic {}", base64(format!("shop:{encoded}"))) {
            return true;
        }
        let told = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
        if told("client_secret") == SECRET && told("client_id") == "shop" {
            return true;
        }
        if told("client_id") == "public" {
            return credentials.is_empty();
        }
        let kind = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
        if told("client_assertion_type") != kind {
            return false;
        }
        let Some((signed, signature)) = told("client_assertion").rsplit_once('.') else {
            return false;
        };
        let (header, claims) = signed.split_once('.').unwrap();
        let read = |part: &str| -> Value {
            use base64::Engine as _;
            let engine = base64::engine::general_purpose::URL_SAFE_NO_PAD;
            serde_json::from_slice(&engine.decode(part).unwrap()).unwrap()
        };
        let signature = {
            use base64::Engine as _;
            base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(signature).unwrap()
        };
        let (header, claims) = (read(header), read(claims));
        let is_signed = match header["alg"].as_str().unwrap() {
            "ES256" => {
                header["kid"] == "our-key"
                    && UnparsedPublicKey::new(
                        &ECDSA_P256_SHA256_FIXED,
                        keys().p256.public_key_raw(),
                    )
                    .verify(signed.as_bytes(), &signature)
                    .is_ok()
            }
            alg => {
                let known = if alg == "HS512" { hmac::HMAC_SHA512 } else { hmac::HMAC_SHA256 };
                let key = hmac::Key::new(known, SECRET.as_bytes());
                hmac::verify(&key, signed.as_bytes(), &signature).is_ok()
            }
        };
        let audience = claims["aud"].as_str().unwrap();
        let is_ours = audience == format!("{}{path}", self.issuer) || audience == self.issuer;
        let lives = claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap();
        is_signed
            && is_ours
            && (claims["iss"] == "shop" && claims["sub"] == "shop")
            && (lives == 60 || lives == 30)
            && self.assertions.insert(claims["jti"].as_str().unwrap().to_owned())
    }

    fn authorize(&mut self, query: &BTreeMap<String, String>) -> Told {
        let asked = match query.get("request_uri") {
            Some(name) => self.pushed.remove(name).expect("a name that was given, once"),
            None => query.clone(),
        };
        let get = |name: &str| asked.get(name).cloned().unwrap_or_default();
        assert_eq!(
            (get("response_type"), get("client_id")),
            ("code".into(), query["client_id"].clone())
        );
        assert!(get("scope").split(' ').any(|scope| scope == "openid"));
        assert!(!get("state").is_empty());
        self.authorized.push(asked.clone());
        let back = get("redirect_uri");
        let issuer =
            percent_encoding::utf8_percent_encode(&self.issuer, percent_encoding::NON_ALPHANUMERIC);
        let state = get("state");
        if self.nobody {
            let error = if get("prompt") == "none" { "login_required" } else { "access_denied" };
            let location = format!("{back}?error={error}&state={state}&iss={issuer}");
            return (302, Some(location), Value::Null);
        }
        self.count += 1;
        let code = format!("code-{}", self.count);
        let location = format!("{back}?code={code}&state={state}&iss={issuer}");
        self.codes.insert(code, asked);
        (302, Some(location), Value::Null)
    }

    fn asked_by_client(
        &mut self,
        path: &str,
        form: BTreeMap<String, String>,
        credentials: String,
    ) -> Told {
        let get = |name: &str| form.get(name).cloned().unwrap_or_default();
        match path {
            "/par" => {
                self.count += 1;
                let name = format!("urn:request:{}", self.count);
                self.pushed.insert(name.clone(), form);
                (201, None, json!({ "request_uri": name, "expires_in": 60 }))
            }
            "/revoke" => {
                self.revoked.insert(get("token"));
                (200, None, Value::Null)
            }
            "/introspect" => {
                let active = get("token").starts_with("access-");
                (200, None, json!({ "active": active, "sub": "ann", "scope": "read" }))
            }
            _ => {
                self.forms.push((form.clone(), credentials));
                let refused = (400, None, json!({ "error": "invalid_grant" }));
                let asked = match &*get("grant_type") {
                    "authorization_code" => match self.codes.remove(&get("code")) {
                        Some(asked) => asked,
                        None => return refused,
                    },
                    "refresh_token" => match self.refresh_tokens.remove(&get("refresh_token")) {
                        Some(_) => BTreeMap::new(),
                        None => {
                            self.stolen = true;
                            return refused;
                        }
                    },
                    _ => return refused,
                };
                let is_login = !asked.is_empty();
                if is_login {
                    let sum = ring::digest::digest(
                        &ring::digest::SHA256,
                        get("code_verifier").as_bytes(),
                    );
                    let proved = asked.get("code_challenge").is_none_or(|challenge| {
                        *challenge == base64url(sum) && asked["code_challenge_method"] == "S256"
                    });
                    if !proved || asked["redirect_uri"] != get("redirect_uri") {
                        return refused;
                    }
                }
                (200, None, self.tokens(&asked))
            }
        }
    }

    fn tokens(&mut self, asked: &BTreeMap<String, String>) -> Value {
        self.count += 1;
        let count = self.count;
        let id = asked.get("client_id").cloned().unwrap_or_else(|| "shop".into());
        let mut claims = json!({ "iss": self.issuer, "sub": "ann", "aud": id, "exp": now() + 600,
            "iat": now() });
        if let Some(nonce) = asked.get("nonce") {
            claims["nonce"] = nonce.as_str().into();
        }
        for (name, value) in self.claims.as_object().unwrap() {
            match value {
                Value::Null => {
                    claims.as_object_mut().unwrap().remove(name);
                }
                value => claims[name] = value.clone(),
            }
        }
        let header = json!({ "alg": "ES256", "kid": self.key_id }).to_string();
        let id_token = forged(&header, &claims.to_string(), "ES256", b"");
        let refresh = format!("refresh-{count}");
        self.refresh_tokens.insert(refresh.clone(), id);
        let mut told = json!({ "access_token": format!("access-{count}"), "token_type": "Bearer",
            "refresh_token": refresh, "id_token": id_token });
        if let Some(seconds) = self.expires_in {
            told["expires_in"] = seconds.into();
        }
        told
    }
}
