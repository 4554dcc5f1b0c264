//! The pulse: a loop that turns each millisecond, and what it saw between two lines.
//!
//! ```text
//!   turn, turn, turn ── longest gap between two ──┐
//!   a clock outside ◀── asked ── answers ─────────┴──▶ queue ──▶ console
//! ```
//!
//! Always true: the number of a line is that of the line before plus one; the loop never waits for the console.

use std::net::UdpSocket;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::params::Params;
use crate::tally::say;

/// One turn of the loop.
const TURN: Duration = Duration::from_millis(1);

/// Ticks for ever.
pub(crate) fn run(params: &Params) -> Result<(), String> {
    let mut outside = params.out.map(Outside::new).transpose()?;
    let (lines, queue) = mpsc::channel::<String>();
    thread::Builder::new()
        .name("console".to_owned())
        .spawn(move || queue.iter().for_each(|line| say(&line)))
        .map_err(|error| format!("start a thread for the console: {error}"))?;
    let begun = Instant::now();
    let (mut last, mut due) = (begun, begun);
    let (mut number, mut gap) = (0_u64, Duration::ZERO);
    let tick = Duration::from_millis(params.tick_ms);
    loop {
        thread::sleep(TURN);
        let now = Instant::now();
        gap = gap.max(now.duration_since(last));
        last = now;
        if let Some(outside) = &mut outside {
            outside.listen(nanoseconds(begun));
        }
        if now < due {
            continue;
        }
        // After a long gap the pace begins anew: a burst of lines would tell nothing.
        due = (due + tick).max(now);
        let (out, ahead) = outside.as_mut().map_or((0, 0), Outside::tick);
        let line = format!("tick {number} {} {} {out} {ahead}", nanoseconds(begun), gap.as_nanos());
        if lines.send(line).is_err() {
            return Err("the console's thread has ended".to_owned());
        }
        number += 1;
        gap = Duration::ZERO;
    }
}

fn nanoseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// A clock that goes on while this machine stands.
#[derive(Debug)]
struct Outside {
    socket: UdpSocket,
    /// Its latest stamp, in ns.
    latest: Option<u64>,
    /// The longest step between two stamps since the last line, in ns.
    gap: u64,
    /// How far it was ahead of this machine's clock at most since then, in ns: the answer that took the shortest way says it best.
    ahead: u64,
}

impl Outside {
    fn new(address: std::net::SocketAddr) -> Result<Self, String> {
        let socket = UdpSocket::bind(("0.0.0.0", 0))
            .and_then(|socket| socket.connect(address).map(|()| socket))
            .and_then(|socket| socket.set_nonblocking(true).map(|()| socket))
            .map_err(|error| format!("a socket to the clock at {address}: {error}"))?;
        Ok(Self { socket, latest: None, gap: 0, ahead: 0 })
    }

    /// Takes the answers that have come by `now`, in ns of this machine's clock: decimal nanoseconds.
    fn listen(&mut self, now: u64) {
        let mut answer = [0; 64];
        while let Ok(length) = self.socket.recv(&mut answer) {
            let stamp = answer
                .get(..length)
                .and_then(|bytes| std::str::from_utf8(bytes).ok())
                .and_then(|text| text.trim().parse::<u64>().ok());
            let Some(stamp) = stamp else { continue };
            if let Some(latest) = self.latest {
                self.gap = self.gap.max(stamp.saturating_sub(latest));
            }
            self.latest = Some(stamp);
            self.ahead = self.ahead.max(stamp.saturating_sub(now));
        }
    }

    /// Asks again, and gives the longest step since it asked last, and how far it was ahead. An answer that is lost makes a step
    /// longer, and no more.
    fn tick(&mut self) -> (u64, u64) {
        let _ = self.socket.send(b"now\n");
        (std::mem::take(&mut self.gap), std::mem::take(&mut self.ahead))
    }
}
