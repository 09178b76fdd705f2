//! What is said on the control socket; docs/control-socket.md describes it.
//!
//! A message is one datagram, with its descriptors ([`torpor_streams::envelope`]).

use crate::snapshot::metadata::{Digest, Uuid};
use rustix::cmsg_space;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde::{Deserialize, Serialize};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;
use torpor_streams::envelope::{Envelope, HEADER_BYTES};

pub use torpor_streams::envelope::Received;

/// Version of the protocol.
pub const VERSION: u16 = 1;
/// Cap of a message's body.
pub const MAX_BODY_BYTES: usize = 128 << 10;
/// Cap of the descriptors of a message.
pub const MAX_DESCRIPTORS: usize = 16;
/// How long to wait where too many descriptors are on their way.
const CROWDED_WAIT: Duration = Duration::from_millis(1);
const ENVELOPE: Envelope = Envelope { magic: *b"TPVM", version: VERSION };

/// A request: a number that comes back in the reply, and a command.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Any number but 0.
    pub id: u64,
    /// What to do.
    pub command: Command,
}

/// Commands; the descriptors that come with each are given in order.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// How things are.
    Query {},
    /// Makes a VM that will boot a program. Descriptors: image, then with `console` the link for console frames.
    Boot(Boot),
    /// Makes a VM of a template, at rest. Descriptors: template file, unless `late` its memory, image, then with `warm_base`
    /// its file.
    Prepare(Prepare),
    /// Maps what instances of a VM's warm base need soon, where none has been in it yet.
    Touch {},
    /// Fills the memory of a template. Descriptors: template file, an empty memfd that may be sealed.
    Unpack {
        /// Digest of the template's file.
        template: Digest,
    },
    /// Makes a warm base. Descriptors: template file, its memory, then the deltas of siblings; the reply has the file as its
    /// descriptor.
    Learn {
        /// Digest of the template's file.
        template: Digest,
    },
    /// Lets a VM that was booted or stopped run.
    Run {},
    /// Puts a state into a VM at rest and lets it run. Descriptors: with `delta` its file, then with `console` the link.
    Restore(Restore),
    /// Stops the VM and stores what it differs by; the reply has the file as its descriptor. It stays stopped.
    Standby(Stop),
    /// The same, but the VM goes on at once.
    Checkpoint(Stop),
    /// Sends a signal to the program that a running VM was booted for.
    Signal {
        /// 1 to 64.
        number: u32,
    },
    /// Gives a VM that runs or is stopped another link, the descriptor. Connections of the former one are reset.
    Link {},
    /// Stores a booted VM that is ready as a template; the reply has the file as its descriptor. It stays stopped.
    Template {
        /// Recorded in the file.
        uuid: Uuid,
        /// Of an instance that goes on from it, with its connections; 0 for a template.
        #[serde(default)]
        generation: u64,
    },
    /// Stores a booted VM that is ready as what it differs by from a sibling's template; the reply has the file as its
    /// descriptor. It stays stopped. Descriptors: template file, its memory.
    Sibling(Sibling),
    /// Back to rest.
    Reset {},
    /// Ends the process.
    Stop {},
}

/// See [`Command::Boot`].
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Boot {
    /// Whose it is.
    pub owner: Digest,
    /// Digest of the image.
    pub image: Digest,
    /// In bytes.
    pub memory_limit_bytes: u64,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// `K=V`.
    pub envp: Vec<String>,
    /// Working directory; empty for `/`.
    #[serde(default)]
    pub workdir: String,
    /// As docker's `--user`; empty for root.
    #[serde(default)]
    pub user: String,
    /// Host name.
    pub host_name: String,
    /// The instance's.
    pub uuid: Uuid,
    /// Whether to stop when the program is ready.
    #[serde(default)]
    pub template: bool,
    /// Ports of which one has to be listened at before it is ready, any if there are none; at most
    /// [`torpor_abi::boot::READY_PORTS_MAX`].
    #[serde(default)]
    pub ready_ports: Vec<u16>,
    /// What random numbers begin with in place of fresh ones. Such a VM must be stored when it is ready and not go on: the
    /// restore brings fresh ones.
    #[serde(default)]
    pub seed: Option<Digest>,
    /// Whether a link for console frames comes with it.
    #[serde(default)]
    pub console: bool,
}

/// See [`Command::Sibling`].
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sibling {
    /// Digest of the template's file.
    pub template: Digest,
    /// Whose state it is.
    pub uuid: Uuid,
    /// Of the state.
    pub generation: u64,
}

/// See [`Command::Prepare`].
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prepare {
    /// Digest of the template's file.
    pub template: Digest,
    /// Digest of the warm base's file, if there is one.
    #[serde(default)]
    pub warm_base: Option<Digest>,
    /// Leave the vCPU alone: for a state whose page tables differ much.
    #[serde(default)]
    pub never_run: bool,
    /// The template is not unpacked: its pages arrive from its file when they are touched.
    #[serde(default)]
    pub late: bool,
}

/// See [`Command::Restore`].
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restore {
    /// Who the VM is from then on.
    pub uuid: Uuid,
    /// Of the state.
    pub generation: u64,
    /// Host name; empty leaves it.
    #[serde(default)]
    pub host_name: String,
    /// Whom the delta is of, where that is another instance, whose branch this one is.
    #[serde(default)]
    pub origin: Option<Origin>,
    /// Digest of the delta's file; without one the VM is a clone of its template.
    #[serde(default)]
    pub delta: Option<Digest>,
    /// Whether a link for console frames comes with it.
    #[serde(default)]
    pub console: bool,
}

/// A state of an instance.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// The instance.
    pub uuid: Uuid,
    /// The number of its state.
    pub generation: u64,
}

/// See [`Command::Standby`].
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stop {
    /// Number of the state that is stored.
    pub generation: u64,
    /// Take a busy guest as well, at its next entry into the kernel.
    #[serde(default)]
    pub busy: bool,
    /// How long to wait for the guest.
    pub within_ms: u32,
}

/// An answer to a request.
#[derive(Debug, Serialize)]
pub struct Reply<'a, T> {
    /// The request's.
    pub id: u64,
    /// Result.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ok: Option<T>,
    /// Or why there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<ReplyError<'a>>,
}

/// Why a command was refused.
#[derive(Debug, Serialize)]
pub struct ReplyError<'a> {
    /// `bad_request`, `bad_snapshot`, `wrong_state`, `busy` or `host`.
    pub code: &'a str,
    /// For people.
    pub message: &'a str,
}

/// Something that nobody asked for.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event<'a> {
    /// The program is ready; the VM is stopped.
    Ready {},
    /// The link is lost. The VM runs on, its output waiting for a new one.
    Unlinked {
        /// For people.
        message: &'a str,
    },
    /// The VM has ended, and the process with it.
    Ended {
        /// `exited`, `out_of_memory`, `start_failed`, `failed` or `damaged`.
        reason: &'a str,
        /// Wait status, or errno.
        status: u32,
        /// For people.
        message: &'a str,
    },
}

/// Sends a message.
///
/// # Errors
/// What sendmsg(2) gives; a body that is too long.
pub fn send(socket: impl AsFd, body: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    send_body(socket, &self::body(body)?, descriptors)
}

/// The body of a message.
///
/// # Errors
/// One that is too long.
pub fn body(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let body = serde_json::to_vec(message)?;
    if body.len() > MAX_BODY_BYTES { Err(io::Error::other("message too long")) } else { Ok(body) }
}

/// Sends a message whose body was made before.
///
/// # Errors
/// As [`send`].
pub fn send_body(socket: impl AsFd, body: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    if descriptors.len() > MAX_DESCRIPTORS {
        return Err(io::Error::other("message with too many descriptors"));
    }
    let header = ENVELOPE.header(body.len() as u32, descriptors.len() as u16);
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let pieces = [IoSlice::new(&header), IoSlice::new(body)];
    loop {
        match rustix::net::sendmsg(&socket, &pieces, &mut ancillary, SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            // Descriptors that all of this user's processes have on their way are counted against this one's limit. They
            // arrive sooner or later; an answer that is not sent is waited for for ever.
            Err(rustix::io::Errno::TOOMANYREFS) => std::thread::sleep(CROWDED_WAIT),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Receives a message, waiting for it; `None` at the end.
///
/// # Errors
/// What recvmsg(2) gives; [`io::ErrorKind::InvalidData`] for a message that breaks the format.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Option<Received>> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    ENVELOPE.receive(socket, buffer, &mut space, RecvFlags::empty())
}

/// Room for one message.
#[must_use]
pub fn buffer() -> Vec<u8> {
    vec![0; HEADER_BYTES + MAX_BODY_BYTES]
}
