//! Work inside a network namespace from a process that lives in another one.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

/// Path of a namespace made by `ip netns add`.
pub fn path(name: &str) -> PathBuf {
    PathBuf::from("/run/netns").join(name)
}

/// Runs `work` on a new thread that has entered namespace `name`; sockets made there stay there.
pub fn inside<T, F>(name: &str, work: F) -> io::Result<T>
where
    T: Send,
    F: FnOnce() -> io::Result<T> + Send,
{
    let file = File::open(path(name))?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET)?;
            work()
        });
        thread
            .join()
            .map_err(|_| io::Error::other("thread in the namespace panicked"))?
    })
}

/// Listens in the namespace; the socket is ready to be given to tokio.
pub fn listen(name: &str, address: SocketAddr) -> io::Result<TcpListener> {
    inside(name, || {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    })
}

/// A UDP socket in the namespace, ready to be given to tokio.
pub fn udp(name: &str, address: SocketAddr) -> io::Result<UdpSocket> {
    inside(name, || {
        let socket = UdpSocket::bind(address)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    })
}

/// Connects from inside the namespace (as root, so the redirect rules apply to it).
pub fn connect(name: &str, to: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    inside(name, || TcpStream::connect_timeout(&to, timeout))
}
