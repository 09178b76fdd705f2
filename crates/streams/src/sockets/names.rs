//! Answers a guest's name queries with the host's own resolver: getaddrinfo(3), so that /etc/hosts, search rules and
//! caches of the host count. Addresses only; of other types there is nothing to be had this way.
//!
//! getaddrinfo blocks, so a few threads do it. Threads, waiting queries and sizes are bounded; what is too much is
//! answered with SERVFAIL, at which resolvers ask again.

use dns_lookup::{AddrInfoHints, LookupErrorKind, SockType, getaddrinfo};
use rustix::event::EventfdFlags;
use simple_dns::rdata::{A, AAAA, RData};
use simple_dns::{CLASS, Packet, PacketFlag, QCLASS, QTYPE, RCODE, ResourceRecord, TYPE};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::sync::{Arc, Mutex};

const THREADS: usize = 4;
const WAITING_MAX: usize = 64;
/// What every resolver takes (RFC 1035, 4.2.1).
const ANSWER_MAX_BYTES: usize = 512;
/// getaddrinfo does not tell how long an answer holds.
const TIME_TO_LIVE_S: u32 = 30;
const QUERY_MAX_BYTES: usize = 512;

/// Whose query it is: a stream and the address that asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asker {
    pub(super) stream: u32,
    /// Tells streams apart that had the same number at different times.
    pub(super) serial: u64,
    pub(super) server: SocketAddr,
}

struct Job {
    asker: Asker,
    query: Vec<u8>,
}

/// See the module's text.
pub(super) struct Names {
    jobs: Option<SyncSender<Job>>,
    answers: Receiver<(Asker, Vec<u8>)>,
    /// Kept for the threads that are yet to be started.
    answer: Sender<(Asker, Vec<u8>)>,
    ready: Arc<OwnedFd>,
}

impl Names {
    /// Threads are started with the first query.
    ///
    /// # Errors
    /// What eventfd(2) gives.
    pub(super) fn new() -> io::Result<Self> {
        let (answer, answers) = channel();
        let ready = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { jobs: None, answers, answer, ready: Arc::new(ready) })
    }

    /// Readable when there are answers.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }

    /// Asks; an answer that can be given at once is returned. What is no query at all gets none.
    pub(super) fn ask(&mut self, asker: Asker, query: &[u8], allowed: bool) -> Option<Vec<u8>> {
        if query.len() > QUERY_MAX_BYTES {
            return None;
        }
        let refusal = |code| failure(query, code);
        match question(query) {
            None => return None,
            Some(Err(code)) => return refusal(code),
            Some(Ok(_)) if !allowed => return refusal(RCODE::Refused),
            Some(Ok(_)) => {}
        }
        if self.jobs.is_none() {
            self.jobs = self.start();
        }
        let Some(jobs) = &self.jobs else { return refusal(RCODE::ServerFailure) };
        match jobs.try_send(Job { asker, query: query.to_vec() }) {
            Ok(()) => None,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => refusal(RCODE::ServerFailure),
        }
    }

    fn start(&self) -> Option<SyncSender<Job>> {
        let (jobs, waiting) = sync_channel::<Job>(WAITING_MAX);
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..THREADS {
            let (waiting, answer, ready) = (Arc::clone(&waiting), self.answer.clone(), Arc::clone(&self.ready));
            let work = move || {
                loop {
                    let Ok(job) = waiting.lock().expect("no holder panics").recv() else { return };
                    let Some(text) = resolve(&job.query) else { continue };
                    if answer.send((job.asker, text)).is_err() {
                        return;
                    }
                    // The counter can't be full; that it was raised is all that counts.
                    let _ = rustix::io::write(&*ready, &1_u64.to_ne_bytes());
                }
            };
            std::thread::Builder::new().name("names".into()).spawn(work).ok()?;
        }
        Some(jobs)
    }

    /// Answers that have come.
    pub(super) fn answers(&self) -> Vec<(Asker, Vec<u8>)> {
        let mut counter = [0; 8];
        // Only clears it.
        let _ = rustix::io::read(&*self.ready, &mut counter);
        self.answers.try_iter().collect()
    }
}

/// The one question of a query: name and whether IPv6 addresses are wanted; or why it can't be answered. None where the
/// bytes are no query.
fn question(query: &[u8]) -> Option<Result<(String, Wanted), RCODE>> {
    let packet = Packet::parse(query).ok()?;
    if packet.has_flags(PacketFlag::RESPONSE) {
        return None;
    }
    let [question] = &packet.questions[..] else { return Some(Err(RCODE::FormatError)) };
    if packet.opcode() != simple_dns::OPCODE::StandardQuery || question.qclass != QCLASS::CLASS(CLASS::IN) {
        return Some(Err(RCODE::NotImplemented));
    }
    let wanted = match question.qtype {
        QTYPE::TYPE(TYPE::A) => Wanted::V4,
        QTYPE::TYPE(TYPE::AAAA) => Wanted::V6,
        QTYPE::TYPE(_) => Wanted::Other,
        _ => return Some(Err(RCODE::NotImplemented)),
    };
    Some(Ok((question.qname.to_string(), wanted)))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    V4,
    V6,
    Other,
}

fn resolve(query: &[u8]) -> Option<Vec<u8>> {
    let (name, wanted) = question(query)?.ok()?;
    if wanted == Wanted::Other {
        // The name may be there, with nothing that we can tell.
        return answer(query, &[]);
    }
    // A trailing dot keeps the host's search list out: the guest has its own.
    let absolute = if name.contains('.') { format!("{name}.") } else { name };
    let family = if wanted == Wanted::V4 { libc_family(false) } else { libc_family(true) };
    let hints = AddrInfoHints { socktype: SockType::Stream.into(), address: family, ..AddrInfoHints::default() };
    match getaddrinfo(Some(&absolute), None, Some(hints)) {
        Ok(found) => {
            let addresses: Vec<IpAddr> = found.filter_map(|info| info.ok().map(|info| info.sockaddr.ip())).collect();
            answer(query, &addresses)
        }
        Err(error) => match error.kind() {
            LookupErrorKind::NoName => failure(query, RCODE::NameError),
            LookupErrorKind::NoData => answer(query, &[]),
            _ => failure(query, RCODE::ServerFailure),
        },
    }
}

fn libc_family(v6: bool) -> i32 {
    let family = if v6 { rustix::net::AddressFamily::INET6 } else { rustix::net::AddressFamily::INET };
    i32::from(family.as_raw())
}

fn reply<'a>(query: &'a [u8]) -> Option<Packet<'a>> {
    let asked = Packet::parse(query).ok()?;
    let mut packet = Packet::new_reply(asked.id());
    if asked.has_flags(PacketFlag::RECURSION_DESIRED) {
        packet.set_flags(PacketFlag::RECURSION_DESIRED);
    }
    packet.set_flags(PacketFlag::RECURSION_AVAILABLE);
    packet.questions = asked.questions;
    Some(packet)
}

fn failure(query: &[u8], code: RCODE) -> Option<Vec<u8>> {
    let mut packet = reply(query)?;
    *packet.rcode_mut() = code;
    packet.build_bytes_vec_compressed().ok()
}

/// As many addresses as fit.
fn answer(query: &[u8], addresses: &[IpAddr]) -> Option<Vec<u8>> {
    let mut packet = reply(query)?;
    let name = packet.questions.first()?.qname.clone();
    let mut bytes = packet.build_bytes_vec_compressed().ok()?;
    let mut seen = Vec::new();
    for &address in addresses {
        if seen.contains(&address) {
            continue;
        }
        seen.push(address);
        let data = match address {
            IpAddr::V4(v4) => RData::A(A { address: v4.into() }),
            IpAddr::V6(v6) => RData::AAAA(AAAA { address: v6.into() }),
        };
        packet.answers.push(ResourceRecord::new(name.clone(), CLASS::IN, TIME_TO_LIVE_S, data));
        let longer = packet.build_bytes_vec_compressed().ok()?;
        if longer.len() > ANSWER_MAX_BYTES {
            break;
        }
        bytes = longer;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use simple_dns::{Name, Question};
    use std::time::{Duration, Instant};

    fn query(name: &str, kind: TYPE) -> Vec<u8> {
        let mut packet = Packet::new_query(7);
        let name = Name::new_unchecked(name).into_owned();
        packet.questions.push(Question::new(name, QTYPE::TYPE(kind), QCLASS::CLASS(CLASS::IN), false));
        packet.build_bytes_vec().expect("short")
    }

    fn asker() -> Asker {
        Asker { stream: 17, serial: 0, server: ([192, 0, 2, 3], 53).into() }
    }

    #[test]
    fn the_hosts_resolver_answers() {
        let mut names = Names::new().expect("eventfd");
        assert_eq!(names.ask(asker(), &query("localhost", TYPE::A), true), None);
        let began = Instant::now();
        let (to, bytes) = loop {
            if let Some(first) = names.answers().pop() {
                break first;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "no answer");
            std::thread::sleep(Duration::from_millis(5));
        };
        assert_eq!(to, asker());
        let packet = Packet::parse(&bytes).expect("an answer");
        assert_eq!((packet.id(), packet.rcode(), packet.questions.len()), (7, RCODE::NoError, 1));
        assert!(matches!(packet.answers[0].rdata, RData::A(A { address: 0x7f00_0001 })));
    }

    #[test]
    fn what_is_not_allowed_or_not_asked_rightly_is_refused_at_once() {
        let mut names = Names::new().expect("eventfd");
        let code = |bytes: Option<Vec<u8>>| Packet::parse(&bytes.expect("an answer")).expect("whole").rcode();
        assert_eq!(code(names.ask(asker(), &query("example.com", TYPE::A), false)), RCODE::Refused);
        assert_eq!(names.ask(asker(), b"not a query", true), None);
        let reply = answer(&query("a.example", TYPE::A), &[]).expect("an answer");
        assert_eq!(names.ask(asker(), &reply, true), None, "an answer is no question");
        assert!(names.jobs.is_none(), "no thread was needed");
    }

    #[test]
    fn answers_stay_within_what_every_resolver_takes() {
        let many: Vec<IpAddr> = (0..200_u32).map(|n| IpAddr::from(n.to_be_bytes())).collect();
        let bytes = answer(&query("many.example", TYPE::A), &many).expect("an answer");
        assert!(bytes.len() <= ANSWER_MAX_BYTES);
        assert!(Packet::parse(&bytes).expect("whole").answers.len() > 20);
    }

    proptest! {
        #[test]
        fn hostile_queries_are_answered_or_dropped(bytes in proptest::collection::vec(any::<u8>(), 0..100), cut in 0_usize..40) {
            let _ = question(&bytes);
            let _ = failure(&bytes, RCODE::Refused);
            let mut damaged = query("a.example.com", TYPE::AAAA);
            for (at, byte) in bytes.iter().enumerate().take(3) {
                let len = damaged.len();
                damaged[(usize::from(*byte) * 7 + at) % len] ^= 1 << (at % 8);
            }
            damaged.truncate(damaged.len().saturating_sub(cut));
            let _ = question(&damaged);
            let _ = answer(&damaged, &[]);
        }
    }
}
