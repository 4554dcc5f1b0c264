//! YAML text, many documents, as JSON values.
//!
//! ```text
//!   text ─▶ caps ─▶ events (saphyr-parser, iterative) ─▶ a stack of open lists and maps ─▶ values
//! ```
//!
//! Always true: the length, the number of documents and of values, and the depth are bounded before anything grows by
//! them; a map has each key once; an alias is refused, so nothing is larger in memory than it was written; one flaw
//! anywhere refuses the whole text. Nothing here recurses.

use saphyr_parser::{Event, Parser, ScalarStyle, Tag};
use serde_json::{Map, Value};

use super::{ManifestError, scalar};

/// Longest text, in bytes.
pub const TEXT_BYTES_MAX: usize = 1 << 20;
/// Most documents in a text; empty ones count.
pub const DOCUMENTS_MAX: usize = 1000;
/// Most values in a text, lists and maps among them: an empty map is two bytes of text and hundreds of memory.
pub const VALUES_MAX: usize = 1 << 16;
/// Most lists and maps inside one another.
pub const DEPTH_MAX: usize = 64;
/// How much of a word a message repeats, in characters.
const SHOWN_MAX: usize = 64;

/// Reads every document of a text. Empty ones are left out.
///
/// # Errors
/// The first flaw, with its document (counted from 1, empty ones too) and its line.
pub fn documents(text: &str) -> Result<Vec<Value>, ManifestError> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(ManifestError::Long { bytes: text.len() });
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut builder = Builder::default();
    builder.refuse_controls(text)?;
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|error| builder.flaw(error.marker().line(), error.info()))?;
        builder.take(event, span.start.line())?;
    }
    Ok(builder.done)
}

#[derive(Default)]
struct Builder {
    done: Vec<Value>,
    document: usize,
    values: usize,
    open: Vec<Open>,
}

/// A list or map whose end has not been seen.
enum Open {
    List(Vec<Value>),
    Map { map: Map<String, Value>, key: Option<String> },
}

impl Builder {
    fn flaw(&self, line: usize, rule: impl Into<String>) -> ManifestError {
        ManifestError::Yaml { document: self.document.max(1), line, rule: rule.into() }
    }

    /// The parser takes a NUL for the end of the text: what follows would be lost without a word.
    fn refuse_controls(&self, text: &str) -> Result<(), ManifestError> {
        let bad = |c: &(usize, char)| c.1.is_ascii_control() && !matches!(c.1, '\t' | '\n' | '\r');
        let Some((at, control)) = text.char_indices().find(bad) else { return Ok(()) };
        let line = text.bytes().take(at).filter(|b| *b == b'\n').count() + 1;
        Err(self.flaw(line, format!("the control character {control:?} is not text")))
    }

    fn take(&mut self, event: Event<'_>, line: usize) -> Result<(), ManifestError> {
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
            Event::DocumentStart(_) => {
                self.document += 1;
                if self.document > DOCUMENTS_MAX { Err(ManifestError::ManyDocuments) } else { Ok(()) }
            }
            Event::Alias(_) => {
                Err(self.flaw(line, "an alias (*name) is not read: write out what it stands for"))
            }
            Event::Scalar(text, style, _, tag) => self.scalar(&text, style, tag.as_deref(), line),
            Event::SequenceStart(_, tag) => self.open(Open::List(Vec::new()), "seq", tag.as_deref(), line),
            Event::MappingStart(_, tag) => {
                self.open(Open::Map { map: Map::new(), key: None }, "map", tag.as_deref(), line)
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open::List(list)) => self.put(Value::Array(list), line),
                Some(Open::Map { map, .. }) => self.put(Value::Object(map), line),
                None => Err(self.flaw(line, "a list or map ends that did not begin")),
            },
        }
    }

    fn open(&mut self, open: Open, kind: &str, tag: Option<&Tag>, line: usize) -> Result<(), ManifestError> {
        if let Some(tag) = tag.filter(|tag| !(tag.is_yaml_core_schema() && tag.suffix == kind)) {
            return Err(self.tag(tag, line));
        }
        if matches!(self.open.last(), Some(Open::Map { key: None, .. })) {
            return Err(self.flaw(line, "a key must be text, not a list or a map"));
        }
        if self.open.len() >= DEPTH_MAX {
            return Err(self.flaw(line, format!("more than {DEPTH_MAX} lists and maps inside one another")));
        }
        self.count()?;
        self.open.push(open);
        Ok(())
    }

    fn scalar(
        &mut self,
        text: &str,
        style: ScalarStyle,
        tag: Option<&Tag>,
        line: usize,
    ) -> Result<(), ManifestError> {
        self.count()?;
        let plain = style == ScalarStyle::Plain && tag.is_none();
        if let Some(Open::Map { map, key: key @ None }) = self.open.last_mut() {
            let rule = if plain && text == "<<" {
                "a merge key (<<) is not read: write out what it stands for".to_owned()
            } else if plain && scalar::resolve(text) == Some(Value::Null) {
                "a key must be text, not nothing".to_owned()
            } else if map.contains_key(text) {
                format!("the key {:?} is there twice", shown(text))
            } else {
                *key = Some(text.to_owned());
                return Ok(());
            };
            return Err(self.flaw(line, rule));
        }
        let value = match tag {
            None if style == ScalarStyle::Plain => scalar::resolve(text),
            None => Some(Value::String(text.to_owned())),
            Some(tag) => Some(self.tagged(text, tag, line)?),
        };
        let no_number = || self.flaw(line, format!("{:?} is no number that can be kept", shown(text)));
        let value = value.ok_or_else(no_number)?;
        self.put(value, line)
    }

    fn tagged(&self, text: &str, tag: &Tag, line: usize) -> Result<Value, ManifestError> {
        let value = scalar::resolve(text).unwrap_or(Value::Null);
        let core = if tag.is_yaml_core_schema() { tag.suffix.as_str() } else { "" };
        match (core, &value) {
            ("str", _) => Ok(Value::String(text.to_owned())),
            ("int" | "float", Value::Number(_)) | ("bool", Value::Bool(_)) | ("null", Value::Null) => {
                Ok(value)
            }
            _ => Err(self.tag(tag, line)),
        }
    }

    fn tag(&self, tag: &Tag, line: usize) -> ManifestError {
        self.flaw(line, format!("the tag {:?} is not read here: leave it out", shown(&tag.to_string())))
    }

    fn count(&mut self) -> Result<(), ManifestError> {
        self.values += 1;
        if self.values > VALUES_MAX { Err(ManifestError::ManyValues) } else { Ok(()) }
    }

    fn put(&mut self, value: Value, line: usize) -> Result<(), ManifestError> {
        match self.open.last_mut() {
            None if value.is_null() => {}
            None => self.done.push(value),
            Some(Open::List(list)) => list.push(value),
            Some(Open::Map { map, key }) => {
                let Some(key) = key.take() else { return Err(self.flaw(line, "a value without a key")) };
                map.insert(key, value);
            }
        }
        Ok(())
    }
}

fn shown(text: &str) -> String {
    text.chars().take(SHOWN_MAX).collect()
}
