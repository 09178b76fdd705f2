//! Bytes, strings and addresses of a program as text.

use crate::errno::Errno;
use crate::mm::addr::UserAddr;
use crate::mm::user;
use alloc::string::String;
use alloc::vec;
use core::fmt::Write;

/// Bytes of strings and buffers that are shown, as with strace's default.
const SHOWN_BYTES: usize = 32;
/// Paths are shown whole up to this.
const SHOWN_PATH_BYTES: usize = 4096;
/// Strings of an array that are shown.
const SHOWN_STRINGS: u64 = 32;

/// In quotes, with C's escapes.
pub(super) fn quoted(out: &mut String, bytes: &[u8], more: bool) {
    out.push('"');
    for (n, byte) in bytes.iter().enumerate() {
        let before_digit = bytes.get(n + 1).is_some_and(u8::is_ascii_digit);
        let _ = match byte {
            b'\n' => write!(out, "\\n"),
            b'\t' => write!(out, "\\t"),
            b'\r' => write!(out, "\\r"),
            0x0b => write!(out, "\\v"),
            0x0c => write!(out, "\\f"),
            b'"' | b'\\' => write!(out, "\\{}", *byte as char),
            0x20..0x7f => write!(out, "{}", *byte as char),
            // The shortest that the next character does not change.
            _ if before_digit => write!(out, "\\{byte:03o}"),
            _ => write!(out, "\\{byte:o}"),
        };
    }
    out.push('"');
    if more {
        out.push_str("...");
    }
}

/// The beginning of `len` bytes at an address.
pub(super) fn buffer(out: &mut String, addr: u64, len: usize) {
    let mut bytes = vec![0; len.min(SHOWN_BYTES)];
    match user::read_bytes(UserAddr(addr), &mut bytes) {
        Ok(()) if addr != 0 => quoted(out, &bytes, len > SHOWN_BYTES),
        _ => pointer(out, addr),
    }
}

/// An address.
pub(super) fn pointer(out: &mut String, addr: u64) {
    let _ = if addr == 0 { write!(out, "NULL") } else { write!(out, "{addr:#x}") };
}

/// In C's octal notation.
pub(super) fn octal(out: &mut String, value: u64) {
    let _ = if value == 0 { write!(out, "000") } else { write!(out, "0{value:o}") };
}

/// A NUL-terminated string.
pub(super) fn path(out: &mut String, addr: u64) {
    match user::read_cstr(UserAddr(addr), SHOWN_PATH_BYTES, Errno::ENAMETOOLONG) {
        Ok(text) => quoted(out, &text, false),
        Err(_) => pointer(out, addr),
    }
}

/// A NULL-terminated array of strings.
pub(super) fn strings(out: &mut String, addr: u64) {
    if user::read::<u64>(UserAddr(addr)).is_err() {
        return pointer(out, addr);
    }
    out.push('[');
    for n in 0.. {
        let Ok(string @ 1..) = user::read::<u64>(UserAddr(addr).offset(8 * n)) else { break };
        out.push_str(if n > 0 { ", " } else { "" });
        if n == SHOWN_STRINGS {
            out.push_str("...");
            break;
        }
        path(out, string);
    }
    out.push(']');
}
