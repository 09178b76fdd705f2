//! Positions in a single-producer, single-consumer byte ring.
//!
//! `head` counts bytes ever written, `tail` bytes ever read, both modulo 2^32; the data is a power of two in size.
//! A producer writes data, then publishes `head`; a consumer reads data, then publishes `tail`. Each side keeps its
//! own counter privately and reads the other's once per operation through [`Position`], which refuses nonsense.

/// A snapshot of both counters that has been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    head: u32,
    used: u32,
    capacity: u32,
}

/// The other side published counters that no ring can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CorruptRing {
    /// Bytes ever written, as published.
    pub head: u32,
    /// Bytes ever read, as published.
    pub tail: u32,
}

impl Position {
    /// `capacity` is the ring's size in bytes, a power of two.
    ///
    /// # Errors
    /// [`CorruptRing`] if more would be in use than the ring holds.
    pub const fn new(head: u32, tail: u32, capacity: u32) -> Result<Self, CorruptRing> {
        let used = head.wrapping_sub(tail);
        if used > capacity {
            return Err(CorruptRing { head, tail });
        }
        Ok(Self { head, used, capacity })
    }

    /// Bytes that can be read.
    #[must_use]
    pub const fn used(&self) -> u32 {
        self.used
    }

    /// Bytes that can be written.
    #[must_use]
    pub const fn free(&self) -> u32 {
        self.capacity - self.used
    }

    /// The two pieces (offset, length) of the data that hold `len` bytes from the read position on, `skip` bytes in.
    #[must_use]
    pub const fn readable(&self, skip: u32, len: u32) -> [(usize, usize); 2] {
        self.pieces(self.head.wrapping_sub(self.used).wrapping_add(skip), len)
    }

    /// The two pieces of the data that take `len` bytes from the write position on, `skip` bytes in.
    #[must_use]
    pub const fn writable(&self, skip: u32, len: u32) -> [(usize, usize); 2] {
        self.pieces(self.head.wrapping_add(skip), len)
    }

    const fn pieces(&self, at: u32, len: u32) -> [(usize, usize); 2] {
        let offset = at & (self.capacity - 1);
        let to_end = self.capacity - offset;
        let first = if len < to_end { len } else { to_end };
        [(offset as usize, first as usize), (0, (len - first) as usize)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wraps_and_refuses_nonsense() {
        let p = Position::new(10, 4, 8).expect("six bytes of eight");
        assert_eq!((p.used(), p.free()), (6, 2));
        assert_eq!(p.readable(0, 6), [(4, 4), (0, 2)]);
        assert_eq!(p.writable(0, 2), [(2, 2), (0, 0)]);
        assert!(Position::new(13, 4, 8).is_err());
        let wrapped = Position::new(2, u32::MAX - 1, 8).expect("counters wrap");
        assert_eq!(wrapped.used(), 4);
    }
}
