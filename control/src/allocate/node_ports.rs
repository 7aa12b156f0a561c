//! Which node port each port of a Service gets, and its health checks (AL-5 to AL-8, DEF-3). Takes none of them: that is done once nothing is in
//! the way of the whole Service.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ServiceSpec;

use super::pool::hash;
use super::{Allocator, Holding, Wanted};
use crate::model::{Errors, ServiceName, defaults};

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
                    let Some(number) = self.said_port(name, &field, asked, errors) else {
                        found.push(None);
                        continue;
                    };
                    if held.is_none() && mine.get(&number).is_some_and(|other| *other != port.port) {
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
                    let purpose = port.name.as_deref().unwrap_or_default();
                    let taken =
                        |number: &u16| wanted.node_ports.contains(number) || mine.contains_key(number);
                    let Some(number) = self.picked_port(name, purpose, taken, &field, errors) else {
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
    /// The node port that answers health checks, of a Service that has such (AL-7); `taken` are those of its ports.
    pub(super) fn health_check_node_port(
        &self,
        name: &ServiceName,
        spec: &ServiceSpec,
        held: Option<&Holding>,
        taken: &[u16],
        wanted: &Wanted,
        errors: &mut Errors,
    ) -> Option<u16> {
        const FIELD: &str = "spec.healthCheckNodePort";
        if !defaults::is_health_checked(spec) {
            return None;
        }
        let kept = || held?.health_check_node_port.map(i32::from);
        match spec.health_check_node_port.or_else(kept) {
            Some(asked) if u16::try_from(asked).is_ok_and(|number| taken.contains(&number)) => {
                errors.invalid(FIELD, asked, "is a node port of one of the Service's own ports");
                None
            }
            Some(asked) => self.said_port(name, FIELD, asked, errors),
            None => {
                let taken = |number: &u16| wanted.node_ports.contains(number) || taken.contains(number);
                // No port has such a name.
                self.picked_port(name, "/healthCheck", taken, FIELD, errors)
            }
        }
    }

    /// A node port that `name` asks for by number.
    fn said_port(&self, name: &ServiceName, field: &str, asked: i32, errors: &mut Errors) -> Option<u16> {
        let (first, last) = (self.node_ports.first, self.node_ports.last);
        let number = u16::try_from(asked).ok();
        let number = number.filter(|number| self.node_ports.has((*number).into()));
        let Some(number) = number else {
            errors.invalid(field, asked, format!("must be from {first} to {last}"));
            return None;
        };
        let holder = self.port_holders.get(&number);
        if let Some(holder) = holder.filter(|holder| *holder != name) {
            errors.invalid(field, asked, format!("is already held by Service {holder}"));
        }
        Some(number)
    }

    /// A node port that nobody has, and that is not `taken`.
    fn picked_port(
        &self,
        name: &ServiceName,
        purpose: &str,
        taken: impl Fn(&u16) -> bool,
        field: &str,
        errors: &mut Errors,
    ) -> Option<u16> {
        let free = |number: &u16| !self.port_holders.contains_key(number) && !taken(number);
        let free = |number| u16::try_from(number).is_ok_and(|number| free(&number));
        let picked = self
            .node_ports
            .pick(hash(&[&name.namespace, &name.name, purpose]), free);
        let picked = picked.and_then(|number| u16::try_from(number).ok());
        if picked.is_none() {
            let (first, last) = (self.node_ports.first, self.node_ports.last);
            errors.invalid(field, "", format!("no node port is free from {first} to {last}"));
        }
        picked
    }
}
