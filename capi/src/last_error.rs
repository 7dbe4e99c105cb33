//! The message of each thread's last failure, in memory that the thread always has: keeping a
//! message allocates nothing, so that running out of memory has a message too.

use crate::status::Error;
use std::{cell::RefCell, ffi::c_char, io::Write, str};

/// Bytes of a message with the zero byte at its end. Longer messages are cut.
const LEN: usize = 1024;

thread_local! {
    static TEXT: RefCell<[u8; LEN]> = const { RefCell::new([0; LEN]) };
}

/// Keeps the message of `error`.
pub(crate) fn set(error: &Error<'_>) {
    TEXT.with_borrow_mut(|text| {
        let mut room = &mut text[..LEN - 1];
        // Fails if the message is too long; what fits is kept.
        let _ = write!(room, "{error}");
        let written = LEN - 1 - room.len();
        let whole = match str::from_utf8(&text[..written]) {
            Ok(_) => written,
            Err(cut) => cut.valid_up_to(),
        };
        text[whole] = 0;
    });
}

/// The message that was kept last, in UTF-8 with a zero byte at its end. The thread's next failure
/// overwrites it.
pub(crate) fn get() -> *const c_char {
    TEXT.with(|text| text.as_ptr().cast::<c_char>().cast_const())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text() -> String {
        TEXT.with_borrow(|text| {
            str::from_utf8(text.split(|&byte| byte == 0).next().unwrap())
                .unwrap()
                .to_owned()
        })
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        assert_eq!(text(), "");
        let mut lengths = Vec::new();
        for before in ["", "a", "ab"] {
            let name = format!("{before}{}", "€".repeat(LEN));
            set(&Error::NoSuchTable { name: &name });
            let start = format!("no table \"{before}€€");
            assert!(text().starts_with(&start) && text().ends_with('€'), "{}", text());
            lengths.push(text().len());
        }
        lengths.sort();
        assert_eq!(lengths, [LEN - 3, LEN - 2, LEN - 1]);
        set(&Error::Panic);
        assert_eq!(text(), Error::Panic.to_string());
    }
}
