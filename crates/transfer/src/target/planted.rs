//! Bugs that a test can switch on, to show that they would be found. Always off in a real build.

#[cfg(feature = "planted-bugs")]
pub(super) fn order_is_ignored() -> bool {
    crate::planted::is_on("ignore-order")
}

#[cfg(feature = "planted-bugs")]
pub(super) fn punch_is_forgotten() -> bool {
    crate::planted::is_on("forget-punch")
}

#[cfg(feature = "planted-bugs")]
pub(super) fn sessions_are_one() -> bool {
    crate::planted::is_on("resume-by-bitmap")
}

#[cfg(not(feature = "planted-bugs"))]
pub(super) fn sessions_are_one() -> bool {
    false
}

#[cfg(not(feature = "planted-bugs"))]
pub(super) fn order_is_ignored() -> bool {
    false
}

#[cfg(not(feature = "planted-bugs"))]
pub(super) fn punch_is_forgotten() -> bool {
    false
}
