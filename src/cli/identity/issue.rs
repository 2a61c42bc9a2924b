//! `wardgate identity issue`.

use std::fs::DirBuilder;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;

use super::authority::Place;
use super::text::{date, replace};
use crate::identity::SpiffeId;
use crate::roles::Evidence;
use crate::rt::Clock;

pub(super) fn issue(
    place: &Place,
    id: &SpiffeId,
    to: &Path,
    ttl: Duration,
    dns_names: &[String],
    clock: &Clock,
    out: &mut impl Write,
) -> anyhow::Result<ExitCode> {
    let authority =
        place.open(clock).with_context(|| format!("no usable authority in {}", place.name()))?;
    let uid = rustix::process::getuid().as_raw();
    let evidence =
        Evidence { by: "command line".to_owned(), selectors: vec![format!("unix:uid:{uid}")] };
    let svid = authority.issue_to(id, ttl, dns_names, &evidence)?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(to)
        .with_context(|| format!("cannot make {}", to.display()))?;
    // The key first: a reader that sees the new certificate finds its key.
    replace(&to.join("key.pem"), svid.key_pem().as_bytes(), 0o600)?;
    replace(&to.join("svid.pem"), svid.chain_pem().as_bytes(), 0o644)?;
    replace(&to.join("bundle.pem"), authority.bundle().to_pem().as_bytes(), 0o644)?;
    writeln!(out, "Issued {}", svid.id)?;
    writeln!(out, "  serial     {}", svid.serial)?;
    writeln!(out, "  valid      until {}", date(svid.not_after))?;
    let to = to.display();
    writeln!(out, "  files      {to}/svid.pem  {to}/key.pem (mode 0600)  {to}/bundle.pem")?;
    Ok(ExitCode::SUCCESS)
}
