//! The cost of unpickling, found without unpickling.
//!
//! pytorch-reader copies an object on every fetch from the memo. It limits what copying may cost, but
//! does not count class names, dict keys, storage keys and tensor shapes: a file of 3 MB that memoizes
//! one of 1 MB and fetches it a million times asks for a terabyte. Nor does it bound what a compressed
//! run of one-byte opcodes expands to. So the opcodes are first run over sizes instead of objects.

use std::collections::HashMap;

/// Memory that parsing may take. A tensor costs some 10 KB here.
const BUDGET: u64 = 256 << 20;

/// What an object takes besides its text.
const OBJECT: u64 = 128;

/// Refuses `bytes` unless it starts with `count` pickles that can be parsed within [`BUDGET`].
pub(super) fn check(bytes: &[u8], count: usize) -> Result<(), String> {
    let mut machine = Machine { rest: bytes, stack: Vec::new(), marks: Vec::new(), memo: HashMap::new(), cost: 0 };
    for _ in 0..count {
        machine.run().ok_or("pickle: expected well-formed opcodes up to the end of its object")?;
        if machine.cost > BUDGET {
            return Err(format!("pickle: parsing it takes over {BUDGET} bytes"));
        }
        // Each pickle has a stack and a memo of its own.
        machine.stack.clear();
        machine.marks.clear();
        machine.memo.clear();
    }
    Ok(())
}

/// A pickle machine whose values are sizes in bytes.
struct Machine<'a> {
    rest: &'a [u8],
    stack: Vec<u64>,
    marks: Vec<usize>,
    memo: HashMap<u64, u64>,
    /// Everything ever pushed or copied.
    cost: u64,
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
                b'N' | 0x88 | 0x89 | b')' | b']' | b'}' | 0x8f => self.push(0),
                b'I' | b'L' | b'F' | b'V' | b'P' => {
                    let len = self.line()?.len();
                    self.push(len as u64);
                }
                b'c' => {
                    let len = self.line()?.len() + self.line()?.len();
                    self.push(len as u64);
                }
                b'K' => self.value(1)?,
                b'M' => self.value(2)?,
                b'J' => self.value(4)?,
                b'G' => self.value(8)?,
                0x8a | b'U' | 0x8c | b'C' => self.counted(1)?,
                0x8b | b'T' | b'X' | b'B' => self.counted(4)?,
                0x8d | 0x8e | 0x96 => self.counted(8)?,

                // Containers.
                b'(' => {
                    self.cost = self.cost.saturating_add(OBJECT);
                    self.marks.push(self.stack.len());
                }
                b't' | b'l' | b'd' | 0x91 => {
                    let items = self.pop_to_mark()?;
                    self.push(items);
                }
                b'e' | b'u' | 0x90 => {
                    let items = self.pop_to_mark()?;
                    self.grow(items)?;
                }
                b'a' => {
                    let item = self.pop(1)?;
                    self.grow(item)?;
                }
                b's' => {
                    let item = self.pop(2)?;
                    self.grow(item)?;
                }

                // Calls and tuples: what comes out holds at most what went in.
                0x85 | b'Q' => self.combine(1)?,
                0x86 | 0x93 | b'R' | 0x81 => self.combine(2)?,
                0x87 | 0x92 => self.combine(3)?,
                // BUILD also refreshes the memo's copy of the object.
                b'b' => {
                    let built = self.pop(2)?;
                    self.push(built);
                    self.cost = self.cost.saturating_add(built);
                }

                // Stack and memo.
                b'0' if self.marks.last() == Some(&self.stack.len()) => drop(self.marks.pop()),
                b'0' => drop(self.pop(1)?),
                b'1' => drop(self.pop_to_mark()?),
                b'2' => {
                    let top = *self.stack.last()?;
                    self.push(top);
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
        let bytes = self.take(width)?;
        Some(bytes.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b)))
    }

    fn value(&mut self, width: usize) -> Option<()> {
        self.take(width)?;
        self.push(0);
        Some(())
    }

    fn counted(&mut self, width: usize) -> Option<()> {
        let len = self.number(width)?;
        self.take(usize::try_from(len).ok()?)?;
        self.push(len);
        Some(())
    }

    fn push(&mut self, content: u64) {
        let size = content.saturating_add(OBJECT);
        self.cost = self.cost.saturating_add(size);
        self.stack.push(size);
    }

    fn pop(&mut self, count: usize) -> Option<u64> {
        let start = self.stack.len().checked_sub(count)?;
        let sum = self.stack[start..].iter().fold(0, |a: u64, &b| a.saturating_add(b));
        self.stack.truncate(start);
        // An open mark above the new top is as malformed as an empty stack.
        (self.marks.last().is_none_or(|&mark| mark <= start)).then_some(sum)
    }

    fn pop_to_mark(&mut self) -> Option<u64> {
        let mark = self.marks.pop()?;
        self.pop(self.stack.len().checked_sub(mark)?)
    }

    fn combine(&mut self, count: usize) -> Option<()> {
        let content = self.pop(count)?;
        self.push(content);
        Some(())
    }

    fn grow(&mut self, items: u64) -> Option<()> {
        let top = self.stack.last_mut()?;
        *top = top.saturating_add(items);
        Some(())
    }

    fn fetch(&mut self, slot: u64) -> Option<()> {
        let size = *self.memo.get(&slot)?;
        self.push(size);
        Some(())
    }

    fn memoize(&mut self, slot: u64) -> Option<()> {
        let size = *self.stack.last()?;
        self.memo.insert(slot, size);
        self.cost = self.cost.saturating_add(size).saturating_add(OBJECT);
        Some(())
    }
}
