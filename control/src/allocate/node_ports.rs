//! Which node port each port of a Service gets (AL-5, AL-6, DEF-3). Takes none of them: that is done once nothing is in
//! the way of the whole Service.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ServiceSpec;

use super::pool::hash;
use super::{Allocator, Holding, Wanted};
use crate::model::{Errors, ServiceName};

impl Allocator {
    /// The node port of each of `spec.ports`, in order.
    pub(super) fn node_ports(
        &self,
        name: &ServiceName,
        spec: &ServiceSpec,
        held: Option<&Holding>,
        wanted: &Wanted,
        errors: &mut Errors,
    ) -> Vec<Option<u16>> {
        let ports = spec.ports.as_deref().unwrap_or_default();
        let automatic = match spec.type_.as_deref() {
            Some("NodePort") => true,
            Some("LoadBalancer") => spec.allocate_load_balancer_node_ports != Some(false),
            _ => return vec![None; ports.len()],
        };
        let (mut mine, mut of_port): (BTreeMap<u16, i32>, BTreeMap<i32, u16>) = Default::default();
        let (first, last) = (self.node_ports.first, self.node_ports.last);
        let mut found = Vec::with_capacity(ports.len());
        for (index, port) in ports.iter().enumerate() {
            let field = format!("spec.ports[{index}].nodePort");
            let kept = || {
                let number = held?.node_ports.get(port.name.as_deref().unwrap_or_default())?;
                automatic.then_some(i32::from(*number))
            };
            // On create, a port without a number takes that of its neighbour with the same `port` (AL-6).
            let shared = || {
                let neighbours = || ports.iter().filter(|other| other.port == port.port);
                let asked = neighbours().find_map(|other| other.node_port);
                let given = of_port.get(&port.port).map(|number| i32::from(*number));
                if held.is_none() && automatic {
                    given.or(asked)
                } else {
                    None
                }
            };
            let number = match port.node_port.or_else(kept).or_else(shared) {
                Some(asked) => {
                    let number = u16::try_from(asked).ok();
                    let Some(number) = number.filter(|n| self.node_ports.has((*n).into())) else {
                        errors.invalid(&field, asked, format!("must be from {first} to {last}"));
                        found.push(None);
                        continue;
                    };
                    let holder = self.port_holders.get(&number);
                    if let Some(holder) = holder.filter(|holder| *holder != name) {
                        errors.invalid(&field, asked, format!("is already held by Service {holder}"));
                    } else if held.is_none() && mine.get(&number).is_some_and(|other| *other != port.port) {
                        let message =
                            "may be shared only by ports of the same number and different protocols";
                        errors.invalid(&field, asked, message);
                    }
                    number
                }
                None if !automatic => {
                    found.push(None);
                    continue;
                }
                None => {
                    let seed = hash(&[
                        &name.namespace,
                        &name.name,
                        port.name.as_deref().unwrap_or_default(),
                    ]);
                    let free = |number: &u16| {
                        !self.port_holders.contains_key(number)
                            && !wanted.node_ports.contains(number)
                            && !mine.contains_key(number)
                    };
                    let free = |number| u16::try_from(number).is_ok_and(|number| free(&number));
                    let picked = self.node_ports.pick(seed, free);
                    let Some(number) = picked.and_then(|number| u16::try_from(number).ok()) else {
                        errors.invalid(&field, "", format!("no node port is free from {first} to {last}"));
                        found.push(None);
                        continue;
                    };
                    number
                }
            };
            mine.insert(number, port.port);
            of_port.insert(port.port, number);
            found.push(Some(number));
        }
        found
    }
}
