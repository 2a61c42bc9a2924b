//! May this definition of Protocol Buffers stand? It is parsed, and everything that it names must be there.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use protox::Compiler;
use protox::file::{
    ChainFileResolver, DescriptorSetFileResolver, File, FileResolver, GoogleFileResolver,
};

/// The name that the text goes by in sentences.
const NAME: &str = "content.proto";
/// How deep messages and options may nest: the parser descends with them.
const DEEPEST: usize = 64;

/// Judges the text of a `.proto` file, or a `FileDescriptorSet` in base64. Imports are those of Google's well-known types, and in
/// a set also its own files.
pub(super) fn check(content: &str) -> Result<(), String> {
    match descriptors(content) {
        Some(bytes) => check_set(&bytes),
        None => check_text(content),
    }
}

/// A set in base64 is nothing but base64; a text has at least a space or a semicolon.
fn descriptors(content: &str) -> Option<Vec<u8>> {
    let bare: String = content.split_ascii_whitespace().collect();
    STANDARD.decode(bare).ok()
}

fn check_text(text: &str) -> Result<(), String> {
    if depth(text) > DEEPEST {
        return Err(format!("it nests deeper than {DEEPEST}"));
    }
    struct Text(File);
    impl FileResolver for Text {
        fn open_file(&self, name: &str) -> Result<File, protox::Error> {
            match name == NAME {
                true => Ok(self.0.clone()),
                false => Err(protox::Error::file_not_found(name)),
            }
        }
    }
    let file = File::from_source(NAME, text).map_err(|error| error.to_string())?;
    let mut files = ChainFileResolver::new();
    files.add(Text(file));
    files.add(GoogleFileResolver::new());
    let mut compiler = Compiler::with_file_resolver(files);
    compiler.open_file(NAME).map(drop).map_err(|error| error.to_string())
}

fn check_set(bytes: &[u8]) -> Result<(), String> {
    use prost::Message as _;
    let wrong = |why: &dyn std::fmt::Display| {
        format!("it is base64, and no FileDescriptorSet in it: {why}")
    };
    let set = prost_types::FileDescriptorSet::decode(bytes).map_err(|error| wrong(&error))?;
    let names: Vec<String> = set.file.iter().map(|file| file.name().to_owned()).collect();
    if names.is_empty() {
        return Err(wrong(&"it has no file"));
    }
    let mut files = ChainFileResolver::new();
    files.add(DescriptorSetFileResolver::new(set));
    files.add(GoogleFileResolver::new());
    let mut compiler = Compiler::with_file_resolver(files);
    compiler.open_files(names).map(drop).map_err(|error| error.to_string())
}

/// How deep brackets nest, outside of comments and texts.
fn depth(text: &str) -> usize {
    let (mut now, mut deepest) = (0_usize, 0);
    let mut rest = text.chars().peekable();
    while let Some(one) = rest.next() {
        match one {
            '/' if rest.peek() == Some(&'/') => {
                rest.by_ref().find(|next| *next == '\n');
            }
            '/' if rest.peek() == Some(&'*') => {
                let mut before = ' ';
                rest.next();
                rest.by_ref()
                    .find(|next| std::mem::replace(&mut before, *next) == '*' && *next == '/');
            }
            '"' | '\'' => {
                while let Some(next) = rest.next() {
                    match next {
                        '\\' => drop(rest.next()),
                        end if end == one => break,
                        _ => {}
                    }
                }
            }
            '{' | '[' | '(' | '<' => {
                now += 1;
                deepest = deepest.max(now);
            }
            '}' | ']' | ')' | '>' => now = now.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    const HELLO: &str = r#"syntax = "proto3";
        package proto; // a { that counts for nothing
        import "google/protobuf/empty.proto";
        message HelloRequest { string name = 1; map<string, int32> by = 2; }
        service Hello { rpc SayHi (HelloRequest) returns (google.protobuf.Empty) {} }"#;

    #[test]
    fn a_definition_is_taken_when_everything_that_it_names_is_there() {
        assert_eq!(check(HELLO), Ok(()));
        for (text, why) in [
            ("syntax = \"proto3\"; message A {", "expected"),
            ("syntax = \"proto3\"; message A { B b = 1; }", "B"),
            ("syntax = \"proto3\"; import \"other.proto\";", "other.proto"),
            ("hello world", "expected"),
        ] {
            let error = check(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn nesting_is_bounded_before_anybody_descends() {
        let deep =
            format!("syntax = \"proto3\"; {}{}", "message A {".repeat(2000), "}".repeat(2000));
        assert_eq!(check(&deep), Err("it nests deeper than 64".into()));
        let commented = format!("{HELLO}\n/* {} */ // {}", "{".repeat(500), "(".repeat(500));
        assert_eq!(check(&commented), Ok(()));
    }

    #[test]
    fn a_descriptor_set_is_taken_in_base64() {
        let mut files = ChainFileResolver::new();
        struct One;
        impl FileResolver for One {
            fn open_file(&self, name: &str) -> Result<File, protox::Error> {
                match name {
                    "one.proto" => Ok(File::from_source(name, HELLO)?),
                    _ => Err(protox::Error::file_not_found(name)),
                }
            }
        }
        files.add(One);
        files.add(GoogleFileResolver::new());
        let mut compiler = Compiler::with_file_resolver(files);
        compiler.open_file("one.proto").unwrap();
        let set = compiler.file_descriptor_set();
        assert_eq!(check(&STANDARD.encode(set.encode_to_vec())), Ok(()));
        let error = check(&STANDARD.encode("nothing of the sort")).unwrap_err();
        assert!(error.starts_with("it is base64, and no FileDescriptorSet"), "{error}");
    }
}
