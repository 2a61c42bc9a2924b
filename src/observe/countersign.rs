//! Countersignatures: somebody else signs that he has seen a seal.
//!
//! A seal shows which workload wrote a log. The workload itself could write another one, or cut its end off; it cannot do so
//! unseen for what the control plane has signed for. And [`ChainLine`]: a line of a chain, as whoever receives it reads it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::chain;
use super::json::{self, Fields};
use super::record::{Record, Type};
use super::redact::Redaction;
use super::seal::{Place, Seal, SealJudge, Sealer, check_signature, vouched};
use crate::identity::{Identity, Revocations, Rules, Trust, TrustBundle, TrustBundles};
use crate::rt::crypto::digest::{SHA256, digest};
use crate::rt::{Live, unix_millis};

/// What is signed: this, then origin, boot id, number and hash of the seal, and the time, each on a line.
const STATEMENT: &str = "wardgate-countersign-v1";
/// The event of a record of type `seal` that is somebody else's.
pub(super) const EVENT: &str = "countersigned";
/// Seals that are remembered until their countersignature comes.
const MAX_SEALS: usize = 1 << 20;

/// Somebody's signature over somebody else's seal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Countersignature {
    /// Whose seal it is.
    pub origin: String,
    /// The seal's process.
    pub boot_id: String,
    /// The seal's number in its chain.
    pub seq: u64,
    /// The seal's own hash, in hexadecimal: it stands for everything up to it.
    pub hash: String,
    /// When it was countersigned: RFC 3339.
    pub time: String,
    /// Who countersigned.
    pub spiffe_id: String,
    /// The signature scheme, as TLS names it.
    pub scheme: String,
    /// SHA-256 of the signer's certificate, in hexadecimal.
    pub certificate_sha256: String,
    /// The signer's certificates, leaf first, base64 of DER; none where they were shown before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<String>,
    /// Base64.
    pub signature: String,
}

impl Countersignature {
    /// The text that is signed.
    pub fn statement(&self) -> String {
        let Self { origin, boot_id, seq, hash, time, .. } = self;
        format!("{STATEMENT}\n{origin}\n{boot_id}\n{seq}\n{hash}\n{time}\n")
    }

    /// Is it what it says it is? With `trust`, an authority must also vouch for the signer at the time of signing.
    ///
    /// # Errors
    /// It is not; the sentence says why.
    pub fn check(&self, trust: Option<&Trust>) -> Result<(), String> {
        let chain = decode(&self.certificates, &self.certificate_sha256)?;
        self.check_with(&chain, trust)
    }

    fn check_with(
        &self,
        chain: &[CertificateDer<'static>],
        trust: Option<&Trust>,
    ) -> Result<(), String> {
        let [leaf, intermediates @ ..] = chain else {
            return Err("its certificate is missing".into());
        };
        if self.origin == self.spiffe_id {
            return Err("who sealed countersigned as well: that adds nothing".into());
        }
        check_signature(leaf, &self.scheme, &self.statement(), &self.signature, &self.spiffe_id)?;
        let Some(trust) = trust else { return Ok(()) };
        let time = OffsetDateTime::parse(&self.time, &Rfc3339).ok();
        vouched(trust, leaf, intermediates, time.map(OffsetDateTime::unix_timestamp))
    }
}

fn decode(texts: &[String], sha256: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain: Result<Vec<_>, _> =
        texts.iter().map(|text| BASE64.decode(text).map(CertificateDer::from)).collect();
    let chain = chain.map_err(|_| "\"certificates\" is not base64".to_owned())?;
    let found = chain.first().map(|leaf| hex::encode(digest(&SHA256, leaf)));
    if found.is_some_and(|found| found != sha256) {
        return Err("\"certificate_sha256\" is not that of its certificate".into());
    }
    Ok(chain)
}

/// Countersigns as whoever the process is at the moment.
pub struct Countersigner(Sealer);

impl std::fmt::Debug for Countersigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Countersigner").finish_non_exhaustive()
    }
}

impl Countersigner {
    /// With this identity, whichever it is at the time.
    pub fn new(identity: Live<Identity>) -> Self {
        Self(Sealer::new(identity))
    }

    /// Signs for a seal of `origin`; `None` while there is no identity to sign with.
    pub fn sign(&mut self, origin: &str, seal: &ChainLine) -> Option<Countersignature> {
        let mut time = Vec::new();
        json::rfc3339(unix_millis(), &mut time);
        let mut made = Countersignature {
            origin: origin.to_owned(),
            boot_id: seal.boot_id.clone(),
            seq: seal.seq,
            hash: hex::encode(seal.hash),
            time: String::from_utf8(time).unwrap_or_default(),
            ..Countersignature::default()
        };
        let signed = self.0.sign(&made.statement())?;
        made.spiffe_id = signed.by.id().as_str().to_owned();
        signed.scheme.clone_into(&mut made.scheme);
        made.certificate_sha256 = signed.certificate_sha256;
        made.certificates = signed.by.svid.chain.iter().map(|der| BASE64.encode(der)).collect();
        made.signature = BASE64.encode(signed.signature);
        Some(made)
    }
}

/// What a log writes down about a countersignature of one of its seals.
#[derive(Clone, Copy, Debug)]
pub struct CountersignedRecord<'a> {
    /// The countersignature.
    pub countersignature: &'a Countersignature,
    /// Do the signer's certificates stand beside it?
    pub with_certificates: bool,
}

impl Record for CountersignedRecord<'_> {
    const TYPE: Type = Type::Countersigned;

    fn is_reserved(&self) -> bool {
        false
    }

    fn write(&self, fields: &mut Fields<'_>, _: &Redaction) {
        let made = self.countersignature;
        fields.text("event", EVENT);
        fields.object("countersigned", |fields| {
            fields.text("origin", &made.origin);
            fields.text("boot_id", &made.boot_id);
            fields.number("seq", made.seq);
            fields.text("hash", &made.hash);
            fields.text("time", &made.time);
        });
        fields.text("spiffe_id", &made.spiffe_id);
        fields.text("scheme", &made.scheme);
        fields.text("certificate_sha256", &made.certificate_sha256);
        if self.with_certificates {
            fields.texts("certificates", made.certificates.iter().cloned());
        }
        fields.text("signature", &made.signature);
    }
}

/// What others have signed for, as `verify` found it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Countersigned {
    /// Countersignatures that hold.
    pub good: u64,
    /// Those whose certificate stands in none of the files that were read.
    pub unjudged: u64,
    /// Who countersigned.
    pub by: BTreeSet<String>,
    /// The newest one: the record that it covers, and when it was signed.
    pub up_to: Option<(u64, String)>,
}

/// A countersignature as it stands in a log.
#[derive(Deserialize)]
struct Written {
    countersigned: Covered,
    spiffe_id: String,
    scheme: String,
    certificate_sha256: String,
    #[serde(default)]
    certificates: Vec<String>,
    signature: String,
}

#[derive(Deserialize)]
struct Covered {
    origin: String,
    boot_id: String,
    seq: u64,
    hash: String,
    time: String,
}

/// Judges the countersignatures of a log one after another.
#[derive(Debug, Default)]
pub(super) struct CountersignJudge {
    chains: BTreeMap<String, Vec<CertificateDer<'static>>>,
    /// Seals that were read, each with its hash.
    seals: BTreeMap<u64, String>,
    first: Option<u64>,
    trust: Option<Trust>,
}

impl CountersignJudge {
    pub(super) fn new(bundle: Option<TrustBundle>) -> Self {
        let trust = bundle.map(|bundle| {
            let bundles: TrustBundles = [bundle].into_iter().collect();
            Trust::new(bundles, Revocations::default(), Rules::default())
        });
        Self { trust, ..Self::default() }
    }

    /// A seal was read.
    pub(super) fn covers(&mut self, seq: u64, hash: &str) {
        self.seals.insert(seq, hash.to_owned());
        if self.seals.len() > MAX_SEALS {
            self.seals.pop_first();
        }
        if self.first.is_none() || self.seals.len() == MAX_SEALS {
            self.first = self.seals.keys().next().copied();
        }
    }

    /// A countersignature was read.
    pub(super) fn take(&mut self, line: &[u8], report: &mut Countersigned) -> Result<(), String> {
        let written: Written =
            serde_json::from_slice(line).map_err(|error| format!("it cannot be read: {error}"))?;
        let Covered { origin, boot_id, seq, hash, time } = written.countersigned;
        let Written { spiffe_id, scheme, certificate_sha256, certificates, signature, .. } =
            written;
        if !certificates.is_empty() {
            let chain = decode(&certificates, &certificate_sha256)?;
            self.chains.insert(certificate_sha256.clone(), chain);
        }
        match self.seals.get(&seq) {
            Some(here) if *here != hash => {
                return Err(format!(
                    "it was made for another record {seq}: what stands here was written anew"
                ));
            }
            None if self.first.is_some_and(|first| seq >= first) => {
                return Err(format!("it is for record {seq}, which is no seal here"));
            }
            Some(_) | None => {}
        }
        let Some(chain) = self.chains.get(&certificate_sha256) else {
            report.unjudged += 1;
            return Ok(());
        };
        let made = Countersignature {
            origin,
            boot_id,
            seq,
            hash,
            time,
            spiffe_id,
            scheme,
            certificate_sha256,
            certificates: Vec::new(),
            signature,
        };
        made.check_with(chain, self.trust.as_ref())?;
        report.good += 1;
        report.by.insert(made.spiffe_id);
        if report.up_to.as_ref().is_none_or(|(before, _)| *before < seq) {
            report.up_to = Some((seq, made.time));
        }
        Ok(())
    }
}

/// One line of a chain, as somebody reads it who has only that line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainLine {
    /// Its number.
    pub seq: u64,
    /// Its type.
    pub kind: String,
    /// Its event, where its type has more than one.
    pub event: Option<String>,
    /// When, as written.
    pub time: String,
    /// The process that wrote it.
    pub boot_id: String,
    /// The hash of the record before; zeros begin a chain.
    pub prev: [u8; 32],
    /// Its own hash.
    pub hash: [u8; 32],
}

impl ChainLine {
    /// Reads a line without its line end.
    ///
    /// # Errors
    /// It is no record, or its content does not fit its hash.
    pub fn read(line: &[u8]) -> Result<Self, String> {
        let chain::Line { head, prev, hash, holds } = chain::parse(line)?;
        if !holds {
            return Err("its content does not fit its hash".into());
        }
        let chain::Head { seq, kind, time, boot_id, event, .. } = head;
        Ok(Self { seq, kind, event, time, boot_id, prev, hash })
    }

    /// Is it a seal of whoever wrote the log?
    pub fn is_seal(&self) -> bool {
        self.kind == "seal" && self.event.as_deref() != Some(EVENT)
    }

    /// Is it written down that somebody countersigned?
    pub fn is_countersigned(&self) -> bool {
        self.kind == "seal" && self.event.as_deref() == Some(EVENT)
    }
}

/// Judges the seals of a chain, when its lines come one after another.
#[derive(Debug, Default)]
pub struct Seals(SealJudge);

/// A seal that holds.
#[derive(Clone, Debug)]
pub struct GoodSeal {
    /// Who sealed.
    pub spiffe_id: String,
    /// SHA-256 of its certificate, in hexadecimal.
    pub certificate_sha256: String,
    /// Its certificates, leaf first.
    pub chain: Arc<[CertificateDer<'static>]>,
}

impl Seals {
    /// None was judged yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Certificates that were shown with an earlier seal: a chain shows them once in each file.
    pub fn know(&mut self, certificate_sha256: &str, chain: Vec<CertificateDer<'static>>) {
        self.0.know(certificate_sha256, chain);
    }

    /// Is this seal what it says it is? `line` is what `seal` was read from. With `trust`, an authority must also vouch for whoever
    /// sealed, at the time that the seal bears.
    ///
    /// # Errors
    /// It is not; the sentence says why.
    pub fn judge(
        &mut self,
        line: &[u8],
        seal: &ChainLine,
        trust: Option<&Trust>,
    ) -> Result<GoodSeal, String> {
        let read: Seal = serde_json::from_slice(line).map_err(|error| error.to_string())?;
        let prev = hex::encode(seal.prev);
        let place = Place { boot_id: &seal.boot_id, seq: seal.seq, time: &seal.time, prev: &prev };
        let seconds =
            OffsetDateTime::parse(&seal.time, &Rfc3339).ok().map(OffsetDateTime::unix_timestamp);
        self.0.judge(&read, place, seconds)?;
        let chain = self.0.chain(&read.certificate_sha256).unwrap_or_default();
        if let (Some(trust), [leaf, intermediates @ ..]) = (trust, chain) {
            vouched(trust, leaf, intermediates, seconds)?;
        }
        Ok(GoodSeal {
            spiffe_id: read.spiffe_id,
            certificate_sha256: read.certificate_sha256,
            chain: chain.into(),
        })
    }

    /// The SHA-256 of the certificate that a seal names, which must be [known](Seals::know) if the seal itself does not bring it.
    pub fn names_certificate(line: &[u8]) -> Option<String> {
        Some(serde_json::from_slice::<Seal>(line).ok()?.certificate_sha256)
    }
}
