//! `wardgate identity revoke` at the mesh: the deny list of the Admin API, in force at once.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::text::date;
use crate::cli::admin::{AdminArgs, ask, list, wait};
use crate::identity::{SpiffeId, TrustDomain, serial_number};
use crate::rt::Clock;
use crate::rt::crypto::digest::{SHA256, digest};

/// Whom to refuse, or what to do with the deny list.
#[derive(clap::Args, Debug)]
pub(super) struct DenyArgs {
    /// A certificate's serial number, hexadecimal; with --trust-domain, unless --dir tells it
    #[arg(long, value_name = "HEX")]
    pub(super) serial: Option<String>,
    /// Whose authority gave the serial number
    #[arg(long, value_name = "NAME", value_parser = super::command::trust_domain)]
    pub(super) trust_domain: Option<TrustDomain>,
    /// SHA-256 of a public key (SubjectPublicKeyInfo), hexadecimal
    #[arg(long, value_name = "SHA-256")]
    pub(super) spki: Option<String>,
    /// A SPIFFE ID, whatever certificate bears it
    #[arg(long, value_name = "SPIFFE-ID", value_parser = super::command::spiffe_id)]
    pub(super) id: Option<SpiffeId>,
    /// A certificate (PEM): its serial number and its key are refused
    #[arg(long, value_name = "FILE")]
    pub(super) cert: Option<PathBuf>,
    /// Why; stands in the resource
    #[arg(long, value_name = "TEXT")]
    pub(super) reason: Option<String>,
    /// Seconds after which the refusal ends by itself
    #[arg(long, value_name = "SECONDS")]
    pub(super) expires_in: Option<u32>,
    /// Show the deny list
    #[arg(long, conflicts_with_all = ["serial", "spki", "id", "cert", "undo"])]
    pub(super) list: bool,
    /// Take an entry from the deny list, by the id that `--list` shows
    #[arg(long, value_name = "ENTRY", conflicts_with_all = ["serial", "spki", "id", "cert"])]
    pub(super) undo: Option<String>,
    #[command(flatten)]
    pub(super) admin: AdminArgs,
}

pub(super) fn deny(
    args: &DenyArgs,
    clock: &Clock,
    out: &mut impl Write,
) -> anyhow::Result<ExitCode> {
    if args.list {
        return show(args, clock, out);
    }
    if let Some(entry) = &args.undo {
        let admin = args.admin.open()?;
        wait(async { ask(&admin, "DELETE", &format!("/revocations/{entry}"), None).await })?;
        writeln!(out, "Entry {entry} is taken from the deny list")?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut denied = json!({});
    if args.serial.is_some() && args.trust_domain.is_none() {
        bail!("a serial number needs the trust domain that gave it: --trust-domain NAME");
    }
    if let (Some(serial), Some(domain)) = (&args.serial, &args.trust_domain) {
        let Some(serial) = serial_number(serial) else {
            bail!("{serial:?} is not a serial number: expected hexadecimal, as 1f:a0 or 1fa0");
        };
        denied["serial"] = serial.into();
        denied["trust_domain"] = domain.as_str().into();
    }
    if let Some(spki) = &args.spki {
        denied["spki_sha256"] = spki.to_ascii_lowercase().into();
    }
    if let Some(id) = &args.id {
        denied["spiffe_id"] = id.as_str().into();
    }
    if let Some(file) = &args.cert {
        of_certificate(file, &mut denied)?;
    }
    if denied.as_object().is_none_or(serde_json::Map::is_empty) {
        bail!("nobody is named: give --serial with --trust-domain, --spki, --id or --cert");
    }
    // The same refusal has the same id: saying it twice is saying it once.
    let id = format!("r-{}", &hex::encode(digest(&SHA256, denied.to_string().as_bytes()))[..24]);
    if let Some(reason) = &args.reason {
        denied["reason"] = reason.as_str().into();
    }
    if let Some(seconds) = args.expires_in {
        denied["expires_at"] = (clock.now() + i64::from(seconds)).into();
    }
    let admin = args.admin.open()?;
    wait(async { ask(&admin, "PUT", &format!("/revocations/{id}"), Some(&denied)).await })?;
    writeln!(out, "Refused at once, everywhere: entry {id}")?;
    describe(&denied, clock, out)?;
    writeln!(out, "Undo: wardgate identity revoke --undo {id}")?;
    Ok(ExitCode::SUCCESS)
}

fn of_certificate(file: &Path, denied: &mut Value) -> anyhow::Result<()> {
    let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let leaf = CertificateDer::pem_slice_iter(&text).next();
    let leaf = leaf
        .with_context(|| format!("{} holds no certificate", file.display()))?
        .with_context(|| format!("{} is not PEM", file.display()))?;
    let (_, parsed) = X509Certificate::from_der(&leaf)
        .with_context(|| format!("{}: not an X.509 certificate", file.display()))?;
    let names = parsed.subject_alternative_name().ok().flatten();
    let id = names.and_then(|names| {
        names.value.general_names.iter().find_map(|name| match name {
            GeneralName::URI(uri) => uri.parse::<SpiffeId>().ok(),
            _ => None,
        })
    });
    let id = id.with_context(|| format!("{} names no SPIFFE ID", file.display()))?;
    if parsed.is_ca() {
        bail!(
            "{} is an authority's: take its root from the bundle, or name it with --serial",
            file.display()
        );
    }
    let serial =
        serial_number(&hex::encode(parsed.raw_serial())).context("it has no serial number")?;
    denied["serial"] = serial.into();
    denied["trust_domain"] = id.trust_domain_name().into();
    denied["spki_sha256"] = hex::encode(digest(&SHA256, parsed.public_key().raw)).into();
    Ok(())
}

fn show(args: &DenyArgs, clock: &Clock, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let admin = args.admin.open()?;
    let entries = wait(async { list(&admin, "revocations").await })?;
    for (id, denied) in &entries {
        writeln!(out, "{id}")?;
        describe(denied, clock, out)?;
    }
    if entries.is_empty() {
        writeln!(out, "nobody is on the deny list")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(denied: &Value, clock: &Clock, out: &mut impl Write) -> anyhow::Result<()> {
    let text = |field: &str| denied[field].as_str().map(|text| text.escape_debug().to_string());
    if let (Some(serial), Some(domain)) = (text("serial"), text("trust_domain")) {
        writeln!(out, "  serial     {serial} of {domain}")?;
    }
    for (name, field) in [("key", "spki_sha256"), ("SPIFFE ID", "spiffe_id"), ("reason", "reason")]
    {
        if let Some(value) = text(field) {
            writeln!(out, "  {name:<10} {value}")?;
        }
    }
    if let Some(end) = denied["expires_at"].as_i64() {
        let state = if end <= clock.now() { "ended" } else { "ends" };
        writeln!(out, "  {state:<10} {}", date(end))?;
    }
    Ok(())
}
