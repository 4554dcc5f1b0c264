//! The relay with real sockets on loopback: what passes it, for whom, and what a cut does.
//!
//! Nothing here says how fast anything must be: what must not arrive is seen by what arrives first afterwards.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use super::one_way::{Chance, Counts, Plan};
use super::relay::{Relay, Way};

/// No wait here takes longer unless something is broken.
const PATIENCE: Duration = Duration::from_secs(10);

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket
}

fn relay_to(target: &UdpSocket, plan: Plan) -> Relay {
    Relay::start(target.local_addr().expect("bound"), 1, plan, plan).expect("a relay")
}

fn say(from: &UdpSocket, to: SocketAddr, words: &str) {
    from.send_to(words.as_bytes(), to).expect("sent");
}

fn hear(at: &UdpSocket) -> (String, SocketAddr) {
    let mut buffer = [0; 65_535];
    let (length, from) = at.recv_from(&mut buffer).expect("something within the time");
    (String::from_utf8(buffer[..length].to_vec()).expect("words"), from)
}

/// Binds an address that was, or is about to be, given back; another test may draw it for a moment.
fn bound_again(address: SocketAddr) -> UdpSocket {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match UdpSocket::bind(address) {
            Ok(socket) => return socket,
            Err(error) => assert!(Instant::now() < deadline, "{address}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn until_counts(relay: &Relay, way: Way, look: impl Fn(&Counts) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !look(&relay.counts(way)) {
        assert!(Instant::now() < deadline, "{way:?}: {:?}", relay.counts(way));
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn each_client_has_a_socket_of_its_own_and_gets_its_own_answers() {
    let (target, clients) = (socket(), [socket(), socket()]);
    let relay = relay_to(&target, Plan::PERFECT);
    let mut seen = Vec::new();
    for round in 0..3 {
        for (at, client) in clients.iter().enumerate() {
            say(client, relay.address(), &format!("{at} asks {round}"));
            let (words, from) = hear(&target);
            assert_eq!(words, format!("{at} asks {round}"));
            seen.push(from);
            say(&target, from, &format!("to {at}: {round}"));
        }
        for (at, client) in clients.iter().enumerate() {
            assert_eq!(hear(client), (format!("to {at}: {round}"), relay.address()));
        }
    }
    assert!(seen[0] != seen[1] && seen.chunks(2).all(|pair| *pair == seen[..2]), "{seen:?}");
}

#[test]
fn the_largest_datagram_and_the_empty_one_pass() {
    let (target, client) = (socket(), socket());
    let relay = relay_to(&target, Plan::PERFECT);
    for length in [65_507, 0, 1] {
        let words = "w".repeat(length);
        say(&client, relay.address(), &words);
        assert_eq!(hear(&target).0, words);
    }
}

#[test]
fn nothing_is_faster_than_the_plan() {
    let (target, client) = (socket(), socket());
    let relay = relay_to(&target, Plan::delayed(Duration::from_millis(20)));
    let began = Instant::now();
    say(&client, relay.address(), "ask");
    let (_, caller) = hear(&target);
    assert!(began.elapsed() >= Duration::from_millis(20));
    say(&target, caller, "answer");
    hear(&client);
    assert!(began.elapsed() >= Duration::from_millis(40));
}

#[test]
fn a_cut_of_one_direction_leaves_the_other() {
    let (target, client) = (socket(), socket());
    let relay = relay_to(&target, Plan::PERFECT);
    say(&client, relay.address(), "hello");
    let (_, caller) = hear(&target);
    for (cut, from, to, at) in
        [(Way::There, &client, relay.address(), &target), (Way::Back, &target, caller, &client)]
    {
        let before = relay.counts(cut);
        relay.cut(cut);
        say(from, to, "into the void");
        until_counts(&relay, cut, |counts| counts.cut == before.cut + 1);
        let (other_way, other_from, other_to) = match cut {
            Way::There => (&client, &target, caller),
            Way::Back => (&target, &client, relay.address()),
        };
        say(other_from, other_to, "the other way");
        assert_eq!(hear(other_way).0, "the other way", "while {cut:?} is cut");
        relay.mend();
        say(from, to, "after");
        assert_eq!(hear(at).0, "after", "{cut:?} was mended");
    }
}

#[test]
fn a_cut_of_both_loses_what_is_on_the_way() {
    let (target, client) = (socket(), socket());
    let relay = relay_to(&target, Plan::delayed(Duration::from_secs(3600)));
    say(&client, relay.address(), "never there");
    until_counts(&relay, Way::There, |counts| counts.offered == 1);
    relay.cut_both();
    assert_eq!(relay.counts(Way::There).cut, 1);
    relay.mend();
    relay.change(Way::There, Plan::PERFECT);
    say(&client, relay.address(), "after");
    assert_eq!(hear(&target).0, "after");
}

#[test]
fn a_plan_that_changes_counts_from_then_on() {
    let (target, client) = (socket(), socket());
    let relay = relay_to(&target, Plan { loss: Chance::percent(100), ..Plan::PERFECT });
    say(&client, relay.address(), "lost");
    until_counts(&relay, Way::There, |counts| counts.lost == 1);
    relay.change(Way::There, Plan { duplication: Chance::percent(100), ..Plan::PERFECT });
    say(&client, relay.address(), "twice");
    assert_eq!([hear(&target).0, hear(&target).0], ["twice", "twice"]);
    let plans = relay.plans();
    assert!(plans.contains("twice 1000000 ppm, lost 0 ppm") && plans.contains("lost 1000000 ppm"), "{plans}");
}

#[test]
fn a_target_that_is_away_is_spoken_to_again_when_it_is_back() {
    let (target, client) = (socket(), socket());
    let relay = relay_to(&target, Plan::PERFECT);
    let address = target.local_addr().expect("bound");
    drop(target);
    // The first is taken by the kernel and comes back as an error, with which the next one meets.
    for number in 1..=4 {
        say(&client, relay.address(), "nobody hears");
        until_counts(&relay, Way::There, |counts| counts.delivered == number);
    }
    let target = bound_again(address);
    target.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    // An error of those before may meet one more.
    for _ in 0..2 {
        say(&client, relay.address(), "back");
    }
    assert_eq!(hear(&target).0, "back");
    assert!(relay.unsent() <= 4);
}

#[test]
fn a_relay_that_is_dropped_gives_its_address_back() {
    let relay = relay_to(&socket(), Plan::PERFECT);
    let address = relay.address();
    drop(relay);
    bound_again(address);
}

#[test]
fn for_one_client_too_many_the_most_silent_is_forgotten() {
    let (target, loyal) = (socket(), socket());
    let relay = relay_to(&target, Plan::PERFECT);
    say(&loyal, relay.address(), "first");
    let (_, its_own) = hear(&target);
    // It stays open, so that none of those below is given its address.
    let silent_client = socket();
    say(&silent_client, relay.address(), "silent");
    let (_, silent) = hear(&target);
    // More than there is room for, each of which is heard; one is heard again and again.
    for number in 0..70 {
        say(&socket(), relay.address(), &format!("client {number}"));
        assert_eq!(hear(&target).0, format!("client {number}"));
        say(&loyal, relay.address(), "still here");
        assert_eq!(hear(&target), ("still here".to_owned(), its_own), "after {number} others");
    }
    // The forgotten one's socket is closed.
    bound_again(silent);
}
