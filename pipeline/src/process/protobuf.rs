//! Protobuf messages inside serde ones, as their encoded bytes.

use std::{fmt, marker::PhantomData};

use prost::Message;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, Visitor},
};

pub(crate) fn serialize<M: Message, S: Serializer>(
    message: &M,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_bytes(&message.encode_to_vec())
}

pub(crate) fn deserialize<'de, M: Message + Default, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<M, D::Error> {
    let visitor = MessageVisitor(PhantomData);
    deserializer.deserialize_bytes(visitor).map(|(_, it)| it)
}

/// A message that is rarely looked at, kept in a fraction of its size in memory.
#[derive(Debug, Clone)]
pub(crate) struct Encoded<M> {
    bytes: Box<[u8]>,
    message: PhantomData<M>,
}

/// The bytes of a default message: none.
impl<M> Default for Encoded<M> {
    fn default() -> Self {
        Self {
            bytes: Box::default(),
            message: PhantomData,
        }
    }
}

impl<M: Message + Default> Encoded<M> {
    pub(crate) fn new(message: &M) -> Self {
        Self {
            bytes: message.encode_to_vec().into(),
            message: PhantomData,
        }
    }

    pub(crate) fn decode(&self) -> M {
        M::decode(&*self.bytes).expect("bytes were encoded or checked when they were read")
    }
}

impl<M> Serialize for Encoded<M> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.bytes)
    }
}

impl<'de, M: Message + Default> Deserialize<'de> for Encoded<M> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let visitor = MessageVisitor::<M>(PhantomData);
        let (bytes, _) = deserializer.deserialize_bytes(visitor)?;
        Ok(Self {
            bytes,
            message: PhantomData,
        })
    }
}

struct MessageVisitor<M>(PhantomData<M>);

impl<M: Message + Default> Visitor<'_> for MessageVisitor<M> {
    type Value = (Box<[u8]>, M);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an encoded message")
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
        let message = M::decode(bytes).map_err(E::custom)?;
        Ok((bytes.into(), message))
    }
}
