//! `wardgate who-did`: which identities really called a service.

use std::io::Write;
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use serde_json::{Value, json};

use super::audit::Output;
use super::central::{Where, ask};
use super::text::safe;
use crate::audit::{Filter, Lines, Record, Seen, WhoDid, duration};
use crate::rt::unix_millis;

/// Which identities really called a service
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  wardgate who-did billing --since 24h --admin http://127.0.0.1:9180
  IDENTITY                 ALLOWED  DENIED  LAST SEEN
  spiffe://shop.test/web       412       0  2026-11-21T12:00:00.123Z
  spiffe://shop.test/cart        0       3  2026-11-21T11:41:09.004Z

Exit codes: 0 somebody called, 1 nobody did.")]
pub(super) struct WhoDidArgs {
    /// The service: its SPIFFE ID (* at its end stands for anything), or the end of its path, as billing
    service: String,
    /// How far back: 30m, 1h, 7d
    #[arg(long, default_value = "1h", value_name = "TIME")]
    since: String,
    #[command(flatten)]
    place: Where,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Runs `wardgate who-did`. Exit code 1: nobody did.
///
/// # Errors
/// The log or the Admin API cannot be read, or `out` cannot be written.
pub(super) async fn run(
    args: &WhoDidArgs,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<ExitCode> {
    if duration(&args.since).is_none() {
        bail!("--since {:?}: expected a time as 30m, 1h, 7d", args.since);
    }
    let mut filter = Filter::default();
    filter.set("from", &args.since, unix_millis()).map_err(anyhow::Error::msg)?;
    filter.dst = Some(args.service.clone());
    let answer: Value = match args.place.central()? {
        Some(admin) => {
            let Filter { dst, .. } = &filter;
            let named = Filter { dst: dst.clone(), ..Filter::default() }.query();
            let service = named.replacen("dst=", "service=", 1);
            ask(&admin, &format!("who-did?{service}&since={}", args.since)).await?
        }
        None => {
            let mut failed = None;
            let lines = Lines::of(&args.place.log());
            let lines = lines.map_while(|line| line.map_err(|error| failed = Some(error)).ok());
            let records = lines.filter_map(|line| Record::parse(&line));
            let fitting = records.filter(|record| filter.takes(None, record));
            let who = WhoDid::count(fitting.filter_map(Seen::of));
            if let Some(error) = failed {
                return Err(error.into());
            }
            json!(who)
        }
    };
    let callers = answer["callers"].as_array().map(Vec::as_slice).unwrap_or_default();
    match args.output {
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&answer)?)?,
        Output::Text => print(callers, &answer, args, out)?,
    }
    Ok(if callers.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn print(
    callers: &[Value],
    answer: &Value,
    args: &WhoDidArgs,
    out: &mut dyn Write,
) -> std::io::Result<()> {
    if callers.is_empty() {
        let service = safe(&args.service);
        writeln!(out, "nobody called {service} in the last {}", args.since)?;
    } else {
        let name = |row: &Value| match row["spiffe_id"].as_str() {
            Some(id) => safe(id),
            None => "(no identity)".to_owned(),
        };
        let wide = callers.iter().map(|row| name(row).chars().count()).max().unwrap_or(0).max(8);
        writeln!(out, "{:wide$}  {:>9}  {:>9}  LAST SEEN", "IDENTITY", "ALLOWED", "DENIED")?;
        for row in callers {
            let last = safe(row["last"].as_str().unwrap_or_default());
            let (allowed, denied) = (&row["allowed"], &row["denied"]);
            writeln!(
                out,
                "{:wide$}  {:>9}  {:>9}  {last}",
                name(row),
                allowed.to_string(),
                denied.to_string()
            )?;
        }
    }
    if answer["is_complete"] == false {
        writeln!(out, "note: there is more than one answer looks at; ask for a shorter time")?;
    }
    Ok(())
}
