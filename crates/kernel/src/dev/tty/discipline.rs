//! The line discipline N_TTY: what termios(3) describes between a terminal's bytes and what programs read and write.
//!
//! Pure: bytes in, bytes and signals out; who sleeps and who is signalled is [`super`]'s affair.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use linux_raw_sys::general as g;

/// Bytes that can wait to be read (N_TTY_BUF_SIZE).
const BUFFER_BYTES: usize = 4096;
/// A control character that is switched off.
const DISABLED: u8 = 0;

/// Settings, as `struct termios2` holds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "termios(3)")]
pub(super) struct Termios {
    pub(super) iflag: u32,
    pub(super) oflag: u32,
    pub(super) cflag: u32,
    pub(super) lflag: u32,
    pub(super) line: u8,
    pub(super) cc: [u8; 19],
    pub(super) ispeed: u32,
    pub(super) ospeed: u32,
}

impl Default for Termios {
    /// What a pseudoterminal of Linux begins with: 38400 baud, 8 bits, cooked with echo.
    fn default() -> Self {
        let mut cc = [0; 19];
        for (index, value) in [
            (g::VINTR, 3),
            (g::VQUIT, 28),
            (g::VERASE, 127),
            (g::VKILL, 21),
            (g::VEOF, 4),
            (g::VMIN, 1),
            (g::VSTART, 17),
            (g::VSTOP, 19),
            (g::VSUSP, 26),
            (g::VREPRINT, 18),
            (g::VDISCARD, 15),
            (g::VWERASE, 23),
            (g::VLNEXT, 22),
        ] {
            cc[index as usize] = value;
        }
        Self {
            iflag: g::ICRNL | g::IXON,
            oflag: g::OPOST | g::ONLCR,
            cflag: g::B38400 | g::CS8 | g::CREAD,
            lflag: g::ISIG | g::ICANON | g::ECHO | g::ECHOE | g::ECHOK | g::ECHOCTL | g::ECHOKE | g::IEXTEN,
            line: 0,
            cc,
            ispeed: 38400,
            ospeed: 38400,
        }
    }
}

impl Termios {
    /// Whether Ctrl-S and Ctrl-Q stop and start output, which the other end may do itself (TIOCPKT of tty_ioctl(4)).
    pub(super) fn usual_flow_control(&self) -> bool {
        self.input(g::IXON) && self.cc[g::VSTOP as usize] == 19 && self.cc[g::VSTART as usize] == 17
    }

    /// Whether the other end edits lines (EXTPROC).
    pub(super) fn external(&self) -> bool {
        self.local(g::EXTPROC)
    }

    fn input(&self, flag: u32) -> bool {
        self.iflag & flag != 0
    }

    fn local(&self, flag: u32) -> bool {
        self.lflag & flag != 0
    }

    /// Whether `byte` is the (enabled) control character `index`.
    fn is(&self, byte: u8, index: u32) -> bool {
        byte != DISABLED && self.cc[index as usize] == byte
    }
}

/// A signal for the foreground process group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "named after the characters")]
pub(super) enum Interrupt {
    Intr,
    Quit,
    Suspend,
}

/// See the module's text.
#[derive(Default)]
pub(super) struct Discipline {
    termios: Termios,
    /// What has been received and not read, the line being edited included.
    buffer: VecDeque<u8>,
    /// Lengths of the completed lines at the front of `buffer`; the flag says that the line ended with VEOF.
    lines: VecDeque<(usize, bool)>,
    /// Bytes of `buffer` in completed lines.
    complete: usize,
    literal_next: bool,
    stopped: bool,
    column: usize,
    /// Column at which the line being edited began.
    line_column: usize,
}

impl Discipline {
    /// The settings.
    #[must_use]
    pub(super) fn termios(&self) -> &Termios {
        &self.termios
    }

    /// Changes the settings. What waits to be read stays, as on Linux: a change of ICANON makes the line being edited readable.
    pub(super) fn set_termios(&mut self, new: Termios) {
        let was = self.termios.local(g::ICANON);
        self.termios = new;
        if was != new.local(g::ICANON) {
            let rest = self.buffer.len() - self.complete;
            if !was || rest > 0 {
                self.lines.clear();
                self.complete = 0;
                if new.local(g::ICANON) && !self.buffer.is_empty() {
                    self.complete_line(false);
                }
            }
        }
        if !new.input(g::IXON) {
            self.stopped = false;
        }
    }

    /// Whether output is held back by VSTOP.
    #[must_use]
    pub(super) fn stopped(&self) -> bool {
        self.stopped
    }

    /// tcflow(3).
    pub(super) fn set_stopped(&mut self, stopped: bool) {
        self.stopped = stopped;
    }

    fn canonical(&self) -> bool {
        self.termios.local(g::ICANON)
    }

    /// Bytes that a read may take at once; in canonical mode those of completed lines.
    #[must_use]
    pub(super) fn available(&self) -> usize {
        if self.canonical() { self.complete } else { self.buffer.len() }
    }

    /// Whether a read would return at once: a completed line (also an empty one at VEOF), or at least `min` bytes.
    #[must_use]
    pub(super) fn readable(&self, min: usize) -> bool {
        if self.canonical() { !self.lines.is_empty() } else { self.buffer.len() >= min.max(1) }
    }

    /// Bytes that can still be received.
    #[must_use]
    pub(super) fn room(&self) -> usize {
        BUFFER_BYTES - self.buffer.len()
    }

    /// Takes up to `max` bytes: of one line in canonical mode. Empty at VEOF.
    pub(super) fn take(&mut self, max: usize) -> Vec<u8> {
        if !self.canonical() {
            let n = max.min(self.buffer.len());
            return self.buffer.drain(..n).collect();
        }
        let Some((len, eof)) = self.lines.pop_front() else { return Vec::new() };
        let n = max.min(len);
        if n < len {
            self.lines.push_front((len - n, eof));
        }
        self.complete -= n;
        self.buffer.drain(..n).collect()
    }

    /// tcflush(3) of the input.
    pub(super) fn flush_input(&mut self) {
        self.buffer.clear();
        self.lines.clear();
        self.complete = 0;
    }

    /// One byte from the terminal. Echo is appended to `echo`; a signal character gives an [`Interrupt`].
    pub(super) fn receive(&mut self, mut byte: u8, echo: &mut Vec<u8>) -> Option<Interrupt> {
        let t = self.termios;
        if t.input(g::ISTRIP) {
            byte &= 0x7f;
        }
        if t.input(g::IUCLC) && t.local(g::IEXTEN) {
            byte = byte.to_ascii_lowercase();
        }
        if core::mem::take(&mut self.literal_next) {
            self.store(byte, echo);
            return None;
        }
        if t.input(g::IXON) {
            if t.is(byte, g::VSTART) {
                self.stopped = false;
                return None;
            }
            if t.is(byte, g::VSTOP) {
                self.stopped = true;
                return None;
            }
        }
        if t.local(g::ISIG) {
            let interrupt = if t.is(byte, g::VINTR) {
                Some(Interrupt::Intr)
            } else if t.is(byte, g::VQUIT) {
                Some(Interrupt::Quit)
            } else if t.is(byte, g::VSUSP) {
                Some(Interrupt::Suspend)
            } else {
                None
            };
            if interrupt.is_some() {
                if !t.local(g::NOFLSH) {
                    self.flush_input();
                }
                if t.local(g::ECHO) {
                    self.echo(byte, echo);
                }
                return interrupt;
            }
        }
        if self.stopped && t.input(g::IXON) && t.input(g::IXANY) {
            self.stopped = false;
        }
        match byte {
            b'\r' if t.input(g::IGNCR) => return None,
            b'\r' if t.input(g::ICRNL) => byte = b'\n',
            b'\n' if t.input(g::INLCR) => byte = b'\r',
            _ => {}
        }
        if self.canonical() {
            self.receive_canonical(byte, echo)
        } else {
            self.store(byte, echo)
        }
        None
    }

    fn receive_canonical(&mut self, byte: u8, echo: &mut Vec<u8>) {
        let t = self.termios;
        let extended = t.local(g::IEXTEN);
        if t.is(byte, g::VERASE) {
            self.erase_character(echo);
        } else if extended && t.is(byte, g::VWERASE) {
            self.erase_word(echo);
        } else if t.is(byte, g::VKILL) {
            self.kill(byte, echo);
        } else if extended && t.is(byte, g::VLNEXT) {
            self.literal_next = true;
            if t.local(g::ECHO) && t.local(g::ECHOCTL) {
                echo.extend(b"^\x08");
            }
        } else if extended && t.is(byte, g::VREPRINT) && t.local(g::ECHO) {
            self.echo(byte, echo);
            self.output(b"\n", echo);
            let line: Vec<u8> = self.buffer.iter().skip(self.complete).copied().collect();
            for byte in line {
                self.echo(byte, echo);
            }
        } else if t.is(byte, g::VEOF) {
            self.complete_line(true);
        } else if byte == b'\n' || t.is(byte, g::VEOL) || (extended && t.is(byte, g::VEOL2)) {
            if self.room() == 0 {
                self.bell(echo);
                return;
            }
            if t.local(g::ECHO) || (byte == b'\n' && t.local(g::ECHONL)) {
                if byte == b'\n' {
                    self.output(b"\n", echo);
                } else {
                    self.echo(byte, echo);
                }
            }
            self.buffer.push_back(byte);
            self.complete_line(false);
            self.line_column = self.column;
        } else {
            self.store(byte, echo);
        }
    }

    fn complete_line(&mut self, eof: bool) {
        let len = self.buffer.len() - self.complete;
        self.lines.push_back((len, eof));
        self.complete += len;
    }

    fn store(&mut self, byte: u8, echo: &mut Vec<u8>) {
        // In canonical mode the last place is kept for the end of the line.
        let spare = usize::from(self.canonical());
        if self.room() <= spare {
            self.bell(echo);
            return;
        }
        if self.termios.local(g::ECHO) {
            if self.buffer.len() == self.complete {
                self.line_column = self.column;
            }
            self.echo(byte, echo);
        }
        self.buffer.push_back(byte);
    }

    fn bell(&self, echo: &mut Vec<u8>) {
        if self.termios.input(g::IMAXBEL) {
            echo.push(7);
        }
    }

    /// Echoes a byte that was typed; control characters as `^X` under ECHOCTL.
    fn echo(&mut self, byte: u8, echo: &mut Vec<u8>) {
        if self.termios.local(g::ECHOCTL) && (byte < 0x20 || byte == 0x7f) && byte != b'\t' && byte != b'\n' {
            self.output(&[b'^', byte ^ 0x40], echo);
        } else {
            self.output(&[byte], echo);
        }
    }

    /// Columns that `byte` takes on the screen when it stands at `column`.
    fn width(&self, byte: u8, column: usize) -> usize {
        match byte {
            b'\t' => 8 - column % 8,
            0..0x20 | 0x7f => {
                if self.termios.local(g::ECHOCTL) {
                    2
                } else {
                    0
                }
            }
            // Continuation bytes of UTF-8 stand in the column of their first byte.
            0x80..0xc0 if self.termios.input(g::IUTF8) => 0,
            _ => 1,
        }
    }

    fn edited_column(&self) -> usize {
        let line = self.buffer.iter().skip(self.complete);
        line.fold(self.line_column, |column, byte| column + self.width(*byte, column))
    }

    fn erase_character(&mut self, echo: &mut Vec<u8>) {
        if self.buffer.len() == self.complete {
            return;
        }
        let before = self.edited_column();
        let mut erased = self.buffer.pop_back();
        while self.termios.input(g::IUTF8)
            && erased.is_some_and(|b| (0x80..0xc0).contains(&b))
            && self.buffer.len() > self.complete
        {
            erased = self.buffer.pop_back();
        }
        if !self.termios.local(g::ECHO) {
            return;
        }
        if self.termios.local(g::ECHOE) {
            let columns = before - self.edited_column();
            for _ in 0..columns {
                echo.extend(b"\x08 \x08");
            }
            self.column = self.column.saturating_sub(columns);
        } else if let Some(byte) = erased {
            self.echo(byte, echo);
        }
    }

    fn erase_word(&mut self, echo: &mut Vec<u8>) {
        let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b >= 0x80;
        let mut seen = false;
        while self.buffer.len() > self.complete {
            let word = self.buffer.back().is_some_and(|b| is_word(*b));
            if seen && !word {
                break;
            }
            seen |= word;
            self.erase_character(echo);
        }
    }

    fn kill(&mut self, byte: u8, echo: &mut Vec<u8>) {
        let t = self.termios;
        if t.local(g::ECHO) && t.local(g::ECHOK) && t.local(g::ECHOKE) && t.local(g::ECHOE) {
            while self.buffer.len() > self.complete {
                self.erase_character(echo);
            }
            return;
        }
        self.buffer.truncate(self.complete);
        if t.local(g::ECHO) {
            self.echo(byte, echo);
            if t.local(g::ECHOK) {
                self.output(b"\n", echo);
            }
        }
    }

    /// What a program writes, on its way to the terminal.
    pub(super) fn output(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let flags = self.termios.oflag;
        let on = |flag: u32| flags & flag != 0;
        for &byte in bytes {
            if !on(g::OPOST) {
                out.push(byte);
                continue;
            }
            match byte {
                b'\n' => {
                    if on(g::ONLRET) {
                        self.column = 0;
                    }
                    if on(g::ONLCR) {
                        out.push(b'\r');
                        self.column = 0;
                    }
                    out.push(b'\n');
                }
                b'\r' if on(g::ONOCR) && self.column == 0 => {}
                b'\r' => {
                    if on(g::OCRNL) {
                        out.push(b'\n');
                        if on(g::ONLRET) {
                            self.column = 0;
                        }
                    } else {
                        out.push(b'\r');
                        self.column = 0;
                    }
                }
                b'\t' => {
                    let spaces = 8 - self.column % 8;
                    if flags & g::TABDLY == g::XTABS {
                        out.resize(out.len() + spaces, b' ');
                    } else {
                        out.push(b'\t');
                    }
                    self.column += spaces;
                }
                8 => {
                    self.column = self.column.saturating_sub(1);
                    out.push(8);
                }
                _ => {
                    let byte = if on(g::OLCUC) { byte.to_ascii_uppercase() } else { byte };
                    if byte >= 0x20 && byte != 0x7f && !(self.termios.input(g::IUTF8) && (0x80..0xc0).contains(&byte)) {
                        self.column += 1;
                    }
                    out.push(byte);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn type_in(d: &mut Discipline, text: &[u8]) -> Vec<u8> {
        let mut echo = Vec::new();
        for byte in text {
            d.receive(*byte, &mut echo);
        }
        echo
    }

    #[test]
    fn lines_are_edited_and_read_one_at_a_time() {
        let mut d = Discipline::default();
        assert_eq!(type_in(&mut d, b"helo\x7flo\r"), b"helo\x08 \x08lo\r\n");
        assert!(!type_in(&mut d, b"second\r").is_empty());
        assert_eq!(d.available(), 13);
        assert_eq!(d.take(3), b"hel");
        assert_eq!(d.take(100), b"lo\n");
        assert_eq!(d.take(100), b"second\n");
        assert!(!d.readable(1));
    }

    #[test]
    fn end_of_file_gives_an_empty_line_once() {
        let mut d = Discipline::default();
        type_in(&mut d, b"ab\x04\x04");
        assert_eq!(d.take(10), b"ab");
        assert!(d.readable(1));
        assert_eq!(d.take(10), b"");
        assert!(!d.readable(1));
    }

    #[test]
    fn words_lines_tabs_and_literals() {
        let mut d = Discipline::default();
        type_in(&mut d, b"one two\x17");
        type_in(&mut d, b"x\x16\x03\r");
        assert_eq!(d.take(100), b"one x\x03\n");
        let echo = type_in(&mut d, b"a\tb\x7f\x7f");
        assert!(echo.ends_with(b"\x08 \x08\x08 \x08\x08 \x08\x08 \x08\x08 \x08\x08 \x08\x08 \x08\x08 \x08"));
        assert_eq!(type_in(&mut d, b"\x15"), b"\x08 \x08");
    }

    #[test]
    fn signals_flush_and_raw_mode_passes_all() {
        let mut d = Discipline::default();
        let mut echo = Vec::new();
        type_in(&mut d, b"abc");
        assert_eq!(d.receive(3, &mut echo), Some(Interrupt::Intr));
        assert_eq!(echo, b"^C");
        assert_eq!(d.available(), 0);
        let raw = Termios { lflag: 0, iflag: 0, oflag: 0, ..Termios::default() };
        d.set_termios(raw);
        assert_eq!(type_in(&mut d, b"\x03\r\n\x04"), b"");
        assert_eq!(d.take(10), b"\x03\r\n\x04");
    }
}
