//! A tree of YAML to a typed value, by the type's own `Deserialize`. Gives every field the type does not know, with the
//! nearest it does, and the place and path of a value of the wrong type. Scalars are read as Kubernetes reads them
//! (YAML 1.1): `yes` is a boolean, `0120` is 80, and neither is text.

use std::cell::RefCell;

use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeSeed, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;

use super::yaml::{Node, Value};

/// Something wrong.
mod mistake;
/// Slips of the pen.
mod nearest;
/// Numbers, booleans, nothing.
mod scalar;

pub use mistake::Mistake;
use mistake::{Error, Part, Path};
use nearest::nearest;
use scalar::{Plain, resolve};

/// Decodes `node` as a `T`. Unknown fields are mistakes that do not stop the rest from being read.
pub fn decode<T: de::DeserializeOwned>(node: &Node) -> Result<T, Vec<Mistake>> {
    let unknown = RefCell::new(Vec::new());
    let value = T::deserialize(Decoder {
        node,
        unknown: &unknown,
        path: Path {
            parent: None,
            part: Part::Root,
        },
    });
    let mut mistakes = unknown.into_inner();
    match value {
        Ok(value) if mistakes.is_empty() => Ok(value),
        Ok(_) => Err(mistakes),
        Err(error) => {
            let spot = error.spot.unwrap_or_else(|| node.spot.clone());
            mistakes.push(Mistake {
                field: error.field,
                message: error.message,
                spot,
            });
            Err(mistakes)
        }
    }
}

#[derive(Clone, Copy)]
struct Decoder<'n, 'p> {
    node: &'n Node,
    unknown: &'p RefCell<Vec<Mistake>>,
    path: Path<'p>,
}

impl<'n> Decoder<'n, '_> {
    fn error(&self, message: String) -> Error {
        Error {
            field: self.path.to_string(),
            message,
            spot: Some(self.node.spot.clone()),
        }
    }

    fn wrong(&self, want: &str) -> Error {
        let got = match &self.node.value {
            Value::Sequence(_) => "a list".into(),
            Value::Mapping(_) => "a mapping".into(),
            Value::Scalar { text, plain: false } => format!("the text \"{}\"", shortened(text)),
            Value::Scalar { text, plain: true } => match resolve(text) {
                Plain::Null => "nothing".into(),
                Plain::Bool(value) => format!("`{text}`, which YAML reads as the boolean {value}"),
                Plain::Int(_) | Plain::Float(_) => format!("the number {text}"),
                Plain::Text => format!("`{}`", shortened(text)),
            },
        };
        let instead = match &self.node.value {
            Value::Scalar { text, plain: true } if want == "text" => format!(" (write \"{text}\" in quotes)"),
            Value::Scalar { text, plain: false } if fits_unquoted(text, want) => {
                format!(" (write {text} without quotes)")
            }
            Value::Mapping(_) if want == "a list" => " (begin each item with `- `)".into(),
            _ => String::new(),
        };
        self.error(format!("must be {want}, not {got}{instead}"))
    }

    /// Puts the place on an error that a visitor made.
    fn placed<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        result.map_err(|mut error| {
            if error.spot.is_none() {
                (error.spot, error.field) = (Some(self.node.spot.clone()), self.path.to_string());
            }
            error
        })
    }

    fn integer(&self) -> Result<i64, Error> {
        match &self.node.value {
            Value::Scalar { text, plain: true } => match resolve(text) {
                Plain::Int(value) => Ok(value),
                Plain::Float(value) if value.fract() == 0.0 && value.abs() < 9e15 => Ok(value as i64),
                _ => Err(self.wrong("a whole number")),
            },
            _ => Err(self.wrong("a whole number")),
        }
    }

    fn str(&self) -> Result<&'n str, Error> {
        match &self.node.value {
            Value::Scalar { text, plain: false } => Ok(text),
            Value::Scalar { text, plain: true } => match resolve(text) {
                Plain::Text => Ok(text),
                // Where text must be, nothing is the empty text: a label without a value.
                Plain::Null => Ok(""),
                _ => Err(self.wrong("text")),
            },
            _ => Err(self.wrong("text")),
        }
    }

    fn entries<'de, V: Visitor<'de>>(
        self,
        known: Option<&'static [&'static str]>,
        visitor: V,
    ) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Mapping(entries) => {
                let map = Entries {
                    decoder: self,
                    entries: entries.iter(),
                    value: None,
                    known,
                    empty_before: None,
                };
                self.placed(visitor.visit_map(map))
            }
            _ if self.node.is_null() => {
                let map = Entries {
                    decoder: self,
                    entries: [].iter(),
                    value: None,
                    known,
                    empty_before: None,
                };
                self.placed(visitor.visit_map(map))
            }
            _ => Err(self.wrong("a mapping")),
        }
    }
}

/// Whether `text` would be what is wanted if it were not quoted.
fn fits_unquoted(text: &str, want: &str) -> bool {
    match resolve(text) {
        Plain::Int(_) => want == "a whole number",
        Plain::Bool(_) => want == "true or false",
        _ => false,
    }
}

fn shortened(text: &str) -> String {
    if text.chars().count() <= 40 {
        text.into()
    } else {
        format!("{}…", text.chars().take(40).collect::<String>())
    }
}

macro_rules! integers {
    ($($method:ident: $type:ty, $visit:ident;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            let value = self.integer()?;
            let Ok(value) = <$type>::try_from(value) else {
                return Err(self.error(format!("must be from {} to {}, not {value}", <$type>::MIN, <$type>::MAX)));
            };
            self.placed(visitor.$visit(value))
        }
    )*};
}

impl<'de> de::Deserializer<'de> for Decoder<'_, '_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Sequence(_) => self.deserialize_seq(visitor),
            Value::Mapping(_) => self.entries(None, visitor),
            Value::Scalar { text, plain: false } => self.placed(visitor.visit_str(text)),
            Value::Scalar { text, plain: true } => self.placed(match resolve(text) {
                Plain::Null => visitor.visit_unit(),
                Plain::Bool(value) => visitor.visit_bool(value),
                Plain::Int(value) => visitor.visit_i64(value),
                Plain::Float(value) => visitor.visit_f64(value),
                Plain::Text => visitor.visit_str(text),
            }),
        }
    }

    integers! {
        deserialize_i8: i8, visit_i8; deserialize_i16: i16, visit_i16; deserialize_i32: i32, visit_i32;
        deserialize_u8: u8, visit_u8; deserialize_u16: u16, visit_u16; deserialize_u32: u32, visit_u32;
        deserialize_u64: u64, visit_u64;
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let value = self.integer()?;
        self.placed(visitor.visit_i64(value))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Scalar { text, plain: true } => match resolve(text) {
                Plain::Bool(value) => self.placed(visitor.visit_bool(value)),
                _ => Err(self.wrong("true or false")),
            },
            _ => Err(self.wrong("true or false")),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let text = self.str()?;
        self.placed(visitor.visit_str(text))
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.node.is_null() {
            visitor.visit_none()
        } else {
            visitor.visit_some(self)
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.placed(visitor.visit_newtype_struct(self))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Sequence(items) => self.placed(visitor.visit_seq(Items {
                decoder: self,
                items: items.iter().enumerate(),
            })),
            _ => Err(self.wrong("a list")),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.entries(None, visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.entries(Some(fields), visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let text: StrDeserializer<'_, Error> = self.str()?.into_deserializer();
        self.placed(visitor.visit_enum(text))
    }

    forward_to_deserialize_any! {
        f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct identifier ignored_any
    }
}

struct Items<'n, 'p> {
    decoder: Decoder<'n, 'p>,
    items: std::iter::Enumerate<std::slice::Iter<'n, Node>>,
}

impl<'de> de::SeqAccess<'de> for Items<'_, '_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let Some((index, node)) = self.items.next() else {
            return Ok(None);
        };
        let path = Path {
            parent: Some(&self.decoder.path),
            part: Part::Item(index),
        };
        seed.deserialize(Decoder {
            node,
            path,
            ..self.decoder
        })
        .map(Some)
    }
}

struct Entries<'n, 'p> {
    decoder: Decoder<'n, 'p>,
    entries: std::slice::Iter<'n, (super::yaml::Key, Node)>,
    value: Option<&'n (super::yaml::Key, Node)>,
    /// The fields of the struct, if it is one.
    known: Option<&'static [&'static str]>,
    /// The field before, if it is known and has nothing in it: what follows may be meant to be in it.
    empty_before: Option<&'n str>,
}

impl<'de> de::MapAccess<'de> for Entries<'_, '_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        for entry in self.entries.by_ref() {
            let (key, value) = entry;
            let name = key.text.as_str();
            let path = Path {
                parent: Some(&self.decoder.path),
                part: Part::Field(name),
            };
            match self.known {
                Some(known) if !known.contains(&name) => {
                    let message = match (nearest(name, known), self.empty_before) {
                        (Some(near), _) => format!("is not a known field; did you mean `{near}`?"),
                        (None, Some(empty)) => format!(
                            "is not a known field here; if it belongs to `{empty}`, which has nothing in it, indent it more"
                        ),
                        (None, None) => format!("is not a known field; known here are {}", known.join(", ")),
                    };
                    let spot = key.spot.clone();
                    self.decoder.unknown.borrow_mut().push(Mistake {
                        field: path.to_string(),
                        message,
                        spot,
                    });
                }
                // Null is "not given" (as the API server has it), whatever the field's type.
                Some(_) if value.is_null() => self.empty_before = Some(name),
                _ => {
                    self.empty_before = None;
                    self.value = Some(entry);
                    let name: StrDeserializer<'_, Error> = name.into_deserializer();
                    return seed.deserialize(name).map(Some);
                }
            }
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let Some((key, node)) = self.value.take() else {
            return Err(de::Error::custom("value before key"));
        };
        let path = Path {
            parent: Some(&self.decoder.path),
            part: Part::Field(&key.text),
        };
        seed.deserialize(Decoder {
            node,
            path,
            ..self.decoder
        })
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Service;

    use super::super::yaml;
    use super::*;

    fn mistakes(text: &str) -> Vec<Mistake> {
        decode::<Service>(&yaml::read(text).unwrap().unwrap()).unwrap_err()
    }

    #[test]
    fn an_unknown_field_is_reported_with_the_nearest_known_one() {
        let found = mistakes("apiVersion: v1\nkind: Service\nspec: {prots: []}\n");
        assert_eq!(found[0].field, "spec.prots");
        assert_eq!(found[0].message, "is not a known field; did you mean `ports`?");
        assert_eq!((found[0].spot.line, found[0].spot.column), (3, 8));
    }

    #[test]
    fn every_unknown_field_is_reported_not_only_the_first() {
        assert_eq!(mistakes("spec: {foo: 1, bar: {x: 2}}\n").len(), 2);
    }

    #[test]
    fn a_value_of_the_wrong_type_is_reported_with_its_path_and_place() {
        let found = mistakes("spec:\n  ports:\n  - port: 80\n  - port: http\n");
        assert_eq!(found[0].field, "spec.ports[1].port");
        assert_eq!(found[0].message, "must be a whole number, not `http`");
        assert_eq!((found[0].spot.line, found[0].spot.column), (4, 11));
    }

    #[test]
    fn a_boolean_where_text_is_needed_is_told_to_be_quoted() {
        let found = mistakes("metadata: {labels: {a/b: yes}}\n");
        assert_eq!(found[0].field, "metadata.labels[a/b]");
        assert!(
            found[0]
                .message
                .contains("boolean true (write \"yes\" in quotes)"),
            "{}",
            found[0].message
        );
    }

    #[test]
    fn a_slip_is_told_what_to_write_instead() {
        for (text, said) in [
            (
                "spec: {ports: [{port: \"80\"}]}",
                "must be a whole number, not the text \"80\" (write 80 without quotes)",
            ),
            (
                "spec: {ports: {port: 80}}",
                "must be a list, not a mapping (begin each item with `- `)",
            ),
            (
                "spec:\n  selector:\n  app: web\n",
                "is not a known field here; if it belongs to `selector`, which has nothing in it, indent it more",
            ),
        ] {
            assert_eq!(mistakes(text)[0].message, said);
        }
    }

    #[test]
    fn numbers_are_read_as_yaml_1_1() {
        let node = yaml::read("spec: {ports: [{port: 0120}, {port: 0x50}, {port: 8_0}]}")
            .unwrap()
            .unwrap();
        let ports = decode::<Service>(&node).unwrap().spec.unwrap().ports.unwrap();
        assert_eq!(ports.iter().map(|p| p.port).collect::<Vec<_>>(), [80, 80, 80]);
    }

    #[test]
    fn a_port_beyond_32_bits_is_refused_not_wrapped() {
        assert_eq!(
            mistakes("spec: {ports: [{port: 4294967376}]}")[0].field,
            "spec.ports[0].port"
        );
    }

    #[test]
    fn null_is_the_same_as_not_given() {
        let node = yaml::read("metadata: {name: null}\nspec: null\n")
            .unwrap()
            .unwrap();
        assert_eq!(decode::<Service>(&node).unwrap(), Service::default());
    }
}
