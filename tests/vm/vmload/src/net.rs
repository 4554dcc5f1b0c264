//! The network card in use: a question each few milliseconds, and its answer.
//!
//! QEMU's user network has a file server (TFTP) of its own at 10.0.2.2. Asked for a file that it does not have it says so,
//! which is an exchange through the card that needs nobody outside.
//!
//! Always true: one question is open at a time. An answer that does not come is no fault, for networks lose packets;
//! whoever reads the counts judges them.

use std::net::UdpSocket;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::memory::spawn;
use crate::params::Params;
use crate::tally::Tally;

/// How long an answer may take.
const ANSWER: Duration = Duration::from_millis(200);
/// "Read a file", its name, and how.
const QUESTION: &[u8] = b"\0\x01none\0octet\0";
/// "There is an error": the first two bytes of the answer.
const ANSWER_BEGINS: &[u8] = b"\0\x05";

/// Starts the thread that asks. Without a card it does nothing.
pub(crate) fn start(params: &Params, tally: &Arc<Tally>) -> Result<(), String> {
    let Some(pause) = 1_000_u64.checked_div(params.net_hz) else { return Ok(()) };
    let (address, tally) = (params.net, Arc::clone(tally));
    spawn("net", move || {
        loop {
            tally.net_asked.one();
            if ask(address) {
                tally.net_answered.one();
            }
            thread::sleep(Duration::from_millis(pause));
        }
    })
}

/// Whether an answer came. Each question has a socket of its own, so a late answer belongs to nobody.
fn ask(address: std::net::SocketAddr) -> bool {
    let mut answer = [0; 64];
    UdpSocket::bind(("0.0.0.0", 0))
        .and_then(|socket| {
            socket.set_read_timeout(Some(ANSWER))?;
            socket.send_to(QUESTION, address)?;
            socket.recv(&mut answer)
        })
        .is_ok_and(|length| answer.get(..length).is_some_and(|bytes| bytes.starts_with(ANSWER_BEGINS)))
}
