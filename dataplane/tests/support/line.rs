//! One line of the packet language, as text: a head (`tcp 198.51.100.10:40000 > 10.96.0.10:80 S`), modifiers (`ttl 3`),
//! a quoted packet in brackets, a payload in quotes. What is not written is as usual, so a line asserts all of its packet.
//!
//! `$NAME` in the place of an address, a port, both or a modifier's value is a variable: bound where a line is first
//! matched, a constant from then on.

use std::collections::BTreeMap;
use std::fmt;

/// Values of variables.
pub type Variables = BTreeMap<String, String>;

/// Modifiers that take a value, in the order they are printed in.
pub const MODIFIERS: &[&str] = &[
    "from", "to", "vlan", // stations that are not the usual ones; 802.1Q's tag control information
    "src", "dst", "sha", "tha",
    "flags", // of neighbour discovery and ARP: addresses and flags that are not the usual ones
    "tos", "label", "ext", "id", "fragment", "piece", "ttl", "options", // of the IP header
    "seq", "ack", "window", "tcpopts", "vtag", "echo", "mtu", "pointer",
    "rest", // of TCP, SCTP and ICMP
    "badsum", "sum", // checksums: wrong ones (l3, l4, l3+l4), UDP's "none" (0)
    "version", "ihl", "length", "offset", "udplen", // lies of headers
    "hex", "bytes", // payloads, beside text in quotes
    "frame", "cut", // frame length: padded to, cut at
];

/// A line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// Kind and addresses.
    pub head: Vec<String>,
    /// Modifiers with their values; `df`'s is empty.
    pub modifiers: BTreeMap<String, String>,
    /// Payload that is text.
    pub text: Option<String>,
    /// The packet that an ICMP error quotes.
    pub quoted: Option<Box<Self>>,
}

impl Line {
    /// Reads a line. Errors say what is not understood.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut rest = text.trim();
        let mut line = Self::default();
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix('"') {
                let end = after.find('"').ok_or("a payload's closing quote is missing")?;
                line.text = Some(after[..end].to_owned());
                rest = after[end + 1..].trim_start();
                continue;
            }
            let (word, after) = split(rest);
            rest = after;
            match word {
                "quoting" => {
                    let inner = rest
                        .strip_prefix('[')
                        .ok_or("write the quoted packet in brackets: quoting [udp …]")?;
                    let end = inner
                        .rfind(']')
                        .ok_or("the quoted packet's closing bracket is missing")?;
                    line.quoted = Some(Box::new(Self::parse(&inner[..end])?));
                    rest = inner[end + 1..].trim_start();
                }
                "df" => drop(line.modifiers.insert(word.to_owned(), String::new())),
                _ if MODIFIERS.contains(&word) => {
                    let (value, after) = split(rest);
                    if value.is_empty() {
                        return Err(format!("{word} needs a value"));
                    }
                    line.modifiers.insert(word.to_owned(), value.to_owned());
                    rest = after;
                }
                _ if line.modifiers.is_empty() => line.head.push(word.to_owned()),
                _ => return Err(format!("\"{word}\" is no modifier of the packet language")),
            }
        }
        if line.head.is_empty() {
            Err("an empty line is no packet".to_owned())
        } else {
            Ok(line)
        }
    }

    /// Sets a modifier.
    pub fn set(&mut self, modifier: &str, value: impl fmt::Display) {
        self.modifiers.insert(modifier.to_owned(), value.to_string());
    }

    /// A modifier's value.
    pub fn get(&self, modifier: &str) -> Option<&str> {
        self.modifiers.get(modifier).map(String::as_str)
    }

    /// The line with every variable replaced by its value. Errors: a variable that nothing has bound.
    pub fn filled(&self, variables: &Variables) -> Result<Self, String> {
        let fill = |text: &String| match text.split_once('$') {
            None => Ok(text.clone()),
            Some((before, name)) => match variables.get(name) {
                Some(value) => Ok(format!("{before}{value}")),
                None => Err(format!(
                    "${name} has no value here: no line before has matched it"
                )),
            },
        };
        Ok(Self {
            head: self.head.iter().map(fill).collect::<Result<_, _>>()?,
            modifiers: self
                .modifiers
                .iter()
                .map(|(k, v)| Ok((k.clone(), fill(v)?)))
                .collect::<Result<_, String>>()?,
            text: self.text.clone(),
            quoted: self
                .quoted
                .as_ref()
                .map(|q| q.filled(variables).map(Box::new))
                .transpose()?,
        })
    }

    /// Whether kind and addresses are `got`'s; variables are bound where they are.
    pub fn head_matches(&self, got: &Self, variables: &mut Variables) -> bool {
        let same = self.head.len() == got.head.len();
        let mut words = self.head.iter().zip(&got.head);
        same && words.all(|(want, got)| unify(want, got, variables))
    }

    /// Whether `got`, which has no variables, is what this line says; if so, its variables are bound.
    pub fn matches(&self, got: &Self, variables: &mut Variables) -> bool {
        let mut bound = variables.clone();
        let same = self.unify(got, &mut bound);
        if same {
            *variables = bound;
        }
        same
    }

    fn unify(&self, got: &Self, bound: &mut Variables) -> bool {
        let quoted = match (&self.quoted, &got.quoted) {
            (None, None) => true,
            (Some(want), Some(got)) => want.unify(got, bound),
            _ => false,
        };
        quoted
            && self.text == got.text
            && self.head_matches(got, bound)
            && self.modifiers.keys().eq(got.modifiers.keys())
            && self
                .modifiers
                .values()
                .zip(got.modifiers.values())
                .all(|(want, got)| unify(want, got, bound))
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.head.join(" "))?;
        if let Some(quoted) = &self.quoted {
            write!(f, " quoting [{quoted}]")?;
        }
        if self.get("df").is_some() {
            f.write_str(" df")?;
        }
        for modifier in MODIFIERS {
            if let Some(value) = self.get(modifier) {
                write!(f, " {modifier} {value}")?;
            }
        }
        self.text.as_ref().map_or(Ok(()), |text| write!(f, " \"{text}\""))
    }
}

/// A word and what follows it.
pub fn split(text: &str) -> (&str, &str) {
    let text = text.trim_start();
    let end = text.find(char::is_whitespace).unwrap_or(text.len());
    (&text[..end], text[end..].trim_start())
}

fn unify(want: &str, got: &str, bound: &mut Variables) -> bool {
    let Some((before, name)) = want.split_once('$') else {
        return want == got;
    };
    let Some(value) = got.strip_prefix(before) else {
        return false;
    };
    bound.entry(name.to_owned()).or_insert_with(|| value.to_owned()) == value
}

#[test]
fn a_line_is_printed_as_it_was_written() {
    for text in [
        "tcp 198.51.100.10:40000 > 10.96.0.10:80 SA df ttl 3 options 4 badsum l4 \"two words\"",
        "icmp port-unreachable 172.18.0.2 > 198.51.100.10 quoting [udp 198.51.100.10:1 > 10.96.0.10:9 ttl 1 \"x\"] ttl 64",
    ] {
        assert_eq!(Line::parse(text).unwrap().to_string(), text);
    }
}

#[test]
fn a_variable_takes_its_first_value_and_keeps_it() {
    let mut variables = Variables::new();
    let want = Line::parse("udp 10.244.0.1:$P > $E").unwrap();
    let got = |text| Line::parse(text).unwrap();
    assert!(!want.matches(&got("udp 10.244.0.2:7 > 10.244.0.11:53"), &mut variables) && variables.is_empty());
    assert!(want.matches(&got("udp 10.244.0.1:7 > 10.244.0.11:53"), &mut variables));
    assert!(!want.matches(&got("udp 10.244.0.1:8 > 10.244.0.11:53"), &mut variables));
    assert_eq!(
        want.filled(&variables).unwrap(),
        got("udp 10.244.0.1:7 > 10.244.0.11:53")
    );
    assert!(
        got("udp $Q > 1.2.3.4:5")
            .filled(&variables)
            .unwrap_err()
            .contains("$Q has no value")
    );
}

#[test]
fn what_a_line_does_not_say_must_not_be_there() {
    let want = Line::parse("udp 10.0.0.1:1 > 10.0.0.2:2").unwrap();
    for more in ["badsum l4", "ttl 9", "\"text\"", "df"] {
        let got = Line::parse(&format!("udp 10.0.0.1:1 > 10.0.0.2:2 {more}")).unwrap();
        assert!(!want.matches(&got, &mut Variables::new()), "{more}");
    }
}

#[test]
fn a_line_that_is_not_understood_is_refused_with_the_reason() {
    for (text, reason) in [
        ("", "empty"),
        ("udp 1.1.1.1:1 > 2.2.2.2:2 ttl", "ttl needs a value"),
        ("udp 1.1.1.1:1 > 2.2.2.2:2 ttl 3 tll 4", "\"tll\" is no modifier"),
        ("udp 1.1.1.1:1 > 2.2.2.2:2 \"open", "closing quote"),
        ("icmp time-exceeded 1.1.1.1 > 2.2.2.2 quoting udp", "in brackets"),
    ] {
        let error = Line::parse(text).unwrap_err();
        assert!(error.contains(reason), "{text}: {error}");
    }
}
