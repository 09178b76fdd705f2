use super::*;
use crate::fs::inode::Attachment;
use proptest::prelude::*;
use std::collections::VecDeque;
use std::vec::Vec;

pub(super) fn read(file: &OpenFile, len: usize) -> Result<Vec<u8>> {
    let mut buffer = std::vec![0; len];
    let n = file.read(&mut Dest::kernel(&mut buffer))?;
    buffer.truncate(n);
    Ok(buffer)
}

pub(super) fn write(file: &OpenFile, bytes: &[u8]) -> Result<usize> {
    file.write(&mut Source::kernel(bytes))
}

#[test]
fn ends() {
    let _thread = crate::task::testing::enter();
    let (r, w) = pipe(OpenFlags::NONBLOCK);
    assert_eq!((r.poll(), w.poll()), (Events::empty(), Events::WRITABLE));
    assert_eq!(read(&r, 10), Err(Errno::EAGAIN));
    assert_eq!(read(&r, 0), Ok(Vec::new()));
    assert_eq!(write(&w, b"ab"), Ok(2));
    assert_eq!(write(&r, b"ab"), Err(Errno::EBADF));
    drop(w);
    assert_eq!(r.poll(), Events::READABLE | Events::HUP);
    assert_eq!(read(&r, 10).as_deref(), Ok(&b"ab"[..]));
    assert_eq!(read(&r, 10).as_deref(), Ok(&b""[..]));
    let (r, w) = pipe(OpenFlags::empty());
    drop(r);
    assert_eq!(w.poll(), Events::WRITABLE | Events::ERR);
    assert_eq!(write(&w, b""), Ok(0));
    assert_eq!(write(&w, b"x"), Err(Errno::EPIPE));
}

/// Measured on Linux 6.18.
#[test]
fn a_full_pipe_holds_what_linux_holds() {
    let _thread = crate::task::testing::enter();
    for (size, writes) in [(1, 65536), (1000, 64), (4096, 16), (4097, 10), (3000, 16), (1365, 48), (1366, 32)] {
        let (_r, w) = pipe(OpenFlags::NONBLOCK);
        let data = std::vec![7; size];
        let mut count = 0;
        while write(&w, &data) == Ok(size) {
            count += 1;
        }
        assert_eq!(count, writes, "writes of {size} bytes");
    }
}

#[test]
fn capacity() {
    let _thread = crate::task::testing::enter();
    let (r, w) = pipe(OpenFlags::NONBLOCK);
    let capacity = || r.ops.fcntl(&r, F_GETPIPE_SZ, 0).expect("a pipe");
    let set_capacity = |bytes| r.ops.fcntl(&r, F_SETPIPE_SZ, bytes);
    assert_eq!(capacity(), 65536);
    assert_eq!(set_capacity(5000), Ok(8192));
    assert_eq!(write(&w, &[0; 10000]), Ok(8192));
    assert_eq!(set_capacity(0), Err(Errno::EBUSY));
    assert_eq!(read(&r, 4096).map(|v| v.len()), Ok(4096));
    assert_eq!(set_capacity(0), Ok(4096));
    assert_eq!(w.poll(), Events::empty());
    assert_eq!(set_capacity((1 << 31) + 1), Err(Errno::EINVAL));
}

#[test]
fn fifo_opening() {
    let _thread = crate::task::testing::enter();
    let fifo = Attachment::default();
    let nonblock = OpenFlags::NONBLOCK;
    assert_eq!(fifo::open_attached(&fifo, nonblock | OpenFlags::WRONLY).err(), Some(Errno::ENXIO));
    let open = |flags: OpenFlags| OpenFile::anonymous(fifo::open_attached(&fifo, flags).expect("opens"), flags);
    let r = open(nonblock);
    assert_eq!(r.poll(), Events::empty(), "no hang-up before there was a writer");
    assert_eq!(read(&r, 1).as_deref(), Ok(&b""[..]));
    let w = open(OpenFlags::WRONLY);
    assert_eq!(read(&r, 1), Err(Errno::EAGAIN));
    assert_eq!(write(&w, b"abc"), Ok(3));
    drop(w);
    assert_eq!(r.poll(), Events::READABLE | Events::HUP);
    drop(r);
    let both = open(OpenFlags::RDWR);
    assert_eq!(both.poll(), Events::WRITABLE, "what was left is gone");
    assert_eq!(write(&both, b"x"), Ok(1));
    assert_eq!(read(&both, 5).as_deref(), Ok(&b"x"[..]));
}

#[test]
fn reopening_waits_for_nobody() {
    let _thread = crate::task::testing::enter();
    let (r, w) = pipe(OpenFlags::empty());
    assert_eq!(write(&w, b"abc"), Ok(3));
    drop(w);
    let again = |flags| OpenFile::anonymous(r.ops.reopen(flags).expect("opens"), flags);
    let r2 = again(OpenFlags::empty());
    assert_eq!(r2.poll(), Events::READABLE | Events::HUP);
    assert_eq!(read(&r2, 10).as_deref(), Ok(&b"abc"[..]));
    let w = again(OpenFlags::WRONLY);
    assert_eq!(write(&w, b"d"), Ok(1));
    assert_eq!(read(&r, 10).as_deref(), Ok(&b"d"[..]));
}

#[derive(Clone, Debug)]
enum Op {
    Write { len: usize, packets: bool },
    Read(usize),
    Resize(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let len = prop_oneof![1..20usize, 1000..5000usize, 1..70_000usize, Just(4096)];
    prop_oneof![
        (len.clone(), any::<bool>()).prop_map(|(len, packets)| Op::Write { len, packets }),
        len.prop_map(Op::Read),
        (0..200_000u64).prop_map(Op::Resize),
    ]
}

proptest! {
    /// Against a queue of bytes in which every byte knows its packet (0: none).
    #[test]
    fn behaves_as_a_queue_of_bytes(ops in proptest::collection::vec(op(), 1..60)) {
        let _thread = crate::task::testing::enter();
        let (r, w) = pipe(OpenFlags::NONBLOCK);
        let capacity = || r.ops.fcntl(&r, F_GETPIPE_SZ, 0).expect("a pipe");
    let set_capacity = |bytes| r.ops.fcntl(&r, F_SETPIPE_SZ, bytes);
        let mut model: VecDeque<(u8, u32)> = VecDeque::new();
        let mut next_packet = 1;
        let mut next_byte = 0u8;
        for op in ops {
            match op {
                Op::Write { len, packets } => {
                    // As in Linux, the odd bytes of a packet would join content that is no packet.
                    let packets = model.back().map_or(packets, |last| last.1 != 0);
                    let mode = if packets { OpenFlags::DIRECT } else { OpenFlags::empty() };
                    w.flags.set(OpenFlags::WRONLY | OpenFlags::NONBLOCK | mode);
                    let data: Vec<u8> = (0..len).map(|_| { next_byte = next_byte.wrapping_add(1); next_byte }).collect();
                    let writable = w.poll().contains(Events::OUT);
                    let written = match write(&w, &data) {
                        Ok(n) => n,
                        Err(error) => {
                            prop_assert_eq!(error, Errno::EAGAIN);
                            prop_assert!(!writable);
                            0
                        }
                    };
                    if len <= PIPE_BUF {
                        prop_assert!(written == 0 || written == len, "atomic");
                        prop_assert!(written == len || !writable);
                    }
                    for (i, byte) in data[..written].iter().enumerate() {
                        if packets && i % PIPE_BUF == 0 {
                            next_packet += 1;
                        }
                        model.push_back((*byte, if packets { next_packet } else { 0 }));
                    }
                }
                Op::Read(len) => {
                    let got = read(&r, len);
                    if model.is_empty() {
                        prop_assert_eq!(got, Err(Errno::EAGAIN));
                        continue;
                    }
                    let got = got.expect("there is data");
                    let mut expected = Vec::new();
                    while let Some(&(byte, packet)) = model.front() {
                        if expected.len() == len {
                            break;
                        }
                        model.pop_front();
                        expected.push(byte);
                        if packet != 0 && model.front().is_none_or(|next| next.1 != packet) {
                            break;
                        }
                        if packet != 0 && expected.len() == len {
                            // The rest of a packet is lost.
                            while model.front().is_some_and(|next| next.1 == packet) {
                                model.pop_front();
                            }
                        }
                    }
                    prop_assert_eq!(got, expected);
                }
                Op::Resize(bytes) => match set_capacity(bytes) {
                    Ok(capacity) => prop_assert!(capacity >= bytes.max(model.len() as u64)),
                    Err(error) => prop_assert_eq!(error, Errno::EBUSY),
                },
            }
            let mut bytes = 0i32;
            r.ops.ioctl(&r, linux_raw_sys::ioctl::FIONREAD, &raw mut bytes as u64).expect("FIONREAD");
            prop_assert_eq!(bytes as usize, model.len());
            prop_assert!(model.len() as u64 <= capacity());
            prop_assert_eq!(r.poll().contains(Events::IN), !model.is_empty());
        }
    }
}
