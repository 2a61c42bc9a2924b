//! `wardgate audit query`, and `audit verify --admin`: the control plane's archive, asked and judged.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::audit::{Output, summary};
use super::central::{FilterArgs, Where, ask, fetch, read};
use super::client::Admin;
use super::text::safe;
use crate::audit::{ChainFacts, ChainReport, Lines, names};
use crate::identity::{Revocations, Rules, Trust, TrustBundle, TrustBundles};
use crate::observe::{ChainLine, Countersignature};

/// Records that fit, from a control plane's archive or from the local log
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wardgate audit query --outcome deny --from 1h --dst billing --admin http://127.0.0.1:9180
  wardgate audit query --type admin -o json | jq .path
  wardgate audit query --denial d-5f2k8m0qrt

With -o json the lines are printed byte for byte as they were written.
Exit codes: 0 something was found, 1 nothing was.")]
pub(super) struct QueryArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// How many records
    #[arg(short = 'n', long, default_value_t = 100, value_name = "N")]
    limit: usize,
    /// The oldest first
    #[arg(long)]
    oldest_first: bool,
    #[command(flatten)]
    place: Where,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Runs `wardgate audit query`. Exit code 1: nothing fits.
pub(super) async fn query(
    args: &QueryArgs,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<ExitCode> {
    let filter = args.filter.filter()?;
    let lines = match args.place.central()? {
        Some(admin) => {
            let order = if args.oldest_first { "oldest" } else { "newest" };
            fetch(&admin, &filter, order, args.limit).await?
        }
        None => read(&args.place.log(), &filter, !args.oldest_first, args.limit)?,
    };
    for line in &lines {
        match args.output {
            Output::Json => writeln!(out, "{line}")?,
            Output::Text => writeln!(out, "{}", summary(line, false).unwrap_or_default())?,
        }
    }
    Ok(if lines.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn chains(admin: &Admin) -> anyhow::Result<Vec<ChainFacts>> {
    Ok(serde_json::from_value(ask(admin, "chains").await?["chains"].take())?)
}

/// Judges the archive, chain by chain. Exit code 1: something is wrong, or was when records came.
pub(super) async fn verify_archive(
    admin: &Admin,
    origin: Option<&str>,
    output: Output,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<ExitCode> {
    let mut reports: Vec<ChainReport> = Vec::new();
    let all = chains(admin).await?;
    let wanted =
        all.into_iter().filter(|facts| origin.is_none_or(|origin| names(origin, &facts.origin)));
    for facts in wanted {
        let chain = facts.chain;
        let mut whole: Option<ChainReport> = None;
        let mut after = 0;
        loop {
            let part = ask(admin, &format!("verify?chain={chain}&after={after}")).await?;
            let part: ChainReport = serde_json::from_value(part)?;
            let next = part.next;
            match &mut whole {
                None => whole = Some(part),
                Some(whole) => {
                    whole.records += part.records;
                    whole.seals += part.seals;
                    whole.countersigned += part.countersigned;
                    whole.findings.extend(part.findings);
                    whole.last_hash = part.last_hash;
                    whole.next = next;
                }
            }
            match next {
                Some(next) if next > after => after = next,
                _ => break,
            }
        }
        reports.extend(whole);
    }
    let alarms = ask(admin, "alarms").await?["alarms"].take();
    let alarms: Vec<Value> = alarms.as_array().cloned().unwrap_or_default();
    let of_origin = |alarm: &Value| {
        let whose = alarm["origin"].as_str().unwrap_or_default();
        origin.is_none_or(|origin| names(origin, whose))
    };
    let alarms: Vec<Value> = alarms.into_iter().filter(of_origin).collect();
    let is_sound = alarms.is_empty() && reports.iter().all(|report| report.findings.is_empty());
    match output {
        Output::Json => {
            let text = json!({ "chains": reports, "alarms": alarms, "sound": is_sound });
            writeln!(out, "{}", serde_json::to_string_pretty(&text)?)?;
        }
        Output::Text => print_archive(&reports, &alarms, is_sound, out)?,
    }
    Ok(if is_sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_archive(
    reports: &[ChainReport],
    alarms: &[Value],
    is_sound: bool,
    out: &mut dyn Write,
) -> std::io::Result<()> {
    for ChainReport { facts, records, seals, countersigned, findings, .. } in reports {
        let (origin, node, chain) = (safe(&facts.origin), safe(&facts.node), facts.chain);
        writeln!(
            out,
            "{origin} on {node} (chain {chain}): {records} records, number {} to {}, {seals} seals, {countersigned} countersigned",
            facts.kept_from, facts.head_seq
        )?;
        for finding in findings {
            writeln!(out, "  {} [{}]", safe(&finding.what), safe(&finding.code))?;
        }
    }
    for alarm in alarms {
        let text = |name: &str| safe(alarm[name].as_str().unwrap_or_default());
        writeln!(
            out,
            "alarm of {}: {} on {}: {} [{}]",
            text("time"),
            text("origin"),
            text("node"),
            text("what"),
            text("code")
        )?;
    }
    match is_sound {
        true => writeln!(out, "result: the archive is what came, and what came is whole"),
        false => writeln!(out, "result: NOT all is what was written"),
    }
}

/// What a control plane knows of a local log.
#[derive(Debug, Default)]
pub(super) struct Compared {
    /// The chain in the archive.
    pub(super) chain: Option<ChainFacts>,
    /// Countersignatures that fit.
    pub(super) countersigned: u64,
    /// What is wrong: a code and a sentence.
    pub(super) findings: Vec<(&'static str, String)>,
}

impl Compared {
    fn find(&mut self, code: &'static str, what: String) {
        if self.findings.len() < 100 {
            self.findings.push((code, what));
        }
    }

    pub(super) fn to_json(&self) -> Value {
        let findings = self.findings.iter();
        let findings = findings.map(|(code, what)| json!({ "code": code, "what": what }));
        json!({
            "chain": self.chain,
            "countersigned": self.countersigned,
            "findings": findings.collect::<Vec<_>>(),
        })
    }
}

/// A control plane's archive, as it was before the local log was read: what it had then, the log must have.
pub(super) struct Archive<'a> {
    admin: &'a Admin,
    chains: Vec<ChainFacts>,
}

impl<'a> Archive<'a> {
    pub(super) async fn as_it_is(admin: &'a Admin) -> anyhow::Result<Self> {
        Ok(Self { admin, chains: chains(admin).await? })
    }

    /// Has the local log all that was countersigned, as it was? The files are those of one log, oldest first.
    pub(super) async fn compare(
        &self,
        files: &[PathBuf],
        bundle: Option<TrustBundle>,
    ) -> anyhow::Result<Compared> {
        let ends = self.chains.iter().flat_map(|facts| [facts.first_seq, facts.head_seq]);
        let local = Local::read(files, &ends.collect())?;
        let mut compared = Compared::default();
        let Some(facts) = self.chain_of(&local).await? else {
            let what = "the archive knows no chain with these records: they were never handed over, or the log was begun anew";
            compared.find("not_in_archive", what.to_owned());
            return Ok(compared);
        };
        let head = local.hashes.get(&facts.head_seq);
        if facts.head_seq > local.last {
            let what = format!(
                "the archive has records up to {}, the log ends with record {}: its end was cut off",
                facts.head_seq, local.last
            );
            compared.find("cut_off", what);
        } else if head.is_some_and(|hash| *hash != facts.head_hash) {
            let what = format!("record {} is not the one that the archive has", facts.head_seq);
            compared.find("differs", what);
        }
        let trust = bundle.map(|bundle| {
            let bundles: TrustBundles = [bundle].into_iter().collect();
            Trust::new(bundles, Revocations::default(), Rules::default())
        });
        self.judge(facts, &local, trust.as_ref(), &mut compared).await?;
        compared.chain = Some(facts.clone());
        Ok(compared)
    }

    /// The chain that has the same records.
    async fn chain_of(&self, local: &Local) -> anyhow::Result<Option<&ChainFacts>> {
        let same = |seq: u64, hash: &str| local.hashes.get(&seq).is_some_and(|here| here == hash);
        let by_ends = self.chains.iter().rev().find(|facts| {
            same(facts.first_seq, &facts.first_hash) || same(facts.head_seq, &facts.head_hash)
        });
        if by_ends.is_some() {
            return Ok(by_ends);
        }
        for facts in self.chains.iter().rev() {
            let from = local.first.saturating_sub(1);
            let (made, _) = self.countersignatures(facts.chain, from, 1).await?;
            if made.first().is_some_and(|made| same(made.seq, &made.hash)) {
                return Ok(Some(facts));
            }
        }
        Ok(None)
    }

    async fn judge(
        &self,
        facts: &ChainFacts,
        local: &Local,
        trust: Option<&Trust>,
        compared: &mut Compared,
    ) -> anyhow::Result<()> {
        let mut after = local.first.saturating_sub(1);
        loop {
            let (made, certificates) = self.countersignatures(facts.chain, after, 10_000).await?;
            let Some(last) = made.last() else { return Ok(()) };
            after = last.seq;
            for mut made in made.into_iter().filter(|made| made.seq <= facts.countersigned) {
                let seq = made.seq;
                if let Some(chain) = certificates.get(&made.certificate_sha256) {
                    made.certificates.clone_from(chain);
                }
                if let Err(why) = made.check(trust) {
                    let what = format!("the countersignature of record {seq}: {why}");
                    compared.find("bad_countersignature", what);
                } else if seq > local.last {
                    let (by, time) = (&made.spiffe_id, &made.time);
                    let what = format!(
                        "{by} countersigned record {seq} at {time}, the log ends with record {}: its end was cut off",
                        local.last
                    );
                    compared.find("cut_off", what);
                    return Ok(());
                } else if local.hashes.get(&seq) != Some(&made.hash) {
                    let (by, time) = (&made.spiffe_id, &made.time);
                    let what = format!(
                        "record {seq} is not the one that {by} countersigned at {time}: the log was written anew"
                    );
                    compared.find("differs", what);
                } else {
                    compared.countersigned += 1;
                }
            }
            if after >= facts.countersigned {
                return Ok(());
            }
        }
    }

    async fn countersignatures(
        &self,
        chain: u32,
        after: u64,
        limit: usize,
    ) -> anyhow::Result<(Vec<Countersignature>, BTreeMap<String, Vec<String>>)> {
        let path = format!("countersignatures?chain={chain}&after={after}&limit={limit}");
        let mut answer = ask(self.admin, &path).await?;
        let made = serde_json::from_value(answer["countersignatures"].take())?;
        let certificates = serde_json::from_value(answer["certificates"].take())?;
        Ok((made, certificates))
    }
}

/// What of a local log is compared.
struct Local {
    first: u64,
    last: u64,
    /// Of seals, and of the records that were asked for.
    hashes: BTreeMap<u64, String>,
}

impl Local {
    fn read(files: &[PathBuf], wanted: &BTreeSet<u64>) -> anyhow::Result<Self> {
        let mut local = Self { first: 0, last: 0, hashes: BTreeMap::new() };
        for line in Lines::from_files(files.iter().cloned()) {
            let line = line?;
            // What is no link of a chain, the chain's own verification tells.
            let Ok(link) = ChainLine::read(line.as_bytes()) else { continue };
            if local.first == 0 {
                local.first = link.seq;
            }
            local.last = local.last.max(link.seq);
            if link.is_seal() || wanted.contains(&link.seq) {
                local.hashes.insert(link.seq, hex::encode(link.hash));
            }
        }
        Ok(local)
    }
}

/// The record of a denial, from the archive.
pub(super) async fn find_denial(
    admin: &str,
    key: Option<&str>,
    id: &str,
) -> anyhow::Result<Option<(PathBuf, Value)>> {
    let admin = Admin::new(admin, key.unwrap_or_default())?;
    let id = percent_encoding::utf8_percent_encode(id, percent_encoding::NON_ALPHANUMERIC);
    let answer = ask(&admin, &format!("records?limit=1&denial={id}")).await?;
    let Some(found) = answer["records"].get(0) else { return Ok(None) };
    let text = |name: &str| found[name].as_str().unwrap_or_default();
    let place = format!("the archive: {} on {}", text("origin"), text("node"));
    Ok(Some((Path::new(&place).to_owned(), found["record"].clone())))
}
