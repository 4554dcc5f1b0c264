//! What a field says it does to a host, seen from outside with real sockets on the hosts.
//!
//! What must not arrive is seen by what arrives first afterwards, where the kernel keeps order.

use std::error::Error;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;

use super::rack::inside;
use super::{Disk, Field, Net, Way};
use crate::support::world::node;
use crate::support::{Outcome, PATIENCE, short_story};

/// What is cut does not arrive within this. What is not cut takes microseconds.
const SILENCE: Duration = Duration::from_millis(300);
/// The delay in these proofs, one way.
const DELAY: Duration = Duration::from_millis(60);
/// For so long a cable gets as much as can be sent.
const FLOOD: Duration = Duration::from_millis(400);
/// Datagrams of which some are lost.
const MANY: usize = 1000;

pub(super) fn trials() -> Vec<Trial> {
    vec![
        short_story("a_host_that_is_cut_hears_nothing_and_is_heard_again", cut),
        short_story("a_cut_of_one_way_leaves_the_other", cut_one_way),
        short_story("a_slow_cable_is_slow_both_ways", slow),
        short_story("a_lossy_cable_loses_some_and_not_all", lossy),
        short_story("a_late_host_is_late_to_voters_and_as_a_voter", late_on_control),
        short_story("pages_to_a_late_host_are_late", late_on_pages),
        short_story("two_who_call_each_other_from_the_same_port_hear_each_other", both_call),
        short_story("a_full_disk_takes_nothing_until_it_is_freed", full_disk),
        short_story("what_a_host_sends_is_counted_without_any_process", counted),
        short_story("a_clock_that_is_shifted_is_later", shifted),
        short_story("healed_is_healed_whatever_was_wrong", healed),
    ]
}

/// A field and its folder, in the order in which they go.
pub(super) struct Yard {
    pub(super) field: Field,
    pub(super) dir: tempfile::TempDir,
}

impl Yard {
    /// Five hosts `a` to `e`, of which three vote.
    pub(super) fn new() -> Result<Self, Box<dyn Error>> {
        let dir = tempfile::tempdir()?;
        Ok(Self { field: Field::new(dir.path(), &["a", "b", "c", "d", "e"], 3, 1)?, dir })
    }

    /// A socket on a host; port 0: any.
    fn socket(&self, host: &str, net: Net, port: u16) -> io::Result<UdpSocket> {
        let address = SocketAddr::new(self.field.address(&node(host), net).ip(), port);
        let socket = inside(self.field.namespace(self.field.host(&node(host))), || UdpSocket::bind(address))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket)
    }

    /// Runs a command on a host as a node is started there.
    fn run(&self, host: &str, clock_shift: Duration, words: &[&str]) -> io::Result<std::process::Output> {
        let wrapper = self.field.wrapper(&node(host), clock_shift);
        let all: Vec<&str> = wrapper.iter().map(String::as_str).chain(words.iter().copied()).collect();
        Command::new(all[0]).args(&all[1..]).output()
    }
}

fn say(from: &UdpSocket, to: &UdpSocket, words: &str) -> io::Result<usize> {
    from.send_to(words.as_bytes(), to.local_addr()?)
}

fn hear(at: &UdpSocket) -> io::Result<(String, SocketAddr)> {
    let mut buffer = vec![0; 65_535];
    let (length, from) = at.recv_from(&mut buffer)?;
    Ok((String::from_utf8_lossy(&buffer[..length]).into_owned(), from))
}

/// Says the words again and again until something is heard: a link that has come up passes nothing for a moment.
fn heard_in_the_end(from: &UdpSocket, to: &UdpSocket, words: &str) -> Result<String, Box<dyn Error>> {
    let deadline = Instant::now() + PATIENCE;
    to.set_read_timeout(Some(Duration::from_millis(20)))?;
    while Instant::now() < deadline {
        let _ = say(from, to, words);
        if let Ok((heard, _)) = hear(to) {
            to.set_read_timeout(Some(PATIENCE))?;
            return Ok(heard);
        }
    }
    Err(format!("{words:?} was never heard").into())
}

fn is_silent(at: &UdpSocket) -> io::Result<bool> {
    at.set_read_timeout(Some(SILENCE))?;
    let heard = hear(at);
    at.set_read_timeout(Some(PATIENCE))?;
    Ok(heard.is_err())
}

// ---- cables --------------------------------------------------------------------------------------------------

async fn cut() -> Outcome {
    let yard = Yard::new()?;
    for (net, other) in [(Net::Control, Net::Pages), (Net::Pages, Net::Control)] {
        let [a, b, c] = ["a", "b", "c"].map(|host| yard.socket(host, net, 0));
        let (a, b, c) = (a?, b?, c?);
        for (from, to) in [(&a, &b), (&b, &a), (&c, &a)] {
            say(from, to, "before")?;
            assert_eq!(hear(to)?.0, "before");
        }
        for _ in 0..2 {
            yard.field.cut(&node("b"), net, Way::Both)?;
        }
        for (from, to) in [(&a, &b), (&b, &a)] {
            // What the host says may be an error or not: its link is down.
            let _ = say(from, to, "lost");
            assert!(is_silent(to)?, "{net:?} is cut");
        }
        say(&c, &a, "others")?;
        assert_eq!(hear(&a)?.0, "others", "only one host is cut");
        let (from, to) = (yard.socket("a", other, 0)?, yard.socket("b", other, 0)?);
        say(&from, &to, "other cable")?;
        assert_eq!(hear(&to)?.0, "other cable", "only {net:?} is cut");
        for _ in 0..2 {
            yard.field.mend(&node("b"), net)?;
        }
        for (from, to) in [(&a, &b), (&b, &a)] {
            // What waited for an address may arrive late.
            heard_in_the_end(from, to, "after")?;
        }
    }
    Ok(())
}

async fn cut_one_way() -> Outcome {
    let yard = Yard::new()?;
    for net in Net::ALL {
        let (host, other) = (yard.socket("b", net, 0)?, yard.socket("a", net, 0)?);
        for way in [Way::In, Way::Out] {
            let (from, to) = if way == Way::In { (&other, &host) } else { (&host, &other) };
            say(from, to, "before")?;
            assert_eq!(hear(to)?.0, "before");
            yard.field.cut(&node("b"), net, way)?;
            assert_eq!(say(from, to, "lost")?, 4, "whoever sends does not see it");
            say(to, from, "the other way")?;
            assert_eq!(hear(from)?.0, "the other way", "{net:?} is cut {way:?} only");
            yard.field.mend(&node("b"), net)?;
            say(from, to, "after")?;
            assert_eq!(hear(to)?.0, "after", "{net:?} was cut {way:?}");
        }
    }
    Ok(())
}

/// Bytes in a second that arrive: at least so many in one of five looks, for a busy host carries less.
fn rate(from: &UdpSocket, to: &UdpSocket, datagram: usize, least: usize) -> Result<usize, Box<dyn Error>> {
    let mut bytes = 0;
    for _ in 0..5 {
        bytes = rate_once(from, to, datagram)?;
        if bytes > least {
            break;
        }
    }
    assert!(bytes > least, "{bytes} bytes in a second");
    Ok(bytes)
}

/// Of as many as can be sent.
fn rate_once(from: &UdpSocket, to: &UdpSocket, datagram: usize) -> Result<usize, Box<dyn Error>> {
    let (words, address) = (vec![b'w'; datagram], to.local_addr()?);
    let flood_until = Instant::now() + FLOOD + FLOOD / 4;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while Instant::now() < flood_until {
                let _ = from.send_to(&words, address);
            }
        });
        let (mut buffer, mut bytes) = (vec![0; 65_535], 0);
        let mut until = None;
        to.set_read_timeout(Some(SILENCE))?;
        while until.is_none_or(|until| Instant::now() < until) {
            match to.recv(&mut buffer) {
                Ok(length) => bytes += length,
                Err(_) => break,
            }
            until.get_or_insert_with(|| Instant::now() + FLOOD);
        }
        // What is still on the way belongs to no later count.
        while to.recv(&mut buffer).is_ok() {}
        Ok(bytes * 1000 / usize::try_from(FLOOD.as_millis())?)
    })
}

async fn slow() -> Outcome {
    const RATE: usize = 2_000_000;
    let yard = Yard::new()?;
    for (net, datagram) in [(Net::Control, 1400), (Net::Pages, 8900)] {
        let [a, b, c] = ["a", "b", "c"].map(|host| yard.socket(host, net, 0));
        let (a, b, c) = (a?, b?, c?);
        for _ in 0..2 {
            yard.field.slow(&node("b"), net, 2_000_000)?;
        }
        for (from, to) in [(&a, &b), (&b, &a)] {
            let bytes = rate(from, to, datagram, RATE / 2)?;
            assert!(bytes < RATE * 13 / 10, "{bytes} bytes on slow {net:?}");
        }
        // Between others, and where it is fast again.
        rate(&a, &c, datagram, 4 * RATE)?;
        yard.field.fast(&node("b"), net)?;
        rate(&a, &b, datagram, 4 * RATE)?;
    }
    Ok(())
}

/// How many of [`MANY`] datagrams arrive.
fn arriving(from: &UdpSocket, to: &UdpSocket) -> Result<usize, Box<dyn Error>> {
    let mut arrived = 0;
    for _ in 0..MANY {
        say(from, to, "one of many")?;
        to.set_nonblocking(true)?;
        while hear(to).is_ok() {
            arrived += 1;
        }
    }
    to.set_nonblocking(false)?;
    while !is_silent(to)? {
        arrived += 1;
    }
    Ok(arrived)
}

async fn lossy() -> Outcome {
    let yard = Yard::new()?;
    for net in Net::ALL {
        let [a, b, c] = ["a", "b", "c"].map(|host| yard.socket(host, net, 0));
        let (a, b, c) = (a?, b?, c?);
        for _ in 0..2 {
            yard.field.lossy(&node("b"), net, 30)?;
        }
        for (from, to) in [(&a, &b), (&b, &a)] {
            let arrived = arriving(from, to)?;
            // Seven standard deviations.
            assert!((600..800).contains(&arrived), "{arrived} of {MANY} on {net:?}");
        }
        assert_eq!(arriving(&a, &c)?, MANY, "between others on {net:?}");
        yard.field.lossless(&node("b"), net)?;
        assert_eq!(arriving(&a, &b)?, MANY, "{net:?} loses nothing any more");
    }
    Ok(())
}

// ---- delays --------------------------------------------------------------------------------------------------

/// Some round trips from a host to an address, where `at` answers, the shortest first.
fn round_trips(from: &UdpSocket, to: SocketAddr, at: &UdpSocket) -> Result<[Duration; 5], Box<dyn Error>> {
    let mut taken = [PATIENCE; 5];
    for (number, took) in taken.iter_mut().enumerate() {
        let began = Instant::now();
        from.send_to(format!("ask {number}").as_bytes(), to)?;
        let (asked, caller) = hear(at)?;
        assert_eq!(asked, format!("ask {number}"));
        at.send_to(format!("answer {number}").as_bytes(), caller)?;
        assert_eq!(hear(from)?, (format!("answer {number}"), to));
        *took = began.elapsed();
    }
    taken.sort();
    Ok(taken)
}

/// The shortest of them.
fn round_trip(from: &UdpSocket, to: SocketAddr, at: &UdpSocket) -> Result<Duration, Box<dyn Error>> {
    Ok(round_trips(from, to, at)?[0])
}

fn assert_delays(times: u32, seen: Duration, what: &str) {
    let least = 2 * times * DELAY;
    assert!((least..least + DELAY).contains(&seen), "{what}: a round trip of {seen:?}");
}

async fn late_on_control() -> Outcome {
    let yard = Yard::new()?;
    let specs = yard.field.specs();
    let voter_of = |caller: usize, voter: &str| specs[caller].voters[&node(voter)];
    let voter = yard.socket("a", Net::Control, specs[0].control.port())?;
    assert_eq!(voter.local_addr()?, voter_of(0, "a"), "a voter knows its own address");
    let caller = yard.socket("d", Net::Control, specs[3].control.port())?;
    let trip = || round_trip(&caller, voter_of(3, "a"), &voter);
    let late = |name: &str| yard.field.delay(&node(name), Net::Control, DELAY, Duration::ZERO);
    assert_delays(0, trip()?, "nobody is late");
    late("b");
    assert_delays(0, trip()?, "somebody else is late");
    late("d");
    assert_delays(1, trip()?, "the caller is late");
    late("a");
    assert_delays(2, trip()?, "the voter, too");
    yard.field.prompt(&node("d"), Net::Control);
    assert_delays(1, trip()?, "the voter alone");
    yard.field.delay(&node("a"), Net::Control, DELAY, 2 * DELAY);
    let [shortest, .., longest] = round_trips(&caller, voter_of(3, "a"), &voter)?;
    assert!(
        shortest >= 2 * DELAY && longest >= 3 * DELAY,
        "jitter comes on top: {shortest:?} to {longest:?}"
    );
    yard.field.prompt(&node("a"), Net::Control);
    assert_delays(0, trip()?, "nobody is late any more");
    Ok(())
}

async fn late_on_pages() -> Outcome {
    let yard = Yard::new()?;
    let address = yard.field.address(&node("e"), Net::Pages);
    let target = yard.socket("e", Net::Pages, address.port())?;
    let source = yard.socket("d", Net::Pages, 0)?;
    assert_delays(0, round_trip(&source, address, &target)?, "nobody is late");
    yard.field.delay(&node("e"), Net::Pages, DELAY, Duration::ZERO);
    assert_delays(1, round_trip(&source, address, &target)?, "the target is late");
    let largest = "w".repeat(8972);
    source.send_to(largest.as_bytes(), address)?;
    assert_eq!(hear(&target)?.0, largest);
    yard.field.prompt(&node("e"), Net::Pages);
    assert_delays(0, round_trip(&source, address, &target)?, "nobody is late any more");
    Ok(())
}

async fn both_call() -> Outcome {
    let yard = Yard::new()?;
    let [d, e] = ["d", "e"].map(|host| yard.field.address(&node(host), Net::Pages));
    let (at_d, at_e) = (yard.socket("d", Net::Pages, d.port())?, yard.socket("e", Net::Pages, e.port())?);
    for host in ["d", "e"] {
        yard.field.delay(&node(host), Net::Pages, DELAY, Duration::ZERO);
    }
    for _ in 0..2 {
        assert_delays(1, round_trip(&at_d, e, &at_e)?, "d calls e");
        assert_delays(1, round_trip(&at_e, d, &at_d)?, "e calls d");
    }
    Ok(())
}

// ---- disks, counters, clocks ---------------------------------------------------------------------------------

impl Yard {
    /// Whether a process on a host can write something into a folder of its state.
    fn takes(&self, host: &str, folder: &str) -> io::Result<bool> {
        // A file of its own: one that is written over gives its pages back first.
        let file = self.dir.path().join(host).join(folder).join("words");
        let script = format!("head -c 65536 /dev/zero > {0}; wrote=$?; rm {0}; exit $wrote", file.display());
        Ok(self.run(host, Duration::ZERO, &["sh", "-c", &script])?.status.success())
    }
}

async fn full_disk() -> Outcome {
    let yard = Yard::new()?;
    let both = |host| Ok::<_, io::Error>((yard.takes(host, "control")?, yard.takes(host, "records")?));
    for (disk, while_full) in [(Disk::Log, (false, true)), (Disk::Records, (true, false))] {
        assert_eq!(both("b")?, (true, true));
        let kept = yard.dir.path().join("b/control/kept");
        std::fs::write(&kept, "kept")?;
        for _ in 0..2 {
            yard.field.fill_disk(&node("b"), disk)?;
        }
        assert_eq!(both("b")?, while_full, "{disk:?} is full");
        assert_eq!(both("a")?, (true, true), "another host's is not");
        for _ in 0..2 {
            yard.field.free_disk(&node("b"), disk)?;
        }
        assert_eq!(both("b")?, (true, true), "{disk:?} is free");
        assert_eq!(std::fs::read_to_string(kept)?, "kept");
    }
    Ok(())
}

async fn counted() -> Outcome {
    const COUNT: u64 = 100;
    let yard = Yard::new()?;
    for (net, other) in [(Net::Control, Net::Pages), (Net::Pages, Net::Control)] {
        let (from, to) = (yard.socket("a", net, 0)?, yard.socket("b", net, 0)?);
        let sent = || yard.field.sent(&node("a"), net);
        let (before, of_other) = (sent()?, yard.field.sent(&node("a"), other)?);
        for _ in 0..COUNT {
            say(&from, &to, &"w".repeat(1000))?;
            hear(&to)?;
        }
        let (bytes, packets) = sent()?;
        let (bytes, packets) = (bytes - before.0, packets - before.1);
        // Somebody asks for an address, and is answered: a few packets of 42 bytes.
        assert!((COUNT..COUNT + 5).contains(&packets), "{packets} packets");
        assert!((COUNT * 1042..COUNT * 1042 + 5 * 42).contains(&bytes), "{bytes} bytes");
        assert_eq!(yard.field.sent(&node("a"), other)?, of_other, "{other:?} is counted by itself");
        let mut looks = Vec::new();
        for _ in 0..5 {
            let began = Instant::now();
            (0..100).try_for_each(|_| sent().map(|_| ()))?;
            looks.push(began.elapsed());
        }
        let quickest = looks.iter().min().copied().unwrap_or(Duration::MAX);
        assert!(quickest < Duration::from_millis(100), "{looks:?} for 100 looks");
    }
    Ok(())
}

async fn shifted() -> Outcome {
    let yard = Yard::new()?;
    let uptime = |shift| {
        let ran = yard.run("c", shift, &["cat", "/proc/uptime"])?;
        let said = String::from_utf8_lossy(&ran.stdout).into_owned();
        let first = said.split(' ').next().unwrap_or_default();
        first.parse::<f64>().map_err(|_| Box::<dyn Error>::from(format!("{ran:?}")))
    };
    let later =
        |shift| Ok::<_, Box<dyn Error>>(uptime(Duration::from_secs(shift))? - uptime(Duration::ZERO)?);
    for (shift, range) in [(0, -10.0..10.0), (100, 90.0..110.0), (5000, 4990.0..5010.0)] {
        let seen = later(shift)?;
        assert!(range.contains(&seen), "{seen} s later for a shift of {shift} s");
    }
    Ok(())
}

// ---- all -----------------------------------------------------------------------------------------------------

async fn healed() -> Outcome {
    let yard = Yard::new()?;
    for (net, way, datagram) in [(Net::Control, Way::Both, 1400), (Net::Pages, Way::Out, 8900)] {
        yard.field.cut(&node("e"), net, way)?;
        yard.field.slow(&node("e"), net, 1000)?;
        yard.field.lossy(&node("e"), net, 90)?;
        yard.field.delay(&node("e"), net, DELAY, DELAY);
        Disk::ALL.iter().try_for_each(|disk| yard.field.fill_disk(&node("e"), *disk))?;
        for _ in 0..2 {
            yard.field.heal()?;
        }
        let (from, to) = (yard.socket("d", net, 0)?, yard.socket("e", net, 0)?);
        heard_in_the_end(&from, &to, "after")?;
        while !is_silent(&to)? {}
        assert_eq!(arriving(&from, &to)?, MANY, "{net:?} loses nothing");
        assert_eq!(arriving(&to, &from)?, MANY, "{net:?} loses nothing");
        for (from, to) in [(&from, &to), (&to, &from)] {
            rate(from, to, datagram, 1_000_000)?;
        }
        assert!(yard.takes("e", "control")? && yard.takes("e", "records")?);
    }
    let address = yard.field.address(&node("e"), Net::Pages);
    let target = yard.socket("e", Net::Pages, address.port())?;
    assert_delays(0, round_trip(&yard.socket("d", Net::Pages, 0)?, address, &target)?, "nobody is late");
    Ok(())
}
