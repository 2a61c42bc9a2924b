//! Colours and signs for people; none where nobody looks.

use std::io::IsTerminal as _;

/// How to paint: in colour on a terminal, plain elsewhere and with `NO_COLOR`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Paint {
    colour: bool,
}

impl Paint {
    /// For standard output.
    pub(super) fn stdout() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { colour: wanted && std::io::stdout().is_terminal() }
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Something good.
    pub(super) fn good(self, text: &str) -> String {
        self.with("32", text)
    }

    /// Something bad.
    pub(super) fn bad(self, text: &str) -> String {
        self.with("31", text)
    }

    /// Something to look at.
    pub(super) fn warn(self, text: &str) -> String {
        self.with("33", text)
    }

    /// Something beside the point.
    pub(super) fn faint(self, text: &str) -> String {
        self.with("2", text)
    }

    /// Something important.
    pub(super) fn bold(self, text: &str) -> String {
        self.with("1", text)
    }
}
