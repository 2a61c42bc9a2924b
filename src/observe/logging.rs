//! Logs for people, on standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use super::error::Error;

/// How a line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For eyes.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl std::str::FromStr for LogFormat {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("a log format is text or json"),
        }
    }
}

/// What sets the filter.
const VARIABLE: &str = "WARDGATE_LOG";
const DEFAULT: &str = "warn,wardgate=info";

/// Starts logging for the process. `WARDGATE_LOG` overrides `filter`, which overrides `warn,wardgate=info`.
///
/// # Errors
/// The filter cannot be read, or logging was started before.
pub fn start(format: LogFormat, filter: Option<&str>) -> Result<(), Error> {
    let set = std::env::var(VARIABLE).ok().filter(|text| !text.is_empty());
    let text = set.as_deref().or(filter).unwrap_or(DEFAULT);
    let filter = parse(text)?;
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(colours).with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).try_init(),
    }
    .map_err(|_| Error::Started)
}

fn parse(text: &str) -> Result<EnvFilter, Error> {
    EnvFilter::builder()
        .parse(text)
        .map_err(|error| Error::Filter { variable: VARIABLE, reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_cannot_be_read_is_refused_by_name() {
        assert!(parse(DEFAULT).is_ok());
        let sentence = parse("wardgate=loud").unwrap_err().to_string();
        assert!(sentence.starts_with("WARDGATE_LOG is no log filter"), "{sentence}");
        assert!("xml".parse::<LogFormat>().is_err());
    }
}
