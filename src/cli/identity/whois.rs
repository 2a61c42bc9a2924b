//! `wardgate identity whois`: who was given a certificate, when, and on what evidence.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::text::{date, length};
use crate::roles::{IssuedFinding, Phase, Records};
use crate::rt::Clock;

pub(super) fn whois(
    dir: &Path,
    asked: &str,
    clock: &Clock,
    out: &mut impl Write,
) -> anyhow::Result<ExitCode> {
    let records = Records::open(dir)?;
    let wanted = match Path::new(asked).is_file() {
        true => serial_in(Path::new(asked))?,
        false => asked.to_owned(),
    };
    let now = clock.now();
    let roots = records.roots(now)?;
    let found = records.find(&wanted);
    if found.is_empty() {
        bail!(
            "the ledger in {} does not know {wanted}: it was issued elsewhere, or expired more than a day ago",
            dir.display()
        );
    }
    for (at, IssuedFinding { issued, revoked }) in found.iter().enumerate() {
        if at > 0 {
            writeln!(out)?;
        }
        let mut row = |name: &str, value: &str| writeln!(out, "{name:<12}{value}");
        row("SPIFFE ID", &issued.id)?;
        row("serial", &issued.serial)?;
        let state = match revoked {
            Some(revoked) => {
                format!("REVOKED at {} ({})", date(revoked.at), revoked.reason.as_str())
            }
            None if issued.is_live(now) => format!("good, {} left", length(issued.not_after - now)),
            None => "expired".to_owned(),
        };
        row("state", &state)?;
        row("issued", &date(issued.at))?;
        row("until", &date(issued.not_after))?;
        row("by", &issued.evidence.by)?;
        if !issued.evidence.selectors.is_empty() {
            // A path may hold anything; a terminal must not obey it.
            row("selectors", &issued.evidence.selectors.join(", ").escape_debug().to_string())?;
        }
        let root = match roots.iter().find(|root| root.name == issued.root).map(|root| root.phase) {
            Some(Phase::Active) => format!("{} (active)", issued.root),
            Some(Phase::Outgoing) => format!("{} (outgoing)", issued.root),
            Some(Phase::Prepared) => format!("{} (prepared)", issued.root),
            None => format!("{} (retired: nobody accepts it)", issued.root),
        };
        row("root", &root)?;
        row("signed by", &issued.intermediate)?;
        row("key SHA-256", &format!(" {}", issued.key))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The serial number of a file's first certificate.
pub(super) fn serial_in(file: &Path) -> anyhow::Result<String> {
    let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let der = CertificateDer::from_pem_slice(&text)
        .with_context(|| format!("{} holds no certificate as PEM", file.display()))?;
    let (_, parsed) = X509Certificate::from_der(&der)
        .with_context(|| format!("{} holds no X.509 certificate", file.display()))?;
    Ok(hex::encode(parsed.serial.to_bytes_be()))
}
