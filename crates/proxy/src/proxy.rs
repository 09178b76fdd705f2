//! The proxy as a whole: what its parts share, and the program's beginning and end.

use crate::control::messages::{Attach, Group, Handler};
use crate::control::output::Output;
use crate::control::{self, Control};
use crate::host::Host;
use crate::http::answer::Refused;
use crate::http::forward::not_found;
use crate::http::server::{self, Clients, Listening};
use crate::instance::{Busy, Instance, Kind, Phase};
use crate::limits::WAKE_TIME;
use crate::options::Options;
use crate::routes::{Choice, Found, Routes};
use crate::say;
use crate::telemetry::{self, Telemetry};
use crate::tls::{self, Certificates};
use crate::wake::{Failure, Target, Wakes};
use http::StatusCode;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::ops::Bound;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{AbortHandle, LocalSet};
use tokio_rustls::rustls::ServerConfig;
use uuid::Uuid;

/// The port of plain HTTP services.
pub const HTTP_PORT: u16 = 80;
/// The port of HTTPS services.
pub const HTTPS_PORT: u16 = 443;
/// Wakes and looks for an instance before a client is told that there is none.
const ROUNDS_MAX: usize = 8;
/// Until an instance is tried to be woken again because of bytes on its connections.
const WORD_AGAIN: Duration = Duration::from_secs(1);
/// Requests in flight may end within this time when the program is told to end.
const END_TIME: Duration = Duration::from_secs(5);

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
    /// What is told of requests.
    pub telemetry: Telemetry,
    /// TLS that ends here, for HTTP and for anything.
    pub tls_http: Arc<ServerConfig>,
    /// The same without offering HTTP/2.
    pub tls: Arc<ServerConfig>,
    /// Whose certificates those are.
    pub certificates: Arc<Certificates>,
    public_ports: RefCell<BTreeMap<u16, u16>>,
    /// Where connections for service ports are accepted.
    bound: RefCell<BTreeMap<u16, u16>>,
    listeners: RefCell<BTreeMap<u16, (Rc<Listening>, AbortHandle)>>,
    /// Ports where whatever comes is for one group.
    alone: RefCell<HashSet<u16>>,
    waking: RefCell<HashSet<Uuid>>,
    address: IpAddr,
}

/// A request that an instance takes.
pub struct Admitted {
    /// Holds the instance awake.
    pub busy: Busy,
    /// The port of the guest.
    pub destination: u16,
    /// How connections to the service are handled.
    pub handlers: Vec<Handler>,
    /// Idempotent requests without a body that got no answer are sent once more.
    pub retry_idempotent: bool,
}

impl Proxy {
    /// A proxy that has not opened anything yet.
    ///
    /// # Errors
    /// Where the access log can't be opened.
    pub fn new(options: &Options) -> io::Result<Rc<Self>> {
        let certificates = Arc::new(Certificates::new(&options.data));
        Ok(Rc::new(Self {
            control: Control::default(),
            routes: RefCell::default(),
            wakes: Wakes::default(),
            output: RefCell::default(),
            clients: Clients::default(),
            telemetry: Telemetry::new(options.access_log.as_deref())?,
            tls_http: tls::config(certificates.clone(), true),
            tls: tls::config(certificates.clone(), false),
            certificates,
            public_ports: RefCell::default(),
            bound: RefCell::default(),
            listeners: RefCell::default(),
            alone: RefCell::default(),
            waking: RefCell::default(),
            address: options.http.ip(),
        }))
    }

    /// What clients see of a service port.
    #[must_use]
    pub fn public_port(&self, port: u16) -> u16 {
        self.public_ports.borrow().get(&port).copied().unwrap_or(port)
    }

    /// What clients see of service ports: with 0 where they are accepted. What that is.
    pub fn set_public_ports(&self, mut ports: BTreeMap<u16, u16>) -> BTreeMap<u16, u16> {
        let bound = self.bound.borrow();
        for (port, seen) in ports.iter_mut().filter(|(_, seen)| **seen == 0) {
            *seen = bound.get(port).copied().unwrap_or(*port);
        }
        self.public_ports.replace(ports.clone());
        ports
    }

    /// Finds an instance for a name, and wakes one where none runs.
    ///
    /// # Errors
    /// What the client is answered.
    pub async fn admit(self: &Rc<Self>, host: &Host, port: u16, kind: Kind) -> Result<Admitted, Refused> {
        let until = Instant::now() + WAKE_TIME;
        let mut failures = 0;
        let mut rounds = 0;
        while rounds < ROUNDS_MAX {
            let (target, not) = match self.look(host, port, kind)? {
                Look::Admitted(admitted) => return Ok(admitted),
                Look::Wake(target, not) => (target, not),
                Look::Full if self.wakes.slot(self, host, port, until).await => continue,
                Look::Full => return Err(unavailable("busy, try again", "every instance is at its limit")),
            };
            let by_name = matches!(target, Target::Host(..));
            let more = !not.is_empty();
            match self.wakes.wake(self, target, &not).await {
                Ok(_) => rounds += 1,
                // Those that run have to do, within their hard limit.
                Err(Failure::Unknown | Failure::Stopped(_) | Failure::Busy(_) | Failure::Failed(_)) if more => {
                    self.routes.borrow_mut().exhausted(host);
                }
                Err(Failure::Unknown) if by_name => return Err(not_found(host, port)),
                // The instance that slept has been deleted; others may have the name.
                Err(Failure::Unknown) => rounds += 1,
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

    /// Whether a plain request is to be sent to HTTPS, as far as that is known.
    #[must_use]
    pub fn redirects(&self, host: &Host, port: u16) -> bool {
        let Found::Group(group) = self.routes.borrow().find(host, port) else { return false };
        Routes::service(&group, port).is_some_and(|service| service.handlers.contains(&Handler::Redirect))
    }

    /// Whether an instance could be given a request now, or it is clear that none will.
    #[must_use]
    pub fn has_slot(&self, host: &Host, port: u16) -> bool {
        let routes = self.routes.borrow();
        let Found::Group(group) = routes.find(host, port) else { return true };
        !matches!(routes.choose(group.group), Choice::Full)
    }

    /// An instance that runs, or whom to wake.
    fn look(&self, host: &Host, port: u16, kind: Kind) -> Result<Look, Refused> {
        let routes = self.routes.borrow();
        let by_name = || Target::Host(host.clone(), port);
        let group = match routes.find(host, port) {
            Found::Group(group) => group,
            Found::Unknown => return Ok(Look::Wake(by_name(), Vec::new())),
            Found::Miss => return Err(not_found(host, port)),
        };
        let Some(service) = Routes::service(&group, port) else { return Err(not_found(host, port)) };
        Ok(match routes.choose(group.group) {
            Choice::Use(instance) => Look::Admitted(Admitted {
                busy: instance.busy(kind),
                destination: service.destination_port,
                handlers: service.handlers.clone(),
                retry_idempotent: service.retry_idempotent,
            }),
            Choice::Full => Look::Full,
            Choice::Another(not) => Look::Wake(by_name(), not),
            Choice::None => Look::Wake(routes.drowsy(group.group).map_or_else(by_name, Target::Instance), Vec::new()),
        })
    }

    /// Takes in a link.
    ///
    /// # Errors
    /// A text for torpord.
    pub fn attach(self: &Rc<Self>, attach: Attach, mut socket: OwnedFd) -> Result<(), String> {
        let known = self.routes.borrow().instance(attach.instance).cloned();
        // It was told just before, and goes with the instance's former link where that is the last one of it.
        let group = attach.group.and_then(|group| self.routes.borrow().group(group));
        if let Some(known) = known {
            if attach.resumed {
                known.settle();
            }
            let later = attach.generation > known.which().generation;
            if attach.resumed && known.phase() == Phase::Asleep && later {
                let again = socket.try_clone().map_err(|error| error.to_string())?;
                match known.resume(attach.clone(), socket) {
                    Ok(()) => {
                        self.routes.borrow_mut().add(known);
                        return Ok(());
                    }
                    // Nothing of it may stay: it is half in order.
                    Err(why) => say!("instance {}: its connections are reset: {why}", known.id),
                }
                socket = again;
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

    /// So many instances are to sleep soon, those first that have had nothing to do for longest.
    pub fn relieve(&self, instances: usize) {
        let routes = self.routes.borrow();
        let silent = routes.instances().filter_map(|instance| Some((instance.silent_since()?, instance)));
        let mut silent: Vec<_> = silent.collect();
        silent.sort_unstable_by_key(|(since, _)| *since);
        // Those that were told before and have not begun to sleep yet are among the first.
        silent.iter().take(instances).for_each(|(_, instance)| instance.press());
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

    /// Accepts connections for a service port, on the port of that number, from now on for one group `alone` or for those
    /// that clients name.
    ///
    /// # Errors
    /// What bind(2) gives.
    pub fn listen(self: &Rc<Self>, port: u16, alone: bool) -> io::Result<()> {
        if alone {
            self.alone.borrow_mut().insert(port);
        } else {
            self.alone.borrow_mut().remove(&port);
        }
        if self.listeners.borrow().contains_key(&port) {
            return Ok(());
        }
        self.accept_at(SocketAddr::new(self.address, port), port).map(|_| ())
    }

    /// Accepts no more connections for a port. Those that there are go on.
    pub fn close(&self, port: u16) {
        self.alone.borrow_mut().remove(&port);
        if let Some((listening, task)) = self.listeners.borrow_mut().remove(&port) {
            // At once: whoever asks for it next gets it.
            listening.close();
            task.abort();
        }
    }

    /// The ports behind `after` that are listened on, in their order.
    #[must_use]
    pub fn ports_behind(&self, after: u16) -> Vec<u16> {
        self.listeners.borrow().range((Bound::Excluded(after), Bound::Unbounded)).map(|(port, _)| *port).collect()
    }

    /// Whether one group has a port alone.
    #[must_use]
    pub fn is_alone(&self, port: u16) -> bool {
        self.alone.borrow().contains(&port)
    }

    fn accept_at(self: &Rc<Self>, address: SocketAddr, port: u16) -> io::Result<SocketAddr> {
        let listener = server::bind(address)?;
        let local = listener.local_addr()?;
        let listening = Listening::new(listener);
        let task = tokio::task::spawn_local(server::accept(self.clone(), listening.clone(), port));
        self.listeners.borrow_mut().insert(port, (listening, task.abort_handle()));
        self.bound.borrow_mut().insert(port, local.port());
        Ok(local)
    }

    /// Requests that are in flight.
    fn in_flight(&self) -> usize {
        self.routes.borrow().instances().map(|instance| instance.requests()).sum::<usize>() + self.wakes.waiting()
    }

    /// No more clients; requests in flight may end.
    async fn end(&self) {
        self.ports_behind(0).into_iter().for_each(|port| self.close(port));
        let drained = async {
            while self.in_flight() > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        // Those that take longer are cut off.
        let _ = tokio::time::timeout(END_TIME, drained).await;
    }
}

/// What there is for a request.
enum Look {
    Admitted(Admitted),
    /// Nobody can take it now.
    Full,
    /// Whom to wake, and who is of no use.
    Wake(Target, Vec<Uuid>),
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
        let proxy = Proxy::new(&options)?;
        let control = control::server::bind(&options.data)?;
        let named = |address: SocketAddr, remedy: &'static str| {
            move |error: io::Error| {
                io::Error::new(error.kind(), format!("cannot listen on {address}: {error}: name another with {remedy}"))
            }
        };
        let local = proxy.accept_at(options.http, HTTP_PORT).map_err(named(options.http, "`torpor up --proxy`"))?;
        let mut lines = vec![format!("proxy http://{local}")];
        if let Some(address) = options.tls {
            let local = proxy.accept_at(address, HTTPS_PORT).map_err(named(address, "`torpor up --proxy-tls`"))?;
            lines.push(format!("proxy-tls https://{local}"));
        }
        if let Some(address) = options.metrics {
            let listener = server::bind(address).map_err(named(address, "--metrics"))?;
            lines.push(format!("proxy-metrics http://{}/metrics", listener.local_addr()?));
            tokio::task::spawn_local(telemetry::serve(proxy.clone(), listener));
        }
        if options.access_log.is_some() {
            tokio::task::spawn_local(Telemetry::write(proxy.clone()));
        }
        tokio::task::spawn_local(control::server::accept(proxy.clone(), control));
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let mut hangup = signal(SignalKind::hangup())?;
        let mut stdout = io::stdout();
        // Whoever started us may not be listening.
        let _ = writeln!(stdout, "{}", lines.join("\n")).and_then(|()| stdout.flush());
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => {
                    proxy.certificates.load();
                    proxy.telemetry.reopen();
                }
            }
        }
        proxy.end().await;
        proxy.telemetry.flush();
        Ok(())
    }))
}
