//! `Declared`: what policy files say, and where.

use std::collections::HashMap;

use super::document::{Flaw, Node, Place, documents};
use crate::identity::SpiffePattern;
use crate::model::{Id, IdentityMode, IdentityPolicy, Invalid, Kind, Revision};
use crate::policy::cases::{Case, cases};
use crate::policy::check;

/// Something that a file declares, and where.
#[derive(Clone, Debug)]
pub struct Placed<T> {
    /// Where it begins.
    pub place: Place,
    /// Its id.
    pub id: Id,
    /// What it says.
    pub body: T,
}

/// What policy files say.
///
/// A file holds YAML documents (or JSON). A document is one policy, with its `id` among its fields; or a mode, with
/// `kind: identity_mode`; or cases, with `kind: policy_test` or in a file `*.test.yaml`; or lists of them, as in a resources file:
/// ```
/// # use wardgate::policy::Declared;
/// let text = "\
/// id: billing-read
/// action: allow
/// rules: [{ from: { principals: ['spiffe://shop/web'] }, to: { methods: [GET] } }]
/// ---
/// kind: identity_mode
/// id: legacy
/// workloads: ['spiffe://shop/legacy']
/// mode: permissive
/// ---
/// identity_policies:
///   - { id: no-admin, action: deny, rules: [{ to: { paths: ['/admin/**'] } }] }
/// ";
/// let mut declared = Declared::default();
/// assert!(declared.add("billing.yaml", text).is_empty());
/// assert_eq!((declared.policies.len(), declared.modes.len()), (2, 1));
///
/// let flaws = declared.add("more.yaml", "id: more\naction: allow\nrules:\n  - form: {}\n");
/// assert!(flaws[0].to_string().starts_with("more.yaml:4: rules[0]: unknown field `form`"));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Declared {
    /// The policies, in the order of the files.
    pub policies: Vec<Placed<IdentityPolicy>>,
    /// The identity modes.
    pub modes: Vec<Placed<IdentityMode>>,
    /// The cases that are kept beside them.
    pub cases: Vec<Case>,
    seen: HashMap<(&'static str, Id), Place>,
}

impl Declared {
    /// Adds what a file says. `file` only names it in mistakes. What has a mistake is left out; the mistakes are returned.
    pub fn add(&mut self, file: &str, text: &str) -> Vec<Flaw> {
        let documents = match documents(file, text) {
            Ok(documents) => documents,
            Err(flaw) => return vec![flaw],
        };
        let mut flaws = Vec::new();
        for document in documents.iter().filter(|document| !document.is_null()) {
            self.add_document(file, document, &mut flaws);
        }
        flaws
    }

    /// The policies as [`Policy::compile`](crate::policy::Policy::compile) takes them. They have no revision: it is 0.
    pub fn compilable(&self) -> impl Iterator<Item = (&Id, Revision, &IdentityPolicy)> {
        self.policies.iter().map(|placed| (&placed.id, 0, &placed.body))
    }

    fn add_document(&mut self, file: &str, document: &Node, flaws: &mut Vec<Flaw>) {
        if !document.is_map() {
            let sentence = "expected a policy: a map with id, action and rules";
            return flaws.push(Flaw::new(file, document.line(), sentence));
        }
        let added = match document.get("kind").map(|kind| (kind.text(), kind.line())) {
            None if is_resources(document) => return self.add_resources(file, document, flaws),
            Some((Some("policy_test"), _)) => self.add_cases(file, document),
            None if is_test(file) => self.add_cases(file, document),
            None | Some((Some("identity_policy"), _)) => self.add_policy(file, document),
            Some((Some("identity_mode"), _)) => self.add_mode(file, document),
            Some((_, line)) => {
                let sentence = "kind: expected identity_policy, identity_mode or policy_test";
                Err(Flaw::new(file, line, sentence))
            }
        };
        flaws.extend(added.err());
    }

    /// The shape of a resources file. Resources of other kinds are other programs' business.
    fn add_resources(&mut self, file: &str, document: &Node, flaws: &mut Vec<Flaw>) {
        for (name, line, list) in document.members() {
            if !["identity_policies", "identity_modes"].contains(&name) {
                if Kind::named(name).is_none() {
                    let sentence = format!("unknown field `{name}`: no kind of resource");
                    flaws.push(Flaw::new(file, line, sentence));
                }
                continue;
            }
            let items = match list.items() {
                Some(items) => items,
                None if list.is_null() => &[],
                None => {
                    flaws.push(Flaw::new(file, line, format!("{name}: expected a list")));
                    continue;
                }
            };
            for item in items {
                let added = match name {
                    "identity_modes" => self.add_mode(file, item),
                    _ => self.add_policy(file, item),
                };
                flaws.extend(added.err());
            }
        }
    }

    fn add_policy(&mut self, file: &str, document: &Node) -> Result<(), Flaw> {
        let policy: IdentityPolicy =
            document.without(&["kind"]).read().map_err(|misfit| misfit.in_file(file))?;
        let placed = self.place("policy", file, document, policy.id.clone(), policy)?;
        check(&placed.body).map_err(|Invalid(sentence)| {
            let line = document.line_of(&sentence);
            Flaw::new(file, line, format!("{}: {sentence}", placed.id))
        })?;
        self.policies.push(placed);
        Ok(())
    }

    fn add_mode(&mut self, file: &str, document: &Node) -> Result<(), Flaw> {
        let mode: IdentityMode =
            document.without(&["kind"]).read().map_err(|misfit| misfit.in_file(file))?;
        let placed = self.place("identity mode", file, document, mode.id.clone(), mode)?;
        for (at, text) in placed.body.workloads.iter().enumerate() {
            text.parse::<SpiffePattern>().map_err(|error| {
                let field = format!("workloads[{at}]");
                let line = document.line_of(&field);
                let text = text.escape_debug();
                Flaw::new(file, line, format!("{}: {field}: \"{text}\" {error}", placed.id))
            })?;
        }
        if placed.body.ports.contains_key(&0) {
            let line = document.line_of("ports");
            let sentence = format!("{}: ports: a port is 1 to 65535", placed.id);
            return Err(Flaw::new(file, line, sentence));
        }
        self.modes.push(placed);
        Ok(())
    }

    fn add_cases(&mut self, file: &str, document: &Node) -> Result<(), Flaw> {
        self.cases.append(&mut cases(file, document)?);
        Ok(())
    }

    fn place<T>(
        &mut self,
        what: &'static str,
        file: &str,
        document: &Node,
        id: Option<Id>,
        body: T,
    ) -> Result<Placed<T>, Flaw> {
        let line = document.line();
        let id = id.ok_or_else(|| Flaw::new(file, line, format!("id: a {what} needs one")))?;
        let place = Place { file: file.to_owned(), line };
        if let Some(before) = self.seen.get(&(what, id.clone())) {
            let sentence = format!("id: {before} declares the {what} {id} already");
            return Err(Flaw::new(file, document.line_of("id"), sentence));
        }
        self.seen.insert((what, id.clone()), place.clone());
        Ok(Placed { place, id, body })
    }
}

/// Does the file hold cases where nothing else is said?
fn is_test(file: &str) -> bool {
    let name = file.rsplit('/').next().unwrap_or(file);
    [".test.yaml", ".test.yml", ".test.json"].iter().any(|end| name.ends_with(end))
}

/// Are the document's fields kinds of resources?
fn is_resources(document: &Node) -> bool {
    let of_policy = ["id", "action", "rules", "selector"];
    document.members().next().is_some()
        && !document.members().any(|(name, ..)| of_policy.contains(&name))
        && document
            .members()
            .any(|(name, ..)| name == "identity_modes" || Kind::named(name).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flaws(text: &str) -> Vec<String> {
        Declared::default().add("a.yaml", text).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_file_may_hold_several_documents() {
        let mut declared = Declared::default();
        let text = "id: one\naction: allow\nrules: [{}]\n---\n---\n# nothing\n---\nkind: identity_policy\nid: two\naction: deny\nrules: [{}]\n";
        assert_eq!(declared.add("a.yaml", text), []);
        let places: Vec<_> = declared
            .policies
            .iter()
            .map(|policy| (policy.id.as_str(), policy.place.line))
            .collect();
        assert_eq!(places, [("one", 1), ("two", 8)]);
    }

    #[test]
    fn json_is_read_as_well() {
        let mut declared = Declared::default();
        let text = "{\"id\": \"one\",\n\t\"action\": \"allow\",\n\t\"mode\": {\"canary\": 0},\n\"rules\": [{\"to\": {\"paths\": [\"\\/a\"]}}]}";
        let said = Declared::default().add("a.json", text);
        assert!(said.is_empty() || said[0].place.line == 3, "{said:?}");
        let text = text.replace("\t\"mode\": {\"canary\": 0},\n", "");
        assert_eq!(declared.add("b.json", &text), []);
        assert_eq!(declared.policies[0].body.rules[0].to.as_ref().unwrap().paths, ["/a"]);
    }

    #[test]
    fn modes_name_ports() {
        let mut declared = Declared::default();
        let text = "kind: identity_mode\nid: m\nmode: strict\nports:\n  8080: permissive\n";
        assert_eq!(declared.add("a.yaml", text), []);
        assert_eq!(declared.modes[0].body.ports.keys().copied().collect::<Vec<_>>(), [8080]);
    }

    #[test]
    fn a_resources_file_gives_its_policies() {
        let mut declared = Declared::default();
        let text = "routes: [{id: 1, uri: /}]\nidentity_policies:\n- id: p\n  action: allow\n  rules: [{}]\n#END\n";
        assert_eq!(declared.add("a.yaml", text), []);
        assert_eq!(declared.policies[0].place.line, 3);
    }

    #[test]
    fn mistakes_name_line_and_field() {
        let cases = [
            ("id: a\naction: allow\n", "a.yaml:1: missing field `rules`"),
            ("id: a\naction: permit\nrules: [{}]", "a.yaml:2: action: unknown variant `permit`"),
            (
                "id: a\naction: allow\nrules:\n- from:\n    principal: [x]\n",
                "a.yaml:5: rules[0].from: unknown field `principal`",
            ),
            (
                "id: a\naction: allow\nrules:\n- {}\n- to:\n    ports:\n    - 1\n    - http\n",
                "a.yaml:8: rules[1].to.ports[1]: invalid type: string \"http\"",
            ),
            (
                "id: a\naction: allow\nrules:\n- from:\n    principals:\n    - spiffe://td/ok\n    - web\n",
                "a.yaml:7: a: rules[0].from.principals[1]: \"web\"",
            ),
            ("action: allow\nrules: [{}]", "a.yaml:1: id: a policy needs one"),
            ("id: a\nid: b\naction: allow\nrules: [{}]", "a.yaml:2: "),
            (
                "id: a\naction: allow\nrules: [{}]\n---\nid: a\naction: deny\nrules: [{}]",
                "a.yaml:5: id: a.yaml:1 declares the policy a already",
            ),
            ("- a\n", "a.yaml:1: expected a policy"),
            ("kind: policies\nid: a", "a.yaml:1: kind: expected"),
            ("identity_policies: []\npolicies: []", "a.yaml:2: unknown field `policies`"),
            ("kind: identity_mode\nid: a\nmode: lax", "a.yaml:3: mode: unknown variant `lax`"),
            (
                "kind: identity_mode\nid: a\nmode: strict\nworkloads: [web]",
                "a.yaml:4: a: workloads[0]: \"web\"",
            ),
            ("id: a\n\taction: [", "a.yaml:"),
        ];
        for (text, expected) in cases {
            let said = flaws(text);
            assert!(said.iter().any(|flaw| flaw.starts_with(expected)), "{text}\n{said:?}");
            assert_eq!(said.len(), 1, "{text}\n{said:?}");
        }
    }

    #[test]
    fn words_that_yaml_1_1_takes_for_booleans_are_texts() {
        let text = "id: a\naction: allow\nrules: [{name: no, to: {hosts: [on]}}]\n";
        assert_eq!(flaws(text), Vec::<String>::new());
    }

    #[test]
    fn hostile_texts_end_quickly() {
        let deep = format!("id: a\nrules: {}{}", "[".repeat(5000), "]".repeat(5000));
        assert_eq!(flaws(&deep).len(), 1);
        let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for level in 1..12 {
            let before = format!("*a{}", level - 1);
            bomb += &format!("a{level}: &a{level} [{}]\n", vec![before; 10].join(","));
        }
        assert_eq!(flaws(&bomb).len(), 1);
    }
}
