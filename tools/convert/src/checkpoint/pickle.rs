//! Bounds the cost of unpickling without unpickling, and finds the positions of tensors, which
//! pytorch-reader does not expose.
//!
//! pytorch-reader copies an object on every fetch from the memo. It limits what copying may cost,
//! but does not count class names, dict keys, storage keys and tensor shapes: a file of 3 MB that
//! memoizes one of 1 MB and fetches it a million times needs a terabyte. Nor does it bound the
//! expansion of a compressed run of one-byte opcodes. So the opcodes are first run on sizes instead
//! of objects.
//!
//! With each size goes the kind of object, for the few calls with which `torch.save` writes a
//! `state_dict`. These are not nested, so that no recursion is needed.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

/// The memory limit of parsing. A tensor costs some 10 KB here.
const BUDGET: u64 = 256 << 20;

/// The bytes of an object without its text.
const OBJECT: u64 = 128;

/// The position of a tensor's elements.
#[derive(Debug, PartialEq)]
pub(super) struct Location {
    /// The name of its storage.
    pub(super) storage: String,
    /// Elements before its first one.
    pub(super) offset: u64,
    pub(super) shape: Vec<u64>,
    /// Elements from one to the next, in each dimension.
    pub(super) strides: Vec<u64>,
}

/// The positions of tensors, by their keys, joined by dots.
pub(super) type Places = BTreeMap<String, Rc<Location>>;

/// Refuses `bytes` unless it starts with `count` pickles that can be parsed within [`BUDGET`].
/// Returns the positions of the last one's tensors, except those of duplicate keys or in unusual
/// encodings.
pub(super) fn check(bytes: &[u8], count: usize) -> Result<Places, String> {
    let mut machine = Machine {
        rest: bytes,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        cost: 0,
    };
    let mut places = Places::new();
    for _ in 0..count {
        machine
            .run()
            .ok_or("pickle: expected well-formed opcodes up to the end of its object")?;
        if machine.cost > BUDGET {
            return Err(format!("pickle: too complex to parse within {BUDGET} bytes"));
        }
        places = machine.stack.pop().map_or_else(Places::new, |object| object.what.places());
        // Each pickle has its own stack and memo.
        machine.stack.clear();
        machine.marks.clear();
        machine.memo.clear();
    }
    Ok(places)
}

/// A pickle machine whose values are sizes in bytes and kinds of objects.
struct Machine<'a> {
    rest: &'a [u8],
    stack: Vec<Value<'a>>,
    marks: Vec<usize>,
    memo: HashMap<u64, Value<'a>>,
    /// The bytes of all objects pushed or copied so far.
    cost: u64,
}

#[derive(Clone)]
struct Value<'a> {
    size: u64,
    what: What<'a>,
}

/// The kind of an object, nested at most once.
#[derive(Clone)]
enum What<'a> {
    Unknown,
    Number(u64),
    Text(&'a [u8]),
    /// Module and name.
    Class(&'a [u8], &'a [u8]),
    Numbers(Rc<[u64]>),
    Tuple(Rc<[What<'a>]>),
    Storage(&'a [u8]),
    Tensor(Rc<Location>),
    /// Tensors by their keys; `None` for other objects.
    Dict(Rc<Vec<Entry>>),
}

type Entry = (Rc<str>, Option<Rc<Location>>);

impl<'a> What<'a> {
    fn tuple(items: Vec<What<'a>>) -> Self {
        let number = |item: &What<'_>| if let What::Number(n) = item { Some(*n) } else { None };
        if let Some(numbers) = items.iter().map(number).collect() {
            return Self::Numbers(numbers);
        }
        let shallow = |item| if let What::Tuple(_) = item { What::Unknown } else { item };
        Self::Tuple(items.into_iter().map(shallow).collect())
    }

    /// The storage that a persistent id refers to.
    fn persistent(id: &Self) -> Self {
        match id {
            Self::Tuple(id) => match id[..] {
                [Self::Text(b"storage"), Self::Class(..), Self::Text(key), ..] => {
                    Self::Storage(key)
                }
                _ => Self::Unknown,
            },
            _ => Self::Unknown,
        }
    }

    fn call(function: &Self, arguments: &Self) -> Self {
        match (function, arguments) {
            (Self::Class(b"collections", b"OrderedDict"), Self::Numbers(none))
                if none.is_empty() =>
            {
                Self::Dict(Rc::default())
            }
            (Self::Class(b"torch._utils", b"_rebuild_tensor_v2"), Self::Tuple(arguments)) => {
                match &arguments[..] {
                    [
                        Self::Storage(key),
                        Self::Number(offset),
                        Self::Numbers(shape),
                        Self::Numbers(strides),
                        ..,
                    ] => {
                        let Ok(storage) = String::from_utf8(key.to_vec()) else {
                            return Self::Unknown;
                        };
                        let (shape, strides) = (shape.to_vec(), strides.to_vec());
                        Self::Tensor(Rc::new(Location { storage, offset: *offset, shape, strides }))
                    }
                    _ => Self::Unknown,
                }
            }
            _ => Self::Unknown,
        }
    }

    /// The tensors of a dict, except those with duplicate keys.
    fn places(self) -> Places {
        let Self::Dict(entries) = self else { return Places::new() };
        let mut found: BTreeMap<&str, Option<&Rc<Location>>> = BTreeMap::new();
        for (name, place) in &*entries {
            found.entry(name).and_modify(|found| *found = None).or_insert(place.as_ref());
        }
        found
            .into_iter()
            .filter_map(|(name, place)| Some((name.to_owned(), Rc::clone(place?))))
            .collect()
    }
}

impl<'a> Machine<'a> {
    /// Runs to the end of one pickle, or until the budget is spent; `None` if it is malformed.
    fn run(&mut self) -> Option<()> {
        while self.cost <= BUDGET {
            match self.take(1)?[0] {
                b'.' => return Some(()),
                0x80 => drop(self.take(1)?), // PROTO
                0x95 => drop(self.take(8)?), // FRAME

                // Values: constants, text lines, fixed and counted bytes.
                b'N' | 0x88 | 0x89 | b']' | 0x8f => self.push(0, What::Unknown),
                b')' => self.push(0, What::tuple(Vec::new())),
                b'}' => self.push(0, What::Dict(Rc::default())),
                b'I' | b'L' | b'F' | b'V' | b'P' => {
                    let len = self.line()?.len();
                    self.push(len as u64, What::Unknown);
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.push((module.len() + name.len()) as u64, What::Class(module, name));
                }
                b'K' => self.value(1)?,
                b'M' => self.value(2)?,
                b'J' => self.value(4)?,
                b'G' => {
                    self.take(8)?;
                    self.push(0, What::Unknown);
                }
                0x8a => {
                    let len = self.number(1)?;
                    let bytes = self.take(len as usize)?;
                    self.push(len, number(bytes));
                }
                0x8c => self.text(1)?,
                b'X' => self.text(4)?,
                0x8d => self.text(8)?,
                b'U' | b'C' => self.counted(1)?,
                0x8b | b'T' | b'B' => self.counted(4)?,
                0x8e | 0x96 => self.counted(8)?,

                // Containers.
                b'(' => {
                    self.cost = self.cost.saturating_add(OBJECT);
                    self.marks.push(self.stack.len());
                }
                b't' => {
                    let (size, items) = self.pop_to_mark()?;
                    self.push(size, What::tuple(items));
                }
                b'l' | b'd' | 0x91 => {
                    let (size, _) = self.pop_to_mark()?;
                    self.push(size, What::Unknown);
                }
                b'e' | 0x90 => {
                    let (size, _) = self.pop_to_mark()?;
                    self.grow(size, &[])?;
                }
                b'u' => {
                    let (size, items) = self.pop_to_mark()?;
                    self.grow(size, &items)?;
                }
                b'a' => {
                    let (size, _) = self.pop(1)?;
                    self.grow(size, &[])?;
                }
                b's' => {
                    let (size, items) = self.pop(2)?;
                    self.grow(size, &items)?;
                }

                // Calls and tuples: the result is at most as large as the arguments.
                0x85 => self.combine(1, What::tuple)?,
                0x86 => self.combine(2, What::tuple)?,
                0x87 => self.combine(3, What::tuple)?,
                b'Q' => self.combine(1, |items| What::persistent(&items[0]))?,
                b'R' => self.combine(2, |items| What::call(&items[0], &items[1]))?,
                0x93 => self.combine(2, |items| match items[..] {
                    [What::Text(module), What::Text(name)] => What::Class(module, name),
                    _ => What::Unknown,
                })?,
                0x81 => self.combine(2, |_| What::Unknown)?,
                0x92 => self.combine(3, |_| What::Unknown)?,
                // BUILD also refreshes the memo's copy of the object.
                b'b' => {
                    let (built, mut items) = self.pop(2)?;
                    self.push(built, items.swap_remove(0));
                    self.cost = self.cost.saturating_add(built);
                }

                // Stack and memo.
                b'0' if self.marks.last() == Some(&self.stack.len()) => drop(self.marks.pop()),
                b'0' => drop(self.pop(1)?),
                b'1' => drop(self.pop_to_mark()?),
                b'2' => {
                    let Value { size, what } = self.stack.last()?.clone();
                    self.push(size, what);
                }
                b'g' => {
                    let slot = self.index_line()?;
                    self.fetch(slot)?;
                }
                b'h' => {
                    let slot = self.number(1)?;
                    self.fetch(slot)?;
                }
                b'j' => {
                    let slot = self.number(4)?;
                    self.fetch(slot)?;
                }
                b'p' => {
                    let slot = self.index_line()?;
                    self.memoize(slot)?;
                }
                b'q' => {
                    let slot = self.number(1)?;
                    self.memoize(slot)?;
                }
                b'r' => {
                    let slot = self.number(4)?;
                    self.memoize(slot)?;
                }
                0x94 => self.memoize(self.memo.len() as u64)?,
                _ => return None,
            }
        }
        Some(())
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(taken)
    }

    fn line(&mut self) -> Option<&'a [u8]> {
        let len = self.rest.iter().position(|&b| b == b'\n')?;
        let line = self.take(len + 1)?;
        Some(&line[..len])
    }

    fn index_line(&mut self) -> Option<u64> {
        std::str::from_utf8(self.line()?).ok()?.trim_end().parse().ok()
    }

    /// A little-endian number of `width` bytes.
    fn number(&mut self, width: usize) -> Option<u64> {
        self.take(width).map(little_endian)
    }

    fn value(&mut self, width: usize) -> Option<()> {
        let bytes = self.take(width)?;
        // J is signed.
        self.push(
            0,
            if width == 4 {
                number(bytes)
            } else {
                What::Number(little_endian(bytes))
            },
        );
        Some(())
    }

    fn counted(&mut self, width: usize) -> Option<()> {
        let len = self.number(width)?;
        self.take(usize::try_from(len).ok()?)?;
        self.push(len, What::Unknown);
        Some(())
    }

    fn text(&mut self, width: usize) -> Option<()> {
        let len = self.number(width)?;
        let text = self.take(usize::try_from(len).ok()?)?;
        self.push(len, What::Text(text));
        Some(())
    }

    fn push(&mut self, content: u64, what: What<'a>) {
        let size = content.saturating_add(OBJECT);
        self.cost = self.cost.saturating_add(size);
        self.stack.push(Value { size, what });
    }

    fn pop(&mut self, count: usize) -> Option<(u64, Vec<What<'a>>)> {
        let start = self.stack.len().checked_sub(count)?;
        let mut sum = 0_u64;
        let values = self.stack.drain(start..).map(|value| {
            sum = sum.saturating_add(value.size);
            value.what
        });
        let values = values.collect();
        // An open mark above the new top is as malformed as an empty stack.
        (self.marks.last().is_none_or(|&mark| mark <= start)).then_some((sum, values))
    }

    fn pop_to_mark(&mut self) -> Option<(u64, Vec<What<'a>>)> {
        let mark = self.marks.pop()?;
        self.pop(self.stack.len().checked_sub(mark)?)
    }

    fn combine(
        &mut self,
        count: usize,
        into: impl FnOnce(Vec<What<'a>>) -> What<'a>,
    ) -> Option<()> {
        let (content, items) = self.pop(count)?;
        self.push(content, into(items));
        Some(())
    }

    /// Adds to the container on top of the stack; a dict gets alternating keys and values.
    fn grow(&mut self, size: u64, items: &[What<'a>]) -> Option<()> {
        let top = self.stack.last_mut()?;
        top.size = top.size.saturating_add(size);
        let What::Dict(entries) = &mut top.what else { return Some(()) };
        if items.is_empty() {
            return Some(());
        }
        let entries = Rc::make_mut(entries);
        for pair in items.as_chunks::<2>().0 {
            let (What::Text(key), value) = (&pair[0], &pair[1]) else { continue };
            let Ok(key) = str::from_utf8(key) else { continue };
            match value {
                What::Tensor(place) => entries.push((key.into(), Some(Rc::clone(place)))),
                What::Dict(inner) => {
                    for (name, place) in &**inner {
                        let name = format!("{key}.{name}");
                        // Deep dicts copy names many times.
                        self.cost = self.cost.saturating_add(name.len() as u64 + OBJECT);
                        entries.push((name.into(), place.clone()));
                    }
                }
                _ => entries.push((key.into(), None)),
            }
        }
        Some(())
    }

    fn fetch(&mut self, slot: u64) -> Option<()> {
        let Value { size, what } = self.memo.get(&slot)?.clone();
        self.push(size, what);
        Some(())
    }

    fn memoize(&mut self, slot: u64) -> Option<()> {
        let value = self.stack.last()?.clone();
        let size = value.size;
        self.memo.insert(slot, value);
        self.cost = self.cost.saturating_add(size).saturating_add(OBJECT);
        Some(())
    }
}

fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b))
}

/// A signed number in at most eight bytes, if it is none below zero.
fn number<'a>(bytes: &[u8]) -> What<'a> {
    match bytes.last() {
        None => What::Number(0),
        Some(&last) if last < 0x80 && bytes.len() <= 8 => What::Number(little_endian(bytes)),
        Some(_) => What::Unknown,
    }
}
