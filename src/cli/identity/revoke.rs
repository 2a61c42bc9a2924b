//! `wardgate identity revoke`: at the mesh (the deny list of the Admin API, in force at once), or with `--dir` at an authority,
//! whose revocation lists name the certificate until it expires.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;

use super::authority::Place;
use super::deny::DenyArgs;
use super::text::date;
use super::{deny, whois};
use crate::roles::{AuthorityError, Reason, Records};
use crate::rt::Clock;

/// Whom to refuse, and where.
#[derive(Debug, Args)]
pub(super) struct RevokeArgs {
    #[command(flatten)]
    denial: DenyArgs,
    /// Put --serial, --id or --cert on the revocation lists of the authority in this directory, in place of the deny list
    #[arg(long, value_name = "DIR", conflicts_with_all = ["spki", "list", "undo", "expires_in"])]
    dir: Option<PathBuf>,
    /// A file with the passphrase of the authority's private keys; WARDGATE_CA_PASSPHRASE when not given
    #[arg(long, value_name = "FILE", requires = "dir")]
    passphrase_file: Option<PathBuf>,
    /// Revoke a serial number also when the authority's ledger does not know it
    #[arg(long, requires_all = ["dir", "serial"])]
    force: bool,
}

pub(super) fn revoke(
    args: &RevokeArgs,
    clock: &Clock,
    out: &mut impl Write,
) -> anyhow::Result<ExitCode> {
    let Some(dir) = &args.dir else { return deny::deny(&args.denial, clock, out) };
    let place = Place { dir: dir.clone(), passphrase_file: args.passphrase_file.clone() };
    let reason = match &args.denial.reason {
        None => Reason::default(),
        Some(text) => match text.parse() {
            Ok(reason) => reason,
            Err(expected) => bail!("--reason {text:?}: {expected}, as revocation lists have it"),
        },
    };
    let serial = match (&args.denial.cert, &args.denial.serial) {
        (Some(file), _) => Some(whois::serial_in(file)?),
        (None, serial) => serial.clone(),
    };
    let mut records = Records::open(dir)?;
    let now = clock.now();
    let revoked = match (&serial, &args.denial.id) {
        (Some(_), Some(_)) => bail!("give either a certificate or --id"),
        (Some(serial), None) => records.revoke_serial(serial, reason, args.force, now)?,
        (None, Some(id)) => {
            if !records.find(id.as_str()).iter().any(|found| found.issued.is_live(now)) {
                bail!("the ledger in {} has no live certificate of {id}", place.name());
            }
            records.revoke_id(id.as_str(), reason, now)?
        }
        (None, None) => bail!("nobody is named: give --serial, --cert or --id"),
    };
    if revoked.is_empty() {
        writeln!(out, "Nothing to do: revoked already")?;
        return Ok(ExitCode::SUCCESS);
    }
    for one in &revoked {
        let id = one.id.as_deref().unwrap_or("(unknown)");
        writeln!(out, "Revoked {id}  serial {}  until {}", one.serial, date(one.not_after))?;
    }
    // With the keys at hand the list is signed at once; without, the running issuer does it, which has them.
    match place.open(clock) {
        Ok(_) => writeln!(out, "The list is signed: {}/crl.pem", place.name())?,
        Err(AuthorityError::PassphraseMissing { .. }) => writeln!(
            out,
            "Recorded. The list is signed by the running issuer within a second, or by this command with the passphrase."
        )?,
        Err(error) => return Err(error.into()),
    }
    if let Some(id) = &args.denial.id {
        writeln!(
            out,
            "Whoever is registered for {id} is issued a new certificate; take its entry away to end that."
        )?;
    }
    Ok(ExitCode::SUCCESS)
}
