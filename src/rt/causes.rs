//! An error as one sentence.

use std::error::Error;

/// The error's sentence with those of all its causes, on one line: for a log, or a field that holds one sentence.
/// ```
/// # use wardgate::rt::causes;
/// let inner = "x".parse::<u8>().unwrap_err();
/// let outer = std::io::Error::other(inner);
/// assert_eq!(causes(&outer), "invalid digit found in string", "said once");
/// ```
pub fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let sentence = error.to_string();
        // Some errors end with what is behind them.
        if !text.ends_with(&sentence) {
            text.push_str(": ");
            text.push_str(&sentence);
        }
        cause = error.source();
    }
    text
}
