//! Pickles of torch checkpoints, read without running anything of them.
//!
//! A pickle is a program for a stack machine. Here its calls make plain records: a tensor where the
//! function is one that rebuilds tensors, else an object with the items, entries and attributes
//! that the pickle gives it. So what a file holds beside its tensors does not matter.
//!
//! All records lie in one arena and refer to each other by their positions. Copies cost nothing,
//! and neither nesting nor cycles can overflow the stack.

use std::collections::HashMap;
use std::sync::Arc;

use super::ElementType;

/// The memory limit of reading a pickle, in addition to [`PER_BYTE`].
const BUDGET: u64 = 64 << 20;

/// The memory per byte of the pickle: large vocabularies beside the tensors take most of it.
const PER_BYTE: u64 = 12;

/// The memory of a record, a value in a record, and an entry of the memo.
const RECORD: u64 = size_of::<Record<'_>>() as u64;
const VALUE: u64 = size_of::<Value<'_>>() as u64;
const MEMO: u64 = 2 * VALUE;

/// The memory of all tensors' names and descriptions: a name is the path through nested dicts, so a
/// small pickle can spell many and very long ones.
const MAX_NAMES: usize = 64 << 20;

/// The memory of a tensor's description without its name.
const NAMED: usize = 512;

/// Values visited in search of tensors: dicts that refer to each other have many more paths.
const MAX_VISITS: usize = 16 << 20;

/// torch has no tensors of more dimensions.
const MAX_DIMENSIONS: usize = 64;

/// Numbers are kept in lists of so few items: offsets and sizes, but not histories.
const FEW_NUMBERS: usize = 64;

/// What to do with a part of a tensor.
const PART: &str = "the file has only a part of it, as one of several processes: save the whole \
                    tensor (`full_state_dict=True`), or give the directory that \
                    torch.distributed.checkpoint wrote";

/// The classes of tensors that several processes share; each has a part.
const WRAPPERS: [&str; 3] = ["DTensor", "LocalShardsWrapper", "ShardedTensor"];

/// Deeper dicts and lists are not searched for tensors.
const MAX_DEPTH: usize = 200;

/// The place of a tensor's elements.
#[derive(Debug)]
pub(super) struct Location {
    /// The name of its storage.
    pub(super) storage: String,
    /// The type of its elements, or the name of one that cannot be read.
    pub(super) element_type: Result<ElementType, String>,
    /// Elements of the storage before its first one.
    pub(super) offset: u64,
    pub(super) shape: Vec<u64>,
    /// Elements of the storage from one to the next, in each dimension.
    pub(super) strides: Vec<u64>,
    /// Whether the elements are those of the storage with the opposite sign.
    pub(super) negated: bool,
}

/// A tensor by its name, which is its path of keys, joined by dots.
pub(super) struct Named {
    pub(super) name: String,
    /// Its place, or what it is instead of a plain tensor.
    pub(super) place: Result<Place, String>,
}

/// Where a tensor is.
pub(super) enum Place {
    Whole(Arc<Location>),
    Shards(Arc<Shards>),
}

/// A tensor in parts, which have as many elements as the whole.
pub(super) struct Shards {
    pub(super) shape: Vec<u64>,
    /// The parts, each with the place of its first element in each dimension of the whole.
    pub(super) parts: Vec<(Arc<Location>, Vec<u64>)>,
}

/// A tensor of `torch.distributed.checkpoint`.
pub(super) struct DistributedTensor<'a> {
    pub(super) name: &'a str,
    pub(super) shape: Vec<u64>,
    pub(super) chunks: Vec<DistributedChunk<'a>>,
}

/// A part of such a tensor: `sizes` elements from `offsets` on in each dimension.
pub(super) struct DistributedChunk<'a> {
    pub(super) offsets: Vec<u64>,
    pub(super) sizes: Vec<u64>,
    /// Its file, and its first byte and its bytes there, if the metadata say it.
    pub(super) place: Option<(&'a str, u64, u64)>,
}

/// The tensors of a pickle.
#[derive(Default)]
pub(super) struct Tensors {
    /// In the order of the file. A lone tensor has an empty name.
    pub(super) named: Vec<Named>,
    /// The prefixes of those in a dict that has `param_groups`, as `Optimizer.state_dict()` does.
    pub(super) optimizers: Vec<String>,
}

/// A pickle that was read.
pub(super) struct Pickle<'a> {
    machine: Machine<'a>,
    root: Value<'a>,
    /// The bytes after it.
    pub(super) rest: &'a [u8],
}

#[derive(Clone, Copy)]
enum Value<'a> {
    /// No tensor is in it, and nothing depends on it: `None`, a float, bytes.
    Other,
    Bool(bool),
    Number(i64),
    Text(&'a str),
    /// The position of a record.
    Record(u32),
}

enum Record<'a> {
    Tuple(Vec<Value<'a>>),
    /// A class or function.
    Global(&'a str, &'a str),
    /// A list, dict or set, or an object of any class.
    Object(Box<Object<'a>>),
    Storage {
        class: &'a str,
        key: &'a str,
    },
    Tensor(Arc<Location>),
    Shards(Arc<Shards>),
    /// A tensor that is sparse, quantised or otherwise not plain, by the function that rebuilds it.
    OtherTensor(&'a str),
    /// A part of a tensor; other processes have the rest.
    Part,
    /// A tensor whose storage, shape or strides are none.
    Malformed,
}

#[derive(Default)]
struct Object<'a> {
    /// Its items but for those of no interest, with their indices: a history may have millions of
    /// numbers.
    items: Vec<(usize, Value<'a>)>,
    num_items: usize,
    entries: Vec<(Value<'a>, Value<'a>)>,
    /// Its attributes, if it is of a class.
    state: Option<Value<'a>>,
}

/// The storage classes of torch: the type of their elements, or its size and name.
fn element_type(class: &str) -> (Option<u64>, Result<ElementType, String>) {
    use ElementType as T;
    let found = match class {
        "DoubleStorage" | "float64" | "double" => T::F64,
        "FloatStorage" | "float32" | "float" => T::F32,
        "HalfStorage" | "float16" | "half" => T::F16,
        "BFloat16Storage" | "bfloat16" => T::Bf16,
        "LongStorage" | "int64" | "long" => T::I64,
        "IntStorage" | "int32" | "int" => T::I32,
        "ShortStorage" | "int16" | "short" => T::I16,
        "CharStorage" | "int8" => T::I8,
        "ByteStorage" | "uint8" => T::U8,
        "uint16" => T::U16,
        "uint32" => T::U32,
        "uint64" => T::U64,
        "BoolStorage" | "bool" => T::Bool,
        _ => {
            let size = match class {
                "QInt8Storage" | "QUInt8Storage" | "QUInt4x2Storage" | "QUInt2x4Storage"
                | "UntypedStorage" => Some(1),
                "QInt32Storage" => Some(4),
                "ComplexFloatStorage" => Some(8),
                "ComplexDoubleStorage" => Some(16),
                _ => None,
            };
            return (size, Err(class.strip_suffix("Storage").unwrap_or(class).to_owned()));
        }
    };
    (Some(found.size()), Ok(found))
}

/// Reads the pickle that `bytes` starts with.
pub(super) fn read(bytes: &[u8]) -> Result<Pickle<'_>, String> {
    let budget = (bytes.len() as u64).saturating_mul(PER_BYTE).saturating_add(BUDGET);
    let mut machine = Machine {
        rest: bytes,
        records: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        left: budget,
        exhausted: false,
    };
    let root = machine.run();
    if machine.exhausted {
        return Err(format!("pickle: too complex to read within {budget} bytes"));
    }
    let root = root.ok_or("pickle: expected well-formed opcodes up to the end of its object")?;
    let rest = machine.rest;
    Ok(Pickle { machine, root, rest })
}

impl<'a> Pickle<'a> {
    pub(super) fn tensors(&self) -> Result<Tensors, String> {
        let mut search = Search {
            machine: &self.machine,
            found: Tensors::default(),
            barren: vec![false; self.machine.records.len()],
            path: Vec::new(),
            visits: 0,
            names: 0,
        };
        search.visit(self.root, &mut String::new())?;
        Ok(search.found)
    }

    /// The tensors that the metadata of `torch.distributed.checkpoint` describe; `None` if these
    /// are none.
    pub(super) fn distributed(&self) -> Option<Vec<DistributedTensor<'a>>> {
        let machine = &self.machine;
        let entries = |name| match machine.record(machine.attribute(self.root, name)?)? {
            Record::Object(dict) => Some(&dict.entries),
            _ => None,
        };
        let number = |object, name| match machine.attribute(object, name)? {
            Value::Number(number) => u64::try_from(number).ok(),
            _ => None,
        };
        let mut places: HashMap<(&str, Vec<u64>), (&str, u64, u64)> = HashMap::new();
        for &(index, place) in entries("storage_data")? {
            let (Some(Value::Text(name)), Some(Value::Text(file))) =
                (machine.attribute(index, "fqn"), machine.attribute(place, "relative_path"))
            else {
                continue;
            };
            let offsets = machine.attribute(index, "offset").and_then(|list| machine.numbers(list));
            let (start, len) = (number(place, "offset")?, number(place, "length")?);
            places.insert((name, offsets.unwrap_or_default()), (file, start, len));
        }
        let mut found = Vec::new();
        for &(name, tensor) in entries("state_dict_metadata")? {
            let Value::Text(name) = name else { continue };
            // What is no tensor has no size.
            let Some(size) = machine.attribute(tensor, "size") else { continue };
            let shape = machine.numbers(size)?;
            let chunks = match machine.record(machine.attribute(tensor, "chunks")?)? {
                Record::Object(chunks) => &chunks.items,
                _ => return None,
            };
            let chunk = |&(_, chunk): &(usize, Value<'a>)| {
                let numbers = |name| machine.numbers(machine.attribute(chunk, name)?);
                let (offsets, sizes) = (numbers("offsets")?, numbers("sizes")?);
                let place = places.get(&(name, offsets.clone())).copied();
                Some(DistributedChunk { offsets, sizes, place })
            };
            let chunks = chunks.iter().map(chunk).collect::<Option<Vec<_>>>()?;
            found.push(DistributedTensor { name, shape, chunks });
        }
        Some(found)
    }

    /// The storages by name, with the bytes of an element; `None` for an unknown type.
    pub(super) fn storages(&self) -> HashMap<&'a str, Option<u64>> {
        let storage = |record: &Record<'a>| match *record {
            Record::Storage { class, key } => Some((key, element_type(class).0)),
            _ => None,
        };
        self.machine.records.iter().filter_map(storage).collect()
    }

    /// The text items of a list.
    pub(super) fn texts(&self) -> Option<Vec<&'a str>> {
        let items = match self.machine.record(self.root)? {
            Record::Object(object) => &object.items,
            _ => return None,
        };
        let text = |item: &(usize, Value<'a>)| match item.1 {
            Value::Text(text) => Some(text),
            _ => None,
        };
        items.iter().map(text).collect()
    }

    /// The truth of an entry of a dict.
    pub(super) fn flag(&self, name: &str) -> Option<bool> {
        self.machine.flag(self.root, name)
    }
}

struct Machine<'a> {
    rest: &'a [u8],
    records: Vec<Record<'a>>,
    stack: Vec<Value<'a>>,
    marks: Vec<usize>,
    memo: HashMap<u64, Value<'a>>,
    /// The memory that is left.
    left: u64,
    exhausted: bool,
}

impl<'a> Machine<'a> {
    /// Runs to the end of the pickle, and returns its object; `None` if it is malformed.
    fn run(&mut self) -> Option<Value<'a>> {
        loop {
            match self.take(1)?[0] {
                b'.' => return self.stack.pop(),
                0x80 => drop(self.take(1)?), // PROTO
                0x95 => drop(self.take(8)?), // FRAME

                // Constants, text lines, fixed and counted bytes.
                b'N' => self.push(Value::Other)?,
                0x88 => self.push(Value::Bool(true))?,
                0x89 => self.push(Value::Bool(false))?,
                b'I' => {
                    let value = match self.line()? {
                        "01" => Value::Bool(true),
                        "00" => Value::Bool(false),
                        text => text.trim().parse().map_or(Value::Other, Value::Number),
                    };
                    self.push(value)?;
                }
                b'L' => {
                    let text = self.line()?.trim();
                    let text = text.strip_suffix('L').unwrap_or(text);
                    self.push(text.parse().map_or(Value::Other, Value::Number))?;
                }
                b'F' | b'P' => {
                    self.line()?;
                    self.push(Value::Other)?;
                }
                b'V' => {
                    let text = self.line()?;
                    self.push(Value::Text(text))?;
                }
                b'S' => {
                    let text = self.line()?.trim();
                    let quote =
                        |text: &'a str, quote: char| text.strip_prefix(quote)?.strip_suffix(quote);
                    let text = quote(text, '\'').or_else(|| quote(text, '"'));
                    self.push(text.map_or(Value::Other, Value::Text))?;
                }
                b'K' => self.number(1)?,
                b'M' => self.number(2)?,
                b'J' => {
                    let bytes = *self.take(4)?.first_chunk()?;
                    self.push(Value::Number(i32::from_le_bytes(bytes).into()))?;
                }
                b'G' => {
                    self.take(8)?;
                    self.push(Value::Other)?;
                }
                0x8a => {
                    let len = self.len(1)?;
                    let bytes = self.take(len)?;
                    self.push(signed(bytes))?;
                }
                0x8b => {
                    let len = self.len(4)?;
                    let bytes = self.take(len)?;
                    self.push(signed(bytes))?;
                }
                0x8c | b'U' => self.text(1)?,
                b'X' | b'T' => self.text(4)?,
                0x8d => self.text(8)?,
                b'C' => self.bytes(1)?,
                b'B' => self.bytes(4)?,
                0x8e | 0x96 => self.bytes(8)?,
                // Buffers and registered extensions are outside of the file.
                0x97 => self.push(Value::Other)?,
                0x98 => {}
                code @ 0x82..=0x84 => {
                    self.take([1, 2, 4][usize::from(code - 0x82)])?;
                    self.push(Value::Other)?;
                }

                // Containers.
                b'(' => {
                    self.pay(VALUE)?;
                    self.marks.push(self.stack.len());
                }
                b')' => self.tuple(Vec::new())?,
                b']' | b'}' | 0x8f => self.object(Object::default())?,
                b't' => {
                    let items = self.pop_to_mark()?;
                    self.tuple(items)?;
                }
                count @ 0x85..=0x87 => {
                    let mut items = Vec::new();
                    for _ in 0x84..count {
                        items.insert(0, self.pop()?);
                    }
                    self.tuple(items)?;
                }
                b'l' | 0x91 => {
                    let items = self.pop_to_mark()?;
                    self.object(Object::default())?;
                    self.extend(&items, &[])?;
                }
                b'd' => {
                    let entries = pairs(&self.pop_to_mark()?);
                    self.object(Object { entries, ..Object::default() })?;
                }
                b'e' | 0x90 => {
                    let items = self.pop_to_mark()?;
                    self.extend(&items, &[])?;
                }
                b'a' => {
                    let item = self.pop()?;
                    self.extend(&[item], &[])?;
                }
                b'u' => {
                    let entries = pairs(&self.pop_to_mark()?);
                    self.extend(&[], &entries)?;
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.extend(&[], &[(key, value)])?;
                }

                // Classes, functions and calls.
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.add(Record::Global(module, name), 0)?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    match (module, name) {
                        (Value::Text(module), Value::Text(name)) => {
                            self.add(Record::Global(module, name), 0)?;
                        }
                        _ => self.push(Value::Other)?,
                    }
                }
                b'Q' => {
                    let id = self.pop()?;
                    self.persistent(id)?;
                }
                b'R' | 0x81 => {
                    let (arguments, function) = (self.pop()?, self.pop()?);
                    self.call(function, arguments)?;
                }
                0x92 => {
                    let (_, arguments, class) = (self.pop()?, self.pop()?, self.pop()?);
                    self.call(class, arguments)?;
                }
                b'i' => {
                    self.line()?;
                    self.line()?;
                    self.pop_to_mark()?;
                    self.object(Object::default())?;
                }
                b'o' => {
                    self.pop_to_mark()?;
                    self.object(Object::default())?;
                }
                b'b' => {
                    let state = self.pop()?;
                    if let Some(object) = self.top_object() {
                        object.state = Some(state);
                    }
                }

                // Stack and memo.
                b'0' if self.marks.last() == Some(&self.stack.len()) => drop(self.marks.pop()),
                b'0' => drop(self.pop()?),
                b'1' => drop(self.pop_to_mark()?),
                b'2' => {
                    let top = *self.stack.last()?;
                    self.push(top)?;
                }
                b'g' => {
                    let slot = self.line()?.trim().parse().ok()?;
                    self.fetch(slot)?;
                }
                b'h' => {
                    let slot = self.len(1)?;
                    self.fetch(slot as u64)?;
                }
                b'j' => {
                    let slot = self.len(4)?;
                    self.fetch(slot as u64)?;
                }
                b'p' => {
                    let slot = self.line()?.trim().parse().ok()?;
                    self.memoize(slot)?;
                }
                b'q' => {
                    let slot = self.len(1)?;
                    self.memoize(slot as u64)?;
                }
                b'r' => {
                    let slot = self.len(4)?;
                    self.memoize(slot as u64)?;
                }
                0x94 => self.memoize(self.memo.len() as u64)?,
                _ => return None,
            }
        }
    }

    /// Takes so much off the memory that is left.
    fn pay(&mut self, bytes: u64) -> Option<()> {
        match self.left.checked_sub(bytes) {
            Some(left) => self.left = left,
            None => {
                self.exhausted = true;
                return None;
            }
        }
        Some(())
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(taken)
    }

    fn line(&mut self) -> Option<&'a str> {
        let len = self.rest.iter().position(|&b| b == b'\n')?;
        let line = self.take(len.checked_add(1)?)?;
        str::from_utf8(&line[..len]).ok()
    }

    /// A length or position of `width` bytes.
    fn len(&mut self, width: usize) -> Option<usize> {
        let bytes = self.take(width)?;
        usize::try_from(bytes.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b))).ok()
    }

    fn number(&mut self, width: usize) -> Option<()> {
        let number = self.len(width)?;
        self.push(Value::Number(i64::try_from(number).ok()?))
    }

    fn bytes(&mut self, width: usize) -> Option<()> {
        let len = self.len(width)?;
        self.take(len)?;
        self.push(Value::Other)
    }

    /// Text; that of Python 2 need not be UTF-8.
    fn text(&mut self, width: usize) -> Option<()> {
        let len = self.len(width)?;
        let text = self.take(len)?;
        self.push(str::from_utf8(text).map_or(Value::Other, Value::Text))
    }

    fn push(&mut self, value: Value<'a>) -> Option<()> {
        self.pay(VALUE)?;
        self.stack.push(value);
        Some(())
    }

    fn pop(&mut self) -> Option<Value<'a>> {
        // What is below an open mark belongs to another container.
        let open = self.marks.last().is_some_and(|&mark| mark >= self.stack.len());
        let value = if open { None } else { self.stack.pop() };
        self.left = self.left.saturating_add(if value.is_some() { VALUE } else { 0 });
        value
    }

    fn pop_to_mark(&mut self) -> Option<Vec<Value<'a>>> {
        let mark = self.marks.pop()?;
        let values = (mark <= self.stack.len()).then(|| self.stack.split_off(mark))?;
        self.left = self.left.saturating_add((values.len() as u64).saturating_mul(VALUE));
        Some(values)
    }

    /// Adds a record of `values` values, and pushes it.
    fn add(&mut self, record: Record<'a>, values: usize) -> Option<()> {
        self.pay((values as u64).saturating_mul(VALUE).saturating_add(2 * RECORD))?;
        let position = u32::try_from(self.records.len()).ok()?;
        self.records.push(record);
        self.push(Value::Record(position))
    }

    fn tuple(&mut self, items: Vec<Value<'a>>) -> Option<()> {
        let len = items.len();
        self.add(Record::Tuple(items), len)
    }

    fn object(&mut self, object: Object<'a>) -> Option<()> {
        let len = 2 * object.entries.len();
        self.add(Record::Object(Box::new(object)), len)
    }

    fn record(&self, value: Value<'a>) -> Option<&Record<'a>> {
        match value {
            Value::Record(position) => self.records.get(position as usize),
            _ => None,
        }
    }

    /// The items of a tuple.
    fn items(&self, value: Value<'a>) -> Option<&[Value<'a>]> {
        match self.record(value)? {
            Record::Tuple(items) => Some(items),
            _ => None,
        }
    }

    fn top_object(&mut self) -> Option<&mut Object<'a>> {
        let Value::Record(top) = *self.stack.last()? else { return None };
        match self.records.get_mut(top as usize)? {
            Record::Object(object) => Some(object),
            _ => None,
        }
    }

    /// Adds to the container on top of the stack.
    fn extend(&mut self, items: &[Value<'a>], entries: &[(Value<'a>, Value<'a>)]) -> Option<()> {
        let before = self.top_object().map_or(0, |object| object.num_items);
        let is_short = before.saturating_add(items.len()) <= FEW_NUMBERS;
        let matters = |item: &Value<'_>| match item {
            Value::Record(_) | Value::Text(_) => true,
            Value::Number(_) => is_short,
            Value::Other | Value::Bool(_) => false,
        };
        let kept = items.iter().filter(|item| matters(item)).count() + entries.len();
        self.pay((kept as u64).saturating_mul(4 * VALUE))?;
        if self.stack.is_empty() {
            return None;
        }
        if let Some(object) = self.top_object() {
            let indexed = (object.num_items..).zip(items.iter().copied());
            object.items.extend(indexed.filter(|(_, item)| matters(item)));
            object.num_items = object.num_items.saturating_add(items.len());
            object.entries.extend_from_slice(entries);
        }
        Some(())
    }

    fn fetch(&mut self, slot: u64) -> Option<()> {
        let value = *self.memo.get(&slot)?;
        self.push(value)
    }

    fn memoize(&mut self, slot: u64) -> Option<()> {
        self.pay(MEMO)?;
        let value = *self.stack.last()?;
        self.memo.insert(slot, value);
        Some(())
    }

    /// Pushes the storage that a persistent id refers to: `("storage", class, key, location, ...)`.
    fn persistent(&mut self, id: Value<'a>) -> Option<()> {
        let storage = match self.items(id) {
            Some(&[Value::Text("storage"), class, Value::Text(key), ..]) => {
                match self.record(class) {
                    Some(Record::Global(_, class)) => Some(Record::Storage { class, key }),
                    _ => None,
                }
            }
            _ => None,
        };
        match storage {
            Some(storage) => self.add(storage, 0),
            None => self.push(Value::Other),
        }
    }

    /// Pushes what a call makes.
    fn call(&mut self, mut function: Value<'a>, mut arguments: Value<'a>) -> Option<()> {
        loop {
            let (module, name) = match self.record(function) {
                Some(Record::Global(module, name)) => (*module, *name),
                _ => return self.object(Object::default()),
            };
            let given = self.items(arguments).unwrap_or_default();
            let first = given.first().copied();
            match (module, name) {
                (
                    "torch._utils",
                    "_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_tensor_v3",
                ) => {
                    return match self.tensor(given, name) {
                        Some(location) => {
                            let len = location.storage.len() / VALUE as usize;
                            let len = len + location.shape.len() + 8;
                            self.add(Record::Tensor(Arc::new(location)), len)
                        }
                        None => self.add(Record::Malformed, 0),
                    };
                }
                ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state")
                | ("torch", "Size") => return self.push(first.unwrap_or(Value::Other)),
                ("torch._tensor", "_rebuild_from_type_v2") => {
                    // The function, the type, the arguments, the state. A call that is its own
                    // argument cannot be written, since tuples are complete when they are made.
                    let &[inner, class, of_inner, ref rest @ ..] = given else {
                        return self.push(Value::Other);
                    };
                    let global = |value| match self.record(value) {
                        Some(Record::Global(_, name)) => *name,
                        _ => "",
                    };
                    let class = global(class);
                    if global(inner) == "_rebuild_wrapper_subclass" && WRAPPERS.contains(&class) {
                        let state = rest.first().copied().unwrap_or(Value::Other);
                        let record =
                            self.distributed(class, of_inner, state).unwrap_or(Record::Part);
                        let parts = match &record {
                            Record::Shards(shards) => shards.parts.len(),
                            _ => 0,
                        };
                        return self.add(record, parts * (MAX_DIMENSIONS + 4));
                    }
                    (function, arguments) = (inner, of_inner);
                    self.pay(VALUE)?;
                }
                _ if module.starts_with("torch") && name.starts_with("_rebuild") => {
                    return self.add(Record::OtherTensor(name), 0);
                }
                // Written by Python 2 with its entries as a list of pairs.
                ("collections", "OrderedDict") | (_, "dict") => {
                    let pairs = match first.and_then(|list| self.record(list)) {
                        Some(Record::Object(list)) => &list.items[..],
                        _ => &[],
                    };
                    let entry = |&(_, pair): &(usize, Value<'a>)| match self.record(pair)? {
                        Record::Tuple(pair) => Some((*pair.first()?, *pair.get(1)?)),
                        Record::Object(pair) => Some((pair.items.first()?.1, pair.items.get(1)?.1)),
                        _ => None,
                    };
                    let entries = pairs.iter().filter_map(entry).collect();
                    return self.object(Object { entries, ..Object::default() });
                }
                _ => return self.object(Object::default()),
            }
        }
    }

    /// The tensor or the shards of this process that are all of one of [`WRAPPERS`], from the
    /// arguments of the wrapper, (class, element type, shape, ..), and its state.
    fn distributed(
        &self,
        class: &str,
        of_wrapper: Value<'a>,
        state: Value<'a>,
    ) -> Option<Record<'a>> {
        let shape = self.numbers(*self.items(of_wrapper)?.get(2)?)?;
        if class == "DTensor" {
            return match self.record(self.of_state(state, "_local_tensor")?)? {
                Record::Tensor(local) if local.shape == shape => {
                    Some(Record::Tensor(Arc::clone(local)))
                }
                Record::Shards(local) if local.shape == shape => {
                    Some(Record::Shards(Arc::clone(local)))
                }
                _ => None,
            };
        }
        let list = |list| match self.record(list)? {
            Record::Object(list) if list.items.len() == list.num_items => Some(&list.items[..]),
            _ => None,
        };
        // The tensor of each shard, and the place of its first element.
        let mut shards = Vec::new();
        if class == "LocalShardsWrapper" {
            let chunks = || list(self.attribute(self.of_state(state, "_storage_meta")?, "chunks")?);
            let chunks = chunks().unwrap_or_default();
            for (at, tensor) in list(self.of_state(state, "_local_shards")?)? {
                let offsets = || self.attribute(chunks.get(*at)?.1, "offsets");
                shards.push((*tensor, offsets()));
            }
        } else {
            // (local shards, metadata, process group, ..)
            for &(_, shard) in list(*self.items(state)?.first()?)? {
                let metadata = self.attribute(shard, "metadata");
                let offsets = metadata.and_then(|of| self.attribute(of, "shard_offsets"));
                shards.push((self.attribute(shard, "tensor")?, offsets));
            }
        }
        let mut parts = Vec::new();
        for (tensor, offsets) in shards {
            let Record::Tensor(local) = self.record(tensor)? else { return None };
            parts.push((Arc::clone(local), offsets));
        }
        if let [(local, _)] = &parts[..]
            && local.shape == shape
        {
            return Some(Record::Tensor(Arc::clone(local)));
        }
        let parts: Vec<_> = parts
            .into_iter()
            .map(|(local, offsets)| Some((local, self.numbers(offsets?)?)))
            .collect::<Option<_>>()?;
        let count = |shape: &[u64]| shape.iter().try_fold(1, |n: u64, &size| n.checked_mul(size));
        let add = |sum: u64, part: &(Arc<Location>, _)| sum.checked_add(count(&part.0.shape)?);
        let is_whole = parts.iter().try_fold(0, add)? == count(&shape)?;
        is_whole.then(|| Record::Shards(Arc::new(Shards { shape, parts })))
    }

    /// The numbers of a tuple or a short list, none of them negative.
    fn numbers(&self, list: Value<'a>) -> Option<Vec<u64>> {
        let number = |item: &Value<'_>| match item {
            Value::Number(number) => u64::try_from(*number).ok(),
            _ => None,
        };
        match self.record(list)? {
            Record::Tuple(items) if items.len() <= MAX_DIMENSIONS => {
                items.iter().map(number).collect()
            }
            Record::Object(list) if list.items.len() == list.num_items => {
                list.items.iter().map(|(_, item)| number(item)).collect()
            }
            _ => None,
        }
    }

    /// The entry of a dict.
    fn entry(&self, dict: Value<'a>, name: &str) -> Option<Value<'a>> {
        let Record::Object(object) = self.record(dict)? else { return None };
        object.entries.iter().rev().find_map(|entry| match *entry {
            (Value::Text(key), value) if key == name => Some(value),
            _ => None,
        })
    }

    /// The attribute of an object.
    fn attribute(&self, object: Value<'a>, name: &str) -> Option<Value<'a>> {
        match self.record(object)? {
            Record::Object(object) => self.of_state(object.state?, name),
            _ => None,
        }
    }

    /// The attribute in a state: a dict or, with slots, (dict, slots).
    fn of_state(&self, state: Value<'a>, name: &str) -> Option<Value<'a>> {
        match self.items(state) {
            Some(parts) => parts.iter().find_map(|&part| self.entry(part, name)),
            None => self.entry(state, name),
        }
    }

    /// The tensor of `(storage, offset, shape, strides, requires_grad, hooks, ...)`.
    fn tensor(&self, given: &[Value<'a>], function: &str) -> Option<Location> {
        let &[storage, Value::Number(offset), shape, strides, ..] = given else { return None };
        let Record::Storage { class, key } = self.record(storage)? else { return None };
        let numbers = |list| self.items(list).and_then(|_| self.numbers(list));
        // The newer function has the element type, since its storages have none, and the older one
        // may have the metadata in its place.
        let (class, metadata) = match (function, given.get(6)) {
            ("_rebuild_tensor_v3", dtype) => match dtype.and_then(|&dtype| self.record(dtype)) {
                Some(Record::Global(_, name)) => (*name, given.get(7)),
                _ => return None,
            },
            (_, metadata) => (*class, metadata),
        };
        Some(Location {
            storage: (*key).to_owned(),
            element_type: element_type(class).1,
            offset: u64::try_from(offset).ok()?,
            shape: numbers(shape)?,
            strides: numbers(strides)?,
            negated: metadata.and_then(|&map| self.flag(map, "neg")).unwrap_or(false),
        })
    }

    /// The truth of an entry of a dict.
    fn flag(&self, dict: Value<'a>, name: &str) -> Option<bool> {
        match self.entry(dict, name)? {
            Value::Bool(flag) => Some(flag),
            _ => None,
        }
    }
}

/// A search for tensors.
struct Search<'m, 'a> {
    machine: &'m Machine<'a>,
    found: Tensors,
    /// Whether no tensor is in a record.
    barren: Vec<bool>,
    /// The records that are being searched.
    path: Vec<u32>,
    visits: usize,
    names: usize,
}

impl<'a> Search<'_, 'a> {
    /// Adds the tensors in `value` whose names start with `name`. Whether all of it was searched.
    fn visit(&mut self, value: Value<'a>, name: &mut String) -> Result<bool, String> {
        let Value::Record(position) = value else { return Ok(true) };
        if self.barren[position as usize] {
            return Ok(true);
        }
        if self.path.len() == MAX_DEPTH || self.path.contains(&position) {
            return Ok(false);
        }
        let machine = self.machine;
        let place = match &machine.records[position as usize] {
            Record::Tensor(location) => Ok(Place::Whole(Arc::clone(location))),
            Record::Shards(shards) => Ok(Place::Shards(Arc::clone(shards))),
            Record::OtherTensor(function) => {
                Err(format!("it is not a plain tensor (torch makes it with {function})"))
            }
            Record::Part => Err(PART.to_owned()),
            Record::Malformed => Err("its storage, shape or strides are malformed".to_owned()),
            Record::Global(..) | Record::Storage { .. } => return Ok(true),
            Record::Tuple(_) | Record::Object(_) => {
                let before = self.found.named.len();
                self.path.push(position);
                let whole = self.descend(position, name)?;
                self.path.pop();
                self.barren[position as usize] = whole && self.found.named.len() == before;
                return Ok(whole);
            }
        };
        self.names = self.names.saturating_add(name.len() + NAMED);
        if self.names > MAX_NAMES {
            return Err(format!("tensor names beyond {MAX_NAMES} bytes in all"));
        }
        self.found.named.push(Named { name: name.clone(), place });
        Ok(true)
    }

    fn descend(&mut self, position: u32, name: &mut String) -> Result<bool, String> {
        let machine = self.machine;
        let object = match &machine.records[position as usize] {
            Record::Tuple(items) => return self.items(items.iter().copied().enumerate(), name),
            Record::Object(object) => object,
            _ => return Ok(true),
        };
        let of_optimizer = |(key, _): &(Value<'_>, _)| matches!(key, Value::Text("param_groups"));
        if !name.is_empty() && object.entries.iter().any(of_optimizer) {
            self.found.optimizers.push(format!("{name}."));
        }
        let mut whole = self.items(object.items.iter().copied(), name)?;
        whole &= self.entries(&object.entries, name)?;
        // A module has its tensors in three dicts. Other objects are not searched: an optimizer
        // would have the model's tensors again.
        if let Some(Record::Object(state)) = object.state.and_then(|state| machine.record(state)) {
            for part in ["_parameters", "_buffers", "_modules"] {
                let dict = state.entries.iter().find_map(|entry| match *entry {
                    (Value::Text(key), dict) if key == part => Some(dict),
                    _ => None,
                });
                if let Some(dict) = dict {
                    whole &= self.visit(dict, name)?;
                }
            }
        }
        Ok(whole)
    }

    fn items(
        &mut self,
        items: impl Iterator<Item = (usize, Value<'a>)>,
        name: &mut String,
    ) -> Result<bool, String> {
        let mut whole = true;
        for (index, item) in items {
            whole &= self.below(item, name, format_args!("{index}"))?;
        }
        Ok(whole)
    }

    fn entries(
        &mut self,
        entries: &[(Value<'a>, Value<'a>)],
        name: &mut String,
    ) -> Result<bool, String> {
        // Of two entries with one key, the last one counts.
        let mut last: HashMap<(bool, i64, &str), usize> = HashMap::new();
        let key = |key: Value<'a>| match key {
            Value::Text(text) => Some((true, 0, text)),
            Value::Number(number) => Some((false, number, "")),
            _ => None,
        };
        let has_tensors = |value: Value<'_>| matches!(value, Value::Record(_));
        self.visits = self.visits.saturating_add(entries.len());
        if entries.iter().any(|&(_, value)| has_tensors(value)) {
            let keys = entries.iter().enumerate();
            last.extend(keys.filter_map(|(at, entry)| Some((key(entry.0)?, at))));
        }
        let mut whole = true;
        for (at, &(name_of, value)) in entries.iter().enumerate() {
            let Some(name_of) = key(name_of).filter(|_| has_tensors(value)) else { continue };
            if last.get(&name_of) != Some(&at) {
                continue;
            }
            whole &= match name_of {
                (true, _, text) => self.below(value, name, format_args!("{text}"))?,
                (false, number, _) => self.below(value, name, format_args!("{number}"))?,
            };
        }
        Ok(whole)
    }

    /// Visits `value` under a longer name.
    fn below(
        &mut self,
        value: Value<'a>,
        name: &mut String,
        key: std::fmt::Arguments<'_>,
    ) -> Result<bool, String> {
        use std::fmt::Write as _;
        self.visits += 1;
        if self.visits > MAX_VISITS {
            return Err("pickle: its dicts and lists refer to each other too often".to_owned());
        }
        if !matches!(value, Value::Record(_)) {
            return Ok(true);
        }
        let len = name.len();
        if len > 0 {
            name.push('.');
        }
        // Writing to a text cannot fail.
        let _ = name.write_fmt(key);
        let whole = self.visit(value, name)?;
        name.truncate(len);
        Ok(whole)
    }
}

/// Alternating keys and values as pairs.
fn pairs<'a>(items: &[Value<'a>]) -> Vec<(Value<'a>, Value<'a>)> {
    items.as_chunks::<2>().0.iter().map(|&[key, value]| (key, value)).collect()
}

/// A little-endian number in two's complement.
fn signed<'a>(bytes: &[u8]) -> Value<'a> {
    let Some(&last) = bytes.last() else { return Value::Number(0) };
    if bytes.len() > 8 {
        return Value::Other;
    }
    let sign = if last < 0x80 { 0 } else { -1 };
    Value::Number(bytes.iter().rev().fold(sign, |n, &b| n << 8 | i64::from(b)))
}
