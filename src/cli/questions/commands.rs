//! The commands that ask.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::print;
use super::request::{FactArgs, caller};
use super::subject::SubjectArgs;
use crate::cli::audit::Output;
use crate::policy::questions::{Allowed, Target};

/// What a refused `can-i` ends with.
const DENIED: u8 = 3;

/// Who may do something at a workload: all identities, with the rules that admit them
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wardgate who-can DELETE billing/invoices/7 --admin http://127.0.0.1:9180 --key $WARDGATE_KEY
  wardgate who-can GET /invoices/7 --workload spiffe://shop/billing -f policies/
  wardgate who-can '*' billing            with any method, at any path: both are conditions then
  wardgate who-can tcp billing --port 5432

What the question leaves out (host, port, header fields, time) stays a condition in the answer.")]
pub(in crate::cli) struct WhoCanArgs {
    /// The method; * for any; tcp for connections whose content is not read
    method: String,
    /// The workload, by the end of its SPIFFE ID, and the path: billing/invoices/7
    service: String,
    /// The workload's whole SPIFFE ID; the argument before is then the path alone
    #[arg(long, value_name = "ID")]
    workload: Option<String>,
    /// The host
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// The listener's port
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    #[command(flatten)]
    subject: SubjectArgs,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Runs `wardgate who-can`.
///
/// # Errors
/// The policies cannot be read, or the workload is not known.
pub(in crate::cli) async fn who_can(
    args: &WhoCanArgs,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<ExitCode> {
    let (workload, path) = match (&args.workload, args.service.split_once('/')) {
        (Some(workload), Some((_, path))) => (workload.clone(), Some(format!("/{path}"))),
        (Some(workload), None) => (workload.clone(), None),
        (None, _) if args.service.starts_with("spiffe://") => (args.service.clone(), None),
        (None, Some((service, path))) => (service.to_owned(), Some(format!("/{path}"))),
        (None, None) => (args.service.clone(), None),
    };
    let connection = args.method.eq_ignore_ascii_case("tcp");
    let target = Target {
        connection,
        method: (!connection && args.method != "*").then(|| args.method.clone()),
        path: path.filter(|_| !connection),
        host: args.host.clone(),
        port: args.port,
        upgrade: (args.method == "CONNECT").then(|| "connect".to_owned()),
        ..Target::default()
    };
    let question = json!({ "workload": workload, "target": target });
    let answer = args.subject.ask("who-can", &question).await?;
    if print::as_json(&args.output, &answer, out)? {
        return Ok(ExitCode::SUCCESS);
    }
    let allowed: Allowed = serde_json::from_value(answer)?;
    print::who_can(&allowed, out)?;
    Ok(ExitCode::SUCCESS)
}

/// Everything that an identity may do, everywhere
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  wardgate what-can spiffe://shop/web -f policies/")]
pub(in crate::cli) struct WhatCanArgs {
    /// Its SPIFFE ID
    identity: String,
    #[command(flatten)]
    subject: SubjectArgs,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Runs `wardgate what-can`.
///
/// # Errors
/// The policies cannot be read.
pub(in crate::cli) async fn what_can(
    args: &WhatCanArgs,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<ExitCode> {
    let question = json!({ "identity": args.identity });
    let answer = args.subject.ask("what-can", &question).await?;
    if !print::as_json(&args.output, &answer, out)? {
        print::what_can(&serde_json::from_value(answer)?, out)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// May an identity do something? Exit code 3: no
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wardgate can-i GET http://billing/invoices/7 --as spiffe://shop/web --to spiffe://shop/billing -f policies/
  wardgate can-i DELETE /invoices/7 --as spiffe://shop/web --to billing --at 2026-11-20T18:00:00Z

Exit codes: 0 allowed, 3 refused, 1 the question cannot be answered.")]
pub(in crate::cli) struct CanIArgs {
    /// The method; tcp for a connection whose content is not read
    method: String,
    /// http://HOST[:PORT]/PATH, or the path alone
    url: String,
    /// Who calls: a SPIFFE ID, or nobody
    #[arg(long = "as", value_name = "ID")]
    identity: String,
    /// The workload that is called: its SPIFFE ID, or the end of it
    #[arg(long = "to", value_name = "WORKLOAD")]
    workload: String,
    #[command(flatten)]
    facts: FactArgs,
    #[command(flatten)]
    subject: SubjectArgs,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Runs `wardgate can-i`.
///
/// # Errors
/// The policies cannot be read, or the request cannot be meant.
pub(in crate::cli) async fn can_i(
    args: &CanIArgs,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<ExitCode> {
    let question = json!({
        "workload": args.workload, "identity": caller(&args.identity)?,
        "target": args.facts.target(&args.method, &args.url)?,
    });
    let answer = args.subject.ask("can-i", &question).await?;
    let allowed = answer["allowed"] == true;
    if !print::as_json(&args.output, &answer, out)? {
        print::can_i(&serde_json::from_value(answer)?, out)?;
    }
    Ok(if allowed { ExitCode::SUCCESS } else { ExitCode::from(DENIED) })
}

/// Explain what a request would meet: route, plugins, policy with every rule that was tried, upstream
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wardgate explain request GET http://billing/invoices/7 --as spiffe://shop/web --to billing
  wardgate explain request GET http://shop.example/ --as nobody --to spiffe://shop/wardgate/ingress --door ingress
  wardgate explain request GET /invoices/7 --as spiffe://shop/web --to billing --route 7    as if route 7 took it

The route is the one that the router finds among the declared ones. A sidecar has one of its own besides (`sidecar.app`), which
only its settings know: it is supposed where no other matches, and not with --route none.

Exit codes: 0 would be forwarded, 3 would not.")]
pub(in crate::cli) struct RequestArgs {
    /// The method
    method: String,
    /// http://HOST[:PORT]/PATH, or the path alone
    url: String,
    /// Who calls: a SPIFFE ID, or nobody
    #[arg(long = "as", value_name = "ID", default_value = "nobody")]
    identity: String,
    /// The workload that is called, or the ingress: its SPIFFE ID, or the end of it
    #[arg(long = "to", value_name = "WORKLOAD")]
    workload: String,
    /// Which door it comes through
    #[arg(long, default_value = "inbound", value_parser = ["inbound", "ingress"])]
    door: String,
    /// The route that it is supposed to take, by its id, though the router may choose another one; none for none
    #[arg(long, value_name = "ID")]
    route: Option<String>,
    #[command(flatten)]
    facts: FactArgs,
    #[command(flatten)]
    subject: SubjectArgs,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Runs `wardgate explain request`.
///
/// # Errors
/// The resources cannot be read, or the request cannot be meant.
pub(in crate::cli) async fn request(
    args: &RequestArgs,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<ExitCode> {
    let question = json!({
        "door": args.door, "workload": args.workload, "identity": caller(&args.identity)?,
        "target": args.facts.target(&args.method, &args.url)?, "route": args.route,
    });
    let answer = args.subject.ask("explain", &question).await?;
    let forwarded = answer["forwarded"] == true;
    if !print::as_json(&args.output, &answer, out)? {
        print::request(&answer, out)?;
    }
    Ok(if forwarded { ExitCode::SUCCESS } else { ExitCode::from(DENIED) })
}
