//! Where bytes of the program go: standard output, standard error, the trace file.

use rustix::fs::{FileType, Mode, OFlags, fstat};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// A pipe that poll(2) calls writable takes this many bytes without blocking (pipe(7)).
const PIPE_BUF: usize = 4096;
const WRITE_MAX_BYTES: usize = 64 << 10;

/// How far a write may go without blocking the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// Regular files, and descriptors of our own that do not block.
    Free,
    /// Shared with others, so that O_NONBLOCK is not ours to set: small pieces, when poll(2) says so.
    Polled,
}

/// Bytes on their way to a descriptor. The queue is bounded by whoever fills it (the stream's window).
#[derive(Debug)]
pub(super) struct Sink {
    descriptor: OwnedFd,
    pace: Pace,
    is_device: bool,
    queue: VecDeque<u8>,
}

impl Sink {
    /// Takes a descriptor to write to.
    pub(super) fn new(descriptor: OwnedFd) -> Self {
        let kind = fstat(&descriptor).map_or(FileType::Unknown, |stat| FileType::from_raw_mode(stat.st_mode));
        let (descriptor, pace) = match kind {
            FileType::RegularFile => (descriptor, Pace::Free),
            // A terminal or pipe can be opened anew: an open file of our own, which may have O_NONBLOCK.
            FileType::CharacterDevice | FileType::Fifo => {
                let path = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
                let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                rustix::fs::open(path, flags, Mode::empty()).map_or((descriptor, Pace::Polled), |own| (own, Pace::Free))
            }
            _ => (descriptor, Pace::Polled),
        };
        Self { descriptor, pace, is_device: kind == FileType::CharacterDevice, queue: VecDeque::new() }
    }

    /// A copy of a standard stream's descriptor as a sink; none where it is closed.
    pub(super) fn of(stream: BorrowedFd<'_>) -> Option<Self> {
        rustix::io::fcntl_dupfd_cloexec(stream, 3).ok().map(Self::new)
    }

    /// Bytes waiting.
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Adds bytes behind those that wait.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.queue.extend(bytes);
    }

    /// Whether an error of [`Sink::flush`] says that nobody is there to read, which is not for this process to judge: a pipe
    /// or socket whose other end is closed, a terminal that has hung up.
    pub(super) fn is_readerless(&self, error: &io::Error) -> bool {
        match Errno::from_io_error(error) {
            Some(Errno::PIPE | Errno::CONNRESET) => true,
            Some(Errno::IO) => self.is_device,
            _ => false,
        }
    }

    /// Writes what can be written without waiting and returns how much that was.
    ///
    /// # Errors
    /// What write(2) gives; after that the sink is of no use.
    pub(super) fn flush(&mut self) -> io::Result<usize> {
        let mut written = 0;
        while !self.queue.is_empty() {
            let (front, _) = self.queue.as_slices();
            let limit = if self.pace == Pace::Free { WRITE_MAX_BYTES } else { PIPE_BUF };
            let piece = &front[..front.len().min(limit)];
            if self.pace == Pace::Polled && !is_writable(&self.descriptor) {
                break;
            }
            match rustix::io::write(&self.descriptor, piece) {
                Ok(len) => {
                    self.queue.drain(..len);
                    written += len;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(written)
    }
}

impl AsFd for Sink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

fn is_writable(descriptor: &OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut descriptors = [PollFd::new(descriptor, PollFlags::OUT)];
    // An error condition counts: write(2) then says which.
    matches!(poll(&mut descriptors, Some(&Timespec::default())), Ok(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_stalled_reader_keeps_bytes_waiting_in_order() {
        let (mut reader, writer) = std::io::pipe().expect("pipe");
        let mut sink = Sink::new(writer.into());
        let bytes: Vec<u8> = (0..200_000_u32).map(|n| n as u8).collect();
        sink.push(&bytes);
        let mut got = Vec::new();
        let mut buffer = vec![0; 10_000];
        loop {
            sink.flush().expect("the reader is there");
            if sink.len() == 0 {
                break;
            }
            let len = reader.read(&mut buffer).expect("read");
            got.extend_from_slice(&buffer[..len]);
        }
        drop(sink);
        reader.read_to_end(&mut got).expect("read");
        assert_eq!(got, bytes);
    }

    #[test]
    fn sockets_do_not_block_either() {
        let (a, b) = std::os::unix::net::UnixStream::pair().expect("socket pair");
        let mut sink = Sink::new(a.into());
        assert_eq!(sink.pace, Pace::Polled);
        sink.push(&vec![1; 8 << 20]);
        assert!(sink.flush().expect("the reader is there") > 0);
        assert!(sink.len() > 0);
        drop(b);
        let error = sink.flush().expect_err("no reader");
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        assert!(sink.is_readerless(&error));
    }

    #[test]
    fn a_full_device_is_no_closed_pipe() {
        let full = std::fs::File::options().write(true).open("/dev/full").expect("/dev/full");
        let mut sink = Sink::new(full.into());
        sink.push(b"x");
        let error = sink.flush().expect_err("no room");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(!sink.is_readerless(&error));
    }
}
