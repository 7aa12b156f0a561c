//! Which interfaces of this process have the XDP program attached, and in which mode. Never detaches, but what another process
//! has left in a mode that is not wanted: the last port that lets go of an attachment does.

use std::io;

use super::OpenError;
use super::interface::{Interface, InterfaceId};
use super::open::{Attach, PortSpec};
use super::registry::{Registry, Share};
use super::xdp_program::{Attachment, XdpMode};
use super::xdp_shared::Sharing;

/// The attachments of this process: an interface has one XDP program.
static ATTACHMENTS: Registry<InterfaceId, Attachment> = Registry::new();

/// The interface's attachment: the one another port has made, or a new one.
pub(crate) fn attachment(
    spec: &PortSpec,
    interface: &Interface,
    attach: Attach,
    shared: Option<&Sharing>,
) -> Result<Share<InterfaceId, Attachment>, OpenError> {
    let wanted: &[XdpMode] = match attach {
        Attach::Auto => &[XdpMode::Native, XdpMode::Generic],
        Attach::Native => &[XdpMode::Native],
        Attach::Generic => &[XdpMode::Generic],
    };
    let fits = |there: &Attachment| {
        if wanted.contains(&there.mode()) {
            return Ok(true);
        }
        let what = format!("another queue has already attached it as {:?}", there.mode());
        Err(spec.refusal(what, "give all queues of an interface the same attach option"))
    };
    ATTACHMENTS.hold(interface.id(), fits, || {
        make(interface, wanted, shared).map_err(|error| explain_attach(spec, error))
    })
}

/// Takes over what another process has left there, or attaches in the first mode that the interface can.
fn make(interface: &Interface, wanted: &[XdpMode], shared: Option<&Sharing>) -> io::Result<Attachment> {
    if let Some(shared) = shared
        && let Some((mode, link)) = shared.maps.kept_link(interface)
    {
        if wanted.contains(&mode) {
            return Attachment::take_over(link, mode, shared);
        }
        // An interface has one mode at a time.
        shared.maps.forget_link(interface, mode);
    }
    let mut result = Err(io::ErrorKind::Unsupported.into());
    for mode in wanted {
        result = Attachment::new(interface.index(), *mode, shared);
        match &result {
            // Only what another mode could cure.
            Err(e) if !matches!(e.raw_os_error(), Some(libc::EPERM | libc::EBUSY | libc::EEXIST)) => {}
            _ => break,
        }
    }
    let attachment = result?;
    if let Some(Sharing { maps, .. }) = shared {
        maps.keep_link(interface, attachment.mode(), attachment.link())?;
    }
    Ok(attachment)
}

fn explain_attach(spec: &PortSpec, error: io::Error) -> OpenError {
    let advice = match error.raw_os_error() {
        Some(libc::EPERM) => "run as root or with CAP_BPF and CAP_NET_ADMIN, or use driver af_packet",
        Some(libc::EBUSY | libc::EEXIST) => {
            "another XDP program is attached: stop its owner or remove it (`ip link set IF xdp off`; one that is kept: its file \
             below /sys/fs/bpf)"
        }
        _ => "set attach: generic, or use driver af_packet",
    };
    spec.error("cannot attach the XDP program", advice, error)
}
