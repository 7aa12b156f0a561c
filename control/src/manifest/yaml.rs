//! YAML text to a tree in which every value knows its place. Takes one document, gives a `Node` or the one error that
//! stopped it. It never resolves a scalar's type (that depends on the field it is for, see `decode`), and never
//! follows anything outside the text.
//!
//! The parser is the one serde-saphyr stands on; a tree of our own because errors need the place and the path of
//! every value, and because a manifest means what Kubernetes reads it as (YAML 1.1).

use std::collections::BTreeMap;
use std::ops::Range;

use serde_saphyr::granit_parser::{Event, Parser, ScalarStyle, ScanError, Span};

/// Values in one document, with the copies kept for aliases: a List of 2,000 EndpointSlices of 20 endpoints has 0.5 million.
const MAX_NODES: usize = 2_000_000;
/// Values that aliases may add to one document. Manifests written by people repeat a block or two; a "billion
/// laughs" document wants 10^9.
const MAX_ALIASED_NODES: usize = 20_000;
/// Levels of nesting; Kubernetes' own deepest objects have about 20.
const MAX_DEPTH: usize = 64;

/// Where something is in its document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spot {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// Bytes of the document.
    pub bytes: Range<usize>,
}

/// A value and its place.
#[derive(Clone, Debug)]
pub struct Node {
    /// Where it begins and ends.
    pub spot: Spot,
    /// What it is.
    pub value: Value,
}

/// A value.
#[derive(Clone, Debug)]
pub enum Value {
    /// Text; `plain` if written without quotes, so that its type is still open.
    Scalar {
        /// The text, escapes resolved.
        text: String,
        /// Neither quoted nor a block nor tagged `!!str`.
        plain: bool,
    },
    /// A list.
    Sequence(Vec<Node>),
    /// Keys and values, in the order written, keys unique.
    Mapping(Vec<(Key, Node)>),
}

/// A mapping's key and its place.
#[derive(Clone, Debug)]
pub struct Key {
    /// The text.
    pub text: String,
    /// Its place.
    pub spot: Spot,
}

/// What stopped a document.
#[derive(Debug)]
pub struct Broken {
    /// Where.
    pub spot: Spot,
    /// What is wrong.
    pub message: String,
}

impl Node {
    /// The value of `key`, if this is a mapping that has it.
    pub fn get(&self, key: &str) -> Option<&Self> {
        match &self.value {
            Value::Mapping(entries) => entries.iter().find(|(k, _)| k.text == key).map(|(_, node)| node),
            _ => None,
        }
    }

    /// The text, if this is a scalar.
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar { text, .. } => Some(text),
            _ => None,
        }
    }

    /// Whether this is YAML's null: nothing, `~` or `null`, unquoted.
    pub fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true }
            if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// Where `path` (`spec.ports[1].nodePort`) is: the value, or the deepest part of the way to it that exists.
    pub fn locate(&self, path: &str) -> Spot {
        let (mut node, mut spot) = (self, &self.spot);
        let mut rest = path;
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix('[') {
                let Some((inside, tail)) = after.split_once(']') else {
                    break;
                };
                let next = match &node.value {
                    Value::Sequence(items) => inside.parse::<usize>().ok().and_then(|i| items.get(i)),
                    _ => node.get(inside),
                };
                let Some(next) = next else { break };
                (node, spot, rest) = (next, &next.spot, tail);
            } else {
                rest = rest.strip_prefix('.').unwrap_or(rest);
                let end = rest.find(['.', '[']).unwrap_or(rest.len());
                let (name, tail) = rest.split_at(end);
                let Value::Mapping(entries) = &node.value else {
                    break;
                };
                let Some((key, next)) = entries.iter().find(|(k, _)| k.text == name) else {
                    break;
                };
                // A collection is pointed at by its key: its own text may be pages long.
                spot = if matches!(next.value, Value::Scalar { .. }) && !next.spot.bytes.is_empty() {
                    &next.spot
                } else {
                    &key.spot
                };
                (node, rest) = (next, tail);
            }
        }
        spot.clone()
    }

    fn size(&self) -> usize {
        1 + match &self.value {
            Value::Scalar { .. } => 0,
            Value::Sequence(items) => items.iter().map(Self::size).sum(),
            Value::Mapping(entries) => entries.iter().map(|(_, node)| 1 + node.size()).sum(),
        }
    }

    /// Levels below this one.
    fn height(&self) -> usize {
        let above = |node: &Self| 1 + node.height();
        match &self.value {
            Value::Scalar { .. } => 0,
            Value::Sequence(items) => items.iter().map(above).max().unwrap_or(0),
            Value::Mapping(entries) => entries.iter().map(|(_, node)| above(node)).max().unwrap_or(0),
        }
    }
}

/// Reads one document; `None` if it holds nothing but comments.
pub fn read(text: &str) -> Result<Option<Node>, Broken> {
    // A tab is the cause of whatever the parser trips over after it.
    parse(text).map_err(|broken| tab_in_indentation(text).unwrap_or(broken))
}

fn parse(text: &str) -> Result<Option<Node>, Broken> {
    let mut reader = Reader {
        parser: Parser::new_from_str(text),
        anchors: BTreeMap::new(),
        nodes: 0,
        aliased: 0,
    };
    let mut root = None;
    loop {
        let Some((event, span)) = reader.next()? else {
            return Ok(root);
        };
        match event {
            Event::StreamStart | Event::StreamEnd | Event::DocumentStart(..) | Event::DocumentEnd => {}
            event if root.is_none() => root = Some(reader.node(event, &span, 0)?),
            _ => return Err(broken(&span, "a second document without `---` before it")),
        }
    }
}

/// What an alias stands for.
struct Anchored {
    node: Node,
    size: usize,
    /// Levels below it: an alias nests as deep as what it stands for.
    height: usize,
}

fn not_too_deep(depth: usize, span: &Span) -> Result<(), Broken> {
    if depth > MAX_DEPTH {
        return Err(broken(span, &format!("more than {MAX_DEPTH} levels of nesting")));
    }
    Ok(())
}

struct Reader<'a> {
    parser: Parser<'a, serde_saphyr::granit_parser::StrInput<'a>>,
    anchors: BTreeMap<usize, Anchored>,
    nodes: usize,
    aliased: usize,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Option<(Event<'a>, Span)>, Broken> {
        loop {
            return match self.parser.next() {
                None => Ok(None),
                Some(Ok((Event::Comment(..), _))) => continue,
                Some(Ok(event)) => Ok(Some(event)),
                Some(Err(error)) => Err(scan_error(&error)),
            };
        }
    }

    fn inside(&mut self, start: &Span) -> Result<(Event<'a>, Span), Broken> {
        self.next()?.ok_or_else(|| broken(start, "this never ends"))
    }

    fn node(&mut self, event: Event<'a>, span: &Span, depth: usize) -> Result<Node, Broken> {
        self.count(1, span)?;
        not_too_deep(depth, span)?;
        let (anchor, value, end) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let tag = tag.map(|tag| tag.to_string());
                let plain = match tag.as_deref() {
                    None => style == ScalarStyle::Plain,
                    Some(tag) if tag.ends_with("str") => false,
                    Some(tag) if ["int", "bool", "float", "null"].iter().any(|t| tag.ends_with(t)) => true,
                    Some(tag) => return Err(broken(span, &format!("the tag {tag} has no meaning here"))),
                };
                (
                    anchor,
                    Value::Scalar {
                        text: text.into_owned(),
                        plain,
                    },
                    *span,
                )
            }
            Event::SequenceStart(_, anchor, _) => {
                let mut items = Vec::new();
                loop {
                    match self.inside(span)? {
                        (Event::SequenceEnd, end) => break (anchor, Value::Sequence(items), end),
                        (event, at) => items.push(self.node(event, &at, depth + 1)?),
                    }
                }
            }
            Event::MappingStart(_, anchor, _) => {
                let (entries, end) = self.mapping(span, depth)?;
                (anchor, Value::Mapping(entries), end)
            }
            Event::Alias(id) => return self.alias(id, span, depth),
            _ => return Err(broken(span, "a value was expected here")),
        };
        let node = Node {
            spot: spot(span, &end),
            value,
        };
        if anchor != 0 {
            let (size, height) = (node.size(), node.height());
            // An anchor on each level would keep as many copies of everything below.
            self.count(size, span)?;
            let node = node.clone();
            self.anchors.insert(anchor, Anchored { node, size, height });
        }
        Ok(node)
    }

    fn count(&mut self, values: usize, span: &Span) -> Result<(), Broken> {
        self.nodes += values;
        if self.nodes > MAX_NODES {
            let message = format!("more than {MAX_NODES} values in one document");
            return Err(broken(span, &message));
        }
        Ok(())
    }

    fn alias(&mut self, id: usize, span: &Span, depth: usize) -> Result<Node, Broken> {
        let Some(Anchored { node, size, height }) = self.anchors.get(&id) else {
            return Err(broken(span, "an alias inside the very value it names"));
        };
        self.aliased += size;
        if self.aliased > MAX_ALIASED_NODES {
            let message = format!("aliases expand to more than {MAX_ALIASED_NODES} values: refused");
            return Err(broken(span, &message));
        }
        not_too_deep(depth + height, span)?;
        Ok(Node {
            spot: spot(span, span),
            value: node.value.clone(),
        })
    }

    fn mapping(&mut self, start: &Span, depth: usize) -> Result<(Vec<(Key, Node)>, Span), Broken> {
        let (mut entries, mut merged): (Vec<(Key, Node)>, Vec<Node>) = (Vec::new(), Vec::new());
        let mut seen = std::collections::HashSet::new();
        let end = loop {
            let (event, at) = match self.inside(start)? {
                (Event::MappingEnd, end) => break end,
                key => key,
            };
            let key = self.node(event, &at, depth + 1)?;
            let Value::Scalar { text, plain } = key.value else {
                return Err(broken(&at, "a key must be text"));
            };
            let (event, value_at) = self.inside(&at)?;
            let value = self.node(event, &value_at, depth + 1)?;
            if text == "<<" && plain {
                merged.push(value);
                continue;
            }
            if !seen.insert(text.clone()) {
                return Err(broken(&at, &format!("the key `{text}` is given twice")));
            }
            entries.push((Key { text, spot: key.spot }, value));
        };
        for node in merged {
            let sources = match node.value {
                Value::Sequence(items) => items,
                _ => vec![node],
            };
            for source in sources {
                let Value::Mapping(more) = source.value else {
                    return Err(Broken {
                        spot: source.spot,
                        message: "`<<` merges mappings only".into(),
                    });
                };
                // What is written here wins over what is merged in (YAML 1.1 merge keys).
                entries.extend(more.into_iter().filter(|(key, _)| seen.insert(key.text.clone())));
            }
        }
        Ok((entries, end))
    }
}

fn spot(start: &Span, end: &Span) -> Spot {
    let from = start.start.byte_offset().unwrap_or(0);
    Spot {
        line: start.start.line(),
        column: start.start.col() + 1,
        bytes: from..end.end.byte_offset().unwrap_or(from).max(from),
    }
}

fn broken(span: &Span, message: &str) -> Broken {
    Broken {
        spot: spot(span, span),
        message: message.into(),
    }
}

/// The first tab before a line's first character.
fn tab_in_indentation(text: &str) -> Option<Broken> {
    let mut start = 0;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let indentation = line.len() - line.trim_start_matches([' ', '\t']).len();
        if let Some(at) = line[..indentation].find('\t')
            && !line.trim().is_empty()
        {
            let spot = Spot {
                line: number + 1,
                column: at + 1,
                bytes: start + at..start + at + 1,
            };
            let message = "the line is indented with a tab; YAML takes spaces only".into();
            return Some(Broken { spot, message });
        }
        start += line.len();
    }
    None
}

/// The parser's words for mistakes that people make, in words that say what to do.
fn in_plain_words(info: &str) -> String {
    let plain = match info {
        info if info.contains("did not find expected key") => {
            "the indentation fits no line above; keys of one mapping begin in the same column"
        }
        info if info.contains("did not find expected '-' indicator") => {
            "the indentation fits no line above; items of one list begin with `- ` in the same column"
        }
        info if info.contains("mapping values are not allowed") => {
            "`key: value` cannot be here: the line above has a value already, or this line is indented too far; \
             a text with `: ` in it needs quotes"
        }
        info if info.contains("unclosed bracket") => {
            return format!("{info}: something is missing before the end, or there is a comma too many");
        }
        info => return info.into(),
    };
    plain.into()
}

fn scan_error(error: &ScanError) -> Broken {
    let marker = error.marker();
    let at = marker.byte_offset().unwrap_or(0);
    Broken {
        spot: Spot {
            line: marker.line(),
            column: marker.col() + 1,
            bytes: at..at,
        },
        message: in_plain_words(&error.info()),
    }
}

#[cfg(test)]
mod tests;
