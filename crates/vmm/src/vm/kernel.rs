//! The guest kernel: an ELF file that this program carries. Loading it, and naming its addresses after a crash.

use super::memory::{Gpa, GuestMemory, Plain};
use object::elf::{ET_EXEC, FileHeader64, PT_LOAD, ProgramHeader64};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{LittleEndian, Object, ObjectSymbol, SymbolKind};
use std::fmt::Write as _;
use thiserror::Error;
use torpor_abi::boot::VERSION;
use torpor_abi::layout::{KERNEL_BASE, KERNEL_GPA, KERNEL_MAX_BYTES, LARGE_PAGE_BYTES, PAGE_BYTES};
use torpor_abi::trap::{KERNEL_MAGIC, KernelHeader};

/// Aligned so that its structures can be read in place.
#[repr(C, align(4096))]
struct Aligned<T: ?Sized>(T);

static KERNEL: &Aligned<[u8]> = &Aligned(*include_bytes!(env!("TORPOR_KERNEL_ELF")));

/// The guest kernel as built with this program.
#[must_use]
pub fn embedded() -> &'static [u8] {
    &KERNEL.0
}

/// A kernel that can't be loaded. Ours can; the checks are for one that was built wrongly.
#[derive(Debug, Error)]
pub(super) enum BadKernel {
    /// Not an ELF file that the loader understands.
    #[error("the guest kernel is not an ELF executable for x86-64: {0}")]
    Elf(String),
    /// A segment outside the kernel's part of memory.
    #[error("the guest kernel has a segment at {0:#x}, outside its place in memory")]
    Segment(u64),
    /// The entry point does not name a header, or one of another version.
    #[error("the guest kernel's header has magic {magic:#x} and version {version}: it was not built with this program")]
    Header {
        /// As found.
        magic: u64,
        /// As found.
        version: u64,
    },
}

/// What the loader found.
#[derive(Debug)]
pub(super) struct Loaded {
    /// Entry points.
    pub header: KernelHeader,
    /// First byte behind the image and its bss, a whole page.
    pub end: Gpa,
}

/// Copies a kernel's segments into guest memory, which is zero so far.
///
/// # Errors
/// [`BadKernel`].
pub(super) fn load(elf: &[u8], memory: &GuestMemory) -> Result<Loaded, BadKernel> {
    let bad = |error: object::read::Error| BadKernel::Elf(error.to_string());
    let file = FileHeader64::<LittleEndian>::parse(elf).map_err(bad)?;
    let endian = file.endian().map_err(bad)?;
    if file.e_type(endian) != ET_EXEC || file.e_machine(endian) != object::elf::EM_X86_64 {
        return Err(BadKernel::Elf("not linked at a fixed address".into()));
    }
    let segments = file.program_headers(endian, elf).map_err(bad)?;
    let span = |segment: &ProgramHeader64<LittleEndian>| {
        let end = segment.p_vaddr(endian).saturating_add(segment.p_memsz(endian));
        if segment.p_type(endian) == PT_LOAD { end.saturating_sub(KERNEL_BASE).min(KERNEL_MAX_BYTES) } else { 0 }
    };
    // By large pages, which the kernel nearly fills: KVM maps each by one fault. It is only quicker: where it fails the
    // copies below fault small pages in.
    let large = segments.iter().map(span).max().unwrap_or(0).next_multiple_of(LARGE_PAGE_BYTES);
    let _ = memory.populate(Gpa(KERNEL_GPA), large);
    let mut end = KERNEL_GPA;
    for segment in segments {
        if segment.p_type(endian) != PT_LOAD || segment.p_memsz(endian) == 0 {
            continue;
        }
        let address = segment.p_vaddr(endian);
        let outside = BadKernel::Segment(address);
        let Some(offset) = address.checked_sub(KERNEL_BASE).filter(|&o| o < KERNEL_MAX_BYTES) else {
            return Err(outside);
        };
        if segment.p_memsz(endian) > KERNEL_MAX_BYTES - offset {
            return Err(outside);
        }
        let data = segment.data(endian, elf).map_err(|()| BadKernel::Elf("a segment beyond its end".into()))?;
        // The bss is zero because guest memory is; only what the file holds is copied.
        let target = Gpa(KERNEL_GPA + offset);
        if memory.write(target, data).is_err() {
            return Err(outside);
        }
        end = end.max(KERNEL_GPA + offset + segment.p_memsz(endian));
    }
    let header = read_header(file.e_entry(endian), memory)?;
    Ok(Loaded { header, end: Gpa(end.next_multiple_of(PAGE_BYTES)) })
}

fn read_header(address: u64, memory: &GuestMemory) -> Result<KernelHeader, BadKernel> {
    let gpa = Gpa(address.wrapping_sub(KERNEL_BASE).wrapping_add(KERNEL_GPA));
    let mut bytes = [0; size_of::<KernelHeader>()];
    memory.read(gpa, &mut bytes).map_err(|_| BadKernel::Segment(address))?;
    let header: KernelHeader = from_bytes(&bytes);
    if header.magic != KERNEL_MAGIC || header.version != u64::from(VERSION) {
        return Err(BadKernel::Header { magic: header.magic, version: header.version });
    }
    Ok(header)
}

fn from_bytes<T: Plain>(bytes: &[u8]) -> T {
    assert_eq!(bytes.len(), size_of::<T>());
    // SAFETY: as many bytes as `T` has, and any bytes are a valid `T` (`Plain`).
    unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) }
}

/// The kernel's functions by address.
#[derive(Debug)]
pub(super) struct Symbols {
    /// Start, size, name; sorted by start.
    functions: Vec<(u64, u64, String)>,
}

impl Symbols {
    /// Reads the symbol table of a kernel; empty where it has none.
    #[must_use]
    pub(super) fn new(elf: &[u8]) -> Self {
        let mut functions: Vec<(u64, u64, String)> = object::File::parse(elf).map_or_else(
            |_| Vec::new(),
            |file| {
                file.symbols()
                    .filter(|symbol| symbol.kind() == SymbolKind::Text || symbol.size() == 0 && symbol.address() != 0)
                    .filter_map(|symbol| {
                        let name = symbol.name().ok().filter(|name| !name.is_empty() && !name.starts_with('.'))?;
                        Some((symbol.address(), symbol.size(), format!("{:#}", rustc_demangle::demangle(name))))
                    })
                    .collect()
            },
        );
        functions.sort();
        Self { functions }
    }

    /// `function+0x12`, where the address is in one. Entry stubs are labels without a size and reach to the next one.
    #[must_use]
    pub(super) fn name(&self, address: u64) -> Option<String> {
        let next = self.functions.partition_point(|&(start, ..)| start <= address);
        let &(start, size, ref name) = self.functions.get(next.checked_sub(1)?)?;
        let end = if size == 0 { self.functions.get(next).map_or(start, |&(start, ..)| start) } else { start + size };
        (address < end).then(|| format!("{name}+{:#x}", address - start))
    }

    /// The name of the function that a return address goes back to.
    #[must_use]
    pub(super) fn caller(&self, return_address: u64) -> Option<String> {
        self.name(return_address.checked_sub(1)?)
    }

    /// A text with the name behind each return address of its backtrace: the last `0x...` of a line.
    #[must_use]
    pub(super) fn annotate(&self, text: &str) -> String {
        let mut annotated = String::with_capacity(text.len() * 2);
        for line in text.lines() {
            annotated.push_str(line);
            let address = line.rfind("0x").and_then(|at| {
                let digits = line[at + 2..].split(|c: char| !c.is_ascii_hexdigit()).next()?;
                u64::from_str_radix(digits, 16).ok()
            });
            if let Some(name) = address.and_then(|address| self.caller(address)) {
                let _ = write!(annotated, " {name}");
            }
            annotated.push('\n');
        }
        annotated
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_embedded_kernel_loads() {
        let memory = GuestMemory::new(64 << 20).expect("memory");
        let loaded = load(embedded(), &memory).expect("a kernel");
        assert!(loaded.header.entry >= KERNEL_BASE);
        assert!(loaded.end.0 <= KERNEL_GPA + KERNEL_MAX_BYTES);
        let symbols = Symbols::new(embedded());
        assert!(symbols.name(loaded.header.entry).is_some(), "the entry point has a name");
    }

    #[test]
    fn addresses_are_named() {
        let symbols = Symbols {
            functions: vec![(0x1000, 0x10, "one".into()), (0x2000, 0, "label".into()), (0x2010, 4, "two".into())],
        };
        assert_eq!(symbols.name(0x100f).as_deref(), Some("one+0xf"));
        assert_eq!(symbols.name(0x1010), None);
        assert_eq!(symbols.name(0x200f).as_deref(), Some("label+0xf"));
        assert_eq!(symbols.name(0xfff), None);
        assert_eq!(symbols.annotate("panic\n  #0 0x1004"), "panic\n  #0 0x1004 one+0x3\n");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn damaged_kernels_are_refused_or_loaded(changes in proptest::collection::vec((0_usize..0x400, any::<u8>()), 1..8)) {
            let memory = GuestMemory::new(64 << 20).expect("memory");
            let mut elf = embedded().to_vec();
            for (at, value) in changes {
                elf[at] = value;
            }
            let _ = load(&elf, &memory);
        }
    }
}
