//! A leader that has fallen silent: noticed long before its connection is given up, and what is done meanwhile.
//!
//! ```text
//!   connection ─ datagrams? ─▶ none for SILENT_LOOKS looks ─▶ somebody else is asked: who leads, after that term?
//!        └───────────────── one more ◀─ heard again: nothing has happened
//! ```
//!
//! Both ends of a connection send something once a second at the latest. An election needs one to two seconds, and a
//! connection is given up after three: whoever waits for that hears of the next leader long after the others.
//!
//! Always true: silence is counted in looks, so that a process which was itself stopped, or had no time, does not take that
//! for a leader's silence; a leader that is heard again stays, unless another of a later term has answered.

use std::time::Duration;

use quinn::Connection;

/// Between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(125);
/// So many looks without a word are silence: a quarter more than what may lie between two words.
const SILENT_LOOKS: u32 = 10;

/// Datagrams that have come over a connection.
fn heard(connection: &Connection) -> u64 {
    connection.stats().udp_rx.datagrams
}

/// Waits until nothing was heard over a connection for a second and a quarter.
pub async fn falls_silent(connection: &Connection) {
    let mut last = heard(connection);
    let mut looks = 0;
    while looks < SILENT_LOOKS {
        tokio::time::sleep(LOOK_INTERVAL).await;
        let now = heard(connection);
        looks = if now == last { looks + 1 } else { 0 };
        last = now;
    }
}

/// Waits until something more is heard over it.
pub async fn is_heard_again(connection: &Connection) {
    let last = heard(connection);
    while heard(connection) == last {
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use godwit_wire::migration::Role;
    use tokio::net::UdpSocket;

    use super::*;
    use crate::fabric::tests::{Cluster, Serving, hello, name, soon};

    /// Passes datagrams on between whoever calls and this address, unless it is told to drop them.
    async fn relay(to: SocketAddr) -> (SocketAddr, Arc<AtomicBool>) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let (address, drops) = (socket.local_addr().expect("address"), Arc::new(AtomicBool::new(false)));
        let dropping = Arc::clone(&drops);
        tokio::spawn(async move {
            let (mut caller, mut datagram) = (None, vec![0; 65_536]);
            while let Ok((length, from)) = socket.recv_from(&mut datagram).await {
                if from != to {
                    caller = Some(from);
                }
                let next = if from == to { caller } else { Some(to) };
                if let Some(next) = next.filter(|_| !dropping.load(Ordering::Relaxed)) {
                    let _ = socket.send_to(datagram.get(..length).unwrap_or_default(), next).await;
                }
            }
        });
        (address, drops)
    }

    #[tokio::test]
    async fn a_leader_that_says_nothing_is_silent_and_one_that_is_idle_is_not() {
        let cluster = Cluster::new();
        let (mut a, b) = (cluster.serve("a"), cluster.serve("b"));
        let (address, drops) = relay(a.control_address()).await;
        // A machine that stands still just after the last word gives the connection up; then it is tried with another.
        for _ in 0..5 {
            if is_silent_and_heard_again(&mut a, &b, address, &drops).await {
                return;
            }
        }
        panic!("given up each time before it was silent");
    }

    /// `false`: the connection was given up meanwhile.
    async fn is_silent_and_heard_again(
        a: &mut Serving,
        b: &Serving,
        address: SocketAddr,
        drops: &AtomicBool,
    ) -> bool {
        let (to, hello) = (name("a"), hello("b", "one"));
        let dialed = b.fabric.dial_control(address, &to, Role::Session, &hello);
        let (connection, _send, _receive) = soon(dialed).await.expect("connects");
        let call = soon(a.control.recv()).await.expect("is heard");
        // Nobody says anything but that he is there.
        let before = heard(&connection);
        let idle = async {
            while heard(&connection) < before + 4 {
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
        };
        tokio::select! {
            () = falls_silent(&connection) => panic!("it is taken for silent"),
            () = soon(idle) => {}
        }
        drops.store(true, Ordering::Relaxed);
        soon(falls_silent(&connection)).await;
        drops.store(false, Ordering::Relaxed);
        let again = async {
            tokio::select! {
                () = is_heard_again(&connection) => true,
                _ = connection.closed() => false,
            }
        };
        let heard = soon(again).await;
        drop(call);
        heard
    }
}
