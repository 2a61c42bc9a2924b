//! `Templates`: paths that differ only in identifiers, as one template. `/invoices/7` and `/invoices/8` are `/invoices/{id}`.

use std::collections::{BTreeMap, HashMap};

use super::observations::Asked;
use crate::identity::SpiffeId;

/// More different segments than these in one place are names of things, not of resources.
const MANY: usize = 16;

/// What was learned of each workload's paths.
#[derive(Debug, Default)]
pub(super) struct Templates {
    workloads: HashMap<SpiffeId, Node>,
}

#[derive(Debug, Default)]
struct Node {
    /// Segments that stand for themselves.
    literal: BTreeMap<String, Self>,
    /// What comes behind an identifier.
    any: Option<Box<Self>>,
}

impl Templates {
    /// Learns from all paths that were asked for.
    pub(super) fn learn<'a>(all: impl Iterator<Item = &'a Asked>) -> Self {
        let mut templates = Self::default();
        for asked in all {
            let mut node = templates.workloads.entry(asked.dst.clone()).or_default();
            for segment in asked.path.split('/').skip(1) {
                node = match is_identifier(segment) {
                    true => node.any.get_or_insert_default(),
                    false => node.literal.entry(segment.to_owned()).or_default(),
                };
            }
        }
        templates.workloads.values_mut().for_each(Node::merge);
        templates
    }

    /// The template of a path; the path itself where nothing stands for something else.
    pub(super) fn of(&self, asked: &Asked) -> String {
        let Some(mut node) = self.workloads.get(&asked.dst) else { return asked.path.clone() };
        if !asked.path.starts_with('/') {
            return asked.path.clone();
        }
        let mut template = String::new();
        let mut names = 0;
        for segment in asked.path.split('/').skip(1) {
            template.push('/');
            match node.literal.get(segment).filter(|_| !is_identifier(segment)) {
                Some(next) => {
                    template.push_str(segment);
                    node = next;
                }
                None => {
                    names += 1;
                    match names {
                        1 => template.push_str("{id}"),
                        more => template.push_str(&format!("{{id{more}}}")),
                    }
                    let Some(next) = &node.any else { break };
                    node = next;
                }
            }
        }
        template
    }
}

impl Node {
    /// Takes many literal segments in one place together.
    fn merge(&mut self) {
        if self.literal.len() > MANY {
            let all = std::mem::take(&mut self.literal);
            let any = self.any.get_or_insert_default();
            // An empty segment is the end of a path, and no name.
            for (segment, node) in all {
                match segment.is_empty() {
                    true => drop(self.literal.insert(segment, node)),
                    false => any.absorb(node),
                }
            }
        }
        self.literal.values_mut().for_each(Self::merge);
        if let Some(any) = &mut self.any {
            any.merge();
        }
    }

    fn absorb(&mut self, other: Self) {
        for (segment, node) in other.literal {
            self.literal.entry(segment).or_default().absorb(node);
        }
        if let Some(any) = other.any {
            self.any.get_or_insert_default().absorb(*any);
        }
    }
}

/// Does a segment look like a number, a UUID, a hash or a token, or can a template not say it literally?
fn is_identifier(segment: &str) -> bool {
    let digits = segment.bytes().filter(u8::is_ascii_digit).count();
    let is_hex = segment.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    let is_token = segment.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_=.".contains(&b));
    let unsayable = segment.contains(['*', '{', '}', ';', '\\', '?', '#'])
        || ["%2f", "%5c", "%25", "%3b", "%3f", "%23"]
            .iter()
            .any(|code| segment.to_ascii_lowercase().contains(code));
    !segment.is_empty()
        && (digits == segment.len()
            || (is_hex && digits > 0 && segment.len() >= 8)
            || (is_token && digits >= 3 && segment.len() >= 16)
            || unsayable)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(path: &str) -> Asked {
        Asked {
            dst: "spiffe://shop/billing".parse().unwrap(),
            src: None,
            port: 1,
            method: Some("GET".into()),
            host: String::new(),
            path: path.into(),
            route: None,
            source: None,
            remote: None,
            was_allowed: true,
        }
    }

    #[test]
    fn identifiers_become_names_and_words_stay() {
        let paths: Vec<Asked> = [
            "/",
            "/invoices",
            "/invoices/",
            "/invoices/7",
            "/invoices/8/lines/3",
            "/v1/health",
            "/files/550e8400-e29b-41d4-a716-446655440000",
            "/blobs/9f86d081884c7d65",
            "/a%2Fb/c",
        ]
        .into_iter()
        .map(asked)
        .chain((0..40).map(|at| asked(&format!("/users/name{at}x/profile"))))
        .collect();
        let templates = Templates::learn(paths.iter());
        for (path, template) in [
            ("/", "/"),
            ("/invoices", "/invoices"),
            ("/invoices/", "/invoices/"),
            ("/invoices/7", "/invoices/{id}"),
            ("/invoices/8/lines/3", "/invoices/{id}/lines/{id2}"),
            ("/v1/health", "/v1/health"),
            ("/files/550e8400-e29b-41d4-a716-446655440000", "/files/{id}"),
            ("/blobs/9f86d081884c7d65", "/blobs/{id}"),
            ("/users/name3x/profile", "/users/{id}/profile"),
            ("/a%2Fb/c", "/{id}/c"),
        ] {
            assert_eq!(templates.of(&asked(path)), template, "{path}");
        }
    }
}
