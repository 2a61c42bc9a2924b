//! Answers for people.

use std::io::{self, Write};

use serde_json::Value;

use crate::cli::audit::Output;
use crate::cli::text::safe;
use crate::policy::questions::{
    Abilities, Allowed, Broken, Denial, Permit, Tried, Verdict, Walked,
};

/// Prints for programs, if that was asked for.
pub(super) fn as_json(
    output: &Output,
    answer: &Value,
    out: &mut dyn Write,
) -> anyhow::Result<bool> {
    let wanted = matches!(output, Output::Json);
    if wanted {
        writeln!(out, "{}", serde_json::to_string_pretty(answer)?)?;
    }
    Ok(wanted)
}

/// Rows under headings, as wide as they need to be.
fn table(headings: [&str; 3], rows: &[[String; 3]], out: &mut dyn Write) -> io::Result<()> {
    let width = |at: usize| {
        let cells = rows.iter().map(|row| row[at].chars().count());
        cells.chain([headings[at].len()]).max().unwrap_or_default().min(80)
    };
    let (first, second) = (width(0), width(1));
    let mut line = |[one, two, three]: [&str; 3]| {
        let text = format!("{one:first$}  {two:second$}  {three}");
        writeln!(out, "{}", text.trim_end())
    };
    line(headings)?;
    rows.iter().try_for_each(|[one, two, three]| line([one, two, three]))
}

pub(super) fn who_can(answer: &Allowed, out: &mut dyn Write) -> io::Result<()> {
    let mut rows = Vec::new();
    for grant in &answer.grants {
        let conditions = safe(&grant.conditions.join("; "));
        for who in &grant.who {
            rows.push([safe(who), safe(&grant.via.to_string()), conditions.clone()]);
        }
        for but in &grant.but {
            rows.push([format!("  but not {}", safe(but)), String::new(), String::new()]);
        }
        for at in &grant.except {
            let Some(denial) = answer.denials.get(*at) else { continue };
            let Denial { who, but, via, conditions } = denial;
            let but = if but.is_empty() {
                String::new()
            } else {
                format!(" (but not {})", but.join(", "))
            };
            let conditions = safe(&conditions.join("; "));
            let who = safe(&format!("  except {}{but}", who.join(", ")));
            rows.push([who, safe(&via.to_string()), conditions]);
        }
    }
    if !rows.is_empty() {
        table(["IDENTITY", "VIA", "CONDITION"], &rows, out)?;
    }
    match answer.grants.is_empty() {
        true => writeln!(out, "(nobody: default deny)")?,
        false => writeln!(out, "(nobody else: default deny)")?,
    }
    for via in &answer.overruled {
        writeln!(
            out,
            "overruled: {} would allow it, and deny rules leave nothing of it",
            safe(&via.to_string())
        )?;
    }
    for watched in &answer.watched {
        writeln!(
            out,
            "only observed: {} ({})",
            safe(&watched.via.to_string()),
            safe(&watched.who.join(", "))
        )?;
    }
    broken(&answer.broken, out)
}

fn broken(list: &[Broken], out: &mut dyn Write) -> io::Result<()> {
    list.iter().try_for_each(|Broken { via, why }| {
        writeln!(out, "not valid: policy/{}: {}", safe(&via.policy), safe(why))
    })
}

fn what(permit: &Permit) -> String {
    let to = permit.to.clone().unwrap_or_default();
    let mut parts = Vec::new();
    let mut list = |name: &str, entries: &[String]| {
        if !entries.is_empty() {
            parts.push(format!("{name}{}", entries.join(" ")));
        }
    };
    let texts = |ports: &[u16]| ports.iter().map(ToString::to_string).collect::<Vec<_>>();
    list("", &to.methods);
    list("not ", &to.not_methods);
    list("", &to.paths);
    list("not ", &to.not_paths);
    list("gRPC ", &to.grpc);
    list("not gRPC ", &to.not_grpc);
    list("host ", &to.hosts);
    list("not host ", &to.not_hosts);
    list("port ", &texts(&to.ports));
    list("not port ", &texts(&to.not_ports));
    list("upgrade ", &to.upgrades);
    list(
        "if ",
        &[permit.conditions.join("; ")]
            .into_iter()
            .filter(|text| !text.is_empty())
            .collect::<Vec<_>>(),
    );
    if parts.is_empty() { "everything".to_owned() } else { parts.join(", ") }
}

fn workloads(permit: &Permit) -> String {
    match &*permit.workloads {
        [] => "all workloads".to_owned(),
        list => list.join(", "),
    }
}

pub(super) fn what_can(answer: &Abilities, out: &mut dyn Write) -> io::Result<()> {
    let mut rows = Vec::new();
    for permit in &answer.permits {
        rows.push([safe(&workloads(permit)), safe(&what(permit)), safe(&permit.via.to_string())]);
        for at in &permit.except {
            let Some(refusal) = answer.refusals.get(*at) else { continue };
            let at = format!("  except at {}", workloads(refusal));
            rows.push([safe(&at), safe(&what(refusal)), safe(&refusal.via.to_string())]);
        }
    }
    if !rows.is_empty() {
        table(["WORKLOAD", "WHAT", "VIA"], &rows, out)?;
    }
    match rows.is_empty() {
        true => writeln!(out, "(nothing: default deny)")?,
        false => writeln!(out, "(nothing else: default deny)")?,
    }
    broken(&answer.broken, out)
}

fn tried(one: &Tried) -> String {
    let name = format!("policy/{}:{}", one.policy, one.rule);
    match &one.failed {
        None => format!("{name}  holds"),
        Some(failed) => {
            format!(
                "{name}  {}: {} wanted, {} found",
                failed.clause,
                failed.wanted.join(" or "),
                failed.found
            )
        }
    }
}

fn outcome(verdict: &Verdict) -> String {
    let by = verdict.rule.as_ref().map(|via| format!("  {via}")).unwrap_or_default();
    match (verdict.allowed, &verdict.reason) {
        (true, _) => format!("allow{by}"),
        (false, Some(reason)) => format!("deny  {reason}{by}"),
        (false, None) => format!("deny{by}"),
    }
}

pub(super) fn can_i(verdict: &Verdict, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{}", safe(&outcome(verdict)))?;
    for one in &verdict.tried {
        writeln!(out, "  {}", safe(&tried(one)))?;
    }
    if let Some(nearest) = &verdict.nearest {
        writeln!(out, "nearest: {}", safe(&tried(nearest)))?;
    }
    if let Some(would_be) = &verdict.would_be {
        let outcome = if would_be.allowed { "allow" } else { "deny" };
        writeln!(out, "with what is only observed: {outcome}")?;
    }
    if !verdict.not_said.is_empty() {
        writeln!(out, "not said, and taken for absent: {}", verdict.not_said.join(", "))?;
    }
    Ok(())
}

pub(super) fn request(answer: &Value, out: &mut dyn Write) -> anyhow::Result<()> {
    let walked: Walked = serde_json::from_value(answer["request"].clone())?;
    let verdict: Verdict = serde_json::from_value(answer["policy"].clone())?;
    let text = |field: &str| safe(answer[field].as_str().unwrap_or_default());
    writeln!(out, " 1 listener  {} of {}", text("door"), text("workload"))?;
    let labels = |route: &crate::policy::questions::TargetRoute| {
        let labels = route.labels.iter().map(|(name, value)| format!("{name}={value}"));
        labels.collect::<Vec<_>>().join(" ")
    };
    match &walked.route {
        Some(route) => {
            let line = format!(" 2 route     {}  {}", route.id, labels(route));
            writeln!(out, "{}", safe(line.trim_end()))?;
        }
        None => writeln!(out, " 2 route     none")?,
    }
    if let Some(note) = &walked.note {
        writeln!(out, "             {}", safe(note))?;
    }
    let plugins =
        if walked.plugins.is_empty() { "none".into() } else { walked.plugins.join(" · ") };
    writeln!(out, " 3 plugins   {}", safe(&plugins))?;
    match answer["open"] == true {
        true => writeln!(out, " 4 policy    open: no policy selects the route")?,
        false => writeln!(out, " 4 policy    {}", safe(&outcome(&verdict)))?,
    }
    for one in &verdict.tried {
        writeln!(out, "             {}", safe(&tried(one)))?;
    }
    let nodes = if walked.nodes.is_empty() {
        String::new()
    } else {
        format!("  {}", walked.nodes.join(" "))
    };
    let upstream = walked.upstream.unwrap_or_else(|| "none".into());
    writeln!(out, " 5 upstream  {}", safe(&format!("{upstream}{nodes}")))?;
    if !verdict.not_said.is_empty() {
        writeln!(out, "   not said, and taken for absent: {}", verdict.not_said.join(", "))?;
    }
    match (answer["forwarded"] == true, walked.fault) {
        (true, _) => writeln!(out, " ⇒ would be forwarded")?,
        (false, Some(fault)) => writeln!(out, " ⇒ would not be forwarded: {}", safe(&fault))?,
        (false, None) => writeln!(out, " ⇒ would be refused by policy")?,
    }
    Ok(())
}
