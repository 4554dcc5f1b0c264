//! Bugs that are switched on for a whole process, which is why this test has one of its own.

use godwit_domain::planted;

#[test]
fn what_is_planted_everywhere_is_on_in_every_thread_and_nothing_else_is() {
    let all = ["epoch-stays", "resume-sealed", "epoch", ""];
    let on = move || all.map(planted::is_on);
    assert_eq!(on(), [false; 4]);
    planted::plant_everywhere("epoch-stays,drop-dirty");
    assert_eq!(on(), [true, false, false, false]);
    assert_eq!(std::thread::spawn(on).join().expect("ends"), [true, false, false, false]);
    assert!(planted::is_on("drop-dirty"));
    // A thread's own is on beside them.
    planted::plant(Some("resume-sealed"));
    assert_eq!(on(), [true, true, false, false]);
    assert_eq!(std::thread::spawn(on).join().expect("ends"), [true, false, false, false]);
}
