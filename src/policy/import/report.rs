//! `Import`: what came of it, and each difference in meaning.

use std::fmt::Write;

use serde::Serialize;

use crate::model::{IdentityMode, IdentityPolicy};
use crate::policy::files::Place;

/// How a difference weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Weight {
    /// Something is allowed that was refused before. Only of what is no policy of ours to make, as a token's verification.
    Looser,
    /// Something is refused that was allowed before.
    Stricter,
    /// The same meaning in other words, or something to know.
    Note,
}

/// One place where the imported policies mean another thing than before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// How it weighs.
    pub weight: Weight,
    /// The object: `AuthorizationPolicy shop/billing`.
    pub object: String,
    /// The field in it.
    pub field: String,
    /// Where the object is written.
    pub at: String,
    /// What differs, and what to do.
    pub sentence: String,
}

/// What came of an import.
#[derive(Clone, Debug, Default)]
pub struct Import {
    /// The policies, each with a remark on where it comes from.
    pub policies: Vec<(String, IdentityPolicy)>,
    /// The identity modes, each with a remark on where it comes from.
    pub modes: Vec<(String, IdentityMode)>,
    /// The differences, object by object.
    pub differences: Vec<Difference>,
    /// What differs everywhere.
    pub(super) general: &'static [&'static str],
}

impl Import {
    pub(super) fn differs(
        &mut self,
        weight: Weight,
        object: &super::objects::Object,
        field: impl Into<String>,
        sentence: impl Into<String>,
    ) {
        let difference = Difference {
            weight,
            object: object.title(),
            field: field.into(),
            at: object.place.to_string(),
            sentence: sentence.into(),
        };
        if !self.differences.contains(&difference) {
            self.differences.push(difference);
        }
    }

    pub(super) fn differs_as_a_whole(&mut self, weight: Weight, sentence: impl Into<String>) {
        let nowhere = Place { file: "(all objects)".into(), line: 0 };
        self.differences.push(Difference {
            weight,
            object: "all objects".into(),
            field: String::new(),
            at: nowhere.to_string(),
            sentence: sentence.into(),
        });
    }

    /// The policies and modes as a policy file.
    pub fn yaml(&self) -> String {
        let mut text = String::new();
        let mut add = |remark: &str, body: Result<String, serde_saphyr::ser_error::Error>, kind| {
            // A policy is plain texts, numbers, lists and maps: that can always be written.
            let body = body.unwrap_or_default();
            let _ = write!(text, "---\n# {remark}\nkind: {kind}\n{}\n", body.trim_end());
        };
        for (remark, policy) in &self.policies {
            add(remark, serde_saphyr::to_string(policy), "identity_policy");
        }
        for (remark, mode) in &self.modes {
            add(remark, serde_saphyr::to_string(mode), "identity_mode");
        }
        text
    }

    /// The report for people at a terminal.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{} policies, {} modes; {} looser, {} stricter, {} notes\n",
            self.policies.len(),
            self.modes.len(),
            self.count(Weight::Looser),
            self.count(Weight::Stricter),
            self.count(Weight::Note)
        );
        for Difference { weight, object, field, at, sentence } in &self.differences {
            let _ =
                writeln!(text, "{:<8} {at}  {object}  {field}\n         {sentence}", weight.word());
        }
        text
    }

    /// The report as Markdown.
    pub fn markdown(&self) -> String {
        let mut text = String::from("# Report of the import\n\n");
        let _ = writeln!(
            text,
            "{} policies, {} identity modes. {} places are looser than before, {} stricter, {} are to know.\n",
            self.policies.len(),
            self.modes.len(),
            self.count(Weight::Looser),
            self.count(Weight::Stricter),
            self.count(Weight::Note)
        );
        text += "## What differs everywhere\n\n";
        for sentence in self.general {
            let _ = writeln!(text, "- {sentence}");
        }
        text +=
            "\n## What differs here\n\n| | object | field | what differs |\n|---|---|---|---|\n";
        for Difference { weight, object, field, at, sentence } in &self.differences {
            let field = if field.is_empty() { String::new() } else { format!("`{field}`") };
            let cell = |text: &str| text.replace('|', "\\|").replace('\n', " ");
            let _ = writeln!(
                text,
                "| {} | {} ({}) | {} | {} |",
                weight.word(),
                cell(object),
                cell(at),
                cell(&field),
                cell(sentence)
            );
        }
        text
    }

    fn count(&self, weight: Weight) -> usize {
        self.differences.iter().filter(|difference| difference.weight == weight).count()
    }
}

impl Weight {
    const fn word(self) -> &'static str {
        match self {
            Self::Looser => "looser",
            Self::Stricter => "stricter",
            Self::Note => "note",
        }
    }
}
