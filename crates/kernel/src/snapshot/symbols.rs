//! Functions of a program or library by the name under which it shows them to others.
//!
//! Read from the program's own memory as a dynamic linker does (System V ABI, chapter 5; the hash table is
//! DT_GNU_HASH). The program may have written anything there: it can mislead this about itself only, and every loop is
//! bounded.

use crate::mm::addr::UserAddr;
use crate::mm::space::AddressSpace;

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const DT_NULL: u64 = 0;
const DT_STRTAB: u64 = 5;
const DT_SYMTAB: u64 = 6;
const DT_GNU_HASH: u64 = 0x6fff_fef5;

const HEADER_BYTES: u64 = 64;
const PROGRAM_HEADER_BYTES: u64 = 56;
const SYMBOL_BYTES: u64 = 24;
const HEADERS_MAX: u16 = 64;
const DYNAMIC_MAX: u64 = 128;
/// Symbols with one hash: a linker makes chains of a few.
const CHAIN_MAX: u32 = 64;

/// Whether `address` lies in the function `name` of the ELF file that is mapped there.
pub(super) fn is_in_function(space: &AddressSpace, address: u64, name: &[u8]) -> bool {
    let found = || {
        let module = Module::at(space, address)?;
        let (start, bytes) = module.function(name)?;
        Some(address.wrapping_sub(start) < bytes)
    };
    found().unwrap_or(false)
}

/// A mapped ELF file.
struct Module<'a> {
    space: &'a AddressSpace,
    /// Where its addresses count from.
    bias: u64,
    symbols: u64,
    strings: u64,
    hash: u64,
}

impl<'a> Module<'a> {
    fn at(space: &'a AddressSpace, address: u64) -> Option<Self> {
        let start = space.start_of_file(address)?;
        let header: [u8; HEADER_BYTES as usize] = read(space, start)?;
        if !header.starts_with(b"\x7fELF\x02\x01") {
            return None;
        }
        let headers_offset = u64::from_le_bytes(header[32..40].try_into().ok()?);
        let headers = u16::from_le_bytes(header[56..58].try_into().ok()?).min(HEADERS_MAX);
        let (mut bias, mut dynamic) = (None, None);
        for index in 0..u64::from(headers) {
            let at = start.checked_add(headers_offset)?.checked_add(index * PROGRAM_HEADER_BYTES)?;
            let kind = u32::from_le_bytes(read(space, at)?);
            let [offset, virtual_address] = words(space, at + 8)?;
            match kind {
                PT_LOAD if offset == 0 => bias = Some(start.wrapping_sub(virtual_address)),
                PT_DYNAMIC => dynamic = Some(virtual_address),
                _ => {}
            }
        }
        let bias = bias?;
        let (mut symbols, mut strings, mut hash) = (None, None, None);
        let dynamic = bias.wrapping_add(dynamic?);
        for index in 0..DYNAMIC_MAX {
            let [tag, value] = words(space, dynamic.checked_add(index * 16)?)?;
            // The C library's dynamic linker has made addresses of them in its own and in programs' tables.
            let value = if value < bias { value.wrapping_add(bias) } else { value };
            match tag {
                DT_NULL => break,
                DT_STRTAB => strings = Some(value),
                DT_SYMTAB => symbols = Some(value),
                DT_GNU_HASH => hash = Some(value),
                _ => {}
            }
        }
        Some(Self { space, bias, symbols: symbols?, strings: strings?, hash: hash? })
    }

    /// Start and length of a function.
    fn function(&self, name: &[u8]) -> Option<(u64, u64)> {
        let wanted = name.iter().fold(5381_u32, |hash, &byte| hash.wrapping_mul(33).wrapping_add(u32::from(byte)));
        let [buckets, first, bloom_words, _] = read(self.space, self.hash).map(|bytes: [u8; 16]| {
            [0, 4, 8, 12].map(|at| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]))
        })?;
        let bucket_list = self.hash.checked_add(16 + u64::from(bloom_words) * 8)?;
        let bucket = u64::from(wanted.checked_rem(buckets)?);
        let begin = u32::from_le_bytes(read(self.space, bucket_list.checked_add(bucket * 4)?)?);
        let chains = bucket_list.checked_add(u64::from(buckets) * 4)?;
        for index in begin..begin.checked_add(CHAIN_MAX)? {
            let entry = chains.checked_add(u64::from(index.checked_sub(first)?) * 4)?;
            let hash = u32::from_le_bytes(read(self.space, entry)?);
            if hash | 1 == wanted | 1
                && let Some(function) = self.symbol(index, name)
            {
                return Some(function);
            }
            if hash & 1 == 1 {
                break;
            }
        }
        None
    }

    /// Start and length of the symbol at an index, if it has that name.
    fn symbol(&self, index: u32, name: &[u8]) -> Option<(u64, u64)> {
        let entry = self.symbols.checked_add(u64::from(index) * SYMBOL_BYTES)?;
        let offset = u32::from_le_bytes(read(self.space, entry)?);
        let [value, bytes] = words(self.space, entry + 8)?;
        let text = self.strings.checked_add(u64::from(offset))?;
        let same = name.iter().chain(&[0]).zip(text..).all(|(&byte, at)| read(self.space, at) == Some([byte]));
        same.then_some((self.bias.wrapping_add(value), bytes))
    }
}

fn read<const N: usize>(space: &AddressSpace, address: u64) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    space.read(UserAddr(address), &mut bytes).ok()?;
    Some(bytes)
}

fn words(space: &AddressSpace, address: u64) -> Option<[u64; 2]> {
    let bytes: [u8; 16] = read(space, address)?;
    let (first, second) = bytes.split_at(8);
    Some([u64::from_le_bytes(first.try_into().ok()?), u64::from_le_bytes(second.try_into().ok()?)])
}
