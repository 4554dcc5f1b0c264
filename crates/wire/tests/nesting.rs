//! An entry that nests without end: it fits into a frame, and whoever read it to its end would run out of stack.

use godwit_domain::registry::{Command, Found, Met, Stamped};
use godwit_wire::log::{decode_entry, encode_entry};

#[test]
fn a_condition_within_a_condition_is_not_read_however_deep_it_goes() {
    let met = Met { found: Found::Absent, guest: None };
    let when = move |command| Command::If { met, command: Box::new(command) };
    let plain = Command::RemoveNode { node: "a".parse().expect("a name") };
    let entry = move |command| Stamped { time_ms: 1, request: None, command };
    let once = entry(when(plain.clone()));
    assert_eq!(decode_entry(&encode_entry(&once).expect("fits")).expect("reads"), once);
    let twice = encode_entry(&entry(when(when(plain.clone())))).expect("fits");
    assert!(decode_entry(&twice).expect_err("refused").to_string().contains("condition"));
    // Whoever writes it needs a stack that readers have not.
    let writes = std::thread::Builder::new().stack_size(1 << 30).spawn(move || {
        let deep = (0..10_000).fold(plain, |command, _| when(command));
        encode_entry(&entry(deep)).expect("fits")
    });
    let deep = writes.expect("a thread").join().expect("written");
    assert!(decode_entry(&deep).is_err());
    assert_eq!(decode_entry(&encode_entry(&once).expect("fits")).expect("reads"), once, "the next is read");
}
