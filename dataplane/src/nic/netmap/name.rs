//! Names of netmap ports, in the grammar of netmap's own programs (libnetmap/nmreq.c): `netmap:eth0`, ring pair 3 of it
//! `netmap:eth0-3`, its host rings `netmap:eth0^`, a port of a VALE switch `vale0:p`, the ends of a pipe `netmap:eth0{1` and
//! `netmap:eth0}1`; then `/` with flags, then `@` with the number of a memory region.
//!
//! Takes  a name from a config.   Gives  what to ask the kernel for.
//! Never  asks it.

use super::abi::{
    NETMAP_REQ_IFNAMSIZ, NR_EXCLUSIVE, NR_MONITOR_RX, NR_MONITOR_TX, NR_REG_ONE_SW, NR_RX_RINGS_ONLY,
    NR_TX_RINGS_ONLY, NR_ZCOPY_MON,
};
use netmap_sys::netmap::{NETMAP_RING_MASK, NR_REG_ALL_NIC, NR_REG_ONE_NIC, NR_REG_SW};

/// A port may become an interface (IFNAMSIZ); the module calls a longer name a want of memory.
const LONGEST_PORT: usize = 15;

/// What a name says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortName {
    /// As the kernel has it: an interface's name, or `valeX:Y`; with the pipe's suffix.
    pub(crate) kernel: String,
    /// The interface behind it, if it is one's.
    pub(crate) interface: Option<String>,
    /// `NR_REG_…`.
    pub(crate) mode: u32,
    /// Which ring pair.
    pub(crate) ring: u16,
    /// `NR_…`.
    pub(crate) flags: u64,
    /// Which memory region; 0: the kernel chooses.
    pub(crate) region: u16,
    /// The name leaves open which ring pair of a NIC: each worker may have its own.
    pub(crate) any_ring: bool,
}

impl PortName {
    /// Errors: what is wrong with the name, to follow it in a sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        // A name that is only an interface's means netmap's port of it.
        let (vale, rest) = match text.split_once(':') {
            None => (None, text),
            Some(("netmap", rest)) => (None, rest),
            Some((prefix, rest)) => match prefix.strip_prefix("vale") {
                Some(switch) if is_identifier(switch) => (Some(prefix), rest),
                _ => return Err("has a prefix that is neither \"netmap:\" nor \"vale…:\"".to_owned()),
            },
        };
        let end = rest.find(['-', '*', '^', '/', '@']).unwrap_or(rest.len());
        let (port, suffix) = rest.split_at(end);
        let (base, pipe) = match port.find(['{', '}']) {
            Some(at) => (&port[..at], Some(&port[at + 1..])),
            None => (port, None),
        };
        if base.is_empty() {
            return Err("names no port".to_owned());
        }
        if base.len() > LONGEST_PORT {
            return Err(format!("has a port's name of more than {LONGEST_PORT} bytes"));
        }
        if pipe.is_some_and(|pipe| pipe.is_empty() || !is_identifier(pipe)) {
            return Err("has a pipe without a name of letters, digits and _".to_owned());
        }
        let kernel = vale.map_or_else(|| port.to_owned(), |prefix| format!("{prefix}:{port}"));
        if kernel.len() >= NETMAP_REQ_IFNAMSIZ || kernel.contains('\0') {
            return Err(format!("is longer than {} bytes", NETMAP_REQ_IFNAMSIZ - 1));
        }
        let of_interface = vale.is_none() && pipe.is_none();
        let mut name = Self {
            kernel,
            interface: of_interface.then(|| base.to_owned()),
            mode: NR_REG_ALL_NIC,
            ring: 0,
            flags: 0,
            region: 0,
            any_ring: false,
        };
        let rest = name.rings(suffix, of_interface)?;
        let rest = name.modifiers(rest)?;
        let number = rest.strip_prefix('@').map(str::parse);
        match number {
            None if rest.is_empty() => {}
            Some(Ok(region)) if region > 0 => name.region = region,
            Some(_) => return Err("has no number of a memory region, 1 to 65535, after @".to_owned()),
            None => return Err(format!("ends in \"{rest}\", which means nothing")),
        }
        Ok(name)
    }

    /// The suffix that says which rings; gives what follows it.
    fn rings<'a>(&mut self, suffix: &'a str, of_interface: bool) -> Result<&'a str, String> {
        let number = |text: &'a str| -> Result<(u16, &'a str), String> {
            let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
            let (digits, rest) = text.split_at(end);
            match digits.parse::<u16>() {
                Ok(ring) if i32::from(ring) < NETMAP_RING_MASK => Ok((ring, rest)),
                _ => Err(format!("has no ring number, 0 to {}", NETMAP_RING_MASK - 1)),
            }
        };
        if let Some(rest) = suffix.strip_prefix('-') {
            self.mode = NR_REG_ONE_NIC;
            let (ring, rest) = number(rest)?;
            self.ring = ring;
            return Ok(rest);
        }
        if let Some(rest) = suffix.strip_prefix('^') {
            self.mode = NR_REG_SW;
            if rest.starts_with(|c: char| c.is_ascii_digit()) {
                let (ring, rest) = number(rest)?;
                (self.mode, self.ring) = (NR_REG_ONE_SW, ring);
                return Ok(rest);
            }
            return Ok(rest);
        }
        if suffix.starts_with('*') {
            return Err(
                "means NIC and host rings in one (*): make two NIC ports of them, one with ^".to_owned(),
            );
        }
        if of_interface {
            (self.mode, self.any_ring) = (NR_REG_ONE_NIC, true);
        }
        Ok(suffix)
    }

    /// The flags behind `/`; gives what follows them.
    fn modifiers<'a>(&mut self, suffix: &'a str) -> Result<&'a str, String> {
        let Some(flags) = suffix.strip_prefix('/') else {
            return Ok(suffix);
        };
        let end = flags.find('@').unwrap_or(flags.len());
        let (flags, rest) = flags.split_at(end);
        if flags.is_empty() {
            return Err("has no flag after /".to_owned());
        }
        for flag in flags.chars() {
            self.flags |= match flag {
                'x' => NR_EXCLUSIVE,
                'z' => NR_ZCOPY_MON,
                't' => NR_MONITOR_TX,
                'r' => NR_MONITOR_RX,
                'R' => NR_RX_RINGS_ONLY,
                'T' => NR_TX_RINGS_ONLY,
                _ => return Err(format!("has a flag \"{flag}\" that is none of x, z, t, r, R, T")),
            };
        }
        Ok(rest)
    }

    /// Whether it is of an interface's host rings, which lead to the node's own stack.
    pub fn is_host(&self) -> bool {
        self.mode == NR_REG_SW || self.mode == NR_REG_ONE_SW
    }

    /// Whether several workers can open it, each its own ring pair.
    pub const fn has_queues(&self) -> bool {
        self.any_ring
    }
}

fn is_identifier(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> (String, u32, u16, u64, u16) {
        let name = PortName::parse(text).unwrap();
        (name.kernel, name.mode, name.ring, name.flags, name.region)
    }

    #[test]
    fn every_form_of_a_name_asks_for_what_libnetmap_would() {
        let cases: [(&str, &str, u32, u16, u64, u16); 14] = [
            ("eth0", "eth0", NR_REG_ONE_NIC, 0, 0, 0),
            ("netmap:eth0", "eth0", NR_REG_ONE_NIC, 0, 0, 0),
            ("netmap:eth0-3", "eth0", NR_REG_ONE_NIC, 3, 0, 0),
            ("netmap:eth0-0/R", "eth0", NR_REG_ONE_NIC, 0, NR_RX_RINGS_ONLY, 0),
            ("netmap:eth0-0/T", "eth0", NR_REG_ONE_NIC, 0, NR_TX_RINGS_ONLY, 0),
            ("netmap:eth0^", "eth0", NR_REG_SW, 0, 0, 0),
            ("netmap:eth0^2@7", "eth0", NR_REG_ONE_SW, 2, 0, 7),
            ("vale0:p", "vale0:p", NR_REG_ALL_NIC, 0, 0, 0),
            ("vale:p@1", "vale:p", NR_REG_ALL_NIC, 0, 0, 1),
            ("vale0:p-1/x@1", "vale0:p", NR_REG_ONE_NIC, 1, NR_EXCLUSIVE, 1),
            ("netmap:eth0{1", "eth0{1", NR_REG_ALL_NIC, 0, 0, 0),
            ("vale1:x}1", "vale1:x}1", NR_REG_ALL_NIC, 0, 0, 0),
            (
                "netmap:eth0/tr",
                "eth0",
                NR_REG_ONE_NIC,
                0,
                NR_MONITOR_TX | NR_MONITOR_RX,
                0,
            ),
            (
                "netmap:eth0/zR@2",
                "eth0",
                NR_REG_ONE_NIC,
                0,
                NR_ZCOPY_MON | NR_RX_RINGS_ONLY,
                2,
            ),
        ];
        for (text, kernel, mode, ring, flags, region) in cases {
            assert_eq!(
                parsed(text),
                (kernel.to_owned(), mode, ring, flags, region),
                "{text}"
            );
        }
    }

    #[test]
    fn only_the_name_of_an_interface_has_a_ring_for_every_worker() {
        let of = |text| PortName::parse(text).unwrap();
        assert!(of("eth0").has_queues() && of("netmap:eth0/R").has_queues());
        for one in ["netmap:eth0-0", "netmap:eth0^", "vale0:p", "netmap:eth0{1"] {
            assert!(!of(one).has_queues(), "{one}");
        }
        assert!(of("netmap:eth0^").is_host() && !of("netmap:eth0").is_host());
        assert_eq!(of("netmap:eth0^").interface.as_deref(), Some("eth0"));
        assert_eq!(of("netmap:eth0{1").interface, None);
    }

    #[test]
    fn what_is_no_name_is_explained() {
        for (text, reason) in [
            ("", "names no port"),
            ("netmap:", "names no port"),
            ("bridge:p", "prefix"),
            ("vale-0:p", "prefix"),
            ("netmap:eth0{", "pipe"),
            ("netmap:eth0{a.b", "pipe"),
            ("netmap:eth0-", "ring number"),
            ("netmap:eth0-4095", "ring number"),
            ("netmap:eth0-99999", "ring number"),
            ("netmap:eth0*", "two NIC ports"),
            ("netmap:eth0/", "no flag"),
            ("netmap:eth0/Q", "\"Q\""),
            ("netmap:eth0@", "memory region"),
            ("netmap:eth0@0", "memory region"),
            ("netmap:eth0-1^", "means nothing"),
            (&format!("netmap:{}", "e".repeat(16)), "more than 15 bytes"),
            (&format!("vale0:{}{{1", "p".repeat(16)), "more than 15 bytes"),
            (&format!("vale{}:p", "0".repeat(64)), "longer than 63"),
        ] {
            let error = PortName::parse(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
