//! Addresses, one type per address space.

pub use torpor_abi::layout::{PAGE_BYTES, USER_BASE, USER_END};

/// A guest-physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpa(pub u64);

/// An address in a program's address space, not yet checked against anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserAddr(pub u64);

impl UserAddr {
    /// The null pointer.
    pub const NULL: UserAddr = UserAddr(0);

    /// Whether this is the null pointer.
    #[must_use]
    pub const fn is_null(self) -> bool {
        self.0 == 0
    }

    /// The address `bytes` further on; wraps like the processor's arithmetic (the range check comes with the access).
    #[must_use]
    pub const fn offset(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes))
    }

    /// Start of the page that holds the address.
    #[must_use]
    pub const fn page_start(self) -> Self {
        Self(self.0 & !(PAGE_BYTES - 1))
    }

    /// Offset within the page.
    #[must_use]
    pub const fn page_offset(self) -> usize {
        (self.0 & (PAGE_BYTES - 1)) as usize
    }
}
