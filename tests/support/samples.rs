//! Values of a type, made up: enough of them that every variant of every enum inside it is there at least once.
//!
//! ```text
//!   T::deserialize ──asks──▶ Maker ── a number, a name, the next variant that has not been there ──▶ value
//!        again and again, until nothing new comes; and once more with every option empty
//! ```
//!
//! Always true: the same type gives the same values; a variant that is added to it later gives more.
//! It must never know which type it is: a type that asks what is there, instead of saying what it wants, has no samples.

use std::collections::BTreeMap;

use serde::de::value::Error;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Error as _, IntoDeserializer, MapAccess,
    SeqAccess, VariantAccess, Visitor,
};

/// What a text may have to be: a number or a name, or the id of a runner.
const TEXTS: [&str; 2] = ["1", "0123456789abcdef0123456789abcdef"];
/// Values of one type at most: more would mean that something new comes for ever.
const SAMPLES_MAX: usize = 10_000;

/// A variant of an enum: the enum's name, its variants' names, which.
type Variant = (&'static str, &'static [&'static str], usize);

/// The samples of a type, written in a format that says itself whether people read it.
pub(crate) fn samples<T: DeserializeOwned>(human_readable: bool) -> Vec<T> {
    let mut all = Vec::new();
    for full in [true, false] {
        let mut seen = BTreeMap::new();
        loop {
            let known = seen.len();
            all.push(one(&mut seen, full, human_readable));
            assert!(all.len() < SAMPLES_MAX, "something new for ever");
            if seen.len() == known {
                break;
            }
        }
    }
    all
}

/// One value. A text that does not do is another the next time.
fn one<T: DeserializeOwned>(seen: &mut BTreeMap<Variant, bool>, full: bool, human_readable: bool) -> T {
    let mut choices = Vec::new();
    loop {
        let mut tried = seen.clone();
        let mut maker = Maker { seen: &mut tried, full, human_readable, choices, texts: 0, number: 0 };
        let made = T::deserialize(&mut maker);
        (choices, maker.texts) = (std::mem::take(&mut maker.choices), maker.texts);
        let texts = maker.texts;
        match made {
            Ok(value) => {
                *seen = tried;
                return value;
            }
            Err(error) => {
                choices.truncate(texts);
                let last = choices.last_mut().unwrap_or_else(|| panic!("{error}"));
                *last += 1;
                assert!(*last < TEXTS.len(), "{error}");
            }
        }
    }
}

struct Maker<'a> {
    /// The variants that have been there, and whether something new was inside when they were there last.
    seen: &'a mut BTreeMap<Variant, bool>,
    /// Options have a value, and collections something in them.
    full: bool,
    human_readable: bool,
    /// Which text each of those asked for is.
    choices: Vec<usize>,
    texts: usize,
    number: u8,
}

impl Maker<'_> {
    fn number(&mut self) -> u8 {
        self.number = self.number % 99 + 1;
        self.number
    }

    fn text(&mut self) -> &'static str {
        if self.texts == self.choices.len() {
            self.choices.push(0);
        }
        self.texts += 1;
        self.choices.get(self.texts - 1).and_then(|choice| TEXTS.get(*choice)).copied().unwrap_or_default()
    }

    /// One that has not been there; else one that had something new inside; else the first.
    fn variant(&self, name: &'static str, variants: &'static [&'static str]) -> usize {
        let state = |which: &usize| self.seen.get(&(name, variants, *which));
        let mut all = 0..variants.len();
        let new = all.clone().find(|which| state(which).is_none());
        new.or_else(|| all.find(|which| state(which) == Some(&true))).unwrap_or(0)
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident $type:ty;)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            visitor.$visit(<$type>::from(self.number()))
        })*
    };
}

macro_rules! never {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
            Err(Error::custom("it asks what is there, and there is nothing"))
        })*
    };
}

impl<'de> Deserializer<'de> for &mut Maker<'_> {
    type Error = Error;

    fn is_human_readable(&self) -> bool {
        self.human_readable
    }

    numbers! {
        deserialize_u8 visit_u8 u8; deserialize_u16 visit_u16 u16; deserialize_u32 visit_u32 u32;
        deserialize_u64 visit_u64 u64; deserialize_u128 visit_u128 u128; deserialize_i16 visit_i16 i16;
        deserialize_i32 visit_i32 i32; deserialize_i64 visit_i64 i64; deserialize_f32 visit_f32 f32;
        deserialize_f64 visit_f64 f64;
    }

    never! { deserialize_any deserialize_identifier deserialize_ignored_any }

    fn deserialize_i8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_i8(1)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let odd = self.number() % 2 == 1;
        visitor.visit_bool(odd)
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_char('a')
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_str(self.text())
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_str(self.text())
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_byte_buf(visitor)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let number = self.number();
        visitor.visit_byte_buf(vec![number; 3])
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.full { visitor.visit_some(self) } else { visitor.visit_none() }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let left = usize::from(self.full);
        visitor.visit_seq(Parts { maker: self, left })
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, left: usize, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(Parts { maker: self, left })
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        left: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_seq(Parts { maker: self, left })
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let left = usize::from(self.full);
        visitor.visit_map(Parts { maker: self, left })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_seq(Parts { maker: self, left: fields.len() })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let which = self.variant(name, variants);
        self.seen.insert((name, variants, which), false);
        let known = self.seen.len();
        let made = visitor.visit_enum(Chosen { maker: &mut *self, which })?;
        let new = self.seen.len() > known;
        self.seen.insert((name, variants, which), new);
        Ok(made)
    }
}

struct Parts<'a, 'b> {
    maker: &'a mut Maker<'b>,
    left: usize,
}

impl<'de> SeqAccess<'de> for Parts<'_, '_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        seed.deserialize(&mut *self.maker).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.left)
    }
}

impl<'de> MapAccess<'de> for Parts<'_, '_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        self.next_element_seed(seed)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        seed.deserialize(&mut *self.maker)
    }
}

struct Chosen<'a, 'b> {
    maker: &'a mut Maker<'b>,
    which: usize,
}

impl<'de> EnumAccess<'de> for Chosen<'_, '_> {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Error> {
        let which = u32::try_from(self.which).map_err(Error::custom)?;
        let variant = seed.deserialize(IntoDeserializer::<Error>::into_deserializer(which))?;
        Ok((variant, self))
    }
}

impl<'de> VariantAccess<'de> for Chosen<'_, '_> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Error> {
        seed.deserialize(self.maker)
    }

    fn tuple_variant<V: Visitor<'de>>(self, left: usize, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(Parts { maker: self.maker, left })
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_seq(Parts { maker: self.maker, left: fields.len() })
    }
}
