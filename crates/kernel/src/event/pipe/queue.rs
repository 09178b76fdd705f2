//! The bytes in a pipe: a ring of slots, each a page at most, as Linux counts a pipe's capacity.
//!
//! How much fits depends on how it was written (pipe(7)): a write starts a new slot unless its odd bytes fit behind the last
//! one's, so a full pipe of sixteen slots may hold less than 64 KiB. A slot's memory is as large as its content.

use crate::errno::{Errno, Result};
use crate::mm::user::{Dest, Source};
use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// Most bytes in a slot, and in a write that is atomic (PIPE_BUF).
pub(super) const SLOT_BYTES: usize = 4096;

/// A piece of a pipe's content.
pub(super) struct Slot {
    data: Vec<u8>,
    /// Bytes that have been read.
    start: usize,
    kind: Kind,
}

/// How a slot's content came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// By write(2): a later write may add to it.
    Stream,
    /// By write(2) with O_DIRECT: read as a whole, never added to.
    Packet,
    /// By splice(2) and its kind: never added to.
    Spliced,
}

impl Slot {
    pub(super) fn new(data: Vec<u8>, kind: Kind) -> Self {
        Self { data, start: 0, kind }
    }

    /// A copy of the first `len` bytes: a packet stays one.
    ///
    /// # Errors
    /// ENOMEM.
    pub(super) fn copy(&self, len: usize) -> Result<Self> {
        let len = len.min(self.bytes().len());
        let mut data = Vec::new();
        data.try_reserve_exact(len).map_err(|_| Errno::ENOMEM)?;
        data.extend_from_slice(&self.bytes()[..len]);
        let kind = if self.kind == Kind::Packet { Kind::Packet } else { Kind::Spliced };
        Ok(Self { data, start: 0, kind })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.data[self.start..]
    }
}

/// See the module's text.
pub(super) struct Queue {
    slots: VecDeque<Slot>,
    /// Capacity in slots.
    limit: usize,
}

impl Queue {
    pub(super) fn new(limit: usize) -> Self {
        Self { slots: VecDeque::new(), limit }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.slots.len() >= self.limit
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// Changes the capacity.
    ///
    /// # Errors
    /// EBUSY if more slots are in use.
    pub(super) fn set_limit(&mut self, limit: usize) -> Result<()> {
        if limit < self.slots.len() {
            return Err(Errno::EBUSY);
        }
        self.limit = limit;
        Ok(())
    }

    /// Bytes to read (FIONREAD).
    pub(super) fn len_bytes(&self) -> usize {
        self.slots.iter().map(|slot| slot.bytes().len()).sum()
    }

    /// Adds the odd bytes of a write (its length modulo the slot size) to the last slot, if they fit behind its content.
    /// Returns how many bytes were added.
    ///
    /// # Errors
    /// EFAULT, ENOMEM; the queue is unchanged.
    pub(super) fn append(&mut self, src: &mut Source<'_>) -> Result<usize> {
        let odd = src.remaining() % SLOT_BYTES;
        match self.slots.back_mut() {
            Some(last) if odd > 0 && last.kind == Kind::Stream && last.data.len() + odd <= SLOT_BYTES => {
                take(src, &mut last.data, odd)?;
                Ok(odd)
            }
            _ => Ok(0),
        }
    }

    /// Puts up to a slot's worth of bytes in a new slot. The queue is not full.
    ///
    /// # Errors
    /// EFAULT, ENOMEM; the queue is unchanged.
    pub(super) fn push_from(&mut self, src: &mut Source<'_>, kind: Kind) -> Result<usize> {
        let mut data = Vec::new();
        // A slot of vmsplice(2) is a page of the program's, or the part of it that was given.
        let part = if kind == Kind::Spliced { src.within_page() } else { src.remaining() };
        let len = part.min(SLOT_BYTES);
        take(src, &mut data, len)?;
        self.push(Slot::new(data, kind))?;
        Ok(len)
    }

    /// Puts a slot at the end. The queue is not full.
    ///
    /// # Errors
    /// ENOMEM; the slot is lost.
    pub(super) fn push(&mut self, slot: Slot) -> Result<()> {
        self.slots.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        self.slots.push_back(slot);
        Ok(())
    }

    /// Moves content to `dst`: as much as fits, up to the end of a packet.
    ///
    /// # Errors
    /// EFAULT if nothing could be moved. Bytes of a slot that could not be copied whole stay.
    pub(super) fn pop_into(&mut self, dst: &mut Dest<'_>) -> Result<usize> {
        let mut done = 0;
        while let Some(slot) = self.slots.front() {
            let wanted = slot.bytes().len().min(dst.remaining());
            if wanted == 0 {
                break;
            }
            let put = dst.put(&slot.bytes()[..wanted]);
            if put != Ok(wanted) {
                return if done > 0 { Ok(done) } else { Err(Errno::EFAULT) };
            }
            done += wanted;
            if self.consume(wanted) {
                break;
            }
        }
        Ok(done)
    }

    /// How many slots are in use.
    pub(super) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// The `n`th slot from the front.
    pub(super) fn get(&self, n: usize) -> Option<&Slot> {
        self.slots.get(n)
    }

    /// Puts back what [`Queue::pop`] took out and was not used: without its first `used` bytes.
    pub(super) fn restore(&mut self, mut slot: Slot, used: usize) {
        slot.start += used;
        if slot.start < slot.data.len() {
            self.slots.push_front(slot);
        }
    }

    /// Takes the first slot out.
    pub(super) fn pop(&mut self) -> Option<Slot> {
        let slot = self.slots.pop_front();
        self.release();
        slot
    }

    /// Removes `len` bytes of the first slot, and what is left of it if it is a packet. Returns whether it was one.
    pub(super) fn consume(&mut self, len: usize) -> bool {
        let Some(slot) = self.slots.front_mut() else { return false };
        let packet = slot.kind == Kind::Packet;
        slot.start += len;
        if packet || slot.start >= slot.data.len() {
            self.pop();
        }
        packet
    }

    /// An empty pipe holds no memory.
    fn release(&mut self) {
        if self.slots.is_empty() {
            self.slots = VecDeque::new();
        }
    }
}

/// Appends exactly `len` bytes of `src` to `data`.
fn take(src: &mut Source<'_>, data: &mut Vec<u8>, len: usize) -> Result<()> {
    let old = data.len();
    data.try_reserve_exact(len).map_err(|_| Errno::ENOMEM)?;
    data.resize(old + len, 0);
    if src.take(&mut data[old..]) == Ok(len) {
        return Ok(());
    }
    data.truncate(old);
    Err(Errno::EFAULT)
}
