//! The proxy as a whole: what its parts share, and the program's beginning and end.

use crate::control::messages::{Attach, Group};
use crate::control::output::Output;
use crate::control::{self, Control};
use crate::host::Host;
use crate::http::answer::Refused;
use crate::http::forward::not_found;
use crate::http::server::{self, Clients};
use crate::instance::{Busy, Instance, Kind, Phase};
use crate::options::Options;
use crate::routes::{Found, Routes};
use crate::wake::{Failure, Target, Wakes};
use http::StatusCode;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{AbortHandle, LocalSet};
use uuid::Uuid;

/// The port of plain HTTP services.
pub const HTTP_PORT: u16 = 80;
/// Wakes and looks for an instance before a client is told that there is none.
const ROUNDS_MAX: usize = 8;
/// Until an instance is tried to be woken again because of bytes on its connections.
const WORD_AGAIN: Duration = Duration::from_secs(1);
/// Requests in flight may end within this time when the program is told to end.
const END_TIME: Duration = Duration::from_secs(5);

/// How long wakes took: counts by powers of two of microseconds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Histogram(pub [u64; 32]);

impl Histogram {
    /// Counts one.
    pub fn add(&mut self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let at = (u64::BITS - micros.leading_zeros()).min(31);
        self.0[at as usize] += 1;
    }
}

/// See the module's text.
pub struct Proxy {
    /// torpord.
    pub control: Control,
    /// Who runs.
    pub routes: RefCell<Routes>,
    /// Who is being woken.
    pub wakes: Wakes,
    /// Output that torpord has not been told of.
    pub output: RefCell<Output>,
    /// Clients.
    pub clients: Clients,
    /// From asking for a wake to its answer.
    pub wake_times: RefCell<Histogram>,
    public_ports: RefCell<BTreeMap<u16, u16>>,
    listeners: RefCell<HashMap<u16, AbortHandle>>,
    waking: RefCell<HashSet<Uuid>>,
    address: IpAddr,
}

/// A request that an instance takes.
pub struct Admitted {
    /// Holds the instance awake.
    pub busy: Busy,
    /// The port of the guest.
    pub destination: u16,
}

impl Proxy {
    /// A proxy whose service ports are opened on `address`.
    #[must_use]
    pub fn new(address: IpAddr) -> Rc<Self> {
        Rc::new(Self {
            control: Control::default(),
            routes: RefCell::default(),
            wakes: Wakes::default(),
            output: RefCell::default(),
            clients: Clients::default(),
            wake_times: RefCell::default(),
            public_ports: RefCell::default(),
            listeners: RefCell::default(),
            waking: RefCell::default(),
            address,
        })
    }

    /// What clients see of a service port.
    #[must_use]
    pub fn public_port(&self, port: u16) -> u16 {
        self.public_ports.borrow().get(&port).copied().unwrap_or(port)
    }

    /// What clients see of service ports.
    pub fn set_public_ports(&self, ports: BTreeMap<u16, u16>) {
        self.public_ports.replace(ports);
    }

    /// Finds an instance for a name, and wakes one where none runs.
    ///
    /// # Errors
    /// What the client is answered.
    pub async fn admit(self: &Rc<Self>, host: &Host, port: u16, kind: Kind) -> Result<Admitted, Refused> {
        let mut failures = 0;
        for _ in 0..ROUNDS_MAX {
            let target = match self.look(host, port, kind)? {
                Ok(admitted) => return Ok(admitted),
                Err(target) => target,
            };
            let by_name = matches!(target, Target::Host(..));
            match self.wakes.wake(self, target, &[]).await {
                Ok(_) => {}
                Err(Failure::Unknown) if by_name => return Err(not_found(host, port)),
                // The instance that slept has been deleted; others may have the name.
                Err(Failure::Unknown) => {}
                Err(Failure::Stopped(why)) => {
                    return Err(unavailable("the program behind this name is stopped", &why));
                }
                Err(Failure::Busy(why)) => return Err(unavailable("busy, try again", why)),
                Err(Failure::Failed(_)) if failures == 0 => failures += 1,
                Err(Failure::Failed(why)) => {
                    let text = "the program behind this name could not be woken";
                    return Err(Refused::because(StatusCode::BAD_GATEWAY, text, format!("{host}: {why}")));
                }
            }
        }
        Err(unavailable("busy, try again", "it was woken, and slept again before it could be asked"))
    }

    /// An instance that runs, or whom to wake.
    fn look(&self, host: &Host, port: u16, kind: Kind) -> Result<Result<Admitted, Target>, Refused> {
        let routes = self.routes.borrow();
        let by_name = || Target::Host(host.clone(), port);
        let group = match routes.find(host, port) {
            Found::Group(group) => group,
            Found::Unknown => return Ok(Err(by_name())),
            Found::Miss => return Err(not_found(host, port)),
        };
        let Some(service) = Routes::service(&group, port) else { return Err(not_found(host, port)) };
        if let Some(instance) = routes.least_busy(group.group, &[]) {
            return Ok(Ok(Admitted { busy: instance.busy(kind), destination: service.destination_port }));
        }
        Ok(Err(routes.drowsy(group.group, &[]).map_or_else(by_name, Target::Instance)))
    }

    /// Takes in a link.
    ///
    /// # Errors
    /// A text for torpord.
    pub fn attach(self: &Rc<Self>, attach: Attach, socket: OwnedFd) -> Result<(), String> {
        let known = self.routes.borrow().instance(attach.instance).cloned();
        // It was told just before, and goes with the instance's former link where that is the last one of it.
        let group = attach.group.and_then(|group| self.routes.borrow().group(group));
        if let Some(known) = known {
            if attach.resumed {
                known.settle();
            }
            let later = attach.generation > known.which().generation;
            if attach.resumed && known.phase() == Phase::Asleep && later {
                known.resume(attach, socket)?;
                self.routes.borrow_mut().add(known);
                return Ok(());
            }
            self.forget_instance(&known);
        }
        if let Some(group) = group {
            self.routes.borrow_mut().keep_group(&group);
        }
        let instance = Instance::start(self, attach, socket)?;
        self.routes.borrow_mut().add(instance);
        Ok(())
    }

    /// An instance is over; what it had open is reset.
    pub fn forget_instance(&self, instance: &Instance) {
        let is_known = self.routes.borrow().instance(instance.id).is_some_and(|known| std::ptr::eq(&**known, instance));
        if is_known {
            self.routes.borrow_mut().remove(instance.id);
        }
        instance.end();
    }

    /// Takes in a group.
    pub fn set_group(&self, group: Group) {
        self.routes.borrow_mut().set_group(group);
    }

    /// A connection has something to say to an instance that sleeps: it is woken, if need be by trying again.
    pub fn wake_for_word(self: &Rc<Self>, id: Uuid) {
        if !self.waking.borrow_mut().insert(id) {
            return;
        }
        let proxy = self.clone();
        tokio::task::spawn_local(async move {
            loop {
                let instance = proxy.routes.borrow().instance(id).cloned();
                let sleeps = |instance: &Rc<Instance>| matches!(instance.phase(), Phase::Quiet | Phase::Asleep);
                if !instance.as_ref().is_some_and(sleeps) {
                    break;
                }
                match proxy.wakes.wake(&proxy, Target::Instance(id), &[]).await {
                    Ok(_) => break,
                    Err(_) => tokio::time::sleep(WORD_AGAIN).await,
                }
            }
            proxy.waking.borrow_mut().remove(&id);
        });
    }

    /// Accepts connections for a service port, on the port of that number.
    ///
    /// # Errors
    /// What bind(2) gives.
    pub fn listen(self: &Rc<Self>, port: u16) -> io::Result<()> {
        if self.listeners.borrow().contains_key(&port) {
            return Ok(());
        }
        self.accept_at(SocketAddr::new(self.address, port), port).map(|_| ())
    }

    fn accept_at(self: &Rc<Self>, address: SocketAddr, port: u16) -> io::Result<SocketAddr> {
        let listener = server::bind(address)?;
        let local = listener.local_addr()?;
        let task = tokio::task::spawn_local(server::accept(self.clone(), listener, port));
        self.listeners.borrow_mut().insert(port, task.abort_handle());
        Ok(local)
    }

    /// Requests that are in flight.
    fn in_flight(&self) -> usize {
        self.routes.borrow().instances().map(|instance| instance.requests()).sum::<usize>() + self.wakes.waiting()
    }

    /// No more clients; requests in flight may end.
    async fn end(&self) {
        for (_, listener) in self.listeners.borrow_mut().drain() {
            listener.abort();
        }
        let drained = async {
            while self.in_flight() > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        // Those that take longer are cut off.
        let _ = tokio::time::timeout(END_TIME, drained).await;
    }
}

fn unavailable(text: &'static str, reason: &str) -> Refused {
    Refused::because(StatusCode::SERVICE_UNAVAILABLE, text, reason)
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// Where an address is taken, or the data directory is of no use.
pub fn run(options: Options) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = LocalSet::new();
    runtime.block_on(local.run_until(async move {
        let proxy = Proxy::new(options.http.ip());
        let control = control::server::bind(&options.data)?;
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", options.http));
        let address = proxy.accept_at(options.http, HTTP_PORT).map_err(named)?;
        tokio::task::spawn_local(control::server::accept(proxy.clone(), control));
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let mut stdout = io::stdout();
        // Whoever started us may not be listening.
        let _ = writeln!(stdout, "proxy http://{address}").and_then(|()| stdout.flush());
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        proxy.end().await;
        Ok(())
    }))
}
