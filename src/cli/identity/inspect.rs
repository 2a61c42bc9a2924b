//! `wardgate identity inspect`.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::{CertificateRevocationList, FromDer, GeneralName, X509Certificate};

use super::text::{date, fingerprint, length};
use crate::identity::{
    Presented, Purpose, RevocationList, SpiffeId, Trust, TrustBundle, TrustBundles,
};
use crate::rt::Clock;

/// What revocation lists begin with in PEM.
const CRL: &[u8] = b"-----BEGIN X509 CRL-----";

pub(super) fn inspect(
    file: &Path,
    bundle: Option<&Path>,
    clock: &Clock,
    out: &mut impl Write,
) -> anyhow::Result<ExitCode> {
    let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .with_context(|| format!("{} is not PEM", file.display()))?;
    let Some((leaf, rest)) = chain.split_first() else {
        if !text.windows(CRL.len()).any(|window| window == CRL) {
            bail!(
                "{} holds no certificate: expected PEM with CERTIFICATE or X509 CRL sections",
                file.display()
            );
        }
        let lists = RevocationList::read(&text)
            .with_context(|| format!("{} cannot be read", file.display()))?;
        return show_lists(&lists, bundle, clock, out);
    };
    for (at, certificate) in chain.iter().enumerate() {
        if at > 0 {
            writeln!(out)?;
        }
        show(certificate, clock.now(), out)
            .with_context(|| format!("certificate {} of {}", at + 1, file.display()))?;
    }
    let Some(path) = bundle else { return Ok(ExitCode::SUCCESS) };

    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut presented = Presented::default();
    let domain = first_id(leaf).map(|id| id.trust_domain());
    let domain = domain.context("the first certificate names no trust domain")?;
    let bundle = TrustBundle::from_text(domain, &text)
        .with_context(|| format!("{} cannot be used", path.display()))?;
    let bundles: TrustBundles = [bundle].into_iter().collect();
    let verifier = Trust::from(bundles).verifier().clone();
    let seconds = u64::try_from(clock.now()).unwrap_or(0);
    let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    writeln!(out)?;
    let mut holds = true;
    for (purpose, name) in [(Purpose::Server, "as server"), (Purpose::Client, "as client")] {
        match verifier.verify(leaf, rest, purpose, now, &mut presented) {
            Ok(peer) => writeln!(out, "{name}   accepted as {}", peer.id)?,
            Err(flaw) => {
                holds = false;
                writeln!(out, "{name}   refused ({}): {flaw}", flaw.code())?;
            }
        }
    }
    Ok(if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Revocation lists as tables. Each is verified with the certificates of `signers`, if given: roots, or an intermediate.
fn show_lists(
    lists: &[RevocationList],
    signers: Option<&Path>,
    clock: &Clock,
    out: &mut impl Write,
) -> anyhow::Result<ExitCode> {
    let mut known: Vec<CertificateDer<'static>> = Vec::new();
    if let Some(path) = signers {
        let text =
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        known = CertificateDer::pem_slice_iter(&text).collect::<Result<_, _>>()?;
    }
    let now = clock.now();
    let mut holds = true;
    for (at, list) in lists.iter().enumerate() {
        if at > 0 {
            writeln!(out)?;
        }
        let mut row = |name: &str, value: &str| writeln!(out, "{name:<12}{value}");
        row("kind", "revocation list")?;
        row("issuer", &list.issuer().escape_debug().to_string())?;
        row("number", list.number().unwrap_or("none"))?;
        let (from, until) = (list.this_update(), list.next_update());
        let state = match until < now {
            true => "OUT OF DATE".to_owned(),
            false => format!("{} left", length(until - now)),
        };
        row("valid", &format!("{} to {} ({state})", date(from), date(until)))?;
        let (_, parsed) = CertificateRevocationList::from_der(list.der())
            .with_context(|| format!("revocation list {} is none", at + 1))?;
        for revoked in parsed.iter_revoked_certificates() {
            let reason = revoked.reason_code().map(|(_, reason)| format!(" ({reason})"));
            let since = date(revoked.revocation_date.timestamp());
            let serial = hex::encode(revoked.user_certificate.to_bytes_be());
            row("revoked", &format!("{serial} since {since}{}", reason.unwrap_or_default()))?;
        }
        if signers.is_some() {
            let is_signed = known.iter().any(|signer| list.is_signed_by(signer));
            holds &= is_signed;
            row("signature", if is_signed { "good" } else { "by none of the certificates given" })?;
        }
    }
    Ok(if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One certificate as a table.
fn show(der: &[u8], now: i64, out: &mut impl Write) -> anyhow::Result<()> {
    let (_, parsed) = X509Certificate::from_der(der).context("not an X.509 certificate")?;
    let id = first_id(der);
    let kind = match (&id, parsed.is_ca()) {
        (_, true) if parsed.subject() == parsed.issuer() => "root authority",
        (_, true) => "intermediate authority",
        (Some(_), false) => "X.509-SVID",
        (None, false) => "certificate without a SPIFFE ID",
    };
    let mut row = |name: &str, value: &str| writeln!(out, "{name:<12}{value}");
    row("kind", kind)?;
    row("SPIFFE ID", id.as_ref().map_or("none", SpiffeId::as_str))?;
    let mut others = Vec::new();
    if let Ok(Some(names)) = parsed.subject_alternative_name() {
        for name in &names.value.general_names {
            match name {
                GeneralName::DNSName(name) => others.push((*name).to_owned()),
                GeneralName::URI(uri) if uri.parse::<SpiffeId>().ok() != id => {
                    others.push((*uri).to_owned());
                }
                GeneralName::URI(_) => {}
                other => others.push(other.to_string()),
            }
        }
    }
    if !others.is_empty() {
        // Names may be anything; a terminal must not obey them.
        row("other names", &others.join(", ").escape_debug().to_string())?;
    }
    let (from, until) =
        (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
    let state = match () {
        () if now < from => "not yet valid".to_owned(),
        () if now > until => "EXPIRED".to_owned(),
        () => format!("{} left", length(until - now)),
    };
    row("valid", &format!("{} to {} ({state})", date(from), date(until)))?;
    row("serial", &hex::encode(parsed.serial.to_bytes_be()))?;
    row("issuer", &parsed.issuer().to_string().escape_debug().to_string())?;
    if let Ok(Some(usage)) = parsed.key_usage() {
        row("key usage", &usage.value.to_string())?;
    }
    if let Ok(Some(usage)) = parsed.extended_key_usage() {
        let mut purposes = Vec::new();
        if usage.value.server_auth {
            purposes.push("server");
        }
        if usage.value.client_auth {
            purposes.push("client");
        }
        row("purposes", &purposes.join(", "))?;
    }
    row("SHA-256", &fingerprint(der))?;
    Ok(())
}

pub(super) fn first_id(der: &[u8]) -> Option<SpiffeId> {
    let (_, parsed) = X509Certificate::from_der(der).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => uri.parse().ok(),
        _ => None,
    })
}
