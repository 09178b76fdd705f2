//! ELF headers of programs and interpreters (elf(5)), as far as execve(2) looks at them. The file is not trusted.

use crate::errno::{Errno, Result};
use crate::mm::addr::{PAGE_BYTES, USER_END};
use alloc::vec;
use alloc::vec::Vec;

const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
/// As on Linux: at most this many bytes of program headers.
const MAX_PROGRAM_HEADERS_BYTES: usize = 65_536;
const MAX_INTERPRETER_BYTES: u64 = 4096;

const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const PT_PHDR: u32 = 6;
const PT_GNU_STACK: u32 = 0x6474_e551;

/// What a segment's pages allow: PF_ bits.
pub const EXECUTE: u32 = 1;
/// See [`EXECUTE`].
pub const WRITE: u32 = 2;
/// See [`EXECUTE`].
pub const READ: u32 = 4;

/// A segment to be loaded (PT_LOAD).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it goes, relative to the load bias.
    pub address: u64,
    /// Where it starts in the file; congruent to `address` modulo the page size.
    pub offset: u64,
    /// How many bytes come from the file.
    pub file_bytes: u64,
    /// How many bytes it has; those behind the file's are zero.
    pub memory_bytes: u64,
    /// PF_ bits.
    pub flags: u32,
}

impl Segment {
    /// Start of its first page.
    #[must_use]
    pub const fn page_start(&self) -> u64 {
        self.address & !(PAGE_BYTES - 1)
    }

    /// End of its last page; it is checked that this does not overflow.
    #[must_use]
    pub const fn page_end(&self) -> u64 {
        (self.address + self.memory_bytes + PAGE_BYTES - 1) & !(PAGE_BYTES - 1)
    }
}

/// A program or an interpreter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elf {
    /// Whether it can be loaded anywhere (ET_DYN).
    pub relocatable: bool,
    /// First instruction, relative to the load bias.
    pub entry: u64,
    /// Where its program headers are in memory, relative to the load bias; `None` if no segment has them.
    pub headers_address: Option<u64>,
    /// How many program headers it has.
    pub header_count: u16,
    /// What is to be loaded, in the file's order; at least one.
    pub segments: Vec<Segment>,
    /// Path of the interpreter, without NUL.
    pub interpreter: Option<Vec<u8>>,
    /// PT_GNU_STACK asks for an executable stack.
    pub executable_stack: bool,
    /// Largest alignment that a segment asks for; a power of two, at least a page.
    pub align: u64,
}

/// Bytes of one program header (AT_PHENT).
pub const HEADER_ENTRY_BYTES: u64 = PROGRAM_HEADER_BYTES as u64;

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

impl Elf {
    /// Reads the headers. `read` fills the buffer from a file offset as far as the file goes and gives the count.
    ///
    /// # Errors
    /// ENOEXEC for what is no program for this machine, EIO where the interpreter's name is cut off, EINVAL for segments that can't be, ENOMEM for those that do not fit
    /// in the address space; what `read` gives.
    pub fn parse(mut read: impl FnMut(u64, &mut [u8]) -> Result<usize>) -> Result<Self> {
        let mut header = [0; HEADER_BYTES];
        if read(0, &mut header)? < HEADER_BYTES || header[..7] != *b"\x7fELF\x02\x01\x01" {
            return Err(Errno::ENOEXEC);
        }
        let (kind, machine) = (u16_at(&header, 16), u16_at(&header, 18));
        let (entry, headers_offset) = (u64_at(&header, 24), u64_at(&header, 32));
        let (entry_bytes, count) = (u16_at(&header, 54), u16_at(&header, 56));
        let table_bytes = usize::from(count) * PROGRAM_HEADER_BYTES;
        if !matches!(kind, ET_EXEC | ET_DYN)
            || machine != EM_X86_64
            || usize::from(entry_bytes) != PROGRAM_HEADER_BYTES
            || count == 0
            || table_bytes > MAX_PROGRAM_HEADERS_BYTES
        {
            return Err(Errno::ENOEXEC);
        }
        let mut table = vec![0; table_bytes];
        if read(headers_offset, &mut table)? < table_bytes {
            return Err(Errno::ENOEXEC);
        }
        let mut elf = Self {
            relocatable: kind == ET_DYN,
            entry,
            headers_address: None,
            header_count: count,
            segments: Vec::new(),
            interpreter: None,
            executable_stack: false,
            align: PAGE_BYTES,
        };
        for header in table.chunks_exact(PROGRAM_HEADER_BYTES) {
            elf.add(header, headers_offset, &mut read)?;
        }
        if elf.segments.is_empty() {
            return Err(Errno::ENOEXEC);
        }
        Ok(elf)
    }

    fn add(
        &mut self,
        header: &[u8],
        headers_offset: u64,
        read: &mut impl FnMut(u64, &mut [u8]) -> Result<usize>,
    ) -> Result<()> {
        let flags = u32_at(header, 4);
        let (offset, address) = (u64_at(header, 8), u64_at(header, 16));
        let (file_bytes, memory_bytes, align) = (u64_at(header, 32), u64_at(header, 40), u64_at(header, 48));
        match u32_at(header, 0) {
            PT_LOAD => {
                // Linux leaves out what is empty.
                if memory_bytes == 0 {
                    return Ok(());
                }
                let segment = Segment { address, offset, file_bytes, memory_bytes, flags };
                check_segment(&segment)?;
                if align.is_power_of_two() && align <= 1 << 30 {
                    self.align = self.align.max(align);
                }
                if self.headers_address.is_none() && (offset..offset + file_bytes).contains(&headers_offset) {
                    self.headers_address = Some(headers_offset - offset + address);
                }
                self.segments.push(segment);
            }
            PT_PHDR => self.headers_address = Some(address),
            PT_INTERP if self.interpreter.is_none() => {
                if !(2..=MAX_INTERPRETER_BYTES).contains(&file_bytes) {
                    return Err(Errno::ENOEXEC);
                }
                let mut path = vec![0; file_bytes as usize];
                if read(offset, &mut path)? < path.len() {
                    return Err(Errno::EIO);
                }
                if path.last() != Some(&0) {
                    return Err(Errno::ENOEXEC);
                }
                path.truncate(path.iter().position(|b| *b == 0).unwrap_or(0));
                self.interpreter = Some(path);
            }
            PT_GNU_STACK => self.executable_stack = flags & EXECUTE != 0,
            _ => {}
        }
        Ok(())
    }

    /// First page and end of the last page of all segments, relative to the load bias.
    #[must_use]
    pub fn span(&self) -> (u64, u64) {
        let start = self.segments.iter().map(Segment::page_start).min().unwrap_or(0);
        let end = self.segments.iter().map(Segment::page_end).max().unwrap_or(0);
        (start, end)
    }
}

fn check_segment(segment: &Segment) -> Result<()> {
    if segment.file_bytes > segment.memory_bytes || segment.offset % PAGE_BYTES != segment.address % PAGE_BYTES {
        return Err(Errno::EINVAL);
    }
    segment.offset.checked_add(segment.file_bytes).filter(|end| *end <= i64::MAX as u64).ok_or(Errno::EINVAL)?;
    let end = segment.address.checked_add(segment.memory_bytes).ok_or(Errno::ENOMEM)?;
    if end > USER_END - PAGE_BYTES { Err(Errno::ENOMEM) } else { Ok(()) }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(file: &[u8]) -> Result<Elf> {
        Elf::parse(|offset, buffer| {
            let rest = usize::try_from(offset).ok().and_then(|at| file.get(at..)).unwrap_or_default();
            let n = rest.len().min(buffer.len());
            buffer[..n].copy_from_slice(&rest[..n]);
            Ok(n)
        })
    }

    /// type, flags, offset, address, file bytes, memory bytes
    pub(crate) type Header = (u32, u32, u64, u64, u64, u64);

    pub(crate) fn image(kind: u16, entry: u64, headers: &[Header], file_bytes: usize) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        file.extend(kind.to_le_bytes());
        file.extend(EM_X86_64.to_le_bytes());
        file.extend(1u32.to_le_bytes());
        file.extend(entry.to_le_bytes());
        file.extend(64u64.to_le_bytes());
        file.extend([0; 14]);
        file.extend(56u16.to_le_bytes());
        file.extend((headers.len() as u16).to_le_bytes());
        file.resize(64, 0);
        for (kind, flags, offset, address, file_bytes, memory_bytes) in headers {
            file.extend(kind.to_le_bytes());
            file.extend(flags.to_le_bytes());
            for value in [offset, address, address, file_bytes, memory_bytes, &4096] {
                file.extend(value.to_le_bytes());
            }
        }
        let len = file.len().max(file_bytes);
        file.resize(len, 0);
        file
    }

    #[test]
    fn reads_this_very_program() {
        let file = std::fs::read(std::env::current_exe().expect("a path")).expect("readable");
        let elf = parse(&file).expect("an ELF file");
        assert!(elf.relocatable && !elf.executable_stack && elf.segments.len() >= 2);
        assert_eq!(elf.interpreter.as_deref(), Some(b"/lib64/ld-linux-x86-64.so.2".as_slice()));
        assert_eq!(elf.headers_address, Some(64));
        let (start, end) = elf.span();
        assert!(start == 0 && (start..end).contains(&elf.entry));
    }

    #[test]
    fn refuses_what_linux_refuses() {
        let load = (PT_LOAD, READ | EXECUTE, 0, 0x40_0000, 100, 200);
        let good = image(ET_EXEC, 0x40_0000, &[load], 4096);
        assert!(parse(&good).is_ok());
        assert_eq!(parse(&good[..100]), Err(Errno::ENOEXEC), "headers cut off");
        assert_eq!(parse(b"\x7fELF"), Err(Errno::ENOEXEC));
        let mut other = good.clone();
        other[18] = 183;
        assert_eq!(parse(&other), Err(Errno::ENOEXEC), "another machine");
        let mut other = good.clone();
        other[4] = 1;
        assert_eq!(parse(&other), Err(Errno::ENOEXEC), "32 bits");
        assert_eq!(parse(&image(1, 0, &[load], 0)), Err(Errno::ENOEXEC), "an object file");
        assert_eq!(parse(&image(ET_EXEC, 0, &[], 0)), Err(Errno::ENOEXEC), "no headers");
        assert_eq!(parse(&image(ET_EXEC, 0, &[(4, 0, 0, 0, 0, 0)], 0)), Err(Errno::ENOEXEC), "nothing to load");
        let with = |header| parse(&image(ET_DYN, 0, &[header], 8192));
        assert_eq!(with((PT_LOAD, READ, 0, 0, 300, 200)), Err(Errno::EINVAL), "more in the file than in memory");
        assert_eq!(with((PT_LOAD, READ, 1, 0, 100, 200)), Err(Errno::EINVAL), "offset and address differ");
        assert_eq!(with((PT_LOAD, READ, 0, 0, 0, u64::MAX)), Err(Errno::ENOMEM));
        assert_eq!(with((PT_LOAD, READ, 0, u64::MAX - 4095, 0, 4096)), Err(Errno::ENOMEM));
        let interpreter = (PT_INTERP, READ, 170, 0, 20, 20);
        assert_eq!(parse(&image(ET_DYN, 0, &[load, interpreter], 100)), Err(Errno::EIO), "path beyond the end");
        let huge = (PT_INTERP, READ, 120, 0, 1 << 40, 20);
        assert_eq!(parse(&image(ET_DYN, 0, &[load, huge], 8192)), Err(Errno::ENOEXEC));
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_program_that_fits_or_an_error(
            mut file in proptest::collection::vec(any::<u8>(), 0..2000),
            as_elf in any::<bool>(),
        ) {
            if as_elf && file.len() > 64 {
                file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
                file[16..20].copy_from_slice(&[3, 0, 62, 0]);
                file[32..40].copy_from_slice(&64u64.to_le_bytes());
                file[54..56].copy_from_slice(&56u16.to_le_bytes());
                file[57] = 0;
            }
            let _ = parse(&file);
        }

        #[test]
        fn any_headers_give_segments_within_the_address_space(
            headers in proptest::collection::vec(
                (prop_oneof![Just(PT_LOAD), Just(PT_INTERP), Just(PT_PHDR), Just(PT_GNU_STACK)], any::<u32>(),
                 0u64..9000, prop_oneof![any::<u64>(), 0u64..1 << 48], prop_oneof![any::<u64>(), 0u64..9000],
                 prop_oneof![any::<u64>(), 0u64..1 << 30]), 0..12),
        ) {
            if let Ok(elf) = parse(&image(ET_DYN, 0, &headers, 8192)) {
                let (start, end) = elf.span();
                prop_assert!(start < end && end <= USER_END && elf.align.is_power_of_two());
                for segment in &elf.segments {
                    prop_assert!(segment.file_bytes <= segment.memory_bytes);
                }
            }
        }
    }
}
