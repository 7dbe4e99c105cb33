//! The boundary: pointers from C become references, after all that can be checked has been, and an
//! error or a panic becomes a status. Every unsafe operation of the package is in this folder.
//!
//! An entry point vouches for its caller with a [`Promise`]. In exchange [`answer`] hands out a
//! [`Caller`], whose safe functions turn its pointers into references that cannot outlive the call.
//! The order in which they can be had rules out that memory is read as one thing and written as
//! another: first what the call writes, then, each checked against that, what it reads.

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

/// That the caller of an entry point keeps to the header.
pub(crate) struct Promise(());

/// Who calls, for the time 'c of the call.
pub(crate) struct Caller<'c>(PhantomData<&'c ()>);

/// What the caller lets be read, apart from what is `written`.
pub(crate) struct Given<'c> {
    written: [Range<usize>; 2],
    caller: PhantomData<&'c ()>,
}

/// Where a result goes.
pub(crate) struct Place<'c, T> {
    ptr: *mut T,
    caller: PhantomData<&'c ()>,
}

/// Types of which every pattern of bits is a value.
///
/// # Safety
/// That must be so.
pub(crate) unsafe trait Plain: Copy + 'static {}

// SAFETY: integers.
unsafe impl Plain for u8 {}
// SAFETY: integers.
unsafe impl Plain for u32 {}
// SAFETY: integers.
unsafe impl Plain for i64 {}
// SAFETY: every pattern is a float, if not a number.
unsafe impl Plain for f32 {}
// SAFETY: raw pointers promise nothing.
unsafe impl<T: 'static> Plain for *const T {}
// SAFETY: a number, lengths and raw pointers.
unsafe impl Plain for crate::ttrec_bags {}

impl Promise {
    /// The entry point's caller promises what the header asks for.
    ///
    /// # Safety
    /// Each pointer that is given to the [`Caller`] is null, or as long as the call lasts
    /// - leads to a string with a zero at its end, a handle that is open, or as many elements as
    ///   are said to be there, or room for one result: memory that may be read, and written where
    ///   the call writes;
    /// - and nobody else writes there meanwhile, nor reads what the call writes.
    ///
    /// And the bytes of an open blob do not change, nor does the file that it is mapped from.
    pub(crate) unsafe fn of_the_caller() -> Self {
        Self(())
    }
}

/// What `call` comes to, as a status.
pub(crate) fn answer(
    promise: Promise,
    call: impl for<'c> FnOnce(Caller<'c>) -> Result<(), Error<'c>>,
) -> ttrec_status {
    match guard(promise, call) {
        Ok(()) => ttrec_status::Ok,
        Err(status) => status,
    }
}

/// What `call` comes to, as a value.
pub(crate) fn answer_or<T>(
    otherwise: T,
    promise: Promise,
    call: impl for<'c> FnOnce(Caller<'c>) -> Result<T, Error<'c>>,
) -> T {
    guard(promise, call).unwrap_or(otherwise)
}

/// Keeps the text of what went wrong, a panic among it, and returns its status.
fn guard<T>(
    Promise(()): Promise,
    call: impl for<'c> FnOnce(Caller<'c>) -> Result<T, Error<'c>>,
) -> Result<T, ttrec_status> {
    let fail = |error: &Error<'_>| {
        last_error::set(error);
        error.status()
    };
    // What the call has left half done is the caller's output alone; handles do not change.
    let result =
        catch_unwind(AssertUnwindSafe(|| call(Caller(PhantomData)).map_err(|error| fail(&error))));
    result.unwrap_or_else(|_panic| Err(fail(&Error::Panic)))
}

/// The addresses of `len` elements from `ptr` on; `None` if there are none.
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
    /// A call that writes results to a [`Place`] at most.
    pub(crate) fn reads(self) -> Given<'c> {
        Given { written: [0..0, 0..0], caller: PhantomData }
    }

    /// A call that writes to `out` and `workspace`, floats and how many. They may be uninitialised.
    pub(crate) fn writes(
        self,
        (out, out_len): (*mut f32, usize),
        (workspace, workspace_len): (*mut f32, usize),
    ) -> Result<(&'c mut [f32], &'c mut [f32], Given<'c>), Error<'c>> {
        let mut given = self.reads();
        let mut slice_mut =
            |at: usize, ptr: *mut f32, len, what| -> Result<&'c mut [f32], Error<'c>> {
                let Some(span) = span(ptr, len, what)? else { return Ok(&mut []) };
                given.check_apart(&span, what)?;
                given.written[at] = span;
                // SAFETY: `span` has seen that it is not null, aligned, and not too long. By the
                // promise it may be read and written, and nobody else does; this
                // call does not either, since what `given` hands out lies apart. The floats may be
                // uninitialised memory in the eyes of C, but what comes from beyond the boundary
                // has some value.
                Ok(unsafe { slice::from_raw_parts_mut(ptr, len) })
            };
        let out = slice_mut(0, out, out_len, "out")?;
        let workspace = slice_mut(1, workspace, workspace_len, "workspace")?;
        Ok((out, workspace, given))
    }
}

impl<'c> Given<'c> {
    fn check_apart(&self, span: &Range<usize>, what: &'static str) -> Result<(), Error<'c>> {
        let overlaps =
            |written: &Range<usize>| span.start < written.end && written.start < span.end;
        if self.written.iter().any(overlaps) {
            Err(Error::Overlap { what })
        } else {
            Ok(())
        }
    }

    /// `len` elements; none may be at null.
    pub(crate) fn slice<T: Plain>(
        &self,
        ptr: *const T,
        len: usize,
        what: &'static str,
    ) -> Result<&'c [T], Error<'c>> {
        let Some(span) = span(ptr, len, what)? else { return Ok(&[]) };
        self.check_apart(&span, what)?;
        // SAFETY: `span` has seen that it is not null, aligned, and not too long; any bits are a
        // `T`. By the promise it may be read, and nobody writes there, nor does this call.
        Ok(unsafe { slice::from_raw_parts(ptr, len) })
    }

    /// One struct, copied.
    pub(crate) fn copy<T: Plain>(&self, ptr: *const T, what: &'static str) -> Result<T, Error<'c>> {
        Ok(self.slice(ptr, 1, what)?[0])
    }

    /// What a handle stands for.
    pub(crate) fn handle<T>(&self, ptr: *const T, what: &'static str) -> Result<&'c T, Error<'c>> {
        if let Some(span) = span(ptr, 1, what)? {
            self.check_apart(&span, what)?;
        }
        // SAFETY: not null and aligned, and by the promise an open handle, which nobody changes.
        Ok(unsafe { &*ptr })
    }

    /// A string.
    pub(crate) fn text(
        &self,
        ptr: *const c_char,
        what: &'static str,
    ) -> Result<&'c CStr, Error<'c>> {
        span(ptr, 1, what)?;
        // SAFETY: not null; by the promise it ends with a zero, and nobody changes it.
        Ok(unsafe { CStr::from_ptr(ptr) })
    }

    /// Room for a result.
    pub(crate) fn place<T>(
        &self,
        ptr: *mut T,
        what: &'static str,
    ) -> Result<Place<'c, T>, Error<'c>> {
        span(ptr, 1, what)?;
        Ok(Place { ptr, caller: PhantomData })
    }
}

impl<T> Place<'_, T> {
    pub(crate) fn put(self, value: T) {
        // SAFETY: not null and aligned; by the promise it has room for a `T`. Nothing that was
        // borrowed for this call is used after its result is put.
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
