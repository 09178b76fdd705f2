//! `--trace`: system calls as strace(1) prints them.
//!
//! A line is begun when the call enters (with the arguments up to the first that the call fills in) and ended when it
//! returns; when another thread runs in between it is split into `<unfinished ...>` and `<... resumed>`.

mod arguments;
mod flags;
mod structures;
mod text;

use super::dispatch;
use super::names;
use crate::errno::{Errno, Result};
use crate::task::signal::SignalInfo;
use crate::task::status::WaitStatus;
use crate::time;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use arguments::Call;
use core::cell::RefCell;
use core::fmt::Write;
use linux_raw_sys::general as linux;

/// Where results stand, as with strace's default.
const RESULT_COLUMN: usize = 40;

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
    while shown < kinds.len() && !arguments::is_output(kinds[shown]) {
        arguments::show(&mut text, &Call { kinds, args: &args, result: None }, shown);
        shown += 1;
    }
    let open = Open { number, args, shown, entered_ns: time::now().0, text: Some(text) };
    TRACE.with(|t| t.open.borrow_mut().insert(tid, open));
}

/// It returns.
pub fn leave(tid: u32, result: &Result<u64>) {
    flush_others(tid);
    let Some(mut open) = TRACE.with(|t| t.open.borrow_mut().remove(&tid)) else { return };
    let now_ns = time::now().0;
    let begun = open.text.take();
    let at_ns = if begun.is_some() { open.entered_ns } else { now_ns };
    let kinds = dispatch::entry(open.number).map_or(&[][..], |call| call.args);
    let call = Call { kinds, args: &open.args, result: Some(result) };
    let mut rest = String::new();
    for n in open.shown..kinds.len() {
        arguments::show(&mut rest, &call, n);
    }
    let mut text = match begun {
        Some(text) => format!("{text}{rest}) "),
        None => format!("<... {} resumed>{}) ", call_name(open.number), rest.trim_start_matches(", ")),
    };
    while text.len() < RESULT_COLUMN {
        text.push(' ');
    }
    text.push_str(&result_text(open.number, result));
    let ns = now_ns - open.entered_ns;
    let _ = write!(text, " <{}.{:06}>", ns / 1_000_000_000, ns / 1000 % 1_000_000);
    print(tid, at_ns, &text);
}

fn result_text(number: u64, result: &Result<u64>) -> String {
    let gives = |numbers: &[u32]| numbers.iter().any(|n| u64::from(*n) == number);
    match result {
        // They do not return.
        _ if gives(&[linux::__NR_exit, linux::__NR_exit_group]) => String::from("= ?"),
        Ok(value) if gives(&[linux::__NR_mmap, linux::__NR_brk, linux::__NR_mremap]) => format!("= {value:#x}"),
        Ok(0) if gives(&[linux::__NR_poll, linux::__NR_ppoll, linux::__NR_select, linux::__NR_pselect6]) => {
            String::from("= 0 (Timeout)")
        }
        Ok(value) => format!("= {}", value.cast_signed()),
        Err(error @ Errno(512..)) => {
            let until = match *error {
                Errno::ERESTARTSYS => "To be restarted if SA_RESTART is set",
                Errno::ERESTARTNOHAND => "To be restarted if no handler",
                _ => "Interrupted by signal",
            };
            format!("= ? {} ({until})", error.name().unwrap_or("ERESTART"))
        }
        Err(error) => format!("= -1 {error:?} ({error})"),
    }
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

/// A signal is about to be delivered to a thread.
pub fn signal(tid: u32, info: &SignalInfo) {
    let mut text = String::from("--- ");
    structures::signal(&mut text, u64::from(info.signal.number()));
    text.push(' ');
    structures::signal_info(&mut text, info);
    text.push_str(" ---");
    note(tid, &text);
}

/// A thread has ended, with its process's status where it was the last one.
pub fn ended(tid: u32, status: WaitStatus) {
    let mut text = String::from("+++ ");
    match status.signal() {
        Some(signal) => {
            text.push_str("killed by ");
            structures::signal(&mut text, u64::from(signal));
        }
        None => {
            let _ = write!(text, "exited with {}", status.code_and_status().1);
        }
    }
    text.push_str(" +++");
    // What the thread was doing when it was killed does not return.
    let unfinished =
        TRACE.with(|t| t.open.borrow_mut().remove(&tid)).and_then(|open| Some((open.entered_ns, open.text?)));
    if let Some((at_ns, begun)) = unfinished {
        print(tid, at_ns, &format!("{begun} <unfinished ...>"));
    }
    note(tid, &text);
}

/// A line that is no system call.
pub fn note(tid: u32, text: &str) {
    flush_others(u32::MAX);
    print(tid, time::now().0, text);
}

/// What was called without being implemented, at the end of a trace.
#[must_use]
pub fn missing_summary() -> Option<String> {
    let missing = dispatch::missing();
    if missing.known.is_empty() {
        return None;
    }
    let mut text = String::from("Not implemented (ENOSYS), and how often it was called:\n");
    for (number, count) in missing.known {
        let _ = writeln!(text, "{:>24} {count}", call_name(number));
    }
    if missing.others > 0 {
        let _ = writeln!(text, "{:>24} {}", "other numbers", missing.others);
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
        assert!(missing_summary().is_some_and(|text| text.contains("syscall_9999 1\n")));
    }
}
