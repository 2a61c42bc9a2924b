//! Policies as files, over the real binary: read strictly, tested, brought in, handed on.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

fn wardgate(arguments: &[&str]) -> Ended {
    let root = env!("CARGO_MANIFEST_DIR");
    let output = Command::new(env!("CARGO_BIN_EXE_wardgate"))
        .args(arguments)
        .current_dir(root)
        .env("NO_COLOR", "1")
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ended { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// A folder that goes away.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("wardgate-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn with(self, name: &str, text: &str) -> Self {
        let file = self.0.join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
        self
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const POLICY: &str = "id: read\naction: allow\nrules:\n- name: web\n  from: { principals: ['spiffe://shop/web'] }\n  to: { methods: [GET] }\n";

#[test]
fn the_examples_are_valid_and_their_cases_hold() {
    let ended = wardgate(&["policy", "validate", "-f", "examples/policies"]);
    assert_eq!(ended.code, Some(0), "{}{}", ended.out, ended.err);
    assert!(ended.out.contains("4 policies, 1 modes, 0 mistakes"), "{}", ended.out);
    let ended = wardgate(&["policy", "test", "-f", "examples/policies", "--strict"]);
    assert_eq!(ended.code, Some(0), "{}{}", ended.out, ended.err);
    assert!(ended.out.contains(" 0 failed, 0 rules that no case reaches"), "{}", ended.out);
}

#[test]
fn the_examples_match_the_schemas() {
    let schema = |of: &str| -> jsonschema::Validator {
        let text: Value = serde_json::from_str(&wardgate(&["schema", of]).out).unwrap();
        jsonschema::meta::validate(&text).unwrap();
        jsonschema::validator_for(&text).unwrap()
    };
    let (policy, mode, test) = (schema("policy"), schema("identity-mode"), schema("policy-test"));
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/policies");
    let mut seen = 0;
    for name in ["everywhere.yaml", "billing/billing.yaml", "billing/billing.test.yaml"] {
        let text = std::fs::read_to_string(root.join(name)).unwrap();
        let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        for mut document in documents {
            let kind = document.as_object_mut().unwrap().shift_remove("kind");
            let validator = match kind.as_ref().and_then(Value::as_str) {
                Some("identity_mode") => &mode,
                _ if name.contains(".test.") => &test,
                _ => &policy,
            };
            let errors: Vec<_> =
                validator.iter_errors(&document).map(|error| error.to_string()).collect();
            assert!(errors.is_empty(), "{name}: {errors:?}");
            seen += 1;
        }
    }
    assert_eq!(seen, 8);
    for (validator, wrong) in [
        (&policy, serde_json::json!({"action": "allow", "rules": [{"form": {}}]})),
        (&mode, serde_json::json!({"mode": "lax"})),
        (&test, serde_json::json!({"cases": [{"name": "a", "expect": "permit"}]})),
    ] {
        assert!(!validator.is_valid(&wrong), "{wrong}");
    }
}

#[test]
fn mistakes_name_file_line_and_field() {
    let folder = Folder::new("mistakes")
        .with("good.yaml", POLICY)
        .with("below/bad.yml", "id: bad\naction: allow\nrules:\n- from:\n    principal: [x]\n")
        .with("dear.json", "{\"id\": \"dear\", \"action\": \"deny\",\n\"rules\": [{\"when\": {\"cel\": \"a == b\"}}]}")
        .with(".hidden/other.yaml", "nothing: of ours\n")
        .with("notes.txt", "nothing of ours\n");
    let ended = wardgate(&["policy", "validate", "-f", folder.path()]);
    assert_eq!(ended.code, Some(1), "{}{}", ended.out, ended.err);
    assert!(
        ended.out.contains("below/bad.yml:5: rules[0].from: unknown field `principal`"),
        "{}",
        ended.out
    );
    assert!(
        ended.out.contains("dear.json:2: dear: rules[0].when.cel: unknown variable a"),
        "{}",
        ended.out
    );
    assert!(ended.out.contains("1 policies, 0 modes, 2 mistakes"), "{}", ended.out);
    let ended = wardgate(&["policy", "validate", "-f", folder.path(), "-o", "json"]);
    let report: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(report["mistakes"][0]["line"], 5);
    let ended = wardgate(&["policy", "test", "-f", folder.path()]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.err.contains("unknown field `principal`"), "{}", ended.err);
    assert_eq!(wardgate(&["policy", "validate"]).code, Some(2));
}

#[test]
fn a_case_that_fails_shows_why_and_ends_with_1() {
    let folder = Folder::new("cases").with("read.yaml", POLICY).with(
        "read.test.yaml",
        "to: spiffe://shop/billing\nas: spiffe://shop/web\ncases:\n- { name: reads, request: GET /, expect: allow }\n- { name: writes & <more>, request: PUT /, expect: allow }\n",
    );
    let ended = wardgate(&["policy", "test", "-f", folder.path()]);
    assert_eq!(ended.code, Some(1), "{}{}", ended.out, ended.err);
    for part in [
        "read.test.yaml:5 writes & <more>",
        "spiffe://shop/web → spiffe://shop/billing   PUT /",
        "expected allow, found deny (no_rule)",
        "allow read/web: methods wants GET; found PUT",
        "2 cases, 1 failed, 0 rules that no case reaches",
    ] {
        assert!(ended.out.contains(part), "{part}\n{}", ended.out);
    }
    let junit = wardgate(&["policy", "test", "-f", folder.path(), "-o", "junit"]);
    assert_eq!(junit.code, Some(1));
    assert!(junit.out.contains("<testsuites tests=\"2\" failures=\"1\">"), "{}", junit.out);
    assert!(junit.out.contains("name=\"writes &amp; &lt;more&gt; ["), "{}", junit.out);
    let json = wardgate(&["policy", "test", "-f", folder.path(), "-o", "json"]);
    let report: Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(report["trials"][1]["tried"][0]["failed"]["clause"], "methods");
}

#[test]
fn policies_are_brought_in_and_handed_on() {
    let folder = Folder::new("exchange");
    let (out, report) =
        (format!("{}/imported.yaml", folder.path()), format!("{}/report.md", folder.path()));
    let billing = "app=billing=spiffe://cluster.local/ns/shop/sa/billing";
    let mut arguments = vec!["policy", "import", "istio", "-f", "tests/policy_import/istio.yaml"];
    arguments.extend([
        "--map",
        billing,
        "--map",
        "app=legacy=spiffe://cluster.local/ns/shop/sa/legacy",
    ]);
    arguments.extend(["-o", &out, "--report", &report]);
    let ended = wardgate(&arguments);
    assert_eq!(ended.code, Some(0), "{}{}", ended.out, ended.err);
    let strict = wardgate(&[&arguments[..], &["--strict"]].concat());
    assert_eq!(strict.code, Some(1), "some of it means another thing than before");
    let told = std::fs::read_to_string(&report).unwrap();
    assert!(told.contains("## What differs here") && told.contains("CUSTOM asks"), "{told}");
    let ended = wardgate(&["policy", "validate", "-f", &out]);
    assert_eq!(ended.code, Some(0), "{}", ended.out);

    let cedar = format!("{}/cedar", folder.path());
    let ended = wardgate(&["policy", "export", "cedar", "-f", &out, "--out", &cedar]);
    assert_eq!(ended.code, Some(0), "{}{}", ended.out, ended.err);
    let policies = std::fs::read_to_string(format!("{cedar}/policies.cedar")).unwrap();
    assert!(policies.contains("forbid (") && policies.contains("permit ("), "{policies}");
    assert!(ended.err.contains("cannot be said (conditions in CEL)"), "{}", ended.err);

    let nothing =
        wardgate(&["policy", "import", "linkerd", "-f", "tests/policy_import/linkerd.yaml"]);
    assert_eq!(nothing.code, Some(0), "{}", nothing.err);
    assert!(nothing.err.contains("stricter"), "{}", nothing.err);
    let wrong = wardgate(&[
        "policy",
        "import",
        "istio",
        "-f",
        "tests/policy_import/istio.yaml",
        "--map",
        "app",
    ]);
    assert_eq!(wrong.code, Some(1));
    assert!(wrong.err.contains("--map app: expected LABEL=VALUE"), "{}", wrong.err);
}
