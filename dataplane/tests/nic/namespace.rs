//! A network namespace per test, and the few interfaces a test needs in it, by the kernel's own interfaces only.
//!
//! A test runs in a child process of its own, because a user namespace can be entered by a single-threaded process
//! only, and because whatever the test made disappears with the child.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

const IN_CHILD: &str = "SLUICE_NIC_TEST_CHILD";
/// A child that hangs is ended by the kernel's alarm. The longest opens a port a thousand times, for which the kernel waits
/// for its own grace periods: a quarter of a minute, on a busy machine more.
const LIMIT_SECONDS: u32 = 300;

/// Who the test is in its namespace.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum User {
    /// Whoever runs the tests: root keeps its privileges, another user becomes root of a user namespace.
    Same,
    /// Root of a new user namespace, without privileges outside.
    Namespaced,
}

/// Runs `body` in a new network namespace. `name` is the test's own name, by which the child finds it again.
pub(crate) fn in_namespace(name: &str, user: User, body: impl FnOnce()) {
    if std::env::var(IN_CHILD).is_ok_and(|child| child == name) {
        // SAFETY: alarm(2) only arms a timer of this process.
        unsafe { libc::alarm(LIMIT_SECONDS) };
        // A case that looks for leaks counts pages: a huge one, where the machine gives them to all, is 512 at a touch.
        // SAFETY: prctl(2) with PR_SET_THP_DISABLE takes numbers only.
        let one_size = unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
        assert_eq!(one_size, 0, "prctl: {}", io::Error::last_os_error());
        // No router solicitations and the like between the test's own frames.
        for which in ["all", "default"] {
            let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "1");
        }
        return body();
    }
    let own_user = user == User::Namespaced || !rustix::process::geteuid().is_root();
    let maps = [
        (c"/proc/self/setgroups", CString::from(c"deny")),
        (
            c"/proc/self/uid_map",
            CString::new(format!("0 {} 1", rustix::process::geteuid())).unwrap(),
        ),
        (
            c"/proc/self/gid_map",
            CString::new(format!("0 {} 1", rustix::process::getegid())).unwrap(),
        ),
    ];
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(IN_CHILD, name);
    // SAFETY: between fork and exec only system calls are made, on memory that was prepared before.
    unsafe {
        command.pre_exec(move || {
            let flags = libc::CLONE_NEWNET | if own_user { libc::CLONE_NEWUSER } else { 0 };
            if libc::unshare(flags) != 0 {
                return Err(io::Error::last_os_error());
            }
            if own_user {
                for (file, text) in &maps {
                    let fd = libc::open(file.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
                    let bytes = text.as_bytes();
                    if fd < 0 || libc::write(fd, bytes.as_ptr().cast(), bytes.len()) < 0 {
                        return Err(io::Error::last_os_error());
                    }
                    libc::close(fd);
                }
            }
            Ok(())
        });
    }
    let output = command
        .output()
        .expect("the kernel must allow network namespaces to this user");
    for line in String::from_utf8_lossy(&output.stderr)
        .lines()
        .filter(|line| line.starts_with("SKIPPED") || line.starts_with("ABSENT"))
    {
        // Not through `eprintln`, which the harness hides for a test that passes.
        let _ = writeln!(io::stderr(), "{line}");
    }
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "in the namespace:\n{text}");
    assert!(
        text.contains("1 passed"),
        "the child must have run exactly this test:\n{text}"
    );
}

/// Says that a part of a test could not run here.
pub(crate) fn skipped(what: &str, why: &str) {
    eprintln!("SKIPPED {what}: {why}");
}

/// Makes a veth pair, one queue each, both ends up, neither handing over unsegmented TCP, and neither losing what it is to send.
pub(crate) fn veth(a: &str, b: &str) {
    veth_without_wait(a, b);
    // The end brought up first drops what it should send until the kernel's link watch has seen the carrier.
    while !running(a) || !running(b) {
        std::thread::yield_now();
    }
    // The watch tells before it activates, but holds the lock that this waits for.
    up(a);
}

/// The same, but it may lose what it is to send as it comes up.
pub(crate) fn veth_without_wait(a: &str, b: &str) {
    // linux/if_link.h: IFLA_NUM_TX_QUEUES, IFLA_NUM_RX_QUEUES, IFLA_GSO_MAX_SEGS.
    let ones = [31, 32, 40]
        .map(|kind| attribute(kind, &1u32.to_ne_bytes()))
        .concat();
    let named = |name: &str| [vec![0; 16], attribute(3, name.as_bytes()), ones.clone()].concat();
    // IFLA_INFO_DATA with VETH_INFO_PEER; IFLA_LINKINFO with IFLA_INFO_KIND.
    let peer = attribute(2, &attribute(1, &named(b)));
    let link_info = attribute(18, &[attribute(1, b"veth"), peer].concat());
    // RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL.
    route(16, 0x600, &[named(a), link_info].concat());
    up(a);
    up(b);
}

/// How many segments of TCP an interface may hand over in one packet.
pub(crate) fn hand_over_segments(name: &str, segments: u32) {
    // IFLA_GSO_MAX_SEGS in RTM_SETLINK.
    route(
        19,
        0,
        &[by_index(name), attribute(40, &segments.to_ne_bytes())].concat(),
    );
}

/// Moves an interface to the network namespace behind `namespace`, where it is down and without address.
pub(crate) fn move_to(name: &str, namespace: BorrowedFd<'_>) {
    let fd = namespace.as_raw_fd() as u32;
    // IFLA_NET_NS_FD.
    route(
        16,
        0,
        &[by_index(name), attribute(28, &fd.to_ne_bytes())].concat(),
    );
}

/// Gives this thread a network namespace of its own.
pub(crate) fn enter_new_namespace() -> File {
    // SAFETY: unshare(2) takes no pointer.
    let done = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(done, 0, "unshare: {}", io::Error::last_os_error());
    File::open("/proc/thread-self/ns/net").unwrap()
}

/// Deletes an interface.
pub(crate) fn delete(name: &str) {
    // RTM_DELLINK.
    route(17, 0, &by_index(name));
}

/// `struct ifinfomsg` with an index.
fn by_index(name: &str) -> Vec<u8> {
    let index = rustix::net::netdevice::name_to_index(control(), name).unwrap();
    let mut message = vec![0; 16];
    message[4..8].copy_from_slice(&index.to_ne_bytes());
    message
}

/// Gives the interface an address in 10.9.0.0/24.
pub(crate) fn address(name: &str, octets: [u8; 4]) {
    request(name, libc::SIOCSIFADDR, &socket_address(octets));
    request(name, libc::SIOCSIFNETMASK, &socket_address([255, 255, 255, 0]));
}

/// Gives the interface an address in fd09::/64 that works at once.
pub(crate) fn address6(name: &str, last: u8) {
    std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "0").unwrap();
    let mut bytes = [0; 16];
    [bytes[0], bytes[1], bytes[15]] = [0xfd, 9, last];
    let index = rustix::net::netdevice::name_to_index(control(), name).unwrap();
    // struct ifaddrmsg: AF_INET6, prefix length, IFA_F_NODAD, scope, index; IFA_ADDRESS. RTM_NEWADDR.
    let message = [&[libc::AF_INET6 as u8, 64, 2, 0], &index.to_ne_bytes()[..]].concat();
    route(20, 0x600, &[message, attribute(1, &bytes)].concat());
}

/// Gives the interface 10.9.0.1/24 and a neighbour 10.9.0.2, so that the kernel can send to it without asking.
pub(crate) fn address_with_neighbour(name: &str) {
    address(name, [10, 9, 0, 1]);
    // struct arpreq: protocol address, hardware address, flags (ATF_COM | ATF_PERM), netmask, device.
    let mut arp = [0u8; 68];
    arp[..16].copy_from_slice(&socket_address([10, 9, 0, 2]));
    arp[16] = libc::ARPHRD_ETHER as u8;
    arp[18..24].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
    arp[32..36].copy_from_slice(&(libc::ATF_COM | libc::ATF_PERM).to_ne_bytes());
    arp[52..52 + name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: SIOCSARP reads one struct arpreq, which `arp` is in size and layout.
    let done = unsafe { libc::ioctl(control().as_raw_fd(), libc::SIOCSARP, &arp) };
    assert_eq!(done, 0, "SIOCSARP: {}", io::Error::last_os_error());
}

fn socket_address(octets: [u8; 4]) -> [u8; 16] {
    let mut address = [0u8; 16];
    address[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
    address[4..8].copy_from_slice(&octets);
    address
}

/// Brings an interface up.
pub(crate) fn up(name: &str) {
    let flags = (libc::IFF_UP | libc::IFF_RUNNING) as u16;
    request(name, libc::SIOCSIFFLAGS, &flags.to_ne_bytes());
}

/// Takes an interface down: its peer has no carrier.
pub(crate) fn down(name: &str) {
    request(name, libc::SIOCSIFFLAGS, &0u16.to_ne_bytes());
}

/// Sets an interface's MTU.
pub(crate) fn set_mtu(name: &str, mtu: usize) {
    request(name, libc::SIOCSIFMTU, &(mtu as i32).to_ne_bytes());
}

fn running(name: &str) -> bool {
    let flags = request(name, libc::SIOCGIFFLAGS, &[]);
    i32::from(u16::from_ne_bytes([flags[16], flags[17]])) & libc::IFF_RUNNING != 0
}

fn request(name: &str, number: libc::c_ulong, data: &[u8]) -> [u8; 40] {
    let mut request = [0u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    request[16..16 + data.len()].copy_from_slice(data);
    // SAFETY: these requests read and write one struct ifreq, which `request` is in size and layout, without pointers.
    let done = unsafe { libc::ioctl(control().as_raw_fd(), number, &mut request) };
    assert_eq!(done, 0, "{name}: {}", io::Error::last_os_error());
    request
}

/// One of ethtool's requests that set or tell a single number.
pub(crate) fn ethtool(name: &str, command: u32, value: u32) -> u32 {
    let mut words = [command, value];
    request(
        name,
        libc::SIOCETHTOOL,
        &words.as_mut_ptr().expose_provenance().to_ne_bytes(),
    );
    // SAFETY: the kernel wrote both words while `request` ran, through the address that was exposed to it.
    unsafe { std::ptr::read_volatile(&raw const words[1]) }
}

/// Makes a tap that stays, as another program would: with a virtio-net header of so many bytes, and for several queues or not.
pub(crate) fn persistent_tap(name: &str, header: i32, queues: bool) {
    let device = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .unwrap();
    let several = if queues { libc::IFF_MULTI_QUEUE } else { 0 };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | several;
    let mut request = [0u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    request[16..20].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: TUNSETIFF reads and writes one struct ifreq, TUNSETVNETHDRSZ reads an int; TUNSETPERSIST takes a number.
    let done = unsafe {
        libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &mut request)
            | libc::ioctl(device.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header)
            | libc::ioctl(device.as_raw_fd(), libc::TUNSETPERSIST, 1)
    };
    assert_eq!(done, 0, "{name}: {}", io::Error::last_os_error());
}

fn control() -> OwnedFd {
    rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None).unwrap()
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = ((value.len() + 4) as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// One rtnetlink request, acknowledged.
fn route(kind: u16, flags: u16, body: &[u8]) {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    let mut message = ((body.len() + 16) as u32).to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    // NLM_F_REQUEST | NLM_F_ACK.
    message.extend((flags | 5).to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    rustix::net::send(&socket, &message, SendFlags::empty()).unwrap();
    let mut answer = [0; 4096];
    let (read, _) = rustix::net::recv(&socket, &mut answer, RecvFlags::empty()).unwrap();
    // struct nlmsgerr behind the header: 0 or a negative errno.
    let code = i32::from_ne_bytes(answer[16..20].try_into().unwrap());
    assert!(
        read >= 20 && code == 0,
        "rtnetlink: {}",
        io::Error::from_raw_os_error(-code)
    );
}
