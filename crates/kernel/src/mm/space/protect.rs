//! mprotect(2).

use super::area::{Area, Backing, Label};
use super::map::{check_overcommit, is_accountable, is_data};
use super::{AddressSpace, Flush, MAX_AREAS, MemoryLimits, checked_range};
use crate::errno::{Errno, Result};
use crate::mm::addr::USER_END;
use crate::mm::pte::{Kind, Prot};

/// Whether an area may get these rights: a shared mapping writes to its file, which must be open for that.
pub(super) fn may_have(area: &Area, prot: Prot) -> Result<()> {
    let Backing::Object(object) = &area.backing else { return Ok(()) };
    if area.is_shared() && prot.contains(Prot::WRITE) && !area.prot.contains(Prot::WRITE) {
        let writable = match &object.label {
            Label::File(file) => file.flags.get().writable(),
            Label::Segment(attachment) => attachment.writable,
            Label::Name(_) => true,
        };
        if !writable {
            return Err(Errno::EACCES);
        }
        object.source.check_writable_mapping().map_err(|_| Errno::EACCES)?;
    }
    Ok(())
}

impl AddressSpace {
    /// mprotect(2).
    ///
    /// # Errors
    /// EINVAL, ENOMEM, EACCES; what comes before the place of the error has been changed, as on Linux.
    pub fn protect(&self, start: u64, bytes: u64, prot: Prot, limits: &MemoryLimits) -> Result<()> {
        let end = checked_range(start, bytes, Errno::ENOMEM)?;
        let mut flush = Flush::default();
        let mut at = start;
        let mut result = Ok(());
        while at < end {
            result = self.protect_piece(at, end, prot, limits, &mut flush).map(|next| at = next);
            if result.is_err() {
                break;
            }
        }
        self.finish(flush);
        result
    }

    /// Changes the area at `at`, up to `end`; gives where the next one begins.
    fn protect_piece(&self, at: u64, end: u64, prot: Prot, limits: &MemoryLimits, flush: &mut Flush) -> Result<u64> {
        let area = self.areas.borrow().find(at).cloned().ok_or(Errno::ENOMEM)?;
        let piece_end = area.end.min(end);
        if area.prot == prot {
            return Ok(piece_end);
        }
        may_have(&area, prot)?;
        let bytes = piece_end - at;
        if is_accountable(prot, area.flags) && !is_accountable(area.prot, area.flags) {
            check_overcommit(bytes)?;
        }
        if limits.data != u64::MAX
            && is_data(prot, area.flags)
            && !is_data(area.prot, area.flags)
            && self.data_bytes() + bytes > limits.data
        {
            return Err(Errno::ENOMEM);
        }
        if (at > area.start || piece_end < area.end) && self.areas.borrow().count() + 1 >= MAX_AREAS {
            return Err(Errno::ENOMEM);
        }
        self.hide_copies(at, piece_end, flush);
        let mut table = self.table.borrow_mut();
        table.split_at(at, flush)?;
        if piece_end < USER_END {
            table.split_at(piece_end, flush)?;
        }
        let shared = area.is_shared();
        table.edit(at, piece_end, false, flush, |_, pte| {
            // Pages of objects, and copies that somebody else has as well, are looked at when they are written.
            pte.with_prot(
                prot,
                !shared && prot.contains(Prot::WRITE) && pte.kind() == Kind::Anonymous && pte.is_exclusive(),
            )
        });
        drop(table);
        self.areas.borrow_mut().change(at, piece_end, |area| area.prot = prot);
        Ok(piece_end)
    }
}
