//! `wardgate identity request` and `adopt`: an authority below a root that is kept elsewhere.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;

use super::authority::Place;
use super::text::{date, length};
use crate::identity::TrustDomain;
use crate::roles::{Authority, Records};
use crate::rt::Clock;

pub(super) fn request(
    place: &Place,
    domain: Option<&TrustDomain>,
    out: &mut impl Write,
) -> anyhow::Result<ExitCode> {
    let known = || -> anyhow::Result<TrustDomain> {
        let records = Records::open(&place.dir)?;
        records.trust_domain().parse().context("the authority's trust domain is none")
    };
    let domain = domain.map_or_else(known, |domain| Ok(domain.clone()))?;
    let custody = place.custody()?;
    let request = Authority::request(&domain, &place.dir, &*custody)?;
    let dir = place.name();
    write!(out, "{request}")?;
    writeln!(out, "This request is {dir}/upstream.csr; its private key stays in {dir}.")?;
    writeln!(
        out,
        "Have the upstream authority sign it as an authority (CA:TRUE, keyCertSign, cRLSign)."
    )?;
    writeln!(out, "Next: wardgate identity adopt --dir {dir} CHAIN.pem --root ROOT.pem")?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn adopt(
    place: &Place,
    chain: &Path,
    root: &Path,
    clock: &Clock,
    out: &mut impl Write,
) -> anyhow::Result<ExitCode> {
    let read = |path: &Path| {
        std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
    };
    let (chain, root) = (read(chain)?, read(root)?);
    let adopted = Authority::adopt(&place.dir, &chain, &root, &*place.custody()?, clock)?;
    if !adopted.waits {
        // Its revocation list, and the files for people.
        place.open(clock)?;
    }
    let left = length(adopted.not_after - clock.now());
    writeln!(out, "Adopted: an SVID comes with {} certificates", adopted.served)?;
    writeln!(out, "  valid      until {} ({left} left)", date(adopted.not_after))?;
    if adopted.waits {
        writeln!(out, "Next: wardgate identity rotate-root activate --dir {}", place.name())?;
    } else {
        writeln!(out, "It signs from now on; a running issuer takes it over within a second.")?;
    }
    Ok(ExitCode::SUCCESS)
}
