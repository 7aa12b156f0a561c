//! The forms that names and addresses may have (VAL-1, VAL-2, VAL-4, VAL-5, VAL-15, VAL-19). Each function gives what
//! is wrong with a text, in words that complete "must …"; nothing if it is right.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

fn is_label_char(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'
}

/// A DNS label (RFC 1123 §2.1): namespaces, Service and port names. A leading digit is allowed (VAL-1).
pub(crate) fn label(text: &str) -> Option<&'static str> {
    if text.len() > 63 {
        return Some("must be no more than 63 characters");
    }
    let edges = |c: Option<char>| c.is_some_and(|c| c != '-');
    (!text.chars().all(is_label_char) || !edges(text.chars().next()) || !edges(text.chars().last()))
        .then_some("must be lower-case letters, digits and `-`, with a letter or digit at both ends")
}

/// A DNS subdomain: labels joined by dots, at most 253 characters.
pub(super) fn subdomain(text: &str) -> Option<&'static str> {
    if text.len() > 253 {
        return Some("must be no more than 253 characters");
    }
    // Kubernetes does not bound the single label here.
    let bad = |part: &str| {
        !part.chars().all(is_label_char) || part.is_empty() || part.starts_with('-') || part.ends_with('-')
    };
    text.split('.')
        .any(bad)
        .then_some("must be a DNS name: lower-case letters, digits, `-` and `.`")
}

fn is_qualified_part(text: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.chars()
        .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && edge(text.chars().next())
        && edge(text.chars().last())
}

/// A label key, and all that has its form: an optional DNS subdomain and `/`, then a name. May be wrong twice.
pub(super) fn qualified(text: &str) -> Vec<&'static str> {
    let mut wrong = Vec::new();
    let name = match text.split_once('/') {
        None => text,
        Some((_, name)) if name.contains('/') => return vec!["must have no more than one `/`"],
        Some((prefix, name)) => {
            if prefix.is_empty() {
                wrong.push("must have something before the `/`");
            } else {
                wrong.extend(subdomain(prefix));
            }
            name
        }
    };
    if name.is_empty() {
        wrong.push("must not be empty");
    } else if name.len() > 63 {
        wrong.push("must be no more than 63 characters");
    }
    if !is_qualified_part(name) {
        wrong.push("must be letters, digits, `-`, `_` and `.`, with a letter or digit at both ends");
    }
    wrong
}

/// A label value.
pub(super) fn label_value(text: &str) -> Option<&'static str> {
    if text.len() > 63 {
        return Some("must be no more than 63 characters");
    }
    (!text.is_empty() && !is_qualified_part(text))
        .then_some("must be letters, digits, `-`, `_` and `.`, with a letter or digit at both ends")
}

/// A container port's name (RFC 6335 §5.1): what a named targetPort refers to.
pub(super) fn port_name(text: &str) -> Option<&'static str> {
    let ok = (1..=15).contains(&text.len())
        && text.chars().all(is_label_char)
        && text.chars().any(|c| c.is_ascii_lowercase())
        && !text.starts_with('-')
        && !text.ends_with('-')
        && !text.contains("--");
    (!ok).then_some(
        "must be a number, or a name of at most 15 lower-case letters, digits and single `-`, with at least one letter",
    )
}

/// An address in its usual form (VAL-19).
pub(super) fn address(text: &str) -> Result<IpAddr, &'static str> {
    match text.parse::<IpAddr>() {
        Ok(IpAddr::V6(v6)) if v6.to_ipv4_mapped().is_some() => {
            Err("must not be an IPv4 address written as IPv6")
        }
        Ok(address) => Ok(address),
        Err(_) => Err("must be an IP address such as 192.0.2.10, without leading zeros"),
    }
}

/// An address as old objects may have it (SVC-13): numbers of IPv4 are decimal, whatever zeroes they begin with.
pub(crate) fn old_address(text: &str) -> Option<IpAddr> {
    let number = |part: &str| {
        let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| part.parse::<u8>().ok()).flatten()
    };
    let dotted = || {
        let numbers: Option<Vec<u8>> = text.split('.').map(number).collect();
        let four: [u8; 4] = numbers?.try_into().ok()?;
        Some(IpAddr::from(Ipv4Addr::from(four)))
    };
    text.parse::<IpAddr>()
        .ok()
        .map(|address| address.to_canonical())
        .or_else(dotted)
}

/// A network as old objects may have it (SVC-13), without what lies beyond its length.
pub(crate) fn old_network(text: &str) -> Option<IpNet> {
    let (address, length) = text.trim().split_once('/')?;
    let length = length.parse().ok()?;
    Some(IpNet::new(old_address(address)?, length).ok()?.trunc())
}

/// An address that can be a frontend's or an endpoint's (VAL-15, EPM-3). Stricter than Kubernetes in that no multicast
/// or broadcast address can: the dataplane would refuse the whole update for one.
pub(crate) fn unusable(address: IpAddr) -> Option<&'static str> {
    let (link_local, broadcast, mapped) = match address {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.is_broadcast(), false),
        IpAddr::V6(v6) => (v6.is_unicast_link_local(), false, v6.to_ipv4_mapped().is_some()),
    };
    if address.is_unspecified() {
        Some("must not be the unspecified address")
    } else if address.is_loopback() {
        Some("must not be a loopback address")
    } else if link_local {
        Some("must not be a link-local address")
    } else if address.is_multicast() {
        Some("must not be a multicast address")
    } else if broadcast {
        Some("must not be the broadcast address")
    } else {
        mapped.then_some("must not be an IPv4 address written as IPv6")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epm_3_no_address_that_the_dataplane_would_refuse_is_taken() {
        let refused = |text: &str| unusable(text.parse().unwrap()).is_some();
        for text in [
            "239.1.1.1",
            "255.255.255.255",
            "ff05::1",
            "::ffff:10.0.0.1",
            "fe80::1",
            "127.0.0.9",
            "::",
        ] {
            assert!(refused(text), "{text}");
        }
        for text in ["192.0.2.1", "240.0.0.1", "fd00::1"] {
            assert!(!refused(text), "{text}");
        }
    }

    #[test]
    fn svc_13_old_forms_of_addresses_and_networks_are_read_as_decimal() {
        let address = |text| old_address(text).map(|address| address.to_string());
        for (text, meant) in [
            ("10.96.0.010", Some("10.96.0.10")),
            ("192.000.002.008", Some("192.0.2.8")),
            ("::ffff:10.0.0.1", Some("10.0.0.1")),
            ("FD00::0001", Some("fd00::1")),
            ("10.96.0.256", None),
            ("10.96.0", None),
            ("10.96.0.+1", None),
            ("", None),
        ] {
            assert_eq!(address(text).as_deref(), meant, "{text}");
        }
        let network = |text| old_network(text).map(|network| network.to_string());
        for (text, meant) in [
            ("192.000.002.0/024", Some("192.0.2.0/24")),
            ("  198.51.100.7/24 ", Some("198.51.100.0/24")),
            ("0.0.0.0/0", Some("0.0.0.0/0")),
            ("fd00::1/64", Some("fd00::/64")),
            ("10.0.0.0/33", None),
            ("10.0.0.0", None),
            ("", None),
        ] {
            assert_eq!(network(text).as_deref(), meant, "{text}");
        }
    }
}
