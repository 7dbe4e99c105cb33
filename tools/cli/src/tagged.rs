//! Enums whose variant is named by a field, the tag, with errors that keep their place.
//!
//! serde's own internally tagged enums read the whole table first, and an error then is at its
//! first line and names no field.

use anyhow::{Result, anyhow};
use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue, Deserializer};
use ttrec_convert::toml_mistake;

/// Implements `Deserialize` for an enum: its tag must be the first key.
macro_rules! tagged {
    ($enum:ident, $tag:literal, $($name:literal => $variant:ident),+) => {
        impl<'de> serde::Deserialize<'de> for $enum {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                use serde::de::{Error as _, MapAccess, Visitor, value::MapAccessDeserializer};

                #[derive(serde::Deserialize)]
                enum Name {
                    $(#[serde(rename = $name)] $variant),+
                }

                struct Tagged;

                impl<'de> Visitor<'de> for Tagged {
                    type Value = $enum;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        write!(f, "a table with the key `{}`", $tag)
                    }

                    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<$enum, A::Error> {
                        let tag = map.next_key::<String>()?;
                        if tag.as_deref().map(str::trim_start) != Some($tag) {
                            return Err(A::Error::missing_field($tag));
                        }
                        match map.next_value()? {
                            $(Name::$variant => {
                                serde::Deserialize::deserialize(MapAccessDeserializer::new(map))
                                    .map($enum::$variant)
                            })+
                        }
                    }
                }

                deserializer.deserialize_map(Tagged)
            }
        }
    };
}
pub(crate) use tagged;

/// The tags of all enums.
const TAGS: [&str; 2] = ["format", "representation"];

/// Parses TOML, in which tags may be anywhere in their tables.
pub(crate) fn parse<C: DeserializeOwned>(text: &str) -> Result<C> {
    let parse = || {
        let mut document = DeTable::parse(text)?;
        tags_first(document.get_mut());
        C::deserialize(Deserializer::from(document))
    };
    parse().map_err(|error| anyhow!(toml_mistake(text, &error)))
}

/// Tables are sorted by key, so a space puts the tag before all other keys.
fn tags_first(table: &mut DeTable<'_>) {
    let renamed = std::mem::take(table).into_iter().map(|(mut key, mut value)| {
        if TAGS.contains(&key.get_ref().as_ref()) && value.get_ref().is_str() {
            *key.get_mut() = format!(" {}", key.get_ref()).into();
        }
        tags_first_in(value.get_mut());
        (key, value)
    });
    *table = renamed.collect();
}

fn tags_first_in(value: &mut DeValue<'_>) {
    match value {
        DeValue::Table(table) => tags_first(table),
        DeValue::Array(array) => {
            array.iter_mut().for_each(|value| tags_first_in(value.get_mut()));
        }
        _ => {}
    }
}
