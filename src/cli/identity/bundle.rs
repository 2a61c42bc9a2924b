//! `wardgate identity bundle`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Subcommand, ValueEnum};
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::text::{date, fingerprint};
use crate::cli::admin::{AdminArgs, ask, wait};
use crate::identity::{BundleDocument, TrustBundle, TrustDomain};
use crate::roles::Authority;
use crate::rt::Clock;

/// How a bundle is written.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(super) enum Format {
    /// Root certificates
    #[default]
    Pem,
    /// A SPIFFE bundle document (JSON)
    Spiffe,
}

#[derive(Debug, Subcommand)]
pub(super) enum BundleVerb {
    /// Show the authorities of a bundle: our own authority's, a file's, or a declared trust domain's
    Show {
        #[command(flatten)]
        from: From,
    },
    /// Print a bundle, for a file or for another trust domain's operator
    Export {
        #[command(flatten)]
        from: From,
        /// How it is written
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Declare the bundle of another trust domain through the Admin API
    Set {
        /// Whose bundle it is; never taken from the file
        #[arg(long, value_name = "NAME", value_parser = super::command::trust_domain)]
        trust_domain: TrustDomain,
        /// PEM with root certificates, or a SPIFFE bundle document
        file: PathBuf,
        #[command(flatten)]
        admin: AdminArgs,
    },
}

/// Where a bundle is taken from.
#[derive(clap::Args, Debug)]
pub(super) struct From {
    /// A file: PEM with root certificates, or a SPIFFE bundle document
    file: Option<PathBuf>,
    /// An authority's directory
    #[arg(long, value_name = "DIR", conflicts_with = "file")]
    dir: Option<PathBuf>,
    /// Whose bundle the file is; with --admin, which declared trust domain
    #[arg(long, value_name = "NAME", value_parser = super::command::trust_domain)]
    trust_domain: Option<TrustDomain>,
    #[command(flatten)]
    admin: AdminArgs,
}

impl From {
    fn read(&self, clock: &Clock) -> anyhow::Result<BundleDocument> {
        let bare = |bundle| BundleDocument {
            bundle,
            sequence: None,
            refresh_after: Duration::from_secs(300),
        };
        match (&self.file, &self.dir, &self.trust_domain) {
            (Some(file), ..) => {
                let domain = match &self.trust_domain {
                    Some(domain) => domain.clone(),
                    None => "unnamed".parse().context("a trust domain's name")?,
                };
                document(domain, &read(file)?)
                    .with_context(|| format!("{} cannot be used", file.display()))
            }
            (None, None, Some(domain)) if self.admin.is_given() => {
                let admin = self.admin.open()?;
                let path = format!("/trust_domains/{domain}");
                let found = wait(async { ask(&admin, "GET", &path, None).await })?;
                let declared = &found["value"];
                let bundle = [&declared["bundle"], &declared["endpoint"]["bundle"]]
                    .into_iter()
                    .find(|bundle| !bundle.is_null());
                let Some(bundle) = bundle else {
                    bail!(
                        "{domain} is declared with an endpoint: each process fetches its bundle, see `wardgate identity federate list --status`"
                    )
                };
                let text = bundle.as_str().map_or_else(|| bundle.to_string(), str::to_owned);
                document(domain.clone(), text.as_bytes())
            }
            (None, dir, _) => {
                let dir = dir.as_deref().unwrap_or(Path::new("certs"));
                let authority = Authority::open(dir, clock.clone()).with_context(|| {
                    format!("no usable authority in {}; name a file, --dir, or --trust-domain with --admin", dir.display())
                })?;
                Ok(bare(authority.bundle()))
            }
        }
    }
}

fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

/// The bundle in a file: PEM with root certificates, or a SPIFFE bundle document.
pub(in crate::cli) fn read_bundle(file: &Path, domain: TrustDomain) -> anyhow::Result<TrustBundle> {
    let document = document(domain, &read(file)?)
        .with_context(|| format!("{} cannot be used", file.display()))?;
    Ok(document.bundle)
}

fn document(domain: TrustDomain, text: &[u8]) -> anyhow::Result<BundleDocument> {
    if text.trim_ascii_start().starts_with(b"{") {
        return Ok(BundleDocument::parse(domain, text)?);
    }
    let bundle = TrustBundle::from_pem(domain, text)?;
    Ok(BundleDocument { bundle, sequence: None, refresh_after: Duration::from_secs(300) })
}

pub(super) fn bundle(
    verb: &BundleVerb,
    clock: &Clock,
    out: &mut impl Write,
) -> anyhow::Result<ExitCode> {
    match verb {
        BundleVerb::Show { from } => show(&from.read(clock)?, clock, out)?,
        BundleVerb::Export { from, format } => {
            let document = from.read(clock)?;
            match format {
                Format::Pem => write!(out, "{}", document.bundle.to_pem())?,
                Format::Spiffe => {
                    writeln!(out, "{}", serde_json::to_string_pretty(&document.to_json()?)?)?;
                }
            }
        }
        BundleVerb::Set { trust_domain, file, admin } => set(trust_domain, file, admin, out)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn show(document: &BundleDocument, clock: &Clock, out: &mut impl Write) -> anyhow::Result<()> {
    let BundleDocument { bundle, sequence, refresh_after } = document;
    if bundle.domain.as_str() != "unnamed" {
        writeln!(out, "trust domain  {}", bundle.domain)?;
    }
    if let Some(sequence) = sequence {
        writeln!(out, "sequence      {sequence}")?;
        writeln!(out, "refresh       every {} s", refresh_after.as_secs())?;
    }
    writeln!(out, "JWT keys      {}", bundle.jwt_authorities.len())?;
    for (at, root) in bundle.roots.iter().enumerate() {
        let (_, parsed) = X509Certificate::from_der(root).context("a root that is none")?;
        let until = parsed.validity().not_after.timestamp();
        let state = if until < clock.now() { "EXPIRED" } else { "until" };
        writeln!(out, "root {}        {state} {}", at + 1, date(until))?;
        writeln!(out, "  subject     {}", parsed.subject().to_string().escape_debug())?;
        writeln!(out, "  SHA-256     {}", fingerprint(root))?;
    }
    if bundle.roots.is_empty() {
        writeln!(out, "no root: nobody of the trust domain is trusted")?;
    }
    Ok(())
}

fn set(
    domain: &TrustDomain,
    file: &Path,
    admin: &AdminArgs,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let text = read(file)?;
    let read = document(domain.clone(), &text)
        .with_context(|| format!("{} cannot be used", file.display()))?;
    let text =
        String::from_utf8(text).with_context(|| format!("{} is not text", file.display()))?;
    let admin = admin.open()?;
    let path = format!("/trust_domains/{domain}");
    wait(async {
        // What else is declared of the domain stays.
        let before = match admin.call("GET", &path, None).await? {
            found if found.status == 200 => found.json()?["value"].clone(),
            _ => Value::Null,
        };
        if !before["endpoint"].is_null() {
            bail!(
                "{domain} is declared with an endpoint; `wardgate identity federate remove {domain}` first"
            );
        }
        let mut declared = json!({});
        for field in ["desc", "labels", "revocation"] {
            if !before[field].is_null() {
                declared[field] = before[field].clone();
            }
        }
        declared["bundle"] = text.into();
        ask(&admin, "PUT", &path, Some(&declared)).await
    })?;
    writeln!(out, "Declared trust domain {domain} with {} roots", read.bundle.roots.len())?;
    for root in &read.bundle.roots {
        writeln!(out, "  SHA-256 {}", fingerprint(root))?;
    }
    Ok(())
}
