//! The proxy's end of the socket to torpord: who may connect, and what is done for whom.

use super::Connection;
use super::envelope::{self, Received};
use super::messages::{Ask, Attach, Detach, Incoming, Links, Page, Park, Parked, Refusal, Tell, Welcome};
use crate::instance::{Instance, Phase};
use crate::proxy::Proxy;
use crate::routes::Routes;
use crate::say;
use crate::wake::Target;
use crate::watched::Watched;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use serde_json::{Value, json};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};
use uuid::Uuid;

const NAME: &str = "proxy.sock";
const BACKLOG: i32 = 8;
/// Connections that have not said hello.
const STRANGERS_TIME: Duration = Duration::from_secs(10);
/// Links in one answer; of each less than 300 bytes are said.
const LINKS_PAGE: usize = 200;
/// Of what is waited for in a message, of at most 300 bytes each.
const WAITING_PAGE: usize = 300;
/// Ports in a message, of at most six bytes each.
const PORTS_PAGE: usize = 10_000;

/// The listening socket, and the lock that makes this proxy the only one of its data directory.
pub struct Listener {
    socket: Watched,
    _lock: OwnedFd,
}

/// Makes the socket in the data directory.
///
/// # Errors
/// Where another proxy runs, or the directory is of no use.
pub fn bind(data: &Path) -> io::Result<Listener> {
    let run = data.join("run");
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", run.display()));
    std::fs::create_dir_all(&run).map_err(named)?;
    let directory = rustix::fs::open(&run, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    let lock = rustix::fs::openat(&directory, "proxy.lock", flags, Mode::RUSR | Mode::WUSR)?;
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| io::Error::other(format!("{}: another proxy runs", run.display())))?;
    // A socket's path is short, a data directory's may not be.
    let path = format!("/proc/self/fd/{}/{NAME}", directory.as_raw_fd());
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(named(error)),
        _ => {}
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(&path[..])?)?;
    rustix::fs::chmod(&path[..], Mode::RUSR | Mode::WUSR)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(Listener { socket: Watched::new(socket)?, _lock: lock })
}

/// Accepts torpords for ever.
pub async fn accept(proxy: Rc<Proxy>, listener: Listener) {
    loop {
        let Ok(mut guard) = listener.socket.readable().await else { return };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let result = rustix::net::accept_with(listener.socket.get_ref(), flags);
        match result {
            Ok(socket) => {
                if !is_own(&socket) {
                    continue;
                }
                if let Ok(connection) = Connection::new(socket) {
                    tokio::task::spawn_local(serve(proxy.clone(), Rc::new(connection)));
                }
            }
            Err(rustix::io::Errno::AGAIN) => guard.clear_ready(),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Whether the other end is of this program's user.
fn is_own(socket: impl AsFd) -> bool {
    sockopt::socket_peercred(socket).is_ok_and(|peer| peer.uid == rustix::process::geteuid())
}

async fn serve(proxy: Rc<Proxy>, connection: Rc<Connection>) {
    let result = converse(&proxy, &connection).await;
    if proxy.control.is_current(&connection) {
        match result {
            Ok(()) => say!("torpord has gone"),
            Err(error) => say!("torpord is disconnected: {error}"),
        }
    }
    proxy.control.ended(&connection);
}

async fn converse(proxy: &Rc<Proxy>, connection: &Rc<Connection>) -> io::Result<()> {
    let mut buffer = envelope::buffer();
    let since = Instant::now();
    loop {
        let receive = connection.receive(&mut buffer, || proxy.output.borrow_mut().flush(&proxy.control));
        let received = if proxy.control.is_current(connection) {
            receive.await?
        } else {
            let left = STRANGERS_TIME.saturating_sub(since.elapsed());
            tokio::time::timeout(left, receive).await.map_err(|_| io::Error::other("it said no hello"))??
        };
        let Some(received) = received else { return Ok(()) };
        take(proxy, connection, received)?;
    }
}

fn take(proxy: &Rc<Proxy>, connection: &Rc<Connection>, received: Received) -> io::Result<()> {
    let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let incoming: Incoming =
        serde_json::from_slice(&received.object).map_err(|error| invalid(format!("a message: {error}")))?;
    let answers = incoming.ok.is_some() || incoming.error.is_some();
    match (incoming.id, &incoming.ask, answers, &incoming.tell) {
        (1.., Some(_), false, None) => {
            let (id, ask) = (incoming.id, incoming.ask.expect("just seen"));
            if !matches!(ask, Ask::Hello(_)) && !proxy.control.is_current(connection) {
                return Err(invalid("a request before hello, or after another torpord's".into()));
            }
            if received.descriptors.len() != usize::from(matches!(ask, Ask::Attach(_))) {
                return Err(invalid("descriptors that belong to nothing".into()));
            }
            dispatch(proxy, connection, id, ask, received.descriptors);
            Ok(())
        }
        (1.., None, true, None) if received.descriptors.is_empty() => {
            if proxy.control.take_answer(incoming) {
                Ok(())
            } else {
                Err(invalid("an answer to nothing".into()))
            }
        }
        (0, None, false, Some(Tell::Forget { hosts })) if received.descriptors.is_empty() => {
            proxy.routes.borrow_mut().forget(hosts);
            Ok(())
        }
        (0, None, false, Some(Tell::Relieve { instances })) if received.descriptors.is_empty() => {
            proxy.relieve(*instances);
            Ok(())
        }
        _ => Err(invalid("a message that is neither request nor answer nor notice".into())),
    }
}

fn refusal(code: &str, message: impl Into<String>) -> Refusal {
    Refusal { code: code.into(), message: message.into() }
}

fn dispatch(proxy: &Rc<Proxy>, connection: &Rc<Connection>, id: u64, ask: Ask, mut descriptors: Vec<OwnedFd>) {
    let result: Result<Value, Refusal> = match ask {
        Ask::Hello(hello) => {
            let public_ports = proxy.set_public_ports(hello.public_ports);
            proxy.certificates.set_suffix(&hello.suffix);
            // Another torpord may have made what the one before did not know.
            proxy.routes.borrow_mut().forget_misses();
            let links = known(proxy, None);
            let welcome = Welcome { version: env!("CARGO_PKG_VERSION"), pid: std::process::id(), public_ports, links };
            connection.answer(id, Ok(welcome));
            proxy.control.set_current(connection.clone());
            return proxy.output.borrow_mut().flush(&proxy.control);
        }
        Ask::Attach(attach) => {
            let socket = descriptors.pop().expect("counted before");
            attach_link(proxy, attach, socket)
        }
        Ask::Join(join) => {
            if let Some(instance) = find(proxy, join.instance, join.generation) {
                instance.join(join.group);
                proxy.routes.borrow_mut().add(instance);
                Ok(json!({}))
            } else {
                Err(refusal("unknown", "no such link"))
            }
        }
        Ask::Allow(allow) => {
            if let Some(instance) = find(proxy, allow.instance, allow.generation) {
                instance.allow(allow.requests_max);
                Ok(json!({}))
            } else {
                Err(refusal("unknown", "no such link"))
            }
        }
        Ask::Detach(detach) => return detach_link(proxy, connection, id, &detach),
        Ask::Drain(drain) => return drain_link(proxy, connection, id, &drain),
        Ask::Park(park) => return park_link(proxy, connection, id, &park),
        Ask::GoOn(which) => {
            if let Some(instance) = find(proxy, which.instance, which.generation) {
                instance.go_on();
                Ok(json!({}))
            } else {
                Err(refusal("unknown", "no such link"))
            }
        }
        Ask::Listen(listen) => match proxy.listen(listen.port, listen.alone) {
            Ok(()) => Ok(json!({})),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                Err(refusal("in_use", format!("port {} of the host is taken", listen.port)))
            }
            Err(error) => Err(refusal("host", format!("port {}: {error}", listen.port))),
        },
        Ask::Close(close) => {
            proxy.close(close.port);
            Ok(json!({}))
        }
        Ask::Ports(page) => {
            let mut ports = proxy.ports_behind(page.after);
            let more = ports.len() > PORTS_PAGE;
            ports.truncate(PORTS_PAGE);
            Ok(json!({"ports": ports, "more": more}))
        }
        Ask::Group(group) => {
            proxy.set_group(group);
            Ok(json!({}))
        }
        Ask::Links(page) => return connection.answer(id, Ok(known(proxy, page.after))),
        Ask::Stats(page) => Ok(count(proxy, &page)),
        Ask::Waiting(page) => Ok(waiting(proxy, page.skip)),
    };
    connection.answer(id, result);
}

fn parked(instance: &Instance) -> Parked {
    Parked { in_flight: instance.in_flight(), usage: instance.usage() }
}

fn find(proxy: &Rc<Proxy>, instance: Uuid, generation: u64) -> Option<Rc<Instance>> {
    let found = proxy.routes.borrow().instance(instance).cloned();
    found.filter(|found| found.which().generation == generation)
}

fn attach_link(proxy: &Rc<Proxy>, attach: Attach, socket: OwnedFd) -> Result<Value, Refusal> {
    proxy.attach(attach, socket).map(|()| json!({})).map_err(|text| refusal("bad_request", text))
}

fn detach_link(proxy: &Rc<Proxy>, connection: &Rc<Connection>, id: u64, detach: &Detach) {
    // One that is gone already is as it should be.
    let Some(instance) = find(proxy, detach.instance, detach.generation) else {
        return connection.answer(id, Ok(json!({})));
    };
    if !detach.parked {
        // Its last words.
        instance.link.drain();
        proxy.forget_instance(&instance);
        return connection.answer(id, Ok(json!({})));
    }
    instance.be_quiet();
    instance.settle();
    connection.answer(id, Ok(json!({})));
}

fn drain_link(proxy: &Rc<Proxy>, connection: &Rc<Connection>, id: u64, drain: &Park) {
    let Some(instance) = find(proxy, drain.instance, drain.generation) else {
        return connection.answer(id, Err::<Value, _>(refusal("unknown", "no such link")));
    };
    let (connection, time) = (connection.clone(), Duration::from_millis(drain.drain_ms));
    tokio::task::spawn_local(async move {
        instance.drain();
        let _ = tokio::time::timeout(time, instance.drained(Instance::in_flight)).await;
        connection.answer(id, Ok(parked(&instance)));
    });
}

fn park_link(proxy: &Rc<Proxy>, connection: &Rc<Connection>, id: u64, park: &Park) {
    let Some(instance) = find(proxy, park.instance, park.generation) else {
        return connection.answer(id, Err::<Value, _>(refusal("unknown", "no such link")));
    };
    let (connection, time) = (connection.clone(), Duration::from_millis(park.drain_ms));
    tokio::task::spawn_local(async move {
        instance.drain();
        // What is in flight after that goes to sleep with it.
        let _ = tokio::time::timeout(time, instance.drained(Instance::requests)).await;
        if matches!(instance.phase(), Phase::Draining) {
            instance.be_quiet();
        }
        connection.answer(id, Ok(parked(&instance)));
    });
}

/// Instances behind one, in their order.
fn behind(routes: &Routes, after: Option<Uuid>) -> Vec<&Rc<Instance>> {
    let mut instances: Vec<_> =
        routes.instances().filter(|instance| after.is_none_or(|after| instance.id > after)).collect();
    instances.sort_unstable_by_key(|instance| instance.id);
    instances
}

fn known(proxy: &Rc<Proxy>, after: Option<Uuid>) -> Links {
    let routes = proxy.routes.borrow();
    let instances = behind(&routes, after);
    let more = instances.len() > LINKS_PAGE;
    Links { links: instances.into_iter().take(LINKS_PAGE).map(|instance| instance.known()).collect(), more }
}

fn waiting(proxy: &Rc<Proxy>, skip: usize) -> Value {
    let all = proxy.wakes.waited_for();
    let page: Vec<Value> = all
        .iter()
        .skip(skip)
        .take(WAITING_PAGE)
        .map(|(target, requests)| match target {
            Target::Host(host, _) => json!({"host": host.as_str(), "requests": requests}),
            Target::Instance(instance) => json!({"instance": instance, "requests": requests}),
        })
        .collect();
    json!({"waiting": page, "more": all.len() > skip.saturating_add(page.len())})
}

fn count(proxy: &Rc<Proxy>, page: &Page) -> Value {
    let routes = proxy.routes.borrow();
    let mut instances = behind(&routes, page.after);
    instances.truncate(LINKS_PAGE);
    let links: Vec<Value> = instances
        .into_iter()
        .map(|instance| {
            let usage = instance.usage();
            json!({
                "instance": instance.id,
                "generation": instance.which().generation,
                "requests": usage.requests,
                "connections": instance.connections(),
                "in_flight": instance.requests(),
                "rx_bytes": usage.rx_bytes,
                "tx_bytes": usage.tx_bytes,
            })
        })
        .collect();
    json!({
        "links": links,
        "wakes": proxy.wakes.asked(),
        "wake_us": proxy.telemetry.wakes.borrow().counts,
        "waiting": proxy.wakes.waiting(),
    })
}
