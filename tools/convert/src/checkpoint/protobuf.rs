//! The fields of protobuf messages, of which ONNX and other programs make their files.

use std::ops::Range;

/// The value of a field.
pub(super) enum Value {
    Number(u64),
    /// The place of a text, a message, a packed list, or an element of fixed size.
    Bytes(Range<usize>),
}

/// A field that is malformed or ends beyond its message: its number, if that can be read.
pub(super) struct Malformed(pub(super) Option<u64>);

/// The fields of a message, each with its number. An error is the last item.
pub(super) struct Fields<'a> {
    /// Up to the end of the message.
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    /// Of the message at `range` in `bytes`.
    pub(super) fn new(bytes: &'a [u8], range: Range<usize>) -> Self {
        Self { bytes: bytes.get(..range.end).unwrap_or_default(), at: range.start }
    }

    fn read(&mut self) -> Result<(u64, Value), Malformed> {
        let tag = self.number().ok_or(Malformed(None))?;
        let number = tag >> 3;
        if number == 0 {
            return Err(Malformed(None));
        }
        let value = match tag & 7 {
            0 => self.number().map(Value::Number),
            1 => self.take(8),
            2 => self.number().and_then(|len| self.take(len)),
            5 => self.take(4),
            _ => None,
        };
        Ok((number, value.ok_or(Malformed(Some(number)))?))
    }

    fn number(&mut self) -> Option<u64> {
        let (number, len) = varint(self.bytes.get(self.at..)?)?;
        self.at += len;
        Some(number)
    }

    fn take(&mut self, len: u64) -> Option<Value> {
        let end = self.at.checked_add(usize::try_from(len).ok()?)?;
        let range = self.at..end;
        (end <= self.bytes.len()).then(|| {
            self.at = end;
            Value::Bytes(range)
        })
    }
}

impl Iterator for Fields<'_> {
    type Item = Result<(u64, Value), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.bytes.len() {
            return None;
        }
        let field = self.read();
        if field.is_err() {
            self.at = self.bytes.len();
        }
        Some(field)
    }
}

/// The number that `bytes` starts with, seven bits a byte, and its length.
fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut number = 0;
    for (at, &byte) in bytes.iter().take(10).enumerate() {
        number |= u64::from(byte & 0x7f) << (7 * at);
        if byte < 0x80 {
            // The tenth byte has one bit.
            return (at < 9 || byte < 2).then_some((number, at + 1));
        }
    }
    None
}

/// The numbers of a packed list; `None` is one that is malformed.
pub(super) fn packed(mut bytes: &[u8]) -> impl Iterator<Item = Option<u64>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let found = varint(bytes);
        bytes = found.map_or(&[], |(_, len)| &bytes[len..]);
        Some(found.map(|(number, _)| number))
    })
}
