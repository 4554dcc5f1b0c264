//! What depends on the version of QEMU: of one that was found, on which hosts of other versions go by, and what of it is not seen
//! in its arguments.
//!
//! Always true: a version that can not be read counts as an old one.

use godwit_domain::qemu::Qemu;

use super::command::{Objection, objection, ram_cure, value_of};

/// Names the machine by its version, `pc-q35-7.2` for `q35`: another version of QEMU takes `q35` for a newer machine, which does
/// not load the state of this one. QEMU puts all that is said of the machine together, and the last word on each part counts.
pub(super) fn pin_machine(qemu: &mut Qemu, kind: &str) {
    qemu.arguments.extend(["-machine".to_owned(), kind.to_owned()]);
}

/// Has it give up what its keeper may, as far as the process that was found had: one that was started as another user says
/// nothing of that in its arguments. By numbers, since a name may be another's on another host. QEMU 9.1 has another option for
/// it, and 10.0 that one alone (its list of removed features).
///
/// # Errors
/// That its sandbox stands in the way.
pub(super) fn run_as(qemu: &mut Qemu, (user, group): (u32, u32), version: &str) -> Result<(), Objection> {
    let says_so = qemu.arguments.windows(2).any(|pair| match pair {
        [option, value] => match option.trim_start_matches('-') {
            "runas" => true,
            "run-with" => value_of(value, "user").is_some(),
            _ => false,
        },
        _ => false,
    });
    if user == 0 || says_so {
        return Ok(());
    }
    if qemu.arguments.iter().any(|argument| argument.contains("elevateprivileges=deny")) {
        let what = format!(
            "it was started as user {user}, and its sandbox (elevateprivileges=deny) kills a QEMU that becomes that user"
        );
        return Err(objection(what, "start it without elevateprivileges=deny"));
    }
    let user = format!("{user}:{group}");
    let (option, value) = match is_since(version, (9, 1)) {
        true => ("-run-with", format!("user={user}")),
        false => ("-runas", user),
    };
    qemu.arguments.extend([option.to_owned(), value]);
    Ok(())
}

/// QEMU 8.1 and later leave out of a state what others have, if it has a name (commit b0182e537e, `RAM_NAMED_FILE`): a memfd has none.
pub(super) fn is_in_its_state(arguments: &[String], ram_id: &str, version: &str) -> Option<Objection> {
    let is_memfd =
        |value: &String| value.starts_with("memory-backend-memfd") && value_of(value, "id") == Some(ram_id);
    let found = arguments.iter().find(|value| is_memfd(value)).filter(|_| is_since(version, (8, 1)))?;
    let what = format!("-object {found}: QEMU {version} writes the memory of a memfd into its state");
    Some(objection(what, ram_cure()))
}

fn is_since(version: &str, since: (u32, u32)) -> bool {
    let mut numbers = version.split('.').map_while(|part| part.parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= since
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn a_memory_that_its_state_would_hold_is_refused() {
        let memfd =
            "-object memory-backend-memfd,id=ram,size=1G,share=on -object memory-backend-memfd,id=other";
        let named = "-object memory-backend-file,id=ram,size=1G,mem-path=/dev/shm,share=on";
        for (given, version, is_refused) in [
            (memfd, "7.2.22", false),
            (memfd, "8.0.5", false),
            (memfd, "8.1.0", true),
            (memfd, "10.0.2", true),
            (named, "10.0.2", false),
        ] {
            let refused = is_in_its_state(&words(given), "ram", version);
            assert_eq!(refused.is_some(), is_refused, "{version}: {given}");
            assert!(refused.is_none_or(|refused| refused.cure.contains("mem-path=/dev/shm,share=on")));
        }
    }

    #[test]
    fn one_that_was_started_as_another_user_is_so_elsewhere() {
        let other = (107, 36);
        for (given, user, version, portable) in [
            ("-m 1G", (0, 0), "7.2.22", "-m 1G"),
            ("-m 1G", other, "7.2.22", "-m 1G -runas 107:36"),
            ("-m 1G", other, "9.0.4", "-m 1G -runas 107:36"),
            ("-m 1G", other, "9.1.0", "-m 1G -run-with user=107:36"),
            ("-m 1G", other, "10.0.2", "-m 1G -run-with user=107:36"),
            ("-runas nobody", other, "7.2.22", "-runas nobody"),
            ("-run-with user=nobody", other, "10.0.2", "-run-with user=nobody"),
            ("-run-with chroot=/x", other, "10.0.2", "-run-with chroot=/x -run-with user=107:36"),
        ] {
            let mut qemu =
                Qemu { program: "q".into(), arguments: words(given), ram_id: "ram".into(), adopted: None };
            run_as(&mut qemu, user, version).expect("nothing stands in the way");
            assert_eq!(qemu.arguments.join(" "), portable, "{given}");
        }
        let sandboxed = words("-sandbox on,elevateprivileges=deny");
        let mut qemu =
            Qemu { program: "q".into(), arguments: sandboxed, ram_id: "ram".into(), adopted: None };
        run_as(&mut qemu, (0, 0), "7.2.22").expect("it stays root");
        let refused = run_as(&mut qemu, other, "7.2.22").expect_err("QEMU would kill itself");
        assert!(refused.what.contains("user 107") && refused.cure.contains("without"), "{refused}");
    }
}
