//! `wardgate dump`: everything that a control plane has, as files that `wardgate apply` takes back.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use serde_json::{Map, Value};

use crate::cli::admin::{AdminArgs, ask};
use crate::cli::text::safe;

/// Everything that a control plane has, as files that apply takes back
///
/// It is all of one revision. Private keys are not in it: no answer of a control plane shows them, and applied to the same control
/// plane those that it has stay. For a backup with keys, back up the store.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  wardgate dump > config.yaml
  wardgate dump --dir config/                one file a kind
  wardgate dump --kind routes --kind upstreams -o json")]
pub(in crate::cli) struct DumpArgs {
    /// Only these kinds, as routes; may be given several times
    #[arg(long, value_name = "KIND")]
    kind: Vec<String>,
    /// Write <kind>.yaml into this folder in place of the standard output
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    #[command(flatten)]
    admin: AdminArgs,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Form,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Form {
    /// YAML, with #END as APISIX wants it
    #[default]
    Yaml,
    /// JSON
    Json,
}

/// Runs `wardgate dump`.
///
/// # Errors
/// Nobody answers, or a file cannot be written.
pub(in crate::cli) async fn dump(
    args: &DumpArgs,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<ExitCode> {
    let answer = ask(&args.admin.open()?, "GET", "/configs/dump", None).await?;
    let Value::Object(mut lists) = answer else { bail!("the dump is no object") };
    for kind in &args.kind {
        if crate::model::Kind::named(kind).is_none() {
            bail!("{kind}: no kind of resource has this name");
        }
    }
    if !args.kind.is_empty() {
        lists.retain(|list, _| args.kind.contains(list));
    }
    let Some(folder) = &args.dir else {
        out.write_all(written(&lists, args.output)?.as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    };
    fs::create_dir_all(folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    for (list, values) in lists {
        let ending = if args.output == Form::Yaml { "yaml" } else { "json" };
        let path = folder.join(format!("{list}.{ending}"));
        let count = values.as_array().map_or(0, Vec::len);
        let text = written(&Map::from_iter([(list.clone(), values)]), args.output)?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        writeln!(out, "{}: {count} {}", path.display(), safe(&list))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn written(lists: &Map<String, Value>, form: Form) -> anyhow::Result<String> {
    Ok(match form {
        Form::Json => serde_json::to_string_pretty(lists)? + "\n",
        Form::Yaml if lists.is_empty() => "#END\n".to_owned(),
        Form::Yaml => {
            let text = serde_saphyr::to_string(lists).context("cannot write YAML")?;
            format!("{}\n#END\n", text.trim_end())
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::files::documents;
    use super::*;

    #[test]
    fn what_is_written_reads_as_it_was() {
        let texts = [
            "no",
            "yes",
            "on",
            "true",
            "null",
            "~",
            "",
            " ",
            "1",
            "1.5",
            "1e3",
            "0x10",
            "0o7",
            "-",
            "a: b",
            "# no comment",
            "#END",
            "a\nb",
            "a\n",
            "\n",
            "  indented",
            "trailing ",
            "\t",
            "'",
            "\"",
            "\\n",
            "- a",
            "{a}",
            "[a]",
            "&a",
            "*a",
            "!a",
            "|",
            ">",
            "%a",
            "@a",
            "`a`",
            "2026-11-21",
            "12:30:45",
            "ü",
            "\u{7f}",
            "\u{0}",
            "\u{85}",
            "\u{feff}x",
            "-----BEGIN X-----\nabc\n-----END X-----\n",
            "^/a/(.*)$",
            ".inf",
            "=",
            "<<",
            "a,b",
            "key: [x",
            "---",
            "...",
        ];
        let mut values = Vec::new();
        for text in texts {
            values.push(json!({"id": text, "desc": [text, {"in": text}], text: 1}));
        }
        values.push(
            json!({"n": [0, -1, 1.5, 1e300, 18446744073709551615u64, true, false, null, {}, []]}),
        );
        for value in values {
            let Value::Object(lists) = json!({ "routes": [value] }) else { panic!("an object") };
            for form in [Form::Yaml, Form::Json] {
                let text = written(&lists, form).unwrap();
                let read = documents(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
                assert_eq!(read, [Value::Object(lists.clone())], "{text}");
            }
        }
    }
}
