//! The table of system calls: complete, and documented as it is.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use torpor_kernel::syscall::absent::{ABSENT, reason};
use torpor_kernel::syscall::dispatch::entry;
use torpor_kernel::syscall::names::NAMES;
use torpor_kernel::syscall::table::{GROUPS, Support};

/// Set to rewrite the document instead of comparing it: `make docs`.
const REWRITE: &str = "TORPOR_REWRITE_DOCS";

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn document() -> String {
    let mut rows = String::new();
    let mut counts = [0; 4];
    for (number, name) in NAMES {
        let (kind, state, text) = match entry(u64::from(*number)).map(|call| call.support) {
            Some(Support::Full) => (0, "yes", ""),
            Some(Support::Partial(gap)) => (1, "partly", gap),
            Some(Support::Refused(why)) => (2, "refused", why),
            None => (3, "no", reason(name).unwrap_or("")),
        };
        counts[kind] += 1;
        let _ = writeln!(rows, "| {number} | {name} | {state} | {} |", cell(text));
    }
    let [full, partial, refused, absent] = counts;
    format!(
        "# System calls\n\n\
         Made from the kernel's own table (`crates/kernel/src/syscall/`) by `make docs`; a test compares the two.\n\n\
         Of {} calls that Linux has on x86-64, {full} do what their manual pages say, {partial} do a part of it, {refused} \
         are refused as Linux refuses them where it is configured so, and {absent} are absent. What is missing gives an \
         error, ENOSYS for a call that is absent; `torpor vm run --trace` ends with a list of those that a program called, \
         and how often.\n\n\
         | number | name | there | what is missing or why |\n|---:|---|---|---|\n{rows}",
        NAMES.len()
    )
}

#[test]
fn the_document_shows_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/syscalls.md");
    if std::env::var_os(REWRITE).is_some() {
        std::fs::write(&path, document()).expect("docs/ is there");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == document(), "docs/syscalls.md is not up to date: run `make docs`");
}

#[test]
fn every_call_is_there_or_absent_for_a_reason() {
    for (number, name) in NAMES {
        let there = entry(u64::from(*number));
        assert_ne!(there.is_some(), reason(name).is_some(), "{name}: in the table, or in ABSENT, not both");
        assert!(there.is_none_or(|call| call.name == *name), "{number} is {name}");
    }
    let known: BTreeSet<&str> = NAMES.iter().map(|(_, name)| *name).collect();
    let absent: Vec<&str> = ABSENT.iter().flat_map(|(_, names)| names.iter().copied()).collect();
    assert!(absent.iter().all(|name| known.contains(name)));
    assert_eq!(absent.iter().collect::<BTreeSet<_>>().len(), absent.len(), "none is absent twice");
    let numbers: BTreeSet<u16> = NAMES.iter().map(|(number, _)| *number).collect();
    let implemented = GROUPS.iter().flat_map(|group| group.iter());
    assert!(implemented.clone().all(|call| numbers.contains(&call.number)));
    assert!(implemented.clone().all(|call| call.args.len() <= 6));
    assert!(NAMES.is_sorted());
}
