//! Loading a program: its segments, its interpreter's and its stack, into an address space that nobody runs in yet.

use super::elf::{self, Elf, HEADER_ENTRY_BYTES, Segment};
use super::process::ArgumentArea;
use crate::errno::{Errno, Result};
use crate::fs::file::OpenFile;
use crate::mm::addr::PAGE_BYTES;
use crate::mm::pages::PageSource;
use crate::mm::space::{
    AddressSpace, AreaFlags, Backing, Label, Layout, MapRequest, MemoryLimits, ObjectMapping, Placement, Prot, Respect,
};
use crate::mm::user::Dest;
use crate::random;
use alloc::rc::Rc;
use alloc::vec::Vec;
use linux_raw_sys::auxvec;

/// Memory is not placed at random (personality(2)).
pub const ADDR_NO_RANDOMIZE: u32 = 0x0004_0000;
/// What a stack is given to start with; it grows from there on.
const INITIAL_STACK_BYTES: u64 = 128 << 10;

/// NUL-terminated strings, one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Strings {
    bytes: Vec<u8>,
    count: usize,
}

impl Strings {
    /// The first `count` strings of `bytes`, each with its NUL.
    #[must_use]
    pub fn of_bytes(bytes: &[u8], count: usize) -> Self {
        let end = bytes.split_inclusive(|b| *b == 0).take(count).map(<[u8]>::len).sum();
        Self { bytes: bytes[..end].to_vec(), count }
    }

    /// The strings, without their NULs.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes.split_inclusive(|b| *b == 0).map(|string| &string[..string.len() - 1])
    }

    /// Adds a string at the end.
    pub fn push(&mut self, string: &[u8]) {
        self.bytes.extend_from_slice(string);
        self.bytes.push(0);
        self.count += 1;
    }

    /// Replaces the first string (if there is one) by others.
    pub fn replace_first(&mut self, by: &[&[u8]]) {
        let first = self.bytes.iter().position(|b| *b == 0).map_or(0, |at| at + 1);
        let mut front = Strings::default();
        for string in by {
            front.push(string);
        }
        self.count = self.count.saturating_sub(1) + front.count;
        self.bytes.splice(..first, front.bytes);
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Length of all with their NULs, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Offsets of the strings.
    fn offsets(&self) -> impl Iterator<Item = u64> + '_ {
        let mut at = 0u64;
        self.bytes.split_inclusive(|b| *b == 0).map(move |string| {
            let start = at;
            at += string.len() as u64;
            start
        })
    }
}

/// A program that is ready to run.
pub struct Loaded {
    /// Its memory.
    pub space: Rc<AddressSpace>,
    /// First instruction: the interpreter's if there is one.
    pub entry: u64,
    /// Stack pointer.
    pub stack: u64,
    /// Where its strings are.
    pub arguments: ArgumentArea,
}

/// What the auxiliary vector tells about who runs the program (getauxval(3)).
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "credentials(7)")]
pub struct Identity {
    pub uid: u32,
    pub euid: u32,
    pub gid: u32,
    pub egid: u32,
    /// The program has more rights than who started it (AT_SECURE).
    pub secure: bool,
}

/// Fills `buffer` from the file as far as it goes.
///
/// # Errors
/// The file's.
pub fn read_at(file: &OpenFile, offset: u64, buffer: &mut [u8]) -> Result<usize> {
    let mut dest = Dest::kernel(buffer);
    while dest.remaining() > 0 {
        let at = offset.checked_add(dest.done() as u64).ok_or(Errno::ENOEXEC)?;
        if file.ops.read(file, &mut dest, at)? == 0 {
            break;
        }
    }
    Ok(dest.done())
}

/// Loads a program. `open_interpreter` opens what PT_INTERP names.
///
/// # Errors
/// As execve(2): ENOEXEC, ELIBBAD, ENOMEM, E2BIG and what opening and reading give. EFAULT where a file ends before the
/// last page of a segment's data, whose rest is to be cleared.
pub fn load(
    file: &Rc<OpenFile>,
    elf: &Elf,
    name: &[u8],
    (argv, envp): (&Strings, &Strings),
    identity: &Identity,
    open_interpreter: &dyn Fn(&[u8]) -> Result<Rc<OpenFile>>,
) -> Result<Loaded> {
    let limits = MemoryLimits::current();
    let fixed = super::current().process.personality.get() & ADDR_NO_RANDOMIZE != 0;
    let layout = Layout::randomised(if fixed { [0; 2] } else { [random::u64(), random::u64()] }, limits.stack);
    let space = AddressSpace::new(layout)?;
    let bias = if elf.relocatable {
        let (start, _) = elf.span();
        (layout.program_base & !(elf.align - 1)).wrapping_sub(start & !(elf.align - 1))
    } else {
        0
    };
    map_image(&space, file, elf, bias, &limits)?;
    let (_, end) = elf.span();
    space.set_heap(bias.wrapping_add(end) + layout.heap_gap);

    let interpreter = match &elf.interpreter {
        Some(path) => Some(load_interpreter(&space, &open_interpreter(path)?, &limits)?),
        None => None,
    };
    let program_entry = bias.wrapping_add(elf.entry);
    let (base, entry) = interpreter.unwrap_or((0, program_entry));

    let mut auxv = Vec::with_capacity(24);
    #[cfg(not(feature = "hosted"))]
    auxv.push((auxvec::AT_SYSINFO_EHDR, crate::time::vdso::map(&space, &limits)?));
    auxv.push((auxvec::AT_MINSIGSTKSZ, super::signal::minimum_stack()));
    auxv.push((auxvec::AT_HWCAP, processor_features()));
    auxv.push((auxvec::AT_PAGESZ, PAGE_BYTES));
    auxv.push((auxvec::AT_CLKTCK, 100));
    auxv.push((auxvec::AT_PHDR, elf.headers_address.map_or(0, |at| bias.wrapping_add(at))));
    auxv.push((auxvec::AT_PHENT, HEADER_ENTRY_BYTES));
    auxv.push((auxvec::AT_PHNUM, u64::from(elf.header_count)));
    auxv.push((auxvec::AT_BASE, base));
    auxv.push((auxvec::AT_FLAGS, 0));
    auxv.push((auxvec::AT_ENTRY, program_entry));
    auxv.push((auxvec::AT_UID, u64::from(identity.uid)));
    auxv.push((auxvec::AT_EUID, u64::from(identity.euid)));
    auxv.push((auxvec::AT_GID, u64::from(identity.gid)));
    auxv.push((auxvec::AT_EGID, u64::from(identity.egid)));
    auxv.push((auxvec::AT_SECURE, u64::from(identity.secure)));
    // HWCAP2_FSGSBASE: programs may use rdfsbase and its relatives.
    auxv.push((auxvec::AT_HWCAP2, 2));

    let (stack, arguments) = build_stack(&space, &limits, elf.executable_stack, name, argv, envp, auxv)?;
    Ok(Loaded { space, entry, stack, arguments })
}

fn load_interpreter(space: &AddressSpace, file: &Rc<OpenFile>, limits: &MemoryLimits) -> Result<(u64, u64)> {
    let elf = Elf::parse(|at, buffer| read_at(file, at, buffer))
        .map_err(|error| if error == Errno::ENOEXEC { Errno::ELIBBAD } else { error })?;
    let (start, end) = elf.span();
    let bias = if elf.relocatable { find_room(space, start, end, elf.align, limits)? } else { 0 };
    map_image(space, file, &elf, bias, limits)?;
    Ok((bias.wrapping_add(start), bias.wrapping_add(elf.entry)))
}

/// A load bias at which `[start, end)` is free.
fn find_room(space: &AddressSpace, start: u64, end: u64, align: u64, limits: &MemoryLimits) -> Result<u64> {
    let bytes = end - start + (align - PAGE_BYTES);
    let request = MapRequest {
        placement: Placement::Hint(0),
        bytes,
        prot: Prot::empty(),
        flags: AreaFlags::NORESERVE,
        backing: Backing::Anonymous,
        populate: false,
    };
    let found = space.map(request, limits)?;
    space.unmap(found, bytes)?;
    let base = (found + (start & (align - 1)) + (align - PAGE_BYTES)) & !(align - 1);
    Ok(base.wrapping_sub(start & !(align - 1)))
}

fn protection(flags: u32) -> Prot {
    let mut prot = Prot::empty();
    prot.set(Prot::READ, flags & elf::READ != 0);
    prot.set(Prot::WRITE, flags & elf::WRITE != 0);
    prot.set(Prot::EXEC, flags & elf::EXECUTE != 0);
    prot
}

fn map_image(space: &AddressSpace, file: &Rc<OpenFile>, elf: &Elf, bias: u64, limits: &MemoryLimits) -> Result<()> {
    let source = file.ops.pages().ok_or(Errno::ENOEXEC)?;
    for segment in &elf.segments {
        map_segment(space, file, &source, segment, bias, limits)?;
    }
    Ok(())
}

fn map_segment(
    space: &AddressSpace,
    file: &Rc<OpenFile>,
    source: &Rc<dyn PageSource>,
    segment: &Segment,
    bias: u64,
    limits: &MemoryLimits,
) -> Result<()> {
    let prot = protection(segment.flags);
    let start = bias.wrapping_add(segment.page_start());
    let end = bias.wrapping_add(segment.page_end());
    let data_end = bias.wrapping_add(segment.address + segment.file_bytes);
    let file_end = if segment.file_bytes == 0 { start } else { (data_end + PAGE_BYTES - 1) & !(PAGE_BYTES - 1) };
    let map = |from: u64, to: u64, backing: Backing| -> Result<()> {
        if from < to {
            let placement = Placement::Exactly(from);
            let request =
                MapRequest { placement, bytes: to - from, prot, flags: AreaFlags::empty(), backing, populate: false };
            // Segments that overlap are the file's fault.
            space.map(request, limits).map_err(|error| if error == Errno::EEXIST { Errno::EINVAL } else { error })?;
        }
        Ok(())
    };
    let object = ObjectMapping {
        source: Rc::clone(source),
        first_page: segment.offset / PAGE_BYTES,
        label: Label::File(Rc::clone(file)),
    };
    map(start, file_end, Backing::Object(object))?;
    map(file_end, end, Backing::Anonymous)?;
    // The rest of the last page that comes from the file belongs to the zeros; as on Linux not where it can't be written.
    let memory_end = bias.wrapping_add(segment.address + segment.memory_bytes);
    if file_end > data_end && memory_end > data_end && prot.contains(Prot::WRITE) && segment.file_bytes > 0 {
        space.zero_memory(data_end, file_end - data_end)?;
    }
    Ok(())
}

/// CPUID leaf 1, EDX: what AT_HWCAP is on x86.
fn processor_features() -> u64 {
    u64::from(core::arch::x86_64::__cpuid(1).edx)
}

/// Writes what a program finds on its stack (the psABI's initial stack); gives the stack pointer and where the strings are.
fn build_stack(
    space: &AddressSpace,
    limits: &MemoryLimits,
    executable: bool,
    name: &[u8],
    argv: &Strings,
    envp: &Strings,
    mut auxv: Vec<(u32, u64)>,
) -> Result<(u64, ArgumentArea)> {
    let top = space.layout().stack_top;
    // From the top: a null word, the file name, the environment, the arguments, the platform, random bytes.
    let name_at = top - 8 - (name.len() as u64 + 1);
    let env_at = name_at - envp.bytes() as u64;
    let args_at = env_at - argv.bytes() as u64;
    let platform_at = (args_at & !15) - 16;
    let random_at = platform_at - 16;
    auxv.push((auxvec::AT_PLATFORM, platform_at));
    auxv.push((auxvec::AT_RANDOM, random_at));
    auxv.push((auxvec::AT_EXECFN, name_at));
    auxv.push((auxvec::AT_NULL, 0));

    let words = 1 + argv.len() + 1 + envp.len() + 1 + 2 * auxv.len();
    let stack = (random_at - 8 * words as u64) & !15;
    let mut block = Vec::with_capacity((top - stack) as usize);
    let mut word = |value: u64| block.extend_from_slice(&value.to_le_bytes());
    word(argv.len() as u64);
    argv.offsets().for_each(|offset| word(args_at + offset));
    word(0);
    envp.offsets().for_each(|offset| word(env_at + offset));
    word(0);
    for (kind, value) in auxv {
        word(u64::from(kind));
        word(value);
    }
    block.resize((random_at - stack) as usize, 0);
    let mut canary = [0; 16];
    random::fill(&mut canary);
    block.extend_from_slice(&canary);
    block.extend_from_slice(b"x86_64\0");
    block.resize((args_at - stack) as usize, 0);
    block.extend_from_slice(&argv.bytes);
    block.extend_from_slice(&envp.bytes);
    block.extend_from_slice(name);
    block.resize((top - stack) as usize, 0);

    let bytes = (top - (stack & !(PAGE_BYTES - 1)) + INITIAL_STACK_BYTES).min(limits.stack.max(top - stack));
    let mut prot = Prot::READ | Prot::WRITE;
    prot.set(Prot::EXEC, executable);
    let bytes = (bytes + PAGE_BYTES - 1) & !(PAGE_BYTES - 1);
    let request = MapRequest {
        placement: Placement::Exactly(top - bytes),
        bytes,
        prot,
        flags: AreaFlags::GROWSDOWN,
        backing: Backing::Anonymous,
        populate: false,
    };
    space.map(request, limits)?;
    space.write_memory(stack, &block, Respect::Protection).map_err(|_| Errno::ENOMEM)?;
    let arguments =
        ArgumentArea { args_start: args_at, args_end: env_at, env_start: env_at, env_end: name_at, stack_start: stack };
    Ok((stack, arguments))
}

#[cfg(test)]
mod tests {
    use super::super::elf::tests::{Header, image};
    use super::*;
    use crate::fs::file::{FileOps, OpenFlags};
    use crate::fs::inode::{FileType, Metadata, Timestamp};
    use crate::mm::frame::{self, Frame};
    use crate::mm::pages::{Access, Page, PageError};
    use alloc::string::String;
    use core::any::Any;
    use proptest::prelude::*;

    struct TestFile(Rc<Vec<u8>>);

    impl PageSource for TestFile {
        fn page(&self, index: u64, _: Access) -> core::result::Result<Page, PageError> {
            let start = index as usize * 4096;
            let piece = self.0.get(start..self.0.len().min(start + 4096)).ok_or(PageError::BeyondEnd)?;
            let frame = Frame::zeroed().map_err(|_| PageError::NoMemory)?;
            frame.write(0, piece);
            Ok(Page::Frame(frame))
        }
    }

    impl FileOps for TestFile {
        fn as_any(&self) -> &dyn Any {
            self
        }
        fn read(&self, _: &OpenFile, dst: &mut Dest<'_>, offset: u64) -> Result<usize> {
            dst.put(self.0.get(offset as usize..).unwrap_or_default())
        }
        fn pages(&self) -> Option<Rc<dyn PageSource>> {
            Some(Rc::new(TestFile(Rc::clone(&self.0))))
        }
        fn metadata(&self) -> Metadata {
            let at = Timestamp::default();
            Metadata {
                dev: 0,
                ino: 0,
                file_type: FileType::Regular,
                mode: 0o755,
                nlink: 1,
                uid: 0,
                gid: 0,
                rdev: 0,
                size: self.0.len() as u64,
                block_bytes: 4096,
                blocks: 0,
                atime: at,
                mtime: at,
                ctime: at,
                btime: None,
            }
        }
        fn describe(&self) -> String {
            String::new()
        }
    }

    fn file(bytes: Vec<u8>) -> Rc<OpenFile> {
        OpenFile::anonymous(Rc::new(TestFile(Rc::new(bytes))), OpenFlags::empty())
    }

    const WHO: Identity = Identity { uid: 1, euid: 2, gid: 3, egid: 4, secure: true };
    /// Text from the first page; data from 0x1800 on with zeros over more than a page.
    const SEGMENTS: [Header; 2] =
        [(1, elf::READ | elf::EXECUTE, 0, 0, 0x900, 0x900), (1, elf::READ | elf::WRITE, 0x1800, 0x2800, 0x100, 0x2000)];

    fn load_it(kind: u16, base: u64, interpreter: Option<Vec<u8>>) -> Result<Loaded> {
        frame::reset_hosted(64 << 20, 64 << 20);
        let _me = crate::task::testing::enter();
        let mut headers: Vec<Header> = SEGMENTS.map(|h| (h.0, h.1, h.2, h.3 + base, h.4, h.5)).to_vec();
        if interpreter.is_some() {
            headers.push((3, 4, 0x500, 0, 5, 5));
        }
        let mut bytes = image(kind, base + 0x100, &headers, 0x3000);
        bytes[0x500..0x505].copy_from_slice(b"/ld0\0");
        bytes[0x504] = 0;
        bytes[0x1800..0x3000].fill(0xaa);
        let mut argv = Strings::default();
        argv.push(b"prog");
        argv.push(b"one");
        let mut envp = Strings::default();
        envp.push(b"K=V");
        let program = file(bytes);
        let elf = Elf::parse(|at, buffer| read_at(&program, at, buffer))?;
        load(&program, &elf, b"/bin/prog", (&argv, &envp), &WHO, &|path| {
            assert_eq!(path, b"/ld0");
            Ok(file(interpreter.clone().expect("asked for only if named")))
        })
    }

    fn word(loaded: &Loaded, at: u64) -> u64 {
        let mut bytes = [0; 8];
        loaded.space.read_memory(at, &mut bytes, Respect::Protection).expect("mapped");
        u64::from_le_bytes(bytes)
    }

    fn string(loaded: &Loaded, at: u64) -> Vec<u8> {
        let mut bytes = [0; 16];
        loaded.space.read_memory(at, &mut bytes, Respect::Protection).expect("mapped");
        bytes.iter().copied().take_while(|b| *b != 0).collect()
    }

    #[test]
    fn segments_zeros_and_stack() {
        let loaded = load_it(2, 0x40_0000, None).expect("a good program");
        assert_eq!(loaded.entry, 0x40_0100);
        assert_eq!(word(&loaded, 0x40_28f8), 0xaaaa_aaaa_aaaa_aaaa);
        for at in [0x40_2900, 0x40_2ff8, 0x40_3000, 0x40_47f8] {
            assert_eq!(word(&loaded, at), 0, "{at:#x}");
        }
        let sp = loaded.stack;
        assert_eq!((sp % 16, word(&loaded, sp)), (0, 2));
        assert_eq!(string(&loaded, word(&loaded, sp + 8)), b"prog");
        assert_eq!(string(&loaded, word(&loaded, sp + 16)), b"one");
        assert_eq!(word(&loaded, sp + 24), 0);
        assert_eq!(string(&loaded, word(&loaded, sp + 32)), b"K=V");
        assert_eq!(word(&loaded, sp + 40), 0);
        let mut auxv = alloc::collections::BTreeMap::new();
        let mut at = sp + 48;
        while word(&loaded, at) != 0 {
            auxv.insert(word(&loaded, at) as u32, word(&loaded, at + 8));
            at += 16;
        }
        assert_eq!(auxv[&auxvec::AT_PHDR], 0x40_0040);
        assert_eq!((auxv[&auxvec::AT_PHNUM], auxv[&auxvec::AT_PHENT]), (2, 56));
        assert_eq!((auxv[&auxvec::AT_ENTRY], auxv[&auxvec::AT_BASE]), (0x40_0100, 0));
        assert_eq!((auxv[&auxvec::AT_EGID], auxv[&auxvec::AT_SECURE]), (4, 1));
        assert_eq!(string(&loaded, auxv[&auxvec::AT_EXECFN]), b"/bin/prog");
        assert_eq!(string(&loaded, auxv[&auxvec::AT_PLATFORM]), b"x86_64");
        let area = loaded.arguments;
        assert_eq!((area.args_end - area.args_start, area.env_end - area.env_start), (9, 4));
    }

    #[test]
    fn an_interpreter_comes_first() {
        let interpreter = image(3, 0x80, &SEGMENTS, 0x3000);
        let loaded = load_it(3, 0, Some(interpreter)).expect("a good program");
        assert!(loaded.entry % 4096 == 0x80);
        drop(loaded);
        assert_eq!(load_it(3, 0, Some(b"#!/bin/sh".to_vec())).err(), Some(Errno::ELIBBAD));
    }

    #[test]
    fn segments_that_overlap_are_refused() {
        frame::reset_hosted(64 << 20, 64 << 20);
        let _me = crate::task::testing::enter();
        let headers = [SEGMENTS[0], (1, elf::READ, 0, 0x800 & !0xfff, 0x100, 0x100)];
        let program = file(image(2, 0, &headers.map(|h| (h.0, h.1, h.2, h.3 + 0x40_0000, h.4, h.5)), 0x3000));
        let elf = Elf::parse(|at, buffer| read_at(&program, at, buffer)).expect("headers");
        let none = Strings::default();
        let outcome = load(&program, &elf, b"x", (&none, &none), &WHO, &|_| Err(Errno::ENOENT));
        assert_eq!(outcome.err(), Some(Errno::EINVAL));
    }

    proptest! {
        /// Whatever the headers say, there is a program whose entry and stack are in its own memory, or an error, and
        /// nothing is left behind.
        #[test]
        fn any_headers_are_loaded_or_refused(
            kind in prop::sample::select(vec![2u16, 3]),
            entry in any::<u64>(),
            headers in prop::collection::vec(
                (prop::sample::select(vec![1u32, 1, 1, 6, 0x6474_e551]), 0u32..8, 0u64..0x4000,
                 prop_oneof![0u64..0x10_0000, any::<u64>()], 0u64..0x3000,
                 prop_oneof![0u64..0x8000, 0u64..1 << 40, any::<u64>()]), 1..8),
            aligned in any::<bool>(),
        ) {
            frame::reset_hosted(64 << 20, 64 << 20);
            let _me = crate::task::testing::enter();
            let used = frame::usage().used_bytes;
            // Mostly what Linux wants: the same place within a page in the file and in memory.
            let headers: Vec<Header> = headers
                .into_iter()
                .map(|h| if aligned { (h.0, h.1, h.2, h.3 & !0xfff | h.2 & 0xfff, h.4, h.5.max(h.4)) } else { h })
                .collect();
            let program = file(image(kind, entry, &headers, 0x5000));
            let loaded = Elf::parse(|at, buffer| read_at(&program, at, buffer)).and_then(|elf| {
                let none = Strings::default();
                load(&program, &elf, b"x", (&none, &none), &WHO, &|_| Err(Errno::ENOENT))
            });
            if let Ok(loaded) = loaded {
                prop_assert_eq!(loaded.stack % 16, 0);
                prop_assert_eq!(word(&loaded, loaded.stack), 0);
            }
            prop_assert_eq!(frame::usage().used_bytes, used);
        }
    }
}
