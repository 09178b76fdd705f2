//! The alternate signal stack (sigaltstack(2)).

use crate::errno::{Errno, Result};
use linux_raw_sys::general as linux;

/// ss_flags: the thread runs on the alternate stack.
pub const SS_ONSTACK: u32 = 1;
/// ss_flags: there is none.
pub const SS_DISABLE: u32 = 2;
/// ss_flags: forgotten while a handler runs on it.
pub const SS_AUTODISARM: u32 = linux::SS_AUTODISARM;

/// An alternate stack; none where `size` is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AltStack {
    /// Its lowest address.
    pub base: u64,
    /// Bytes.
    pub size: u64,
    /// [`SS_AUTODISARM`], [`SS_DISABLE`] or 0.
    pub flags: u32,
}

impl Default for AltStack {
    fn default() -> Self {
        Self { base: 0, size: 0, flags: SS_DISABLE }
    }
}

impl AltStack {
    /// Whether `sp` lies within it. A handler that runs on a stack with SS_AUTODISARM never counts as on it.
    #[must_use]
    pub const fn contains(&self, sp: u64) -> bool {
        self.flags & SS_AUTODISARM == 0 && self.spans(sp)
    }

    /// Whether `sp` lies within it, whatever its flags.
    #[must_use]
    pub const fn spans(&self, sp: u64) -> bool {
        sp > self.base && sp - self.base <= self.size
    }

    /// What sigaltstack(2) tells of the state: SS_ONSTACK, SS_DISABLE or 0.
    #[must_use]
    pub const fn state(&self, sp: u64) -> u32 {
        if self.size == 0 {
            SS_DISABLE
        } else if self.contains(sp) {
            SS_ONSTACK
        } else {
            0
        }
    }

    /// What sigaltstack(2) makes of a new `stack_t`. `minimum` is MINSIGSTKSZ or AT_MINSIGSTKSZ.
    ///
    /// # Errors
    /// EPERM while the thread runs on it, EINVAL for unknown flags, ENOMEM for a stack that is too small.
    pub fn changed(&self, base: u64, flags: u32, size: u64, sp: u64, minimum: u64) -> Result<Self> {
        if self.contains(sp) {
            return Err(Errno::EPERM);
        }
        let mode = flags & !SS_AUTODISARM;
        if mode != SS_DISABLE && mode != SS_ONSTACK && mode != 0 {
            return Err(Errno::EINVAL);
        }
        if mode == SS_DISABLE {
            return Ok(Self { base: 0, size: 0, flags });
        }
        if size < minimum {
            return Err(Errno::ENOMEM);
        }
        Ok(Self { base, size, flags })
    }

    /// As `stack_t` in memory, `flags` as given.
    #[must_use]
    pub fn to_words(&self, flags: u32) -> [u64; 3] {
        [self.base, u64::from(flags), self.size]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_the_manual_page() {
        let none = AltStack::default();
        assert_eq!(none.state(0x1000), SS_DISABLE);
        let stack = none.changed(0x1000, 0, 0x2000, 0, 2048).expect("valid");
        assert_eq!((stack.state(0x1000), stack.state(0x1001), stack.state(0x3000), stack.state(0x3001)), (0, 1, 1, 0));
        assert_eq!(stack.changed(0, SS_DISABLE, 0, 0x2000, 2048), Err(Errno::EPERM));
        assert_eq!(none.changed(0x1000, 8, 0x2000, 0, 2048), Err(Errno::EINVAL));
        assert_eq!(none.changed(0x1000, 0, 2047, 0, 2048), Err(Errno::ENOMEM));
        let auto = none.changed(0x1000, SS_AUTODISARM, 0x2000, 0, 2048).expect("valid");
        assert_eq!(auto.state(0x2000), 0);
        assert!(auto.spans(0x2000));
    }
}
