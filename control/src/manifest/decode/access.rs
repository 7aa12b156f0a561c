//! Lists and mappings, item by item. Here a field that the type does not know becomes a mistake, and is passed over.

use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeSeed, IntoDeserializer};

use super::Decoder;
use super::mistake::{Error, Mistake, Part, Path};
use super::nearest::nearest;
use crate::manifest::yaml::{Key, Node};

/// The items of a list.
pub(super) struct Items<'n, 'p> {
    pub(super) decoder: Decoder<'n, 'p>,
    pub(super) items: std::iter::Enumerate<std::slice::Iter<'n, Node>>,
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

/// The entries of a mapping, or the fields of a struct.
pub(super) struct Entries<'n, 'p> {
    pub(super) decoder: Decoder<'n, 'p>,
    pub(super) entries: std::slice::Iter<'n, (Key, Node)>,
    pub(super) value: Option<&'n (Key, Node)>,
    /// The fields of the struct, if it is one.
    pub(super) known: Option<&'static [&'static str]>,
    /// The field before, if it is known and has nothing in it: what follows may be meant to be in it.
    pub(super) empty_before: Option<&'n str>,
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
