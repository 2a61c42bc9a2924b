//! Tokens for tests: somebody who signs them, and somebody who verifies them.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::{Value, json};

use super::forge::Forge;
use super::{Identity, JwtAuthority, Refresh, Tokens, TrustBundle, TrustBundles};
use crate::rt::{Clock, Publisher};

/// A trust domain that signs tokens with one key, called `k`.
pub(crate) struct TokenWorld {
    key: EcdsaKeyPair,
    forge: Forge,
    publisher: Publisher<Identity>,
}

impl TokenWorld {
    pub(crate) fn new(domain: &str) -> Self {
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let key = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap();
        let forge = Forge::new(domain);
        let (publisher, _) = Publisher::new(forge.identity("/wardgate/ingress", &[]));
        let world = Self { key, forge, publisher };
        world.publish(&["k"]);
        world
    }

    /// From now on the bundle has the key under these IDs.
    pub(crate) fn publish(&self, key_ids: &[&str]) {
        let (x, y) = self.key.public_key().as_ref()[1..].split_at(32);
        let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
        let entry = |id| json!({ "kty": "EC", "crv": "P-256", "x": x, "y": y, "kid": id });
        let keys = key_ids.iter().map(|id| JwtAuthority::from_jwk(&entry(id)).unwrap());
        let bundle = TrustBundle { jwt_authorities: keys.collect(), ..self.forge.bundle() };
        let bundles: TrustBundles = [bundle].into_iter().collect();
        self.publisher.set(Identity::new(self.forge.svid("/wardgate/ingress"), bundles));
    }

    /// What verifies the tokens now.
    pub(crate) fn bundle(&self) -> TrustBundle {
        let identity = self.publisher.live().load();
        identity.trust.bundles.find(&self.forge.domain).unwrap().clone()
    }

    /// Signed now, for five minutes.
    pub(crate) fn token(&self, subject: &str, audiences: &[&str]) -> String {
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let now = Clock::system().now();
        let header = part(json!({ "alg": "ES256", "kid": "k", "typ": "JWT" }));
        let claims =
            json!({ "sub": subject, "aud": audiences, "exp": now + 300, "iat": now, "jti": "j1" });
        let text = format!("{header}.{}", part(claims));
        let signature = self.key.sign(&SystemRandom::new(), text.as_bytes()).unwrap();
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    pub(crate) fn tokens(&self) -> Arc<Tokens> {
        self.tokens_with(Clock::system(), Refresh::default())
    }

    pub(crate) fn tokens_with(&self, clock: Clock, refresh: Refresh) -> Arc<Tokens> {
        Arc::new(Tokens::new(&self.publisher.live(), clock, refresh))
    }
}
