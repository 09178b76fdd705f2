//! `--trace`: system calls as strace(1) prints them.
//!
//! A line is begun when the call enters (with the arguments up to the first that the call fills in) and ended when it
//! returns; when another thread runs in between it is split into `<unfinished ...>` and `<... resumed>`.

mod arguments;
mod flags;

use super::dispatch;
use super::names;
use crate::errno::{Errno, Result};
use crate::time;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use core::cell::RefCell;
use core::fmt::Write;

/// A call that has entered and not returned.
struct Open {
    number: u64,
    args: [u64; 6],
    /// How many arguments `text` holds.
    shown: usize,
    entered_ns: u64,
    /// The line so far; `None` once it has been printed as unfinished.
    text: Option<String>,
}

#[derive(Default)]
struct Trace {
    open: RefCell<BTreeMap<u32, Open>>,
}

crate::global! {
    static TRACE: Trace = Trace { open: RefCell::new(BTreeMap::new()) };
}

fn print(tid: u32, at_ns: u64, text: &str) {
    emit(&format!("{tid:>4} {:>4}.{:06} {text}\n", at_ns / 1_000_000_000, at_ns / 1000 % 1_000_000));
}

#[cfg(not(feature = "hosted"))]
fn emit(line: &str) {
    crate::host::stream::send_text(torpor_abi::frame::stream::TRACE, line.as_bytes());
}

#[cfg(feature = "hosted")]
fn emit(line: &str) {
    std::eprint!("{line}");
}

/// Name of a call, `syscall_N` where Linux has none.
fn call_name(number: u64) -> String {
    names::name(number).map_or_else(|| format!("syscall_{number}"), String::from)
}

/// A thread has entered the kernel with a system call.
pub fn enter(tid: u32, number: u64, args: [u64; 6]) {
    flush_others(tid);
    let kinds = dispatch::entry(number).map_or(&[][..], |call| call.args);
    let mut text = call_name(number);
    text.push('(');
    let mut shown = 0;
    if dispatch::entry(number).is_none() {
        for (n, value) in args.iter().enumerate() {
            let _ = write!(text, "{}{value:#x}", if n == 0 { "" } else { ", " });
        }
    }
    while shown < kinds.len().min(6) && !arguments::is_output(kinds[shown]) {
        arguments::show(&mut text, kinds, &args, shown, None);
        shown += 1;
    }
    let open = Open { number, args, shown, entered_ns: time::now().0, text: Some(text) };
    TRACE.with(|t| t.open.borrow_mut().insert(tid, open));
}

/// It returns.
pub fn leave(tid: u32, result: &Result<u64>) {
    flush_others(tid);
    let Some(mut open) = TRACE.with(|t| t.open.borrow_mut().remove(&tid)) else { return };
    let mut text = open.text.take().unwrap_or_else(|| format!("<... {} resumed>", call_name(open.number)));
    let kinds = dispatch::entry(open.number).map_or(&[][..], |call| call.args);
    for n in open.shown..kinds.len().min(6) {
        arguments::show(&mut text, kinds, &open.args, n, Some(result));
    }
    text.push(')');
    while text.len() < 40 {
        text.push(' ');
    }
    let _ = match result {
        Ok(value) if open.number == u64::from(linux_raw_sys::general::__NR_mmap) || *value >= 1 << 32 => {
            write!(text, "= {value:#x}")
        }
        Ok(value) => write!(text, "= {value}"),
        Err(Errno(n @ 512..)) => write!(text, "= ? {} (interrupted)", Errno(*n).name().unwrap_or("ERESTART")),
        Err(error) => write!(text, "= -1 {error:?} ({error})"),
    };
    let ns = time::now().0 - open.entered_ns;
    let _ = write!(text, " <{}.{:06}>", ns / 1_000_000_000, ns / 1000 % 1_000_000);
    print(tid, open.entered_ns, &text);
}

/// Prints lines that other threads have begun as unfinished; `u32::MAX` for all (before idling, and at the end).
pub fn flush_others(tid: u32) {
    let begun = TRACE.with(|t| {
        let mut open = t.open.borrow_mut();
        let begun: alloc::vec::Vec<_> = open
            .iter_mut()
            .filter(|(other, _)| **other != tid)
            .filter_map(|(other, open)| open.text.take().map(|text| (*other, open.entered_ns, text)))
            .collect();
        begun
    });
    for (other, at_ns, text) in begun {
        print(other, at_ns, &format!("{text} <unfinished ...>"));
    }
}

/// A line that is no system call: a signal, an exit.
pub fn note(tid: u32, text: &str) {
    flush_others(u32::MAX);
    print(tid, time::now().0, text);
}

/// What was called without being implemented, at the end of a trace.
#[must_use]
pub fn missing_summary() -> Option<String> {
    let missing = dispatch::missing();
    if missing.is_empty() {
        return None;
    }
    let mut text = String::from("not implemented (answered with ENOSYS):");
    for (number, count) in missing {
        let _ = write!(text, " {}: {count}", call_name(number));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_calls_are_named() {
        assert_eq!(call_name(2), "open");
        assert_eq!(call_name(9999), "syscall_9999");
        assert!(dispatch::call(9999, [0; 6]) == Err(Errno::ENOSYS));
        assert!(missing_summary().is_some_and(|text| text.contains("syscall_480: 1")));
    }
}
