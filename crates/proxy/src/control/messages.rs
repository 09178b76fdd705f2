//! What is said between torpord and the proxy: docs/proxy-socket.md.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use uuid::Uuid;

/// One datagram's object from torpord.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Incoming {
    /// Of a request, or of the request that is answered.
    #[serde(default)]
    pub id: u64,
    /// A request.
    pub ask: Option<Ask>,
    /// An answer.
    pub ok: Option<Box<RawValue>>,
    /// Or why there is none.
    pub error: Option<Refusal>,
    /// A notice.
    pub tell: Option<Tell>,
}

/// Why a request failed.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// For programs.
    pub code: String,
    /// For people.
    pub message: String,
}

/// What torpord asks.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Ask {
    /// The first request.
    Hello(Hello),
    /// A link, its descriptor with it.
    Attach(Attach),
    /// Another group for one.
    Join(Join),
    /// Another bound on what one takes.
    Allow(Allow),
    /// The end of one.
    Detach(Detach),
    /// Begin nothing new.
    Drain(Park),
    /// Send nothing more.
    Park(Park),
    /// Send again.
    GoOn(Which),
    /// Accept connections for a service port.
    Listen(Listen),
    /// Accept no more for one.
    Close(Close),
    /// Where connections are accepted.
    Ports(Ports),
    /// What a group is.
    Group(Group),
    /// More of the links that the answer to the first request had no room for.
    Links(Page),
    /// Counters.
    Stats(Page),
    /// How many wait, and for what.
    Waiting(Waiting),
}

/// What torpord tells.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Tell {
    /// Routes of these names are asked for again.
    Forget {
        /// Names.
        hosts: Vec<String>,
    },
    /// VMs have more memory than they may: idle ones are to sleep.
    Relieve {
        /// How many.
        instances: usize,
    },
}

/// See the document.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// Of the data directory.
    pub server: Uuid,
    /// What clients see for ports 80 and 443.
    #[serde(default)]
    pub public_ports: BTreeMap<u16, u16>,
    /// Domain suffix.
    pub suffix: String,
}

/// The answer to [`Hello`].
#[derive(Debug, Serialize)]
pub struct Welcome {
    /// Of the program.
    pub version: &'static str,
    /// Of the process.
    pub pid: u32,
    /// What clients see of service ports.
    pub public_ports: BTreeMap<u16, u16>,
    /// What is attached.
    #[serde(flatten)]
    pub links: Links,
}

/// Links in the order of their instances, as many as a message may have.
#[derive(Debug, Serialize)]
pub struct Links {
    /// These.
    pub links: Vec<Known>,
    /// There are others behind them.
    pub more: bool,
}

/// A link that is there.
#[derive(Debug, Serialize)]
pub struct Known {
    /// Whose.
    pub instance: Uuid,
    /// Of what generation.
    pub generation: u64,
    /// Nothing is sent on it.
    pub quiet: bool,
    /// What went over it.
    #[serde(flatten)]
    pub usage: Usage,
}

/// What went over a link since it was attached.
#[derive(Debug, Serialize)]
pub struct Usage {
    /// Requests and connections.
    pub requests: u64,
    /// Payload from the guest.
    pub rx_bytes: u64,
    /// To the guest.
    pub tx_bytes: u64,
}

/// The answer to [`Park`].
#[derive(Debug, Serialize)]
pub struct Parked {
    /// Requests and connections that are not over.
    pub in_flight: usize,
    /// What went over the link.
    #[serde(flatten)]
    pub usage: Usage,
}

/// An instance in one of its generations.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Which {
    /// Whose.
    pub instance: Uuid,
    /// Of what generation.
    pub generation: u64,
}

/// The notice `link_lost`.
#[derive(Debug, Serialize)]
pub struct LinkLost {
    /// Whose.
    #[serde(flatten)]
    pub which: Which,
    /// As its attach called it.
    pub link: u64,
    /// What went over it.
    #[serde(flatten)]
    pub usage: Usage,
}

/// See the document.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attach {
    /// Whose.
    pub instance: Uuid,
    /// For logs.
    pub name: String,
    /// Of what generation.
    pub generation: u64,
    /// Which link of that generation.
    #[serde(default)]
    pub link: u64,
    /// Whose requests it takes.
    pub group: Option<Uuid>,
    /// Kept connections go on.
    pub resumed: bool,
    /// When it may sleep.
    pub scale_to_zero: ScaleToZero,
    /// Where its own connections may go.
    pub egress: Egress,
    /// How many requests and connections it takes, if not any number.
    #[serde(default)]
    pub requests_max: Option<u64>,
}

/// When an instance may sleep.
#[derive(Debug, Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct ScaleToZero {
    /// What keeps it awake.
    pub policy: Sleep,
    /// For how long there must be silence.
    pub cooldown_ms: u64,
    /// How long before it sleeps it is told; 0 for never.
    #[serde(default)]
    pub notify_ms: u64,
}

/// What keeps an instance awake.
#[derive(Debug, Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Sleep {
    /// It never sleeps.
    Off,
    /// Any request or connection.
    On,
    /// Requests, and bytes on connections.
    Idle,
}

/// Where a guest's own connections may go.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Egress {
    /// Networks.
    #[serde(default)]
    pub allow: Vec<String>,
    /// Networks.
    #[serde(default)]
    pub deny: Vec<String>,
    /// Where no entry says otherwise.
    #[serde(default)]
    pub scope: Scope,
}

/// What a guest may reach where no entry says otherwise.
#[derive(Debug, Clone, Copy, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Nothing.
    None,
    /// Public addresses.
    #[default]
    Public,
    /// Private ones as well.
    Private,
}

/// See the document.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Detach {
    /// Whose.
    pub instance: Uuid,
    /// Of what generation.
    pub generation: u64,
    /// For the log.
    pub why: Why,
    /// Its connections are kept.
    pub parked: bool,
}

/// Why a link ends.
#[derive(Debug, Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// By wish.
    Stopped,
    /// With its instance.
    Deleted,
    /// The VM process is gone.
    Lost,
}

/// See the document.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Join {
    /// Whose.
    pub instance: Uuid,
    /// Of what generation.
    pub generation: u64,
    /// Uuid of a group.
    pub group: Uuid,
}

/// See the document.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allow {
    /// Whose.
    pub instance: Uuid,
    /// Of what generation.
    pub generation: u64,
    /// How many requests and connections it takes, if not any number.
    pub requests_max: Option<u64>,
}

/// See the document.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Park {
    /// Whose.
    pub instance: Uuid,
    /// Of what generation.
    pub generation: u64,
    /// How long requests may take to end.
    pub drain_ms: u64,
}

/// See the document.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    /// A service port.
    pub port: u16,
    /// Whatever comes there is for the group that has `:PORT` among its hosts.
    #[serde(default)]
    pub alone: bool,
}

/// See the document.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Close {
    /// A service port.
    pub port: u16,
}

/// See the document.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ports {
    /// What is behind this one.
    pub after: u16,
}

/// What a group is, or that it is no more.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Its name.
    pub group: Uuid,
    /// Full names, or `*.` and a suffix, or `:` and a port that it has alone.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// What it offers.
    #[serde(default)]
    pub services: Vec<Service>,
    /// Requests on an instance from which on another is preferred.
    pub soft_limit: Option<u32>,
    /// Requests on an instance at most.
    pub hard_limit: Option<u32>,
    /// It is to be forgotten.
    #[serde(default)]
    pub gone: bool,
}

/// A port of a group.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Of the proxy.
    pub port: u16,
    /// Of the guest.
    pub destination_port: u16,
    /// How connections are handled.
    #[serde(default)]
    pub handlers: Vec<Handler>,
    /// Idempotent requests without a body that got no answer are sent once more.
    #[serde(default)]
    pub retry_idempotent: bool,
}

/// How connections to a service are handled.
#[derive(Debug, Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Handler {
    /// As HTTP.
    Http,
    /// TLS ends at the proxy.
    Tls,
    /// Answered with a redirection to HTTPS.
    Redirect,
}

/// See the document.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Page {
    /// What is behind this instance.
    #[serde(default)]
    pub after: Option<Uuid>,
}

/// See the document.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Waiting {
    /// So many of them were told already.
    #[serde(default)]
    pub skip: usize,
}

/// The proxy's `wake`.
#[derive(Debug, Clone, Serialize)]
pub struct Wake {
    /// A name that a client asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The service port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// An instance that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<Uuid>,
    /// Which are of no use.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not: Vec<Uuid>,
}

/// The answer to [`Wake`].
#[derive(Debug, Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Woken {
    /// Its group.
    pub group: Option<Uuid>,
    /// Which runs now.
    pub instance: Uuid,
    /// Its generation.
    pub generation: u64,
}

/// The answer to the proxy's `idle`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slept {
    /// The state is committed and the link closed.
    pub parked: bool,
    /// Why not.
    #[serde(default)]
    pub why: Option<String>,
}
