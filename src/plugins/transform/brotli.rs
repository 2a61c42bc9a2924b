//! `brotli`: answers are compressed on their way.

use std::io::Write as _;

use ::brotli::CompressorWriter;
use ::brotli::enc::BrotliEncoderParams;
use ::brotli::enc::backward_references::BrotliEncoderMode;
use bytes::Bytes;
use schemars::JsonSchema;
use serde::Deserialize;

use super::compression::{Selection, Types};
use crate::pipeline::{BodyFilter, Build, Encode, Exchange, Fault, Hooks, Invalid, Plugin};
use crate::plugins::bounds;

/// Compresses answers for callers that take brotli; beside `gzip`, callers that take both get brotli. What is encoded already, or
/// must not be changed, passes as it is.
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
    /// 0 for anything, 1 for text, 2 for fonts.
    #[serde(default)]
    #[schemars(range(max = 2))]
    mode: u8,
    /// 0 is the fastest, 11 the smallest.
    #[serde(default = "default_level")]
    #[schemars(range(max = 11))]
    comp_level: i32,
    /// The window that is searched, as a power of two; 0 chooses.
    #[serde(default = "default_window")]
    #[schemars(extend("enum" = [0, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24]))]
    lgwin: i32,
    /// The block that is read before something goes out, as a power of two; 0 chooses.
    #[serde(default)]
    #[schemars(extend("enum" = [0, 16, 17, 18, 19, 20, 21, 22, 23, 24]))]
    lgblock: i32,
    /// The least version of HTTP that a caller must speak: 1.0 or 1.1.
    #[serde(default = "default_version")]
    http_version: f64,
    /// Answers say that they depend on `Accept-Encoding`.
    #[serde(default)]
    vary: bool,
}

const fn default_length() -> u64 {
    20
}

const fn default_level() -> i32 {
    6
}

const fn default_window() -> i32 {
    19
}

const fn default_version() -> f64 {
    1.1
}

/// Bytes that are gathered before they go into the window.
const GATHERED: usize = 4096;

pub(super) struct Brotli {
    selection: Selection,
    parameters: BrotliEncoderParams,
}

impl Plugin for Brotli {
    const NAME: &'static str = "brotli";
    const PRIORITY: i32 = 996;
    const EXAMPLE: &'static str =
        r#"{"types": ["text/html", "application/json"], "comp_level": 5, "mode": 1, "vary": true}"#;
    type Config = Config;

    fn compile(config: Config, _: &Build<'_>) -> Result<Hooks, Invalid> {
        bounds::number("comp_level", config.comp_level, 0..=11)?;
        if config.lgwin != 0 {
            bounds::number("lgwin", config.lgwin, 10..=24)?;
        }
        if config.lgblock != 0 {
            bounds::number("lgblock", config.lgblock, 16..=24)?;
        }
        let mode = match config.mode {
            0 => BrotliEncoderMode::BROTLI_MODE_GENERIC,
            1 => BrotliEncoderMode::BROTLI_MODE_TEXT,
            2 => BrotliEncoderMode::BROTLI_MODE_FONT,
            other => {
                return Err(Invalid::new(format!("mode: 0, 1 or 2 is expected, not {other}")));
            }
        };
        let parameters = BrotliEncoderParams {
            quality: config.comp_level,
            lgwin: if config.lgwin == 0 { 22 } else { config.lgwin },
            lgblock: config.lgblock,
            mode,
            ..BrotliEncoderParams::default()
        };
        let selection =
            Selection::new(config.types, config.min_length, config.http_version, config.vary)?;
        let plugin = Self { selection, parameters };
        Ok(Hooks::of(plugin).encode().done())
    }
}

impl Encode for Brotli {
    fn encode(&self, exchange: &mut Exchange) -> Option<Box<dyn BodyFilter>> {
        self.selection.takes(exchange, "br").then(|| -> Box<dyn BodyFilter> {
            let encoder = CompressorWriter::with_params(Vec::new(), GATHERED, &self.parameters);
            Box::new(Compress(Some(encoder)))
        })
    }
}

struct Compress(Option<CompressorWriter<Vec<u8>>>);

impl BodyFilter for Compress {
    fn chunk(&mut self, data: Bytes) -> Result<Bytes, Fault> {
        let Some(encoder) = &mut self.0 else { return Ok(data) };
        let written = encoder.write_all(&data);
        written.map_err(|error| {
            Fault::gateway("the response cannot be compressed", error.to_string())
        })?;
        Ok(std::mem::take(encoder.get_mut()).into())
    }

    fn finish(&mut self) -> Result<Bytes, Fault> {
        let rest = self.0.take().map(CompressorWriter::into_inner);
        Ok(rest.unwrap_or_default().into())
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
    fn a_body_comes_out_smaller_and_whole_whatever_the_settings() {
        for config in [
            json!({}),
            json!({"mode": 1, "comp_level": 0, "lgwin": 10, "lgblock": 16}),
            json!({"mode": 2, "comp_level": 9, "lgwin": 0, "lgblock": 24}),
        ] {
            let chain = compile::<Brotli>(config.clone());
            let mut exchange = exchange("GET", "/", "h");
            exchange.request.append("Accept-Encoding", b"gzip, br");
            exchange.response.set_status(200);
            exchange.response.append("Content-Type", b"text/html");
            let mut filters = BodyFilters::default();
            chain.encode(&mut exchange, &mut filters);
            assert_eq!(exchange.response.text("content-encoding"), Some("br"));
            let body = "a body that comes again and again ".repeat(3000);
            let mut out = Vec::new();
            for piece in body.as_bytes().chunks(700) {
                out.extend_from_slice(&filters.chunk(Bytes::copy_from_slice(piece)).unwrap());
            }
            out.extend_from_slice(&filters.finish().unwrap());
            assert!(out.len() < body.len() / 8, "{config}: {}", out.len());
            let mut read = String::new();
            ::brotli::Decompressor::new(&out[..], 4096).read_to_string(&mut read).unwrap();
            assert_eq!(read, body, "{config}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (config, says) in [
            (json!({"types": []}), "types: at least one"),
            (json!({"types": ["html"]}), "types[0]: a media type"),
            (json!({"min_length": 0}), "min_length: a number from 1"),
            (json!({"mode": 3}), "mode: 0, 1 or 2"),
            (json!({"mode": -1}), "invalid value"),
            (json!({"comp_level": 12}), "comp_level: a number from 0 to 11"),
            (json!({"comp_level": -1}), "comp_level: a number from 0 to 11"),
            (json!({"lgwin": 9}), "lgwin: a number from 10 to 24"),
            (json!({"lgwin": 25}), "lgwin: a number from 10 to 24"),
            (json!({"lgblock": 15}), "lgblock: a number from 16 to 24"),
            (json!({"http_version": 2}), "http_version: 1.0 or 1.1"),
            (json!({"vary": 1}), "invalid type"),
            (json!({"level": 1}), "unknown field"),
        ] {
            let error = refused::<Brotli>(config.clone());
            assert!(error.contains(says), "{config}: {error}");
        }
    }
}
