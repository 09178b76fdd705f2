//! Open regular files and directories.

use super::data::{MAX_FILE_BYTES, Place};
use super::node::{Kind, Node};
use super::tree::image_error;
use crate::errno::{Errno, Result};
use crate::fs::access;
use crate::fs::erofs::Extent;
use crate::fs::file::{FileOps, OpenFile, OpenFlags};
use crate::fs::inode::Metadata;
use crate::fs::size_limit;
use crate::mm::addr::PAGE_BYTES;
use crate::mm::frame::Frame;
use crate::mm::pages::PageSource;
use crate::mm::user::{Dest, Source};
use crate::task::try_current;
use alloc::rc::Rc;
use core::any::Any;
use linux_raw_sys::general::{
    F_ADD_SEALS, F_GET_SEALS, F_SEAL_EXEC, F_SEAL_FUTURE_WRITE, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_WRITE,
    FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, SEEK_DATA, SEEK_END, SEEK_HOLE,
};

/// All seals there are.
const SEALS: u32 = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_FUTURE_WRITE | F_SEAL_EXEC;
/// What else sealing an executable file against changes of its mode seals.
const EXECUTABLE_SEALS: u32 = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_FUTURE_WRITE;

impl Node {
    /// Replaces the seals (memfd_create(2)): a file that is made has F_SEAL_SEAL, so none can be added.
    ///
    /// # Errors
    /// EISDIR, EINVAL for what is no regular file.
    pub fn set_seals(&self, seals: u32) -> Result<()> {
        self.data()?.seals.set(seals);
        Ok(())
    }

    fn read_data(&self, dst: &mut Dest<'_>, offset: u64) -> Result<usize> {
        let data = self.data()?;
        let start = dst.done();
        let mut at = offset;
        while dst.remaining() > 0 && at < data.size() {
            let index = at / PAGE_BYTES;
            let within = (at % PAGE_BYTES) as usize;
            let left = (data.size() - at).min(dst.remaining() as u64);
            let in_page = left.min(PAGE_BYTES - within as u64);
            let put = match data.place(index) {
                Place::Frame(frame) => frame.copy_to(within, in_page as usize, dst).map(|n| (n, in_page)),
                Place::Hole => {
                    let run = (data.run_end(index).max(index + 1).saturating_mul(PAGE_BYTES) - at).min(left);
                    dst.put_zeros(run as usize).map(|n| (n, run))
                }
                Place::Image => self.read_image(dst, at, left.min(data.run_end(index) * PAGE_BYTES - at)),
            };
            match put {
                Ok((n, wanted)) => {
                    at += n as u64;
                    if (n as u64) < wanted {
                        break;
                    }
                }
                Err(error) if dst.done() == start => return Err(error),
                Err(_) => break,
            }
        }
        Ok(dst.done() - start)
    }

    /// Puts up to `max` bytes at `offset` of the image's file; gives the number put and wanted.
    fn read_image(&self, dst: &mut Dest<'_>, offset: u64, max: u64) -> Result<(usize, u64)> {
        let (Some(lower), Some(image)) = (&self.tree.lower, &self.image) else { return Err(Errno::EIO) };
        match lower.erofs.extent(image, offset).map_err(image_error)? {
            Some(Extent::Data { offset_bytes, len_bytes }) => {
                let len = len_bytes.min(max);
                // SAFETY: the reader has checked that the extent is inside the image, which stays mapped and readable
                // (`Lower::open`); `put_raw` tolerates that its bytes change meanwhile.
                let put = unsafe { dst.put_raw(lower.address(offset_bytes), len as usize) };
                put.map(|n| (n, len))
            }
            Some(Extent::Hole { len_bytes }) => {
                let len = len_bytes.min(max);
                dst.put_zeros(len as usize).map(|n| (n, len))
            }
            // Behind the image's end in its last page: the file has grown since.
            None => dst.put_zeros(max as usize).map(|n| (n, max)),
        }
    }

    fn write_data(&self, src: &mut Source<'_>, offset: u64) -> Result<usize> {
        let data = self.data()?;
        if src.remaining() == 0 {
            return Ok(0);
        }
        if data.seals.get() & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE) != 0 {
            return Err(Errno::EPERM);
        }
        if offset >= MAX_FILE_BYTES {
            return Err(Errno::EFBIG);
        }
        let end = offset.saturating_add(src.remaining() as u64).min(MAX_FILE_BYTES);
        let mut end = size_limit::writable_end(offset, end)?;
        if data.seals.get() & F_SEAL_GROW != 0 && end > data.size() {
            if offset >= data.size() {
                return Err(Errno::EPERM);
            }
            end = data.size();
        }
        if offset > data.size() {
            // Even if nothing of the program's can be read then: so does tmpfs.
            self.set_size(offset)?;
        }
        let mut at = offset;
        let mut failure = None;
        while at < end {
            let within = (at % PAGE_BYTES) as usize;
            let len = (PAGE_BYTES - within as u64).min(end - at) as usize;
            let taken = self.frame(at / PAGE_BYTES, false).and_then(|frame| frame.copy_from(within, len, src));
            match taken {
                Ok(n) => {
                    at += n as u64;
                    self.extend_to(at)?;
                    if n < len {
                        break;
                    }
                }
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
        }
        match failure {
            Some(error) if at == offset => Err(error),
            _ => {
                self.modified();
                Ok((at - offset) as usize)
            }
        }
    }

    fn fallocate(&self, mode: u32, offset: u64, len: u64) -> Result<()> {
        let data = self.data()?;
        let end = offset.checked_add(len).filter(|end| *end <= MAX_FILE_BYTES).ok_or(Errno::EFBIG)?;
        let seals = data.seals.get();
        let keep = mode & FALLOC_FL_KEEP_SIZE != 0;
        match mode & !FALLOC_FL_KEEP_SIZE {
            FALLOC_FL_PUNCH_HOLE if keep => {
                if seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE) != 0 {
                    return Err(Errno::EPERM);
                }
                self.mark_changed();
                // Pages beyond the end may have been allocated with FALLOC_FL_KEEP_SIZE.
                self.punch(offset, end)?;
            }
            0 => {
                let grows = end > data.size() && !keep;
                if grows && seals & F_SEAL_GROW != 0 {
                    return Err(Errno::EPERM);
                }
                size_limit::check(data.size(), end)?;
                self.mark_changed();
                self.preallocate(offset / PAGE_BYTES, end.div_ceil(PAGE_BYTES))?;
                if grows {
                    self.set_size(end)?;
                }
            }
            _ => return Err(Errno::EOPNOTSUPP),
        }
        self.modified();
        Ok(())
    }
}

/// A frame and the program's memory.
trait Copy {
    fn copy_to(&self, offset: usize, len: usize, dst: &mut Dest<'_>) -> Result<usize>;
    fn copy_from(&self, offset: usize, len: usize, src: &mut Source<'_>) -> Result<usize>;
}

impl Copy for Frame {
    fn copy_to(&self, offset: usize, len: usize, dst: &mut Dest<'_>) -> Result<usize> {
        let mut piece = [0; 1024];
        let mut done = 0;
        while done < len {
            let n = (len - done).min(piece.len());
            self.read(offset + done, &mut piece[..n]);
            match dst.put(&piece[..n]) {
                Ok(put) => {
                    done += put;
                    if put < n {
                        break;
                    }
                }
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    fn copy_from(&self, offset: usize, len: usize, src: &mut Source<'_>) -> Result<usize> {
        let mut piece = [0; 1024];
        let mut done = 0;
        while done < len {
            let n = (len - done).min(piece.len());
            match src.take(&mut piece[..n]) {
                Ok(taken) => {
                    self.write(offset + done, &piece[..taken]);
                    done += taken;
                    if taken < n {
                        break;
                    }
                }
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }
}

impl FileOps for Node {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn read(&self, _: &OpenFile, dst: &mut Dest<'_>, offset: u64) -> Result<usize> {
        self.read_data(dst, offset)
    }

    fn write(&self, file: &OpenFile, src: &mut Source<'_>, offset: u64) -> Result<(usize, u64)> {
        let offset = if file.flags.get().contains(OpenFlags::APPEND) { self.data()?.size() } else { offset };
        let n = self.write_data(src, offset)?;
        // Before there is a first process, the kernel itself writes.
        if n > 0
            && let Some(me) = try_current()
            && let Some(mode) = access::mode_after_write(&self.stat(), &me.creds())
        {
            self.change(|attributes, _| attributes.mode = mode);
        }
        Ok((n, offset + n as u64))
    }

    fn seekable(&self) -> bool {
        true
    }

    fn seek(&self, _: &OpenFile, offset: i64, whence: u32) -> Result<u64> {
        let Kind::Regular(data) = &self.kind else {
            // Positions in a directory are cookies; there is no end that one could seek to.
            return Err(Errno::EINVAL);
        };
        let size = data.size();
        match whence {
            SEEK_END => size.checked_add_signed(offset).filter(|at| *at <= MAX_FILE_BYTES).ok_or(Errno::EINVAL),
            SEEK_DATA | SEEK_HOLE => {
                let offset = u64::try_from(offset).ok().filter(|at| *at < size).ok_or(Errno::ENXIO)?;
                match self.seek_run(offset, whence == SEEK_DATA)? {
                    Some(at) => Ok(at),
                    None if whence == SEEK_HOLE => Ok(size),
                    None => Err(Errno::ENXIO),
                }
            }
            _ => Err(Errno::EINVAL),
        }
    }

    fn pages(&self) -> Option<Rc<dyn PageSource>> {
        let mapped = super::pages::MappedFile::of(&self.this()?)?;
        Some(mapped)
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn allocate(&self, _: &OpenFile, mode: u32, offset: u64, len: u64) -> Result<()> {
        match &self.kind {
            Kind::Regular(_) => self.fallocate(mode, offset, len),
            Kind::Directory(_) => Err(Errno::EISDIR),
            _ => Err(Errno::ENODEV),
        }
    }

    fn fcntl(&self, file: &OpenFile, command: u32, argument: u64) -> Result<u64> {
        let data = self.data().map_err(|_| Errno::EINVAL)?;
        match command {
            F_GET_SEALS => Ok(u64::from(data.seals.get())),
            F_ADD_SEALS => {
                if !file.flags.get().writable() {
                    return Err(Errno::EPERM);
                }
                let mut seals =
                    u32::try_from(argument).ok().filter(|seals| seals & !SEALS == 0).ok_or(Errno::EINVAL)?;
                if data.seals.get() & F_SEAL_SEAL != 0 {
                    return Err(Errno::EPERM);
                }
                if seals & F_SEAL_EXEC != 0 && self.stat().mode & 0o111 != 0 {
                    seals |= EXECUTABLE_SEALS;
                }
                // A writable shared mapping could go on writing.
                if seals & F_SEAL_WRITE != 0 && self.is_mapped_writable() {
                    return Err(Errno::EBUSY);
                }
                data.seals.set(data.seals.get() | seals);
                Ok(0)
            }
            _ => Err(Errno::EINVAL),
        }
    }

    fn metadata(&self) -> Metadata {
        self.stat()
    }

    fn describe(&self) -> alloc::string::String {
        // Files of a tree are opened by name, or are memfds, whose name the opener knows.
        alloc::string::String::from("(deleted)")
    }
}
