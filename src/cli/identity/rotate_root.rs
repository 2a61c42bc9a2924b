//! `wardgate identity rotate-root`: prepare, activate, retire, and what is to be done next.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Subcommand;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::authority::Place;
use super::text::{date, length};
use crate::roles::{AuthorityError, Issued, Phase, Records, Step};
use crate::rt::Clock;

/// Of more than these a table is no help.
const MAX_ROWS: usize = 40;

/// One step of a rotation
#[derive(Debug, Subcommand)]
pub(super) enum RotateRoot {
    /// Put a new root into the bundle; it signs nothing yet
    Prepare {
        #[command(flatten)]
        place: Place,
        /// The new root's certificate, where the root's key is kept elsewhere
        #[arg(long, value_name = "FILE")]
        root: Option<PathBuf>,
    },
    /// Sign under the prepared root from now on; the former root stays in the bundle
    Activate {
        #[command(flatten)]
        place: Place,
        /// Do it although somebody may not know the new root yet
        #[arg(long)]
        force: bool,
    },
    /// Take the former root out of the bundle and destroy its keys
    Retire {
        #[command(flatten)]
        place: Place,
        /// Do it although live SVIDs chain to it: nobody will accept these any more
        #[arg(long)]
        force: bool,
    },
    /// Show the roots, who chains to them, and the next step
    Status {
        /// Where the authority is kept
        #[arg(long, value_name = "DIR", default_value = "certs")]
        dir: PathBuf,
    },
}

pub(super) fn rotate_root(
    step: &RotateRoot,
    clock: &Clock,
    out: &mut impl Write,
) -> anyhow::Result<ExitCode> {
    match step {
        RotateRoot::Prepare { place, root } => {
            let authority = place.open(clock)?;
            match root {
                None => authority.prepare_root()?,
                Some(path) => {
                    let text = std::fs::read(path)
                        .with_context(|| format!("cannot read {}", path.display()))?;
                    let root = CertificateDer::from_pem_slice(&text)
                        .with_context(|| format!("{} has no certificate", path.display()))?;
                    authority.prepare_upstream_root(root)?;
                }
            }
            writeln!(out, "Prepared: the new root is in the bundle, and signs nothing yet.")?;
            status(&place.dir, clock, out)
        }
        RotateRoot::Activate { place, force } => {
            match place.open(clock)?.activate_root(None, *force) {
                Err(AuthorityError::TooEarly { since, until }) => bail!(
                    "too early: the new root is in the bundle since {}, and not everybody can know it before {}; \
                     --force does it all the same",
                    date(since),
                    date(until)
                ),
                done => done?,
            }
            writeln!(out, "Activated: what is issued from now on chains to the new root.")?;
            status(&place.dir, clock, out)
        }
        RotateRoot::Retire { place, force } => {
            match place.open(clock)?.retire_root(*force) {
                Err(AuthorityError::WouldBreak { live }) => {
                    writeln!(
                        out,
                        "These would break, since they chain to the root that would go:"
                    )?;
                    rows(&live, out)?;
                    let last = live.iter().map(|issued| issued.not_after).max().unwrap_or(0);
                    bail!(
                        "{} live SVIDs chain to the outgoing root, the last until {}; --force retires it all the same",
                        live.len(),
                        date(last)
                    );
                }
                done => done?,
            }
            writeln!(out, "Retired: the former root left the bundle, and its keys are destroyed.")?;
            status(&place.dir, clock, out)
        }
        RotateRoot::Status { dir } => status(dir, clock, out),
    }
}

fn status(dir: &Path, clock: &Clock, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let records = Records::open(dir)?;
    let now = clock.now();
    writeln!(out, "Trust domain {}", records.trust_domain())?;
    for root in records.roots(now)? {
        let phase = match root.phase {
            Phase::Prepared => "prepared",
            Phase::Active => "active",
            Phase::Outgoing => "outgoing",
        };
        let keeper = if root.upstream { ", its key is kept elsewhere" } else { "" };
        writeln!(out, "{:<14}{phase:<9} since {}{keeper}", root.name, date(root.since))?;
        writeln!(out, "  ends         {}", date(root.not_after))?;
        writeln!(out, "  SHA-256      {}", root.fingerprint)?;
        let last = root.live.iter().map(|issued| issued.not_after).max();
        match last {
            Some(last) => writeln!(
                out,
                "  live SVIDs   {}, the last until {} ({} left)",
                root.live.len(),
                date(last),
                length(last - now)
            )?,
            None => writeln!(out, "  live SVIDs   none")?,
        }
        if root.phase == Phase::Outgoing {
            rows(&root.live, out)?;
        }
    }
    if records.awaits_upstream() {
        writeln!(
            out,
            "The upstream was asked for an intermediate: {}/upstream.csr",
            dir.display()
        )?;
    }
    let (step, from) = records.next_step(now);
    let from = from.filter(|from| *from > now);
    let from = from.map(|from| format!(", from {} on", date(from))).unwrap_or_default();
    let purpose = match step {
        Step::Prepare => " (begins a rotation)",
        Step::Activate | Step::Retire => "",
    };
    writeln!(
        out,
        "Next: wardgate identity rotate-root {step} --dir {}{from}{purpose}",
        dir.display()
    )?;
    Ok(ExitCode::SUCCESS)
}

/// Whom these SVIDs name, with serial numbers and ends; by ID.
fn rows(live: &[Issued], out: &mut impl Write) -> anyhow::Result<()> {
    let mut by_id: BTreeMap<&str, Vec<&Issued>> = BTreeMap::new();
    for issued in live {
        by_id.entry(&issued.id).or_default().push(issued);
    }
    let all = by_id.iter().flat_map(|(id, several)| several.iter().map(move |one| (id, one)));
    for (id, issued) in all.take(MAX_ROWS) {
        writeln!(out, "  {id}  serial {}  until {}", issued.serial, date(issued.not_after))?;
    }
    if live.len() > MAX_ROWS {
        writeln!(out, "  and {} more, of {} IDs altogether", live.len() - MAX_ROWS, by_id.len())?;
    }
    Ok(())
}
