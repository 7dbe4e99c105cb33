//! The names of the enums that a blob stores as codes.

/// Implements the list and the names of an enum whose discriminants are the codes of
/// `docs/format.md`.
macro_rules! codes {
    ($kind:ident: $($variant:ident $name:literal),+) => {
        impl $kind {
            /// Every value, in the order of the codes.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The name used in specs and listings.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// The value with this name.
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|value| value.name() == name)
            }

            pub(crate) fn from_code(code: u8) -> Option<Self> {
                Self::ALL.iter().copied().find(|&value| value as u8 == code)
            }
        }
    };
}
pub(crate) use codes;
