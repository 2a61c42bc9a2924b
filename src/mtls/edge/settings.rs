//! What an ingress offers to all public clients: versions, cipher suites, protocols, and the name of who names none.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::version::{TLS12, TLS13};
use rustls::{SupportedCipherSuite, SupportedProtocolVersion};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::model::TlsVersion;
use crate::mtls::{Error, provider};

/// TLS towards public clients, the same for all certificates of the process.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EdgeTlsSettings {
    /// The versions for names whose `ssl` resource has no `ssl_protocols`: `TLSv1.2`, `TLSv1.3`.
    pub protocols: Vec<TlsVersion>,
    /// The cipher suites, the best first, by OpenSSL's or IANA's names; every version that is on needs one. All that this build
    /// has when empty: AES-128-GCM, AES-256-GCM and ChaCha20-Poly1305, in TLS 1.2 with ECDHE alone.
    pub ciphers: Vec<String>,
    /// Clients that name no server are answered as if they had named this one. When not given, such a client is answered only
    /// where an `ssl` resource has the name `*`.
    pub fallback_sni: Option<String>,
    /// Offers HTTP/2 beside HTTP/1.1.
    pub http2: bool,
}

impl Default for EdgeTlsSettings {
    fn default() -> Self {
        Self {
            protocols: vec![TlsVersion::Tls12, TlsVersion::Tls13],
            ciphers: Vec::new(),
            fallback_sni: None,
            http2: true,
        }
    }
}

/// [`EdgeTlsSettings`], checked and made ready.
#[derive(Debug)]
pub struct EdgeTls {
    pub(super) provider: Arc<CryptoProvider>,
    pub(super) fallback: Option<Box<str>>,
    pub(super) alpn: Vec<Vec<u8>>,
    protocols: Vec<TlsVersion>,
}

impl Default for EdgeTls {
    /// As the settings' defaults say.
    fn default() -> Self {
        let EdgeTlsSettings { protocols, http2, .. } = EdgeTlsSettings::default();
        Self { provider: provider(), fallback: None, alpn: alpn(http2), protocols }
    }
}

fn alpn(http2: bool) -> Vec<Vec<u8>> {
    let names: &[&[u8]] = if http2 { &[b"h2", b"http/1.1"] } else { &[b"http/1.1"] };
    names.iter().map(|name| name.to_vec()).collect()
}

impl EdgeTls {
    /// Checks the settings.
    ///
    /// # Errors
    /// A version or a suite is not spoken, a version has no suite, or the fallback is no server name.
    pub fn new(settings: &EdgeTlsSettings) -> Result<Self, Error> {
        let wrong = |field, problem: String| Error::EdgeSetting { field, problem };
        let mut made = Self { alpn: alpn(settings.http2), ..Self::default() };
        if !settings.ciphers.is_empty() {
            let suites = settings.ciphers.iter().map(|name| suite(name));
            let cipher_suites = suites
                .collect::<Result<Vec<_>, _>>()
                .map_err(|problem| wrong("ciphers", problem))?;
            made.provider = Arc::new(CryptoProvider { cipher_suites, ..(*provider()).clone() });
        }
        made.protocols.clone_from(&settings.protocols);
        made.versions(None).map_err(|problem| wrong("protocols", problem))?;
        if let Some(name) = &settings.fallback_sni {
            let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
            if name.contains('*') || !super::site::is_name(&name) {
                let problem = format!("{name:?} is no server name");
                return Err(wrong("fallback_sni", problem));
            }
            made.fallback = Some(name.into());
        }
        Ok(made)
    }

    /// The versions that a resource asks for, or ours. The error says which one is not spoken, or has no cipher suite.
    pub(super) fn versions(
        &self,
        asked: Option<&[TlsVersion]>,
    ) -> Result<Vec<&'static SupportedProtocolVersion>, String> {
        let asked = asked.unwrap_or(&self.protocols);
        if asked.is_empty() {
            return Err("at least one of TLSv1.2 and TLSv1.3 is expected".into());
        }
        let mut versions = Vec::new();
        for version in asked {
            let (version, name) = match version {
                TlsVersion::Tls11 => {
                    let text =
                        "TLSv1.1 is not spoken (RFC 8996); expected TLSv1.2, TLSv1.3 or both";
                    return Err(text.into());
                }
                TlsVersion::Tls12 => (&TLS12, "TLSv1.2"),
                TlsVersion::Tls13 => (&TLS13, "TLSv1.3"),
            };
            let has_suite =
                self.provider.cipher_suites.iter().any(|suite| suite.version() == version);
            if !has_suite {
                return Err(format!("{name} has no cipher suite among those of the settings"));
            }
            versions.push(version);
        }
        Ok(versions)
    }
}

fn suite(name: &str) -> Result<SupportedCipherSuite, String> {
    let known = &provider().cipher_suites;
    let found = known.iter().find(|suite| names(suite).iter().any(|known| known == name));
    found.copied().ok_or_else(|| {
        let all: Vec<String> = known.iter().map(|suite| names(suite)[0].clone()).collect();
        format!("{name:?} is no cipher suite of this build; expected some of {}", all.join(", "))
    })
}

/// OpenSSL's name of a suite, and IANA's. In TLS 1.3 they are the same.
fn names(suite: &SupportedCipherSuite) -> [String; 2] {
    let iana = suite.suite().as_str().unwrap_or_default();
    if let Some(name) = iana.strip_prefix("TLS13_") {
        return [format!("TLS_{name}"), format!("TLS_{name}")];
    }
    let openssl = iana
        .trim_start_matches("TLS_")
        .replace("_WITH_", "_")
        .replace("AES_", "AES")
        .replace("_POLY1305_SHA256", "_POLY1305")
        .replace('_', "-");
    [openssl, iana.to_owned()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(settings: &EdgeTlsSettings) -> String {
        EdgeTls::new(settings).unwrap_err().to_string()
    }

    #[test]
    fn suites_are_known_by_both_names_and_others_are_refused_by_name() {
        let with = |ciphers: &[&str], protocols: &[TlsVersion]| EdgeTlsSettings {
            ciphers: ciphers.iter().map(|&name| name.to_owned()).collect(),
            protocols: protocols.to_vec(),
            ..EdgeTlsSettings::default()
        };
        let both = [TlsVersion::Tls12, TlsVersion::Tls13];
        for good in [
            &["TLS_AES_256_GCM_SHA384", "ECDHE-ECDSA-AES128-GCM-SHA256"][..],
            &["TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"],
            &["ECDHE-RSA-CHACHA20-POLY1305", "TLS_AES_128_GCM_SHA256"],
        ] {
            if cfg!(not(feature = "fips")) {
                EdgeTls::new(&with(good, &both)).unwrap();
            }
        }
        let weak = refused(&with(&["AES128-SHA"], &both));
        assert!(weak.contains("AES128-SHA") && weak.contains("ECDHE-RSA-AES128-GCM"), "{weak}");
        let lacking = refused(&with(&["TLS_AES_128_GCM_SHA256"], &both));
        assert!(lacking.contains("TLSv1.2 has no cipher suite"), "{lacking}");
        EdgeTls::new(&with(&["TLS_AES_128_GCM_SHA256"], &[TlsVersion::Tls13])).unwrap();
        assert!(refused(&with(&[], &[])).contains("at least one"));
        assert!(refused(&with(&[], &[TlsVersion::Tls11])).contains("RFC 8996"));
        let fallback =
            EdgeTlsSettings { fallback_sni: Some("*.a".into()), ..EdgeTlsSettings::default() };
        assert!(refused(&fallback).contains("fallback_sni"));
    }
}
