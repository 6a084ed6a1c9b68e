//! Reads and changes WireGuard devices, their routes and rules, each request acknowledged by itself.
//!
//! Owns the two sockets. What messages mean is in `device` (generic netlink) and `link` (rtnetlink), both functions of
//! values. The sockets belong to the network namespace of the thread that opens them.

use net_types::Family;
use netlink::{Connection, Malformed, Message, NetlinkFamily, Reply, flag};
use nix::errno::Errno;

use crate::state::{Observed, ObservedDevice, RULE_PRIORITY, Rule, SEAL_PRIORITY, Step};

mod device;
mod link;

/// Attempts at a dump that changes of other programs keep interrupting.
const READ_ATTEMPTS: usize = 20;

/// Why the kernel could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The socket failed.
    #[error(transparent)]
    Socket(#[from] netlink::Error),
    /// The kernel has no WireGuard, and no module of it.
    #[error(
        "this kernel has no WireGuard (no generic netlink family \"wireguard\"): install the module, or use Linux 5.6 or newer"
    )]
    Absent,
    /// The kernel refused to be read.
    #[error("reading {what} was refused: {}", errno.desc())]
    Refused {
        /// What was read.
        what: &'static str,
        /// Error number.
        errno: Errno,
    },
    /// Every dump was interrupted by changes.
    #[error("{0} changes faster than it can be read")]
    Unsteady(&'static str),
}

/// A step that the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The step.
    pub step: Step,
    /// Error number.
    pub errno: Errno,
}

/// The kernel of a network namespace.
pub struct Kernel {
    route: Connection,
    generic: Connection,
    /// Number of the family "wireguard", once it was found.
    family: Option<u16>,
}

impl Kernel {
    /// Opens the sockets.
    pub fn open() -> Result<Kernel, KernelError> {
        let route = Connection::open(NetlinkFamily::Route)?;
        route.socket().filter_dumps();
        Ok(Kernel {
            route,
            generic: Connection::open(NetlinkFamily::Generic)?,
            family: None,
        })
    }

    /// The number of the generic netlink family: the kernel loads the module when it is asked for.
    ///
    /// # Errors
    /// [`KernelError::Absent`] if the kernel has no WireGuard.
    pub fn probe(&mut self) -> Result<u16, KernelError> {
        if let Some(family) = self.family {
            return Ok(family);
        }
        let mut found = None;
        let reply = self.generic.ask(
            device::CONTROL,
            0,
            &device::FAMILY_REQUEST,
            |out| out.put_str(device::FAMILY_NAME, device::FAMILY),
            |message| {
                found = device::family(message)?;
                Ok(())
            },
        )?;
        match (reply, found) {
            (Reply::Done, Some(family)) => {
                self.family = Some(family);
                Ok(family)
            }
            (Reply::Refused(Errno::ENOENT) | Reply::Done, _) => Err(KernelError::Absent),
            (Reply::Refused(errno), _) => Err(KernelError::Refused {
                what: "the family \"wireguard\"",
                errno,
            }),
            (Reply::Interrupted, _) => Err(KernelError::Unsteady("the family \"wireguard\"")),
        }
    }

    /// Reads devices of these names, and the routes and rules of these tables and of our priorities.
    pub fn observe(&mut self, names: &[&str], tables: &[u32]) -> Result<Observed, KernelError> {
        let mut observed = Observed::default();
        for name in names {
            if let Some(mut device) = self.read_link(name)? {
                if device.is_wireguard {
                    self.read_device(&mut device)?;
                    device.has_address = self.has_address(device.index)?;
                }
                observed.devices.insert((*name).to_owned(), device);
            }
        }
        for family in Family::ALL {
            self.read_rules(family, &mut observed)?;
            for table in tables {
                self.read_routes(family, *table, &mut observed)?;
            }
        }
        Ok(observed)
    }

    /// Reads keys and peers of the observed devices again, and nothing else.
    ///
    /// # Errors
    /// As [`Kernel::observe`]; the devices are incomplete then.
    pub fn read_again(&mut self, observed: &mut Observed) -> Result<(), KernelError> {
        let devices = observed.devices.values_mut();
        let mut devices = devices.filter(|device| device.is_wireguard);
        devices.try_for_each(|device| self.read_device(device))
    }

    /// Applies steps in order and returns those that were refused.
    pub fn apply(&mut self, steps: &[Step]) -> Result<Vec<Refused>, KernelError> {
        let mut refused = Vec::new();
        for step in steps {
            if let Some(errno) = self.apply_one(step)? {
                refused.push(Refused {
                    step: step.clone(),
                    errno,
                });
            }
        }
        Ok(refused)
    }

    fn apply_one(&mut self, step: &Step) -> Result<Option<Errno>, KernelError> {
        if let Some(requests) = device::requests(step) {
            let family = self.probe()?;
            for request in requests {
                let reply = self.generic.ask(
                    family,
                    0,
                    &device::SET_DEVICE,
                    |out| out.bytes.extend_from_slice(&request),
                    |_| Ok(()),
                )?;
                if let Some(errno) = refusal(reply) {
                    return Ok(Some(errno));
                }
            }
            return Ok(None);
        }
        let Some(request) = link::request(step) else {
            return Ok(None);
        };
        let reply = self.route.ask(
            request.kind,
            request.flags,
            &request.header,
            |out| out.bytes.extend_from_slice(&request.attributes),
            |_| Ok(()),
        )?;
        Ok(refusal(reply))
    }

    fn read_link(&mut self, name: &str) -> Result<Option<ObservedDevice>, KernelError> {
        let mut found = None;
        let reply = self.route.ask(
            link::GET_LINK,
            0,
            &link::NO_LINK,
            |out| out.put_str(link::NAME, name),
            |message| {
                found = Some(link::device(message)?);
                Ok(())
            },
        )?;
        match reply {
            Reply::Refused(Errno::ENODEV) => Ok(None),
            Reply::Refused(errno) => Err(KernelError::Refused {
                what: "a link",
                errno,
            }),
            Reply::Done | Reply::Interrupted => Ok(found),
        }
    }

    fn read_device(&mut self, into: &mut ObservedDevice) -> Result<(), KernelError> {
        let family = self.probe()?;
        let index = into.index;
        into.peers.clear();
        for _ in 0..READ_ATTEMPTS {
            let mut read = into.clone();
            let reply = self.generic.ask(
                family,
                flag::DUMP,
                &device::GET_DEVICE,
                |out| out.put(device::INDEX, &index.to_ne_bytes()),
                |message| device::read(message, &mut read),
            )?;
            match reply {
                Reply::Done => {
                    *into = read;
                    return Ok(());
                }
                // Deleted meanwhile: the next observation sees it.
                Reply::Refused(Errno::ENODEV) => return Ok(()),
                Reply::Refused(Errno::EINTR) | Reply::Interrupted => {}
                Reply::Refused(errno) => {
                    let what = "a WireGuard device";
                    return Err(KernelError::Refused { what, errno });
                }
            }
        }
        Err(KernelError::Unsteady("a WireGuard device"))
    }

    fn has_address(&mut self, index: u32) -> Result<bool, KernelError> {
        let header = link::addresses_request(index);
        let mut has_one = false;
        self.dump("addresses", link::GET_ADDRESS, &header, &[], |message| {
            has_one |= link::link_of_address(message)? == index;
            Ok(())
        })?;
        Ok(has_one)
    }

    fn read_rules(&mut self, family: Family, into: &mut Observed) -> Result<(), KernelError> {
        let header = link::rule_header(family);
        let mut rules: Vec<Rule> = Vec::new();
        let known = self.dump("rules", link::GET_RULE, &header, &[], |message| {
            rules.extend(link::rule(message)?);
            Ok(())
        })?;
        if !known {
            into.without.insert(family);
        }
        into.rules
            .extend(rules.into_iter().map(|rule| (family, rule)));
        Ok(())
    }

    fn read_routes(
        &mut self,
        family: Family,
        table: u32,
        into: &mut Observed,
    ) -> Result<(), KernelError> {
        let (header, attributes) = link::routes_request(family, table);
        let routes = &mut into.routes;
        self.dump("routes", link::GET_ROUTE, &header, &attributes, |message| {
            if let Some(index) = link::default_route(message, table)? {
                routes.insert((family, table, index));
            }
            Ok(())
        })?;
        Ok(())
    }

    /// Reads a dump. Returns false if the kernel does not have the family of addresses.
    fn dump(
        &mut self,
        what: &'static str,
        kind: u16,
        header: &[u8],
        attributes: &[u8],
        mut absorb: impl FnMut(&Message<'_>) -> Result<(), Malformed>,
    ) -> Result<bool, KernelError> {
        for _ in 0..READ_ATTEMPTS {
            let fill = |out: &mut netlink::Writer| out.bytes.extend_from_slice(attributes);
            let reply = self
                .route
                .ask(kind, flag::DUMP, header, fill, &mut absorb)?;
            match reply {
                // A table without a route is not there.
                Reply::Done | Reply::Refused(Errno::ENOENT | Errno::ENODEV) => return Ok(true),
                Reply::Refused(Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP) => return Ok(false),
                Reply::Interrupted => {}
                Reply::Refused(errno) => return Err(KernelError::Refused { what, errno }),
            }
        }
        Err(KernelError::Unsteady(what))
    }
}

fn refusal(reply: Reply) -> Option<Errno> {
    match reply {
        Reply::Refused(errno) => Some(errno),
        Reply::Done | Reply::Interrupted => None,
    }
}

/// Priority of a rule.
fn priority(rule: &Rule) -> u32 {
    match rule {
        Rule::Device(..) => RULE_PRIORITY,
        Rule::Seal(_) => SEAL_PRIORITY,
    }
}
