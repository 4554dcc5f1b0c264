//! What the kernel's command line says: `vmload.rate=20000` and its like.
//!
//! Always true: an unknown or malformed word is an error that names it, for a misspelt load proves nothing.

use std::fmt;
use std::net::SocketAddr;

/// How much load, and of which kind.
#[derive(Debug, Clone)]
pub(crate) struct Params {
    /// Milliseconds between two `tick` lines.
    pub(crate) tick_ms: u64,
    /// Pages written per second, by all threads together.
    pub(crate) rate: u64,
    /// The set of pages that are written, in MiB.
    pub(crate) set_mib: u64,
    /// The area that is written once and checked for ever, in MiB.
    pub(crate) area_mib: u64,
    /// Files in tmpfs, of 1 MiB each.
    pub(crate) files_mib: u64,
    /// How much of the disk is used, in MiB; 0: no disk.
    pub(crate) disk_mib: u64,
    /// Seconds in which each part but the written set is checked once.
    pub(crate) lap_s: u64,
    /// Questions per second over the network card; 0: no card.
    pub(crate) net_hz: u64,
    /// Who answers them: the file server that QEMU's user network has built in.
    pub(crate) net: SocketAddr,
    /// A clock outside, which answers a datagram with its nanoseconds.
    pub(crate) out: Option<SocketAddr>,
    /// What makes the contents of one guest differ from those of another.
    pub(crate) seed: u64,
}

impl Params {
    /// Those of the kernel that runs this.
    pub(crate) fn of_kernel() -> Result<Self, String> {
        let line = std::fs::read_to_string("/proc/cmdline")
            .map_err(|error| format!("read /proc/cmdline: {error}"))?;
        Self::parse(&line)
    }

    fn parse(line: &str) -> Result<Self, String> {
        let mut params = Self {
            tick_ms: 5,
            rate: 2_000,
            set_mib: 32,
            area_mib: 32,
            files_mib: 8,
            disk_mib: 32,
            lap_s: 4,
            net_hz: 20,
            net: SocketAddr::from(([10, 0, 2, 2], 69)),
            out: None,
            seed: 1,
        };
        for word in line.split_whitespace() {
            let Some((name, value)) = word.strip_prefix("vmload.").and_then(|rest| rest.split_once('='))
            else {
                continue;
            };
            params.set(name, value).map_err(|rule| format!("{word}: {rule}"))?;
        }
        Ok(params)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        match name {
            "tick_ms" => self.tick_ms = number(value, 1, 10_000)?,
            "rate" => self.rate = number(value, 0, 100_000_000)?,
            "set_mib" => self.set_mib = number(value, 1, 1 << 20)?,
            "area_mib" => self.area_mib = number(value, 1, 1 << 20)?,
            "files_mib" => self.files_mib = number(value, 1, 1 << 20)?,
            "disk_mib" => self.disk_mib = number(value, 0, 1 << 20)?,
            "lap_s" => self.lap_s = number(value, 1, 3_600)?,
            "net_hz" => self.net_hz = number(value, 0, 1_000)?,
            "net" => self.net = address(value)?,
            "out" => self.out = Some(address(value)?),
            "seed" => self.seed = number(value, 0, u64::MAX)?,
            _ => {
                return Err(
                    "no such parameter: tick_ms, rate, set_mib, area_mib, files_mib, disk_mib, lap_s, \
                            net_hz, net, out, seed"
                        .to_owned(),
                );
            }
        }
        Ok(())
    }
}

impl fmt::Display for Params {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "rate {} set_mib {} area_mib {} files_mib {} disk_mib {} net_hz {} seed {}",
            self.rate, self.set_mib, self.area_mib, self.files_mib, self.disk_mib, self.net_hz, self.seed
        )
    }
}

fn number(value: &str, min: u64, max: u64) -> Result<u64, String> {
    value
        .parse()
        .ok()
        .filter(|number| (min..=max).contains(number))
        .ok_or_else(|| format!("a whole number from {min} to {max} is needed"))
}

fn address(value: &str) -> Result<SocketAddr, String> {
    value.parse().map_err(|_| "an address and a port are needed, like 10.0.2.2:4000".to_owned())
}

#[cfg(test)]
mod tests {
    use super::Params;

    #[test]
    fn words_of_others_are_left_alone_and_ours_must_be_known() {
        let params = Params::parse("console=ttyS0 vmload.rate=7 quiet vmload.out=10.0.2.2:4000");
        let params = params.expect("all words are known or of others");
        assert_eq!((params.rate, params.tick_ms), (7, 5));
        assert_eq!(params.out.map(|address| address.port()), Some(4000));
        for (word, rule) in [("vmload.rat=7", "no such parameter"), ("vmload.rate=x", "whole number")] {
            assert!(Params::parse(word).is_err_and(|error| error.starts_with(word) && error.contains(rule)));
        }
    }
}
