//! Policy files and folders of them.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::policy::{Declared, Flaw};

/// A file's name and its text.
pub(in crate::cli) struct SourceText {
    pub(in crate::cli) name: String,
    pub(in crate::cli) text: String,
}

/// The texts of files, and of all `*.yaml`, `*.yml` and `*.json` below folders, sorted by name. `-` is the standard input.
///
/// # Errors
/// One cannot be read; a folder has no such file.
pub(in crate::cli) fn read_texts(paths: &[PathBuf]) -> anyhow::Result<Vec<SourceText>> {
    let mut texts = Vec::new();
    for path in paths {
        if path.as_os_str() == "-" {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("cannot read the standard input")?;
            texts.push(SourceText { name: "(standard input)".into(), text });
            continue;
        }
        let mut files = Vec::new();
        if path.is_dir() {
            walk(path, &["yaml", "yml", "json"], &mut files)?;
            files.sort();
            if files.is_empty() {
                bail!("{} holds no *.yaml, *.yml or *.json", path.display());
            }
        } else {
            files.push(path.clone());
        }
        for file in files {
            let text = std::fs::read_to_string(&file)
                .with_context(|| format!("cannot read {}", file.display()))?;
            texts.push(SourceText { name: file.display().to_string(), text });
        }
    }
    Ok(texts)
}

/// All files below a folder with one of these endings.
pub(super) fn walk(
    folder: &Path,
    endings: &[&str],
    files: &mut Vec<PathBuf>,
) -> anyhow::Result<()> {
    let read = || format!("cannot read {}", folder.display());
    for entry in std::fs::read_dir(folder).with_context(read)? {
        let path = entry.with_context(read)?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let wanted =
            path.extension().is_some_and(|extension| endings.iter().any(|one| extension == *one));
        if hidden {
            // `.git`, and the names that Kubernetes keeps beside what it shows.
        } else if path.is_dir() {
            walk(&path, endings, files)?;
        } else if wanted {
            files.push(path);
        }
    }
    Ok(())
}

/// What policy files and folders say, and their mistakes. Cases (`*.test.yaml`) are left to `wardgate policy test`.
///
/// # Errors
/// One cannot be read at all.
pub(in crate::cli) fn read_policies(paths: &[PathBuf]) -> anyhow::Result<(Declared, Vec<Flaw>)> {
    let mut declared = Declared::default();
    let mut flaws = Vec::new();
    for SourceText { name, text } in read_texts(paths)? {
        flaws.extend(declared.add(&name, &text));
    }
    Ok((declared, flaws))
}

/// As [`read_policies`], for commands that need policies without a mistake.
///
/// # Errors
/// One cannot be read, or has a mistake; all mistakes are named.
pub(in crate::cli) fn sound_policies(paths: &[PathBuf]) -> anyhow::Result<Declared> {
    let (declared, flaws) = read_policies(paths)?;
    if flaws.is_empty() {
        return Ok(declared);
    }
    let lines: Vec<String> = flaws.iter().map(|flaw| format!("\n  {flaw}")).collect();
    bail!("policy files with mistakes:{}", lines.concat())
}
