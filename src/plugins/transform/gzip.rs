//! `gzip`: answers are compressed on their way.

use std::io::Write as _;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use schemars::JsonSchema;
use serde::Deserialize;

use super::compression::{Selection, Types};
use crate::pipeline::{BodyFilter, Build, Encode, Exchange, Fault, Hooks, Invalid, Plugin};
use crate::plugins::bounds;

/// Compresses answers for callers that take gzip. What is encoded already, or must not be changed, passes as it is.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// The media types of answers that are compressed; `*` for all.
    #[serde(default)]
    types: Types,
    /// Bytes of the smallest body that is compressed, where its length is known.
    #[serde(default = "default_length")]
    #[schemars(range(min = 1))]
    min_length: u64,
    /// 1 is the fastest, 9 the smallest.
    #[serde(default = "default_level")]
    #[schemars(range(min = 1, max = 9))]
    comp_level: u32,
    /// The least version of HTTP that a caller must speak: 1.0 or 1.1.
    #[serde(default = "default_version")]
    http_version: f64,
    /// How much is held back before something goes out.
    #[serde(default)]
    buffers: Buffers,
    /// Answers say that they depend on `Accept-Encoding`.
    #[serde(default)]
    vary: bool,
}

/// How much is held back before something goes out: their product.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Buffers {
    /// How many.
    #[schemars(range(min = 1))]
    number: usize,
    /// Bytes of each.
    #[schemars(range(min = 1))]
    size: usize,
}

impl Default for Buffers {
    fn default() -> Self {
        Self { number: 32, size: 4096 }
    }
}

const fn default_length() -> u64 {
    20
}

const fn default_level() -> u32 {
    1
}

const fn default_version() -> f64 {
    1.1
}

/// Bytes that may be held back.
const MOST_HELD: usize = 16 << 20;

pub(super) struct Gzip {
    selection: Selection,
    level: Compression,
    most: usize,
}

impl Plugin for Gzip {
    const NAME: &'static str = "gzip";
    const PRIORITY: i32 = 995;
    const EXAMPLE: &'static str = r#"{"types": ["text/html", "application/json"], "comp_level": 3, "min_length": 256, "vary": true}"#;
    type Config = Config;

    fn compile(config: Config, _: &Build<'_>) -> Result<Hooks, Invalid> {
        bounds::number("comp_level", config.comp_level, 1..=9)?;
        let Buffers { number, size } = config.buffers;
        bounds::number("buffers.number", number, 1..=usize::MAX)?;
        bounds::number("buffers.size", size, 1..=usize::MAX)?;
        let most = number.checked_mul(size).filter(|most| *most <= MOST_HELD);
        let most = most.ok_or_else(|| {
            Invalid::new(format!("buffers: together at most {MOST_HELD} bytes are expected"))
        })?;
        let plugin = Self {
            selection: Selection::new(
                config.types,
                config.min_length,
                config.http_version,
                config.vary,
            )?,
            level: Compression::new(config.comp_level),
            most,
        };
        Ok(Hooks::of(plugin).encode().done())
    }
}

impl Encode for Gzip {
    fn encode(&self, exchange: &mut Exchange) -> Option<Box<dyn BodyFilter>> {
        self.selection.takes(exchange, "gzip").then(|| -> Box<dyn BodyFilter> {
            let encoder = GzEncoder::new(Vec::new(), self.level);
            Box::new(Compress { encoder: Some(encoder), taken: 0, most: self.most })
        })
    }
}

struct Compress {
    encoder: Option<GzEncoder<Vec<u8>>>,
    /// Bytes taken since something was last let out.
    taken: usize,
    most: usize,
}

fn failed(error: &std::io::Error) -> Fault {
    Fault::gateway("the response cannot be compressed", error.to_string())
}

impl BodyFilter for Compress {
    fn chunk(&mut self, data: Bytes) -> Result<Bytes, Fault> {
        let Some(encoder) = &mut self.encoder else { return Ok(data) };
        encoder.write_all(&data).map_err(|error| failed(&error))?;
        self.taken += data.len();
        if self.taken >= self.most {
            encoder.flush().map_err(|error| failed(&error))?;
        }
        if encoder.get_ref().is_empty() {
            return Ok(Bytes::new());
        }
        self.taken = 0;
        Ok(std::mem::take(encoder.get_mut()).into())
    }

    fn finish(&mut self) -> Result<Bytes, Fault> {
        let Some(encoder) = self.encoder.take() else { return Ok(Bytes::new()) };
        encoder.finish().map(Bytes::from).map_err(|error| failed(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::BodyFilters;
    use crate::pipeline::tests::exchange;
    use crate::plugins::tests::{compile, refused};
    use serde_json::json;
    use std::io::Read as _;

    #[test]
    fn a_body_comes_out_smaller_and_whole() {
        let chain =
            compile::<Gzip>(json!({"comp_level": 9, "buffers": {"number": 1, "size": 1000}}));
        let mut exchange = exchange("GET", "/", "h");
        exchange.request.append("Accept-Encoding", b"gzip");
        exchange.response.set_status(200);
        exchange.response.append("Content-Type", b"text/html");
        let mut filters = BodyFilters::default();
        chain.encode(&mut exchange, &mut filters);
        assert_eq!(exchange.response.text("content-encoding"), Some("gzip"));
        let body = "a body that comes again and again ".repeat(3000);
        let mut out = Vec::new();
        for piece in body.as_bytes().chunks(700) {
            out.extend_from_slice(&filters.chunk(Bytes::copy_from_slice(piece)).unwrap());
        }
        assert!(!out.is_empty(), "something goes out before the end");
        out.extend_from_slice(&filters.finish().unwrap());
        assert!(out.len() < body.len() / 10, "{}", out.len());
        let mut read = String::new();
        flate2::read::GzDecoder::new(&out[..]).read_to_string(&mut read).unwrap();
        assert_eq!(read, body);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (config, says) in [
            (json!({"types": []}), "types: at least one"),
            (json!({"types": ["html"]}), "types[0]: a media type"),
            (json!({"types": ["text/ html"]}), "types[0]: a media type"),
            (json!({"types": "text/html"}), "did not match"),
            (json!({"min_length": 0}), "min_length: a number from 1"),
            (json!({"comp_level": 0}), "comp_level: a number from 1 to 9"),
            (json!({"comp_level": 10}), "comp_level: a number from 1 to 9"),
            (json!({"http_version": 2}), "http_version: 1.0 or 1.1"),
            (json!({"http_version": "1.1"}), "invalid type"),
            (json!({"buffers": {"number": 0}}), "buffers.number: a number from 1"),
            (json!({"buffers": {"size": 0}}), "buffers.size: a number from 1"),
            (json!({"buffers": {"size": 99999999}}), "buffers: together at most"),
            (json!({"vary": 1}), "invalid type"),
            (json!({"level": 1}), "unknown field"),
        ] {
            let error = refused::<Gzip>(config.clone());
            assert!(error.contains(says), "{config}: {error}");
        }
    }
}
