//! The house rules that a compiler does not hold: which room may import which, what a `mod.rs` is, and that every
//! plugin file has its row. It reads `src/` as text; ARCHITECTURE.md quotes the table.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The table of arrows, from the roof down: a room may import the rooms in its row, and nothing else of ours. A row names
/// only rooms that stand below it, so there is no circle. ARCHITECTURE.md carries this block word for word.
const TABLE: &str = "\
main       cli rt
cli        roles audit conformance mtls policy observe identity sync store model rt
roles      control issuer federation acme secrets proxy plugins snapshot pipeline upstream audit mtls policy observe identity sync store model rt
control    snapshot pipeline audit mtls policy observe identity sync store model rt
issuer     mtls observe identity store model rt
federation mtls observe identity model rt
acme       mtls observe model rt
secrets    mtls observe sync model rt
proxy      snapshot pipeline upstream mtls policy observe identity model rt
plugins    pipeline rt
snapshot   pipeline upstream mtls policy observe identity model rt
pipeline   upstream mtls policy observe identity model rt
upstream   mtls observe identity model rt
audit      mtls policy observe identity model rt
conformance mtls identity rt
mtls       identity model rt
policy     identity model rt
observe    identity model rt
identity   model rt
sync       store model rt
store      model rt
model
rt
";

/// Files beside the plugins of a family that several of them share; they are no plugins and have no row.
const SHARED_PLUGIN_FILES: [&str; 28] = [
    "auth/asking.rs",
    "auth/badge.rs",
    "auth/browser.rs",
    "auth/client.rs",
    "auth/cookies.rs",
    "auth/entrance.rs",
    "auth/jose.rs",
    "auth/ldap.rs",
    "auth/provider.rs",
    "auth/session.rs",
    "auth/session_store.rs",
    "auth/signing.rs",
    "auth/wolf_api.rs",
    "guard/openapi.rs",
    "guard/parameter.rs",
    "guard/plain_json.rs",
    "limit/amount.rs",
    "limit/count_settings.rs",
    "limit/counter.rs",
    "limit/keyed.rs",
    "limit/place.rs",
    "limit/refusal.rs",
    "limit/remote.rs",
    "limit/under_way.rs",
    "log/batch.rs",
    "traffic/weights.rs",
    "transform/body.rs",
    "transform/compression.rs",
];

#[test]
fn rooms_import_only_what_the_table_allows() {
    let table = table();
    let mut broken = Vec::new();
    for (path, text) in sources() {
        broken.extend(forbidden_imports(&table, &path, &text));
    }
    assert!(broken.is_empty(), "{}", report(&broken));
}

#[test]
fn every_folder_and_file_of_src_belongs_to_a_room() {
    let table = table();
    let strangers: Vec<String> = sources()
        .iter()
        .filter_map(|(path, _)| {
            let room = room_of(path)?;
            (!table.contains_key(room)).then(|| format!("{path} is in no room of the table"))
        })
        .collect();
    assert!(strangers.is_empty(), "{}", report(&strangers));
}

#[test]
fn a_mod_file_is_a_door_or_a_contract() {
    let mut broken = Vec::new();
    for (path, text) in sources() {
        if path.ends_with("/mod.rs") {
            broken.extend(door_that_defines(&path, &text));
        }
    }
    assert!(broken.is_empty(), "{}", report(&broken));
}

#[test]
fn every_plugin_file_has_a_row() {
    let files = sources();
    let mut broken = Vec::new();
    for (path, text) in &files {
        let Some(family) = family_of(path) else { continue };
        if path.ends_with("/mod.rs") {
            let members: Vec<&str> = files
                .iter()
                .map(|(other, _)| other.as_str())
                .filter(|other| family_of(other) == Some(family) && !other.ends_with("/mod.rs"))
                .collect();
            broken.extend(missing_rows(family, text, &members));
        }
    }
    assert!(broken.is_empty(), "{}", report(&broken));
}

#[test]
fn one_file_names_the_cryptographic_library() {
    const LIBRARIES: [&str; 4] = ["ring", "aws_lc_rs", "aws_lc_sys", "aws_lc_fips_sys"];
    let mut broken = Vec::new();
    // Tests may forge with whatever they like.
    let is_test = |path: &str| path.ends_with("tests.rs") || path.ends_with("forge.rs");
    for (path, text) in sources().into_iter().filter(|(path, _)| !is_test(path)) {
        let tokens = tokens(&text);
        // `ring::digest`, `webpki::ring`, `ring as algorithm`.
        let names = |library: &str| {
            tokens.windows(2).any(|two| {
                let follows = two[0] == "::" && two[1] == library;
                follows || (two[0] == library && ["::", "as"].contains(&two[1].as_str()))
            })
        };
        for library in LIBRARIES {
            if path != "src/rt/crypto.rs" && names(library) {
                broken.push(format!("{path} names {library}: take it from crate::rt::crypto"));
            }
        }
    }
    assert!(broken.is_empty(), "{}", report(&broken));
}

#[test]
fn the_table_has_no_circle() {
    let rows: Vec<&str> = TABLE.lines().filter_map(|row| row.split_whitespace().next()).collect();
    for row in TABLE.lines() {
        let mut names = row.split_whitespace();
        let room = names.next().expect("a row has a name");
        for below in names {
            let own = rows.iter().position(|other| *other == room);
            let other = rows.iter().position(|other| *other == below);
            assert!(
                other > own,
                "the row of {room} names {below}, which does not stand below it in the table"
            );
        }
    }
}

#[test]
fn architecture_md_quotes_the_table() {
    let text =
        fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md is there");
    assert!(
        text.contains(TABLE),
        "ARCHITECTURE.md does not carry the table of tests/house.rs word for word:\n{TABLE}"
    );
}

// How a file is read.

type Table = BTreeMap<String, BTreeSet<String>>;

fn table() -> Table {
    TABLE
        .lines()
        .filter_map(|row| {
            let mut names = row.split_whitespace().map(str::to_owned);
            Some((names.next()?, names.collect()))
        })
        .collect()
}

/// Every `.rs` file below `src/`, as (path from the package's root with forward slashes, text).
fn sources() -> Vec<(String, String)> {
    let mut files = Vec::new();
    let mut folders = vec![root().join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("src can be read") {
            let path = entry.expect("src can be read").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source file is UTF-8");
                let from_root = path.strip_prefix(root()).expect("src is below the root");
                files.push((from_root.to_string_lossy().replace('\\', "/"), text));
            }
        }
    }
    files.sort();
    files
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf()
}

fn report(broken: &[String]) -> String {
    format!("{} broken:\n  {}", broken.len(), broken.join("\n  "))
}

/// The room that a file belongs to; `None` for `lib.rs`, which is only the list of rooms.
fn room_of(path: &str) -> Option<&str> {
    let inside = path.strip_prefix("src/")?;
    match inside.split_once('/') {
        Some((room, _)) => Some(room),
        None if inside == "lib.rs" => None,
        None => inside.strip_suffix(".rs"),
    }
}

/// The family of a file in the plugins' room: `auth` for `src/plugins/auth/key_auth.rs`.
fn family_of(path: &str) -> Option<&str> {
    let (family, _) = path.strip_prefix("src/plugins/")?.split_once('/')?;
    Some(family)
}

/// How many modules lie between the crate and the items of a file: 0 for `lib.rs`, 1 for `src/rt/mod.rs`.
fn depth_of(path: &str) -> usize {
    let inside = path.strip_prefix("src/").unwrap_or(path);
    if inside == "lib.rs" || inside == "main.rs" {
        return 0;
    }
    let parts = inside.split('/').count();
    if inside.ends_with("/mod.rs") { parts - 1 } else { parts }
}

// The rules, each on the text of one file.

fn forbidden_imports(table: &Table, path: &str, text: &str) -> Vec<String> {
    let Some(room) = room_of(path) else { return Vec::new() };
    let Some(allowed) = table.get(room) else { return Vec::new() };
    let mut broken = Vec::new();
    for other in rooms_named_in(path, text) {
        if other == room || allowed.contains(&other) {
            continue;
        }
        broken.push(if table.contains_key(&other) {
            format!("{path} may not import {other}")
        } else {
            format!("{path} names crate::{other}, and there is no such room in the table")
        });
    }
    broken
}

/// Every room that a file names by a path from the crate's root: `crate::a::B`, `use crate::{a, b::C}`, `super::super::a`
/// where that climbs to the root, and `wardgate::a` in the binary.
fn rooms_named_in(path: &str, text: &str) -> BTreeSet<String> {
    let tokens = tokens(text);
    let is_binary = path == "src/main.rs";
    let mut rooms = BTreeSet::new();
    // Whether each open brace belongs to an inline module.
    let mut braces: Vec<bool> = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        match tokens[at].as_str() {
            "{" => braces.push(at >= 2 && tokens[at - 2] == "mod"),
            "}" => {
                braces.pop();
            }
            "crate" if follows_a_path(&tokens, at) => collect_rooms(&tokens, at + 1, &mut rooms),
            "wardgate" if is_binary && follows_a_path(&tokens, at) => {
                collect_rooms(&tokens, at + 1, &mut rooms);
            }
            "super" => {
                let mut climbs = 1;
                while tokens.get(at + 1).is_some_and(|next| next == "::")
                    && tokens.get(at + 2).is_some_and(|next| next == "super")
                {
                    climbs += 1;
                    at += 2;
                }
                let depth = depth_of(path) + braces.iter().filter(|is_module| **is_module).count();
                if climbs == depth {
                    collect_rooms(&tokens, at + 1, &mut rooms);
                }
            }
            _ => {}
        }
        at += 1;
    }
    rooms
}

fn follows_a_path(tokens: &[String], at: usize) -> bool {
    tokens.get(at + 1).is_some_and(|next| next == "::")
}

/// Takes the names right after the `::` at `at`: one name, or the first name of each branch of a group in braces.
fn collect_rooms(tokens: &[String], at: usize, rooms: &mut BTreeSet<String>) {
    if tokens.get(at).is_none_or(|token| token != "::") {
        return;
    }
    let Some(first) = tokens.get(at + 1) else { return };
    if first != "{" {
        rooms.insert(first.clone());
        return;
    }
    let mut depth = 0;
    let mut is_first_of_branch = false;
    for token in &tokens[at + 1..] {
        match token.as_str() {
            "{" => {
                depth += 1;
                is_first_of_branch = depth == 1;
            }
            "}" => {
                depth -= 1;
                if depth == 0 {
                    return;
                }
            }
            "," if depth == 1 => is_first_of_branch = true,
            name if is_first_of_branch => {
                rooms.insert(name.to_owned());
                is_first_of_branch = false;
            }
            _ => {}
        }
    }
}

/// A `mod.rs` that re-exports its own children is a door and defines nothing.
fn door_that_defines(path: &str, text: &str) -> Vec<String> {
    let items = top_level_items(text);
    let children: BTreeSet<&str> = items
        .iter()
        .filter(|item| item.last().is_some_and(|last| last == ";"))
        .filter_map(|item| name_after(item, "mod"))
        .collect();
    let is_door = items.iter().any(|item| {
        let mut path = item.iter().skip_while(|token| *token != "use").skip(1);
        let first = path.next().map(String::as_str);
        let first = if first == Some("self") { path.nth(1).map(String::as_str) } else { first };
        item.first().is_some_and(|token| token == "pub")
            && first.is_some_and(|name| children.contains(name))
    });
    if !is_door {
        return Vec::new();
    }
    items
        .iter()
        .filter_map(|item| defined_by(item))
        .map(|what| format!("{path} is a door (it re-exports its children) and defines {what}"))
        .collect()
}

/// What an item defines, as `struct Route`; `None` for `use`, `mod` and tests.
fn defined_by(item: &[String]) -> Option<String> {
    const KINDS: [&str; 10] = [
        "struct",
        "enum",
        "union",
        "trait",
        "type",
        "const",
        "static",
        "fn",
        "impl",
        "macro_rules",
    ];
    for token in item {
        match token.as_str() {
            "use" | "mod" | "extern" => return None,
            kind if KINDS.contains(&kind) => {
                let name = item
                    .iter()
                    .skip_while(|other| *other != token)
                    .skip(1)
                    .find(|other| is_name(other) && !KINDS.contains(&other.as_str()))
                    .map_or("", String::as_str);
                return Some(format!("{kind} {name}"));
            }
            _ => {}
        }
    }
    None
}

/// The items of a file, each as its tokens up to its `;` or closing brace, attributes left out.
fn top_level_items(text: &str) -> Vec<Vec<String>> {
    let mut items = Vec::new();
    let mut item: Vec<String> = Vec::new();
    let mut open = 0_usize;
    let mut in_attribute = false;
    for token in tokens(text) {
        if open == 0 && item.is_empty() && (token == "#" || (token == "!" && in_attribute)) {
            in_attribute = true;
            continue;
        }
        if matches!(token.as_str(), "{" | "(" | "[") {
            open += 1;
        }
        if matches!(token.as_str(), "}" | ")" | "]") {
            open = open.saturating_sub(1);
        }
        if in_attribute {
            in_attribute = open > 0;
            continue;
        }
        let is_group_of_use = item.iter().any(|other| other == "use");
        let ends = open == 0 && (token == ";" || (token == "}" && !is_group_of_use));
        item.push(token);
        if ends {
            items.push(std::mem::take(&mut item));
        }
    }
    if !item.is_empty() {
        items.push(item);
    }
    items
}

fn name_after<'a>(item: &'a [String], keyword: &str) -> Option<&'a str> {
    let at = item.iter().position(|token| token == keyword)?;
    item.get(at + 1).map(String::as_str)
}

/// A plugin file without `mod name;` and a row `Entry::of::<name::..>` in its family's `mod.rs`.
fn missing_rows(family: &str, table: &str, members: &[&str]) -> Vec<String> {
    let tokens = tokens(table);
    let has = |pattern: &[&str]| tokens.windows(pattern.len()).any(|window| window == pattern);
    let folder = format!("src/plugins/{family}/");
    let mut names = BTreeMap::new();
    for path in members {
        let inside = path.strip_prefix(&folder).unwrap_or(path);
        if SHARED_PLUGIN_FILES.contains(&format!("{family}/{inside}").as_str()) {
            continue;
        }
        // A plugin that needs several files is a folder of its name.
        let name = inside.split('/').next().unwrap_or(inside).trim_end_matches(".rs");
        names.entry(name.to_owned()).or_insert(*path);
    }
    names
        .into_iter()
        .filter(|(name, _)| !has(&["Entry", "::", "of", "::", "<", name, "::"]))
        .map(|(name, path)| {
            format!("{path} has no row `Entry::of::<{name}::..>()` in {folder}mod.rs")
        })
        .collect()
}

/// Rust text as words and marks, without comments and without what stands in literals.
fn tokens(text: &str) -> Vec<String> {
    let bytes = text.as_bytes();
    let mut tokens: Vec<String> = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &text[at..];
        let byte = bytes[at];
        if rest.starts_with("//") {
            at += rest.find('\n').unwrap_or(rest.len());
        } else if rest.starts_with("/*") {
            at += block_comment(rest);
        } else if let Some(length) = literal(rest) {
            at += length;
        } else if rest.starts_with("::") {
            tokens.push("::".to_owned());
            at += 2;
        } else if byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80 {
            let length = rest
                .find(|character: char| !is_word(character))
                .unwrap_or(rest.len())
                .max(rest.chars().next().map_or(1, char::len_utf8));
            tokens.push(rest[..length].to_owned());
            at += length;
        } else {
            if !byte.is_ascii_whitespace() {
                tokens.push(char::from(byte).to_string());
            }
            at += 1;
        }
    }
    tokens
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

fn is_name(token: &str) -> bool {
    token.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

/// The length of a block comment, which may hold others.
fn block_comment(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < text.len() {
        if text[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// The length of the string or character literal that `text` begins with; `None` when it begins with none.
fn literal(text: &str) -> Option<usize> {
    let prefix = ["br", "cr", "b", "c", "r", ""].into_iter().find(|prefix| {
        text.strip_prefix(prefix).is_some_and(|rest| {
            let is_raw = prefix.ends_with('r');
            rest.starts_with('"')
                || (is_raw && rest.trim_start_matches('#').starts_with('"'))
                || (matches!(*prefix, "" | "b") && rest.starts_with('\''))
        })
    })?;
    let rest = &text[prefix.len()..];
    if prefix.ends_with('r') {
        let hashes = rest.len() - rest.trim_start_matches('#').len();
        let end = format!("\"{}", "#".repeat(hashes));
        let inside = &rest[hashes + 1..];
        return Some(
            inside
                .find(&end)
                .map_or(text.len(), |found| prefix.len() + hashes + 1 + found + end.len()),
        );
    }
    let quote = rest.chars().next()?;
    if quote == '\'' {
        // A lifetime is a quote and a name without a second quote behind one character.
        let mut characters = rest[1..].chars();
        let first = characters.next()?;
        if first != '\\' && characters.next() != Some('\'') {
            return None;
        }
    }
    let mut is_escaped = false;
    for (at, character) in rest.char_indices().skip(1) {
        if is_escaped {
            is_escaped = false;
        } else if character == '\\' {
            is_escaped = true;
        } else if character == quote {
            return Some(prefix.len() + at + 1);
        }
    }
    Some(text.len())
}

mod the_checker {
    //! Proof of the checker on made-up files: a rule that cannot fail holds nothing.

    use super::*;

    fn broken(path: &str, text: &str) -> Vec<String> {
        forbidden_imports(&table(), path, text)
    }

    #[test]
    fn says_which_file_may_not_import_what() {
        assert_eq!(
            broken("src/policy/rule.rs", "use crate::proxy::Listener;"),
            ["src/policy/rule.rs may not import proxy"]
        );
    }

    #[test]
    fn lets_an_arrow_of_the_table_pass() {
        let text =
            "use crate::identity::SpiffeId;\nuse crate::policy::Decision;\nuse super::Error;";
        assert!(broken("src/policy/rule.rs", text).is_empty());
    }

    #[test]
    fn looks_into_braces() {
        let text = "use crate::{\n    model::{Id, Route}, // the proxy\n    proxy,\n    snapshot::Keeper as Compiler,\n};";
        assert_eq!(
            broken("src/store/memory.rs", text),
            [
                "src/store/memory.rs may not import proxy",
                "src/store/memory.rs may not import snapshot"
            ]
        );
    }

    #[test]
    fn sees_a_path_in_the_middle_of_code_and_in_a_macro() {
        let text = "macro_rules! m { () => { $crate::control::Api } }\nfn f() { let x = crate::roles::start(); }";
        assert_eq!(
            broken("src/plugins/auth/key_auth.rs", text),
            [
                "src/plugins/auth/key_auth.rs may not import control",
                "src/plugins/auth/key_auth.rs may not import roles"
            ]
        );
    }

    #[test]
    fn sees_a_climb_to_the_root() {
        assert_eq!(
            broken("src/model/route.rs", "use super::super::proxy::Listener;"),
            ["src/model/route.rs may not import proxy"]
        );
        assert_eq!(
            broken("src/model/mod.rs", "use super::rt::Live;"),
            ["src/model/mod.rs may not import rt"]
        );
        let inline = "mod tests { use super::super::super::rt; use super::super::route; }";
        assert_eq!(broken("src/model/route.rs", inline), ["src/model/route.rs may not import rt"]);
    }

    #[test]
    fn does_not_read_comments_strings_and_visibilities() {
        let text = r####"
            //! See crate::proxy.
            /* crate::proxy /* crate::proxy */ crate::proxy */
            pub(crate) const NAME: &str = "crate::proxy";
            const RAW: &str = r#"a " crate::proxy"#;
            const QUOTE: char = '"';
            fn f<'a>(text: &'a str) -> &'a str { text }
            use crate::identity::Peer;
            const BYTES: &[u8] = b"\" crate::proxy";
        "####;
        assert!(broken("src/policy/rule.rs", text).is_empty());
        assert_eq!(
            rooms_named_in("src/policy/rule.rs", text),
            BTreeSet::from(["identity".to_owned()])
        );
    }

    #[test]
    fn knows_the_binary_by_the_library_s_name() {
        assert!(broken("src/main.rs", "fn main() { wardgate::cli::run() }").is_empty());
        assert_eq!(
            broken("src/main.rs", "use wardgate::{cli, proxy::DataPlane};"),
            ["src/main.rs may not import proxy"]
        );
    }

    #[test]
    fn refuses_a_room_that_is_not_in_the_table() {
        assert_eq!(
            broken("src/rt/live.rs", "use crate::utils::Thing;"),
            ["src/rt/live.rs names crate::utils, and there is no such room in the table"]
        );
    }

    #[test]
    fn a_plugin_may_use_the_pipeline_and_rt_alone() {
        let path = "src/plugins/guard/ip_restriction.rs";
        assert!(
            broken(path, "use crate::pipeline::{Access, Exchange}; use crate::rt::Clock;")
                .is_empty()
        );
        for room in
            ["proxy", "snapshot", "upstream", "identity", "policy", "observe", "model", "store"]
        {
            let text = format!("use crate::{room}::Thing;");
            assert_eq!(broken(path, &text), [format!("{path} may not import {room}")]);
        }
    }

    #[test]
    fn a_door_defines_nothing() {
        let path = "src/identity/mod.rs";
        let door = "//! Who.\n#![allow(x)]\nmod peer;\n#[cfg(test)]\nmod tests { fn f() {} }\npub use peer::{Peer, Other};\n";
        assert!(door_that_defines(path, door).is_empty());
        assert_eq!(
            door_that_defines(
                path,
                &format!("{door}/// A.\n#[derive(Debug)]\npub struct A {{ b: u8 }}\n")
            ),
            ["src/identity/mod.rs is a door (it re-exports its children) and defines struct A"]
        );
        assert_eq!(
            door_that_defines(
                path,
                "mod peer;\npub use self::peer::Peer;\npub(crate) async fn go() {}"
            ),
            ["src/identity/mod.rs is a door (it re-exports its children) and defines fn go"]
        );
    }

    #[test]
    fn a_contract_may_define_as_it_re_exports_no_child() {
        let contract = "mod embedded;\nmod etcd;\npub trait Store {}\nuse embedded::Embedded;\npub use bytes::Bytes;\n";
        assert!(door_that_defines("src/store/mod.rs", contract).is_empty());
    }

    #[test]
    fn a_plugin_file_wants_its_row() {
        let table = "mod counter;\nmod limit_count;\nmod limit_req;\npub const TABLE: &[Entry] = &[\n    Entry::of::<limit_count::LimitCount>(),\n];";
        let members = [
            "src/plugins/limit/counter.rs",
            "src/plugins/limit/limit_count.rs",
            "src/plugins/limit/limit_req.rs",
        ];
        assert_eq!(
            missing_rows("limit", table, &members),
            [
                "src/plugins/limit/limit_req.rs has no row `Entry::of::<limit_req::..>()` in src/plugins/limit/mod.rs"
            ]
        );
    }

    #[test]
    fn files_know_their_room_and_depth() {
        assert_eq!(room_of("src/lib.rs"), None);
        assert_eq!(room_of("src/main.rs"), Some("main"));
        assert_eq!(room_of("src/proxy/http/h1.rs"), Some("proxy"));
        assert_eq!(depth_of("src/proxy/http/h1.rs"), 3);
        assert_eq!(depth_of("src/proxy/mod.rs"), 1);
        assert_eq!(family_of("src/plugins/auth/key_auth.rs"), Some("auth"));
        assert_eq!(family_of("src/plugins/mod.rs"), None);
    }
}
