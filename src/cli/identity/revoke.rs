//! `wardgate identity revoke`: a certificate, or all of an identity's, stand on the authority's revocation lists from now on.
//!
//! Lists reach a verifier within seconds over the Workload API, and in their time where they are fetched. What must end this
//! instant is for the deny list (resource `revocations`).

use std::io::Write;
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;

use super::authority::Place;
use super::text::date;
use crate::identity::SpiffeId;
use crate::roles::{AuthorityError, Reason, Records};
use crate::rt::Clock;

/// What is revoked, and why
#[derive(Debug, Args)]
pub(super) struct Revoke {
    #[command(flatten)]
    pub(super) place: Place,
    #[command(flatten)]
    pub(super) whom: Whom,
    /// Why: unspecified, key-compromise, affiliation-changed, superseded, cessation-of-operation, privilege-withdrawn
    #[arg(long, value_name = "REASON", default_value = "unspecified")]
    pub(super) reason: Reason,
    /// Revoke a serial number also when the ledger does not know it
    #[arg(long, requires = "serial")]
    pub(super) force: bool,
}

/// Either of the two.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct Whom {
    /// The certificate with this serial number (hexadecimal), of a workload or of an intermediate
    #[arg(long, value_name = "SERIAL")]
    pub(super) serial: Option<String>,
    /// All live certificates of this identity
    #[arg(long, value_name = "SPIFFE-ID", value_parser = super::command::spiffe_id)]
    pub(super) id: Option<SpiffeId>,
}

pub(super) fn revoke(
    args: &Revoke,
    clock: &Clock,
    out: &mut impl Write,
) -> anyhow::Result<ExitCode> {
    let mut records = Records::open(&args.place.dir)?;
    let now = clock.now();
    let revoked = match (&args.whom.serial, &args.whom.id) {
        (Some(serial), _) => records.revoke_serial(serial, args.reason, args.force, now)?,
        (None, Some(id)) => {
            if !records.find(id.as_str()).iter().any(|found| found.issued.is_live(now)) {
                bail!("the ledger in {} has no live certificate of {id}", args.place.name());
            }
            records.revoke_id(id.as_str(), args.reason, now)?
        }
        (None, None) => bail!("expected --serial or --id"),
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
    match args.place.open(clock) {
        Ok(_) => writeln!(out, "The list is signed: {}/crl.pem", args.place.name())?,
        Err(AuthorityError::PassphraseMissing { .. }) => writeln!(
            out,
            "Recorded. The list is signed by the running issuer within a second, or by this command with the passphrase."
        )?,
        Err(error) => return Err(error.into()),
    }
    if let Some(id) = &args.whom.id {
        writeln!(
            out,
            "Whoever is registered for {id} is issued a new certificate; take its entry away to end that."
        )?;
    }
    Ok(ExitCode::SUCCESS)
}
