//! The netlink socket of the netfilter subsystem: one request at a time, bounded waits. The only
//! place of this backend that talks to the kernel.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendmsg,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use super::message::{Batch, NLM_F_DUMP, kind, message_type, request};
use super::wire::{Attributes, be32, messages};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP_INTR: u16 = 0x10;
/// Dumps are handed out in pieces of at most 32 KiB.
const RECEIVE_BUFFER: usize = 128 * 1024;

/// Failure of a netlink exchange.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// Socket call failed.
    #[error("netlink {call} failed: {source}")]
    Socket {
        /// Which call.
        call: &'static str,
        /// Its error.
        #[source]
        source: io::Error,
    },
    /// The kernel refused one message of a batch; nothing of the batch took effect.
    #[error("the kernel refused {what}: {errno}{}", hint(*.errno))]
    Refused {
        /// Which message.
        what: String,
        /// The kernel's answer.
        errno: Errno,
    },
    /// Another program changed the rule set meanwhile.
    #[error("the rule set changed while it was being replaced")]
    Changed,
    /// The rule set kept changing while it was read.
    #[error("the rule set could not be read consistently")]
    Inconsistent,
}

impl NetlinkError {
    /// Whether the kernel has no nf_tables at all, and so cannot hold rules in it.
    #[must_use]
    pub fn is_unsupported(&self) -> bool {
        match self {
            Self::Socket { source, .. } => matches!(
                source.raw_os_error().map(Errno::from_raw),
                Some(Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT)
            ),
            // netfilter netlink answers EINVAL for a subsystem that is not there.
            Self::Refused { errno, .. } => {
                matches!(
                    errno,
                    Errno::EINVAL | Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT
                )
            }
            Self::Changed | Self::Inconsistent => false,
        }
    }
}

/// What usually is behind an errno of nf_tables.
const fn hint(errno: Errno) -> &'static str {
    match errno {
        Errno::ENOENT | Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT | Errno::EPROTONOSUPPORT => {
            " (a kernel module is probably missing: nf_tables, nft_chain_nat, nft_redir, nft_ct or nft_tproxy)"
        }
        Errno::EPERM => " (the NET_ADMIN capability is needed)",
        _ => "",
    }
}

/// A connected socket.
#[derive(Debug)]
pub struct NftSocket {
    fd: OwnedFd,
    sequence: u32,
}

fn failed(call: &'static str) -> impl Fn(Errno) -> NetlinkError {
    move |errno| NetlinkError::Socket {
        call,
        source: errno.into(),
    }
}

/// Where the lists of what is in the kernel come from.
pub trait Dump {
    /// Bodies of the answers to a list request, without the protocol's own header. `kind` is one of
    /// [`kind`]'s `GET*`, `family` a `NFPROTO_*`.
    ///
    /// # Errors
    /// The kernel refuses, or the state changed between two parts of the list.
    fn dump(
        &mut self,
        kind: u16,
        family: u8,
        attributes: &Attributes,
    ) -> Result<Vec<Vec<u8>>, NetlinkError>;
}

impl Dump for NftSocket {
    fn dump(
        &mut self,
        kind: u16,
        family: u8,
        attributes: &Attributes,
    ) -> Result<Vec<Vec<u8>>, NetlinkError> {
        self.exchange(kind, NLM_F_DUMP, family, attributes)
    }
}

impl NftSocket {
    /// Opens a socket in the current network namespace.
    ///
    /// # Errors
    /// The kernel has no netfilter netlink, or a socket call fails.
    pub fn open() -> Result<Self, NetlinkError> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )
        .map_err(failed("socket"))?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(failed("bind"))?;
        // The kernel answers at once; a limit only keeps a broken one from hanging the pod.
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(10, 0))
            .map_err(failed("setsockopt"))?;
        // Long port lists make long batches; without the privilege the default size must do.
        let _ = setsockopt(&fd, sockopt::SndBufForce, &(8 << 20));
        Ok(Self { fd, sequence: 0 })
    }

    fn send(&self, bytes: &[u8]) -> Result<(), NetlinkError> {
        let kernel = NetlinkAddr::new(0, 0);
        let parts = [IoSlice::new(bytes)];
        sendmsg(
            self.fd.as_raw_fd(),
            &parts,
            &[],
            MsgFlags::empty(),
            Some(&kernel),
        )
        .map_err(failed("send"))?;
        Ok(())
    }

    fn receive(&self) -> Result<Vec<u8>, NetlinkError> {
        let mut buffer = vec![0; RECEIVE_BUFFER];
        let length =
            recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty()).map_err(failed("receive"))?;
        buffer.truncate(length);
        Ok(buffer)
    }

    /// Number of the current rule set generation; every change increments it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn generation(&mut self) -> Result<u32, NetlinkError> {
        let answers = self.exchange(kind::GETGEN, 0, 0, &Attributes::default())?;
        let id = answers.first().and_then(|answer| be32(answer, 1));
        id.ok_or(NetlinkError::Inconsistent)
    }

    fn exchange(
        &mut self,
        kind: u16,
        flags: u16,
        family: u8,
        attributes: &Attributes,
    ) -> Result<Vec<Vec<u8>>, NetlinkError> {
        self.sequence += 1;
        let sequence = self.sequence;
        self.send(&request(kind, flags, family, attributes, sequence))?;
        let mut answers = Vec::new();
        loop {
            let datagram = self.receive()?;
            for message in messages(&datagram).filter(|m| m.sequence == sequence) {
                if message.flags & NLM_F_DUMP_INTR != 0 {
                    return Err(NetlinkError::Changed);
                }
                match message.kind {
                    NLMSG_DONE => return Ok(answers),
                    NLMSG_ERROR => match error_of(message.payload) {
                        Errno::UnknownErrno => return Ok(answers),
                        errno => {
                            let what = format!("a read request of type {kind}");
                            return Err(NetlinkError::Refused { what, errno });
                        }
                    },
                    _ => answers.push(message.payload.get(4..).unwrap_or_default().to_vec()),
                }
            }
            if flags & NLM_F_DUMP == 0 && !answers.is_empty() {
                return Ok(answers);
            }
        }
    }

    /// Sends one transaction and waits for the kernel's verdict.
    ///
    /// # Errors
    /// The first refused message, or [`NetlinkError::Changed`] if `generation` is outdated. In
    /// every error case nothing took effect.
    pub fn commit(&self, batch: &Batch, generation: Option<u32>) -> Result<(), NetlinkError> {
        let (bytes, last) = batch.encode(generation);
        self.send(&bytes)?;
        loop {
            let datagram = self.receive()?;
            for message in messages(&datagram) {
                // Dump leftovers cannot appear: every exchange reads to its end.
                if message.kind != NLMSG_ERROR {
                    continue;
                }
                match error_of(message.payload) {
                    Errno::UnknownErrno if message.sequence == last => return Ok(()),
                    Errno::UnknownErrno => {}
                    Errno::ERESTART => return Err(NetlinkError::Changed),
                    errno => {
                        let what = describe(&bytes, message.sequence);
                        return Err(NetlinkError::Refused { what, errno });
                    }
                }
            }
        }
    }
}

/// Error code of an NLMSG_ERROR payload; `UnknownErrno` (0) is an acknowledgement.
fn error_of(payload: &[u8]) -> Errno {
    let code = payload
        .get(..4)
        .and_then(|b| b.try_into().ok())
        .map_or(0, i32::from_ne_bytes);
    Errno::from_raw(code.saturating_neg())
}

/// Names the message with this sequence number in our own batch.
fn describe(batch: &[u8], sequence: u32) -> String {
    use super::wire::text;
    let Some(message) = messages(batch).find(|m| m.sequence == sequence) else {
        return "the transaction".to_owned();
    };
    let body = message.payload.get(4..).unwrap_or_default();
    let table = text(body, 1).unwrap_or_default();
    let what = [
        (kind::NEWTABLE, "table"),
        (kind::DELTABLE, "deleting table"),
        (kind::NEWCHAIN, "a chain of table"),
        (kind::NEWRULE, "a rule of table"),
        (kind::DELRULE, "deleting a rule of table"),
        (kind::DELCHAIN, "deleting a chain of table"),
        (kind::NEWSET, "a set of table"),
        (kind::NEWSETELEM, "a set element of table"),
    ]
    .into_iter()
    .find(|(kind, _)| message_type(*kind) == message.kind)
    .map_or("the transaction", |(_, what)| what);
    let chain = match message.kind {
        k if k == message_type(kind::NEWRULE) => text(body, 2),
        k if k == message_type(kind::NEWCHAIN) => text(body, 3),
        _ => None,
    };
    format!("{what} {table} {}", chain.unwrap_or_default())
        .trim_end()
        .to_owned()
}
