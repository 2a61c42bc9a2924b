//! `ClientRule`: whose certificates a public client must show, and how far from the authority they may be.

use std::cell::Cell;
use std::sync::Arc;

use regex::bytes::RegexSet;
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::model::SslClient;
use crate::mtls::{Refusal, provider};

/// The `client` of an `ssl` resource, compiled.
///
/// Every certificate of `ca` is an anchor, whether it signed itself or not. `depth` counts the authorities between the client's
/// certificate and the anchor, as OpenSSL does.
#[derive(Debug)]
pub struct ClientRule {
    declared: SslClient,
    anchors: Vec<TrustAnchor<'static>>,
    subjects: Vec<DistinguishedName>,
    skips: Option<RegexSet>,
}

impl PartialEq for ClientRule {
    fn eq(&self, other: &Self) -> bool {
        self.declared == other.declared
    }
}

impl ClientRule {
    /// The error says what is wrong with which field.
    pub(super) fn compile(declared: &SslClient) -> Result<Self, String> {
        let mut anchors = Vec::new();
        let mut subjects = Vec::new();
        for certificate in CertificateDer::pem_slice_iter(declared.ca.as_bytes()) {
            let wrong = |why: &dyn std::fmt::Display| format!("client.ca: {why}");
            let certificate = certificate.map_err(|error| wrong(&error))?;
            let anchor = webpki::anchor_from_trusted_cert(&certificate)
                .map_err(|error| wrong(&error))?
                .to_owned();
            subjects.push(DistinguishedName::in_sequence(anchor.subject.as_ref()));
            anchors.push(anchor);
        }
        if anchors.is_empty() {
            return Err("client.ca: no PEM certificate in it".into());
        }
        let skips = declared.skip_mtls_uri_regex.as_ref().map(|patterns| {
            RegexSet::new(patterns)
                .map_err(|error| format!("client.skip_mtls_uri_regex: {}", one_line(&error)))
        });
        Ok(Self { declared: declared.clone(), anchors, subjects, skips: skips.transpose()? })
    }

    /// May requests for some paths do without a certificate? Then the handshake passes without one.
    pub fn is_lenient(&self) -> bool {
        self.skips.is_some()
    }

    /// Needs this path, decoded and normal, no certificate?
    ///
    /// A path that could be read another way behind us (something still encoded, a backslash, a parameter) is never skipped.
    pub fn skips(&self, path: &[u8]) -> bool {
        let is_plain = !path.iter().any(|byte| matches!(byte, b'%' | b'\\' | b';'));
        is_plain && self.skips.as_ref().is_some_and(|patterns| patterns.is_match(path))
    }

    /// Judges what a client showed.
    pub(super) fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Refusal> {
        let untrusted =
            |error: webpki::Error| Refusal::UntrustedClient { detail: error.to_string() };
        let entity = EndEntityCert::try_from(leaf).map_err(untrusted)?;
        // webpki looks for another path when this closure refuses one, so that the reason is remembered beside it.
        let found = Cell::new(None);
        let depth = |path: &webpki::VerifiedPath<'_>| {
            let between = path.intermediate_certificates().count();
            if between > usize::try_from(self.declared.depth).unwrap_or(usize::MAX) {
                found.set(Some(found.get().unwrap_or(between).min(between)));
                return Err(webpki::Error::UnknownIssuer);
            }
            Ok(())
        };
        let algorithms = provider().signature_verification_algorithms.all;
        let usage = KeyUsage::client_auth();
        let path = entity.verify_for_usage(
            algorithms,
            &self.anchors,
            intermediates,
            now,
            usage,
            None,
            Some(&depth),
        );
        path.map(drop).map_err(|error| match found.get() {
            Some(found) => Refusal::ClientTooDeep { found, depth: self.declared.depth },
            None => untrusted(error),
        })
    }
}

fn one_line(error: &regex::Error) -> String {
    let text = error.to_string();
    text.lines().last().unwrap_or_default().trim().to_owned()
}

/// When a certificate ends, seconds since 1970.
pub(super) fn not_after(leaf: &CertificateDer<'_>) -> Option<i64> {
    let (_, parsed) = X509Certificate::from_der(leaf).ok()?;
    Some(parsed.validity().not_after.timestamp())
}

/// Judges in the handshake; where the rule is lenient, the requests are judged.
#[derive(Debug)]
pub(super) struct Judge(pub(super) Arc<ClientRule>);

impl ClientCertVerifier for Judge {
    fn client_auth_mandatory(&self) -> bool {
        !self.0.is_lenient()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.0.subjects
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        if !self.0.is_lenient() {
            self.0.judge(leaf, intermediates, now)?;
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        verify_tls12_signature(message, leaf, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        verify_tls13_signature(message, leaf, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
