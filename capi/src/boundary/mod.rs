//! The boundary: turns pointers from C into references, after checking what can be checked, and
//! errors and panics into statuses. Every unsafe operation of the package is in this folder.
//!
//! An exported function makes a [`Promise`] for its caller. For the promise, [`answer`] gives a
//! [`Caller`], whose safe methods turn the caller's pointers into references that cannot outlive
//! the call. A `Caller` first gives up what the call writes, and then a [`Given`], which compares
//! everything that the call reads with it. So no memory is both read and written.

mod handle;

pub(crate) use handle::Bytes;
pub use handle::{ttrec_blob, ttrec_ranker, ttrec_table};

use crate::{
    last_error,
    status::{Error, ttrec_status},
};
use std::{
    ffi::{CStr, c_char},
    marker::PhantomData,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    slice,
};

/// The caller of an exported function keeps to the header.
pub(crate) struct Promise(());

/// The caller; the call lasts for 'c.
pub(crate) struct Caller<'c>(PhantomData<&'c ()>);

/// What the caller gives to be read. None of it may overlap the ranges that are `written`.
pub(crate) struct Given<'c> {
    written: [Range<usize>; 2],
    caller: PhantomData<&'c ()>,
}

/// Memory for a result.
pub(crate) struct Slot<'c, T> {
    ptr: *mut T,
    caller: PhantomData<&'c ()>,
}

/// Types of which every pattern of bits is a value.
///
/// # Safety
/// Every pattern of bits is a value.
pub(crate) unsafe trait Plain: Copy + 'static {}

// SAFETY: integers.
unsafe impl Plain for u8 {}
// SAFETY: integers.
unsafe impl Plain for i32 {}
// SAFETY: integers.
unsafe impl Plain for u32 {}
// SAFETY: integers.
unsafe impl Plain for i64 {}
// SAFETY: every pattern is a float; some are NaN.
unsafe impl Plain for f32 {}
// SAFETY: raw pointers promise nothing.
unsafe impl<T: 'static> Plain for *const T {}
// SAFETY: a number, lengths and raw pointers.
unsafe impl Plain for crate::ttrec_bags {}
// SAFETY: numbers, lengths and raw pointers.
unsafe impl Plain for crate::ttrec_search {}
// SAFETY: an integer and a float.
unsafe impl Plain for ttrec::Scored {}

impl Promise {
    /// The exported function's caller promises what the header requires.
    ///
    /// # Safety
    /// Each pointer that is passed to the [`Caller`] is null, or points to a string that
    /// ends with a zero byte, an open handle, as many elements as its length says, or memory for
    /// one result. During the call the memory can be read, and can be written where the call
    /// writes; no other thread writes to it, or reads what the call writes.
    ///
    /// The bytes of an open blob, or the file that they are mapped from, do not change.
    pub(crate) unsafe fn of_the_caller() -> Self {
        Self(())
    }
}

/// Runs `call`, and returns its status.
pub(crate) fn answer(
    promise: Promise,
    call: impl for<'c> FnOnce(Caller<'c>) -> Result<(), Error<'c>>,
) -> ttrec_status {
    match guard(promise, call) {
        Ok(()) => ttrec_status::Ok,
        Err(status) => status,
    }
}

/// Runs `call`, and returns its value, or `otherwise` if it fails.
pub(crate) fn answer_or<T>(
    otherwise: T,
    promise: Promise,
    call: impl for<'c> FnOnce(Caller<'c>) -> Result<T, Error<'c>>,
) -> T {
    guard(promise, call).unwrap_or(otherwise)
}

/// Runs `call`. Keeps the message of an error or a panic for ttrec_last_error().
fn guard<T>(
    Promise(()): Promise,
    call: impl for<'c> FnOnce(Caller<'c>) -> Result<T, Error<'c>>,
) -> Result<T, ttrec_status> {
    let fail = |error: &Error<'_>| {
        last_error::set(error);
        error.status()
    };
    // Unwind safe: a call changes no handle, so a panic can leave only the outputs incomplete.
    let result =
        catch_unwind(AssertUnwindSafe(|| call(Caller(PhantomData)).map_err(|error| fail(&error))));
    result.unwrap_or_else(|_panic| Err(fail(&Error::Panic)))
}

/// The addresses of `len` elements at `ptr`; `None` if `len` is 0.
fn span<T>(
    ptr: *const T,
    len: usize,
    what: &'static str,
) -> Result<Option<Range<usize>>, Error<'static>> {
    if len == 0 {
        return Ok(None);
    }
    if ptr.is_null() {
        return Err(Error::Null { what });
    }
    if !ptr.is_aligned() {
        return Err(Error::Misaligned { what, alignment: align_of::<T>() });
    }
    let bytes = len.checked_mul(size_of::<T>()).filter(|&bytes| isize::try_from(bytes).is_ok());
    let end = bytes
        .and_then(|bytes| ptr.addr().checked_add(bytes))
        .ok_or(Error::TooLong { what, len })?;
    Ok(Some(ptr.addr()..end))
}

impl<'c> Caller<'c> {
    /// For a call that writes nothing, or only to a [`Slot`].
    pub(crate) fn reads(self) -> Given<'c> {
        Given { written: [0..0, 0..0], caller: PhantomData }
    }

    /// For a call that writes to `out` and `workspace`, which may be uninitialised.
    pub(crate) fn writes<T: Plain>(
        self,
        (out, out_len): (*mut T, usize),
        (workspace, workspace_len): (*mut f32, usize),
    ) -> Result<(&'c mut [T], &'c mut [f32], Given<'c>), Error<'c>> {
        let mut given = self.reads();
        let out = given.slice_mut(0, out, out_len, "out")?;
        let workspace = given.slice_mut(1, workspace, workspace_len, "workspace")?;
        Ok((out, workspace, given))
    }
}

impl<'c> Given<'c> {
    /// Refuses what overlaps memory that the call writes.
    fn check_overlap(&self, span: &Range<usize>, what: &'static str) -> Result<(), Error<'c>> {
        let overlaps =
            |written: &Range<usize>| span.start < written.end && written.start < span.end;
        if self.written.iter().any(overlaps) {
            Err(Error::Overlap { what })
        } else {
            Ok(())
        }
    }

    /// `len` elements at `ptr` that the call writes; `at` is 0 for the first of them, or 1.
    fn slice_mut<T: Plain>(
        &mut self,
        at: usize,
        ptr: *mut T,
        len: usize,
        what: &'static str,
    ) -> Result<&'c mut [T], Error<'c>> {
        let Some(span) = span(ptr, len, what)? else { return Ok(&mut []) };
        self.check_overlap(&span, what)?;
        self.written[at] = span;
        // SAFETY: `span` has checked that it is not null, aligned, and not too long. By the promise
        // it can be read and written, and no other thread does; nor does this call through another
        // reference, since `self` refuses what overlaps it. Memory that C did not initialise has
        // arbitrary values here, since the compiler cannot see C.
        Ok(unsafe { slice::from_raw_parts_mut(ptr, len) })
    }

    /// `len` elements at `ptr`, which may be null if `len` is 0.
    pub(crate) fn slice<T: Plain>(
        &self,
        ptr: *const T,
        len: usize,
        what: &'static str,
    ) -> Result<&'c [T], Error<'c>> {
        let Some(span) = span(ptr, len, what)? else { return Ok(&[]) };
        self.check_overlap(&span, what)?;
        // SAFETY: `span` has checked that it is not null, aligned, and not too long; any bits are a
        // `T`. By the promise it can be read and no other thread writes to it, nor does this call.
        Ok(unsafe { slice::from_raw_parts(ptr, len) })
    }

    /// One struct, copied.
    pub(crate) fn copy<T: Plain>(&self, ptr: *const T, what: &'static str) -> Result<T, Error<'c>> {
        Ok(self.slice(ptr, 1, what)?[0])
    }

    /// The value behind a handle.
    pub(crate) fn handle<T>(&self, ptr: *const T, what: &'static str) -> Result<&'c T, Error<'c>> {
        if let Some(span) = span(ptr, 1, what)? {
            self.check_overlap(&span, what)?;
        }
        // SAFETY: not null and aligned, and by the promise an open handle, which never changes.
        Ok(unsafe { &*ptr })
    }

    /// A string.
    pub(crate) fn c_str(
        &self,
        ptr: *const c_char,
        what: &'static str,
    ) -> Result<&'c CStr, Error<'c>> {
        span(ptr, 1, what)?;
        // SAFETY: not null; by the promise it ends with a zero byte and does not change.
        Ok(unsafe { CStr::from_ptr(ptr) })
    }

    /// Memory for a result.
    pub(crate) fn slot<T>(
        &self,
        ptr: *mut T,
        what: &'static str,
    ) -> Result<Slot<'c, T>, Error<'c>> {
        span(ptr, 1, what)?;
        Ok(Slot { ptr, caller: PhantomData })
    }
}

impl<T> Slot<'_, T> {
    pub(crate) fn put(self, value: T) {
        // SAFETY: not null and aligned; by the promise a `T` can be written to it. It may overlap
        // what the call has borrowed, but a call uses nothing after it has put its result.
        unsafe { self.ptr.write(value) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_a_status() {
        let status = answer(Promise(()), |_| panic!("on purpose"));
        assert_eq!(status, ttrec_status::Internal);
        assert_eq!(answer_or(7, Promise(()), |_| panic!("on purpose")), 7);
        assert_eq!(answer(Promise(()), |_| Ok(())), ttrec_status::Ok);
    }
}
