//! /proc/PID/maps, smaps and statm.

use super::super::device;
use crate::ipc::Object;
use crate::mm::addr::PAGE_BYTES;
use crate::mm::space::Prot;
use crate::mm::space::{Area, AreaReport, Backing, Label};
use crate::task::current;
use crate::task::process::Process;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

/// The file system that segments are in on Linux.
const SEGMENTS_DEV: u64 = device::make(0, 1);

/// The line of an area, as `show_map_vma` of Linux prints it.
fn header(process: &Process, area: &Area, out: &mut Vec<u8>) {
    let flag = |on: bool, c: char| if on { c } else { '-' };
    let (offset, dev, ino, name) = match &area.backing {
        Backing::Anonymous => {
            let name = process.try_space().and_then(|space| space.special_name(area)).unwrap_or("");
            (0, 0, 0, name.as_bytes().to_vec())
        }
        Backing::Object(object) => match &object.label {
            Label::Name(name) => (object.first_page * PAGE_BYTES, 0, 0, name.as_bytes().to_vec()),
            Label::Segment(attachment) => {
                let segment = &attachment.segment;
                let name = format!("/SYSV{:08x} (deleted)", segment.first_key);
                let ino = u64::from(segment.permissions().id.cast_unsigned());
                (object.first_page * PAGE_BYTES, SEGMENTS_DEV, ino, name.into_bytes())
            }
            Label::File(file) => {
                let meta = file.metadata();
                let root = current().fs().root.borrow().clone();
                let location = crate::fs::anonymous::location(file);
                (object.first_page * PAGE_BYTES, meta.dev, meta.ino, crate::fs::path::link_text(&location, &root))
            }
        },
    };
    let mut line = format!(
        "{:08x}-{:08x} {}{}{}{} {offset:08x} {:02x}:{:02x} {ino} ",
        area.start,
        area.end,
        flag(area.prot.contains(Prot::READ), 'r'),
        flag(area.prot.contains(Prot::WRITE), 'w'),
        flag(area.prot.contains(Prot::EXEC), 'x'),
        if area.is_shared() { 's' } else { 'p' },
        device::major(dev),
        device::minor(dev),
    );
    if !name.is_empty() {
        while line.len() < 73 {
            line.push(' ');
        }
    }
    out.extend(line.as_bytes());
    for byte in name {
        if byte == b'\n' { out.extend(b"\\012") } else { out.push(byte) }
    }
    out.push(b'\n');
}

pub(super) fn maps(process: &Process) -> Vec<u8> {
    let mut out = Vec::new();
    let Some(space) = process.try_space() else { return out };
    for area in space.areas() {
        header(process, &area, &mut out);
    }
    out
}

fn report_lines(report: &AreaReport, size: Option<u64>) -> String {
    let mut out = String::new();
    let mut line = |name: &str, bytes: u64| {
        let _ = writeln!(out, "{:<16}{:>8} kB", format!("{name}:"), bytes >> 10);
    };
    if let Some(size) = size {
        line("Size", size);
        line("KernelPageSize", PAGE_BYTES);
        line("MMUPageSize", PAGE_BYTES);
    }
    line("Rss", report.resident);
    line("Pss", report.proportional);
    line("Shared_Clean", report.shared);
    line("Shared_Dirty", 0);
    line("Private_Clean", 0);
    line("Private_Dirty", report.private);
    line("Referenced", report.resident);
    line("Anonymous", report.anonymous);
    line("AnonHugePages", report.large);
    line("Swap", 0);
    line("SwapPss", 0);
    line("Locked", 0);
    out
}

pub(super) fn smaps(process: &Process) -> Vec<u8> {
    let mut out = Vec::new();
    let Some(space) = process.try_space() else { return out };
    for area in space.areas() {
        header(process, &area, &mut out);
        out.extend(report_lines(&space.area_report(&area), Some(area.len())).into_bytes());
    }
    out
}

pub(super) fn smaps_rollup(process: &Process) -> Vec<u8> {
    let Some(space) = process.try_space() else { return Vec::new() };
    let mut sum = AreaReport::default();
    let areas = space.areas();
    for area in &areas {
        let report = space.area_report(area);
        sum.resident += report.resident;
        sum.proportional += report.proportional;
        sum.shared += report.shared;
        sum.private += report.private;
        sum.anonymous += report.anonymous;
        sum.large += report.large;
    }
    let (start, end) = (areas.first().map_or(0, |a| a.start), areas.last().map_or(0, |a| a.end));
    let mut out = format!("{start:08x}-{end:08x} ---p 00000000 00:00 0                          [rollup]\n");
    out.push_str(&report_lines(&sum, None));
    out.into_bytes()
}

pub(super) fn statm(process: &Process) -> Vec<u8> {
    let Some(space) = process.try_space() else { return b"0 0 0 0 0 0 0\n".to_vec() };
    let (foot, resident) = (space.footprint(), space.resident_pages());
    let pages = |bytes: u64| bytes / PAGE_BYTES;
    format!(
        "{} {} {} {} 0 {} 0\n",
        pages(foot.total),
        resident.pages(),
        resident.file_pages + resident.shared_pages,
        pages(foot.code),
        pages(foot.data + foot.stack)
    )
    .into_bytes()
}
