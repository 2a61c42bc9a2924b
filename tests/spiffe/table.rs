//! docs/spiffe-conformance.md against the tests: every number has its row, and what is called held has its test.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use wardgate::conformance::CASES;

/// How many rules there are.
const LAST: u32 = 132;

struct Row {
    rule: u32,
    state: String,
    places: Vec<String>,
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).ok()
}

/// The rows of the tables: `| 23 | M | text | state | where |`.
fn rows() -> Vec<Row> {
    let text = read("docs/spiffe-conformance.md").expect("the document");
    let rows = text.lines().filter_map(|line| {
        let cells: Vec<&str> =
            line.strip_prefix("| ")?.trim_end_matches(" |").split(" | ").collect();
        let rule = cells[0].parse().ok()?;
        let [_, level, _, state, places] = cells[..] else {
            panic!(
                "row {rule} has {} cells, expected number, level, rule, state, where",
                cells.len()
            );
        };
        assert!(["M", "S", "O"].contains(&level), "row {rule}: level {level:?}");
        let places = places.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        Some(Row { rule, state: state.to_owned(), places })
    });
    rows.collect()
}

/// The numbers with which the string literals of a source begin: `"23 ..."`, `"23, 24 ..."`, `"23"`.
fn numbers(source: &str) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    for literal in source.split('"').skip(1) {
        let mut rest = literal;
        loop {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let Ok(number) = rest[..digits].parse() else { break };
            let after = &rest[digits..];
            if !(after.is_empty() || after.starts_with(' ') || after.starts_with(", ")) {
                break;
            }
            found.insert(number);
            match after.strip_prefix(", ") {
                Some(next) => rest = next,
                None => break,
            }
        }
    }
    found
}

#[test]
fn every_number_from_1_to_132_has_exactly_one_row_in_order() {
    let found: Vec<u32> = rows().iter().map(|row| row.rule).collect();
    assert_eq!(found, (1..=LAST).collect::<Vec<_>>());
}

#[test]
fn every_rule_that_is_called_held_is_named_by_a_test_at_the_place_that_the_row_tells() {
    let cases: BTreeSet<u32> = CASES.iter().map(|case| case.rule.into()).collect();
    let mut broken = Vec::new();
    for Row { rule, state, places } in rows() {
        if state != "held" {
            let reason = state.strip_prefix("not yet: ").or(state.strip_prefix("no part: "));
            if reason.is_none_or(str::is_empty) {
                broken.push(format!(
                    "{rule}: state {state:?}; expected held, `not yet: <reason>` or `no part: <reason>`"
                ));
            }
            continue;
        }
        if places.is_empty() {
            broken.push(format!("{rule}: held, and no test is named"));
        }
        for place in places {
            if place == "runner" {
                if !cases.contains(&rule) {
                    broken.push(format!("{rule}: the runner has no such case"));
                }
                continue;
            }
            match read(&place) {
                None => broken.push(format!("{rule}: there is no file {place}")),
                Some(source) if !numbers(&source).contains(&rule) => {
                    broken.push(format!("{rule}: no text in {place} begins with this number"));
                }
                Some(_) => {}
            }
        }
    }
    assert!(broken.is_empty(), "docs/spiffe-conformance.md:\n{}", broken.join("\n"));
}

#[test]
fn what_the_runner_and_these_tests_hold_is_called_held() {
    let states: BTreeMap<u32, String> =
        rows().into_iter().map(|row| (row.rule, row.state)).collect();
    let mut tested: BTreeSet<u32> = CASES.iter().map(|case| case.rule.into()).collect();
    for file in ["bundles", "chains", "ids", "openssl"] {
        let source = read(&format!("tests/spiffe/{file}.rs")).expect("a file of this test");
        tested.extend(numbers(&source));
    }
    let silent: Vec<&u32> = tested
        .iter()
        .filter(|rule| {
            (1..=LAST).contains(*rule) && states.get(rule).map(String::as_str) != Some("held")
        })
        .collect();
    assert!(silent.is_empty(), "tested, and not called held: {silent:?}");
}

#[test]
fn numbers_are_read_from_literals_alone() {
    let source = r#"f("23 two", "36, 49 both"); // 7
        "x 8", "9th", "10", "11,12" "#;
    assert_eq!(numbers(source), [23, 36, 49, 10].into());
}
