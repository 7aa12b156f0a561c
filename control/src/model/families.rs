//! Families and cluster IPs of a Service (DS-1 to DS-5, DEF-3, VAL-14, VAL-20): what they are where it does not say, and
//! what it may not say of them. Takes the cluster's families and what the Service held before; which addresses are free
//! is `allocate`'s.

use std::collections::HashSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::ServiceSpec;

use super::defaults::is_headless;
use super::field_error::Errors;
use super::{Families, Family, given, names};
use crate::allocate::Holding;

const SINGLE: &str = "SingleStack";
const PREFER: &str = "PreferDualStack";
const REQUIRE: &str = "RequireDualStack";

fn policy_is(spec: &ServiceSpec, policy: &str) -> bool {
    spec.ip_family_policy.as_deref() == Some(policy)
}

/// Its endpoints may be of any family: nothing is allocated, so that nothing limits it.
fn is_headless_without_selector(spec: &ServiceSpec) -> bool {
    is_headless(spec) && spec.selector.as_ref().is_none_or(|selector| selector.is_empty())
}

/// The family of each cluster IP, up to the first that is not an address.
fn families_of(ips: &[String]) -> impl Iterator<Item = Family> {
    ips.iter().map_while(|ip| names::address(ip).ok().map(Family::of))
}

/// Fills in policy, families and cluster IPs as far as they follow from the cluster and from what was before.
pub(super) fn complete(spec: &mut ServiceSpec, cluster: Families, held: Option<&Holding>) {
    if let Some(held) = held {
        keep(spec, held);
    }
    if let (Some(ip), None) = (&spec.cluster_ip, &spec.cluster_ips) {
        spec.cluster_ips = Some(vec![ip.clone()]);
    }
    let any_family = is_headless_without_selector(spec);
    let policy = if any_family { REQUIRE } else { SINGLE };
    spec.ip_family_policy.get_or_insert_with(|| policy.into());
    let mut families = spec.ip_families.take().unwrap_or_default();
    let of_ips: Vec<Family> = families_of(given(&spec.cluster_ips)).collect();
    for family in of_ips.iter().skip(families.len()) {
        if !cluster.has(*family) || families.iter().any(|name| name == family.name()) {
            break;
        }
        families.push(family.name().into());
    }
    if families.is_empty() && of_ips.is_empty() {
        families.push(cluster.primary.name().into());
    }
    let wants_both = policy_is(spec, PREFER) || policy_is(spec, REQUIRE);
    if let [only] = &families[..]
        && let Some(family) = Family::named(only)
        && wants_both
        && (cluster.dual || any_family)
        && !held.is_some_and(|held| stays_single(spec, held, family))
    {
        families.push(family.other().name().into());
    }
    spec.ip_families = Some(families);
}

/// DEF-3: what an update leaves out is as it was. Addresses are let go by policy SingleStack alone: a list that names the
/// first of two does not say that the second is to go.
fn keep(spec: &mut ServiceSpec, held: &Holding) {
    if spec.ip_family_policy.is_none() {
        spec.ip_family_policy.clone_from(&held.policy);
    }
    if held.headless {
        spec.cluster_ip.get_or_insert_with(|| "None".into());
        return;
    }
    let said: Vec<IpAddr> = match &spec.cluster_ips {
        Some(ips) => ips.iter().filter_map(|ip| names::address(ip).ok()).collect(),
        None => spec
            .cluster_ip
            .iter()
            .filter_map(|ip| names::address(ip).ok())
            .collect(),
    };
    let all_said = said.len() == given(&spec.cluster_ips).len().max(spec.cluster_ip.iter().count());
    if spec.cluster_ip.is_none() {
        spec.cluster_ip = held.cluster_ips.first().map(ToString::to_string);
    }
    let keeps = if policy_is(spec, SINGLE) {
        1
    } else {
        held.cluster_ips.len()
    };
    if all_said && said.len() < keeps && held.cluster_ips.starts_with(&said) {
        let kept = held.cluster_ips.iter().take(keeps);
        spec.cluster_ips = Some(kept.map(ToString::to_string).collect());
    }
}

/// DS-5: one that prefers two and got one is not given the second because the cluster has it now; it is when it says so.
fn stays_single(spec: &ServiceSpec, held: &Holding, family: Family) -> bool {
    policy_is(spec, PREFER)
        && held.policy.as_deref() == Some(PREFER)
        && !held.cluster_ips.is_empty()
        && held.families == [family]
}

/// Everything wrong with them, in the API server's order: what is wrong in itself, then what does not fit together, then
/// what this cluster has not. Of those only the first, since the others would follow from it.
pub(super) fn check(spec: &ServiceSpec, cluster: Families, errors: &mut Errors) {
    if spec.type_.as_deref() == Some("ExternalName") {
        return;
    }
    for step in [well_formed, fitting, of_this_cluster] {
        let before = errors.0.len();
        step(spec, cluster, errors);
        if errors.0.len() > before {
            return;
        }
    }
}

fn well_formed(spec: &ServiceSpec, _: Families, errors: &mut Errors) {
    let policies = [PREFER, REQUIRE, SINGLE];
    errors.one_of("spec.ipFamilyPolicy", spec.ip_family_policy.as_deref(), &policies);
    let families = given(&spec.ip_families);
    let mut seen = HashSet::new();
    for (index, family) in families.iter().enumerate() {
        let field = format!("spec.ipFamilies[{index}]");
        errors.one_of(&field, Some(family), &["IPv4", "IPv6"]);
        if !seen.insert(family) {
            errors.duplicate(&field, family, "families must differ");
        }
    }
    let ips = given(&spec.cluster_ips);
    let mut whole = |message: &str| errors.invalid("spec.clusterIPs", ips.join(","), message);
    match &spec.cluster_ip {
        None if !ips.is_empty() => whole("may not be given without spec.clusterIP"),
        Some(ip) if ips.first().is_some_and(|first| first != ip) => whole("must begin with spec.clusterIP"),
        _ => {}
    }
    let alone = ips.first().is_some_and(|ip| ip == "None");
    if alone && ips.len() > 1 {
        return whole("may hold None only alone");
    }
    let before = errors.0.len();
    for (index, ip) in ips.iter().enumerate().skip(usize::from(alone)) {
        if let Err(wrong) = names::address(ip) {
            errors.invalid(&format!("spec.clusterIPs[{index}]"), format!("\"{ip}\""), wrong);
        }
    }
    if errors.0.len() > before {
        return;
    }
    let of_ips: Vec<Family> = families_of(ips).collect();
    if of_ips.len() > 2 || matches!(of_ips[..], [first, second] if first == second) {
        let message = "may hold one address of each family";
        return errors.invalid("spec.clusterIPs", ips.join(","), message);
    }
    for (index, (family, wanted)) in of_ips.iter().zip(families).enumerate() {
        if family.name() != wanted {
            let message = format!("must be an {wanted} address, as spec.ipFamilies[{index}] says");
            errors.invalid(&format!("spec.clusterIPs[{index}]"), &ips[index], message);
        }
    }
}

/// DS-2.
fn fitting(spec: &ServiceSpec, cluster: Families, errors: &mut Errors) {
    let (families, ips) = (given(&spec.ip_families), given(&spec.cluster_ips));
    if policy_is(spec, SINGLE) && (families.len() > 1 || ips.len() > 1) {
        let message = "may not go with two families";
        errors.invalid("spec.ipFamilyPolicy", SINGLE, message);
    }
    for (index, family) in families_of(ips).enumerate() {
        let said = families.get(index).is_some_and(|name| name == family.name());
        if !cluster.has(family) && !said {
            let field = format!("spec.clusterIPs[{index}]");
            errors.invalid(&field, &ips[index], format!("this cluster has {cluster}"));
        }
    }
}

fn of_this_cluster(spec: &ServiceSpec, cluster: Families, errors: &mut Errors) {
    if is_headless_without_selector(spec) {
        return;
    }
    if policy_is(spec, REQUIRE) && !cluster.dual {
        let message = format!("needs a cluster with IPv4 and IPv6; this one has {cluster}");
        errors.invalid("spec.ipFamilyPolicy", REQUIRE, message);
    }
    for (index, name) in given(&spec.ip_families).iter().enumerate() {
        if Family::named(name).is_some_and(|family| !cluster.has(family)) {
            let field = format!("spec.ipFamilies[{index}]");
            errors.invalid(&field, name, format!("this cluster has {cluster}"));
        }
    }
}

/// DS-4, VAL-20: a Service keeps its addresses for as long as it lives, but for a name that stands for another.
pub(super) fn check_update(old: &ServiceSpec, new: &ServiceSpec, errors: &mut Errors) {
    let external_name = |spec: &ServiceSpec| spec.type_.as_deref() == Some("ExternalName");
    if external_name(old) || external_name(new) {
        return;
    }
    let same = |was: &str, is: &str| {
        was == is || matches!((names::address(was), names::address(is)), (Ok(was), Ok(is)) if was == is)
    };
    let (were, are) = (given(&old.cluster_ips), given(&new.cluster_ips));
    for (index, (was, is)) in were.iter().zip(are).enumerate() {
        if !same(was, is) {
            let message = format!("may not change (it is {was}); delete the Service and create it anew");
            errors.invalid(&format!("spec.clusterIPs[{index}]"), is, message);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use crate::allocate::{Allocator, Ranges};
    use crate::model::tests::reset;
    use crate::model::{Model, Service};

    fn allocator(services: &[&str], before: Option<&Model>) -> Allocator {
        let services = services.iter().map(|range| range.parse().unwrap()).collect();
        let ranges = Ranges {
            services,
            ..Ranges::default()
        };
        let held = |service: &Service| {
            let held = before?.allocator.held(&service.name)?.clone();
            Some((service.name.clone(), held))
        };
        let services = before.into_iter().flat_map(Model::services);
        let holdings: BTreeMap<_, _> = services.filter_map(|service| held(service)).collect();
        Allocator::new(ranges, holdings)
    }

    const BOTH: &[&str] = &["10.96.0.0/16", "fd00:96::/112"];
    const SIX_FIRST: &[&str] = &["fd00:96::/112", "10.96.0.0/16"];
    const ONE: &[&str] = &["10.96.0.0/16"];

    fn text(spec: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: a}}\nspec: {{{spec}, ports: [{{port: 80}}]}}\n"
        )
    }

    /// Families and addresses after these specs, or what is wrong with the last.
    fn after(model: &mut Model, specs: &[&str]) -> String {
        specs.iter().for_each(|spec| model.apply(reset(&text(spec))));
        if let Some(problem) = model.problems().first() {
            return problem.to_string();
        }
        let service = model.services().next().unwrap();
        let spec = service.object.spec.clone().unwrap();
        let policy = spec.ip_family_policy.unwrap();
        format!(
            "{policy} {} {}",
            spec.ip_families.unwrap().join(","),
            service.cluster_ips.len()
        )
    }

    fn model(services: &[&str]) -> Model {
        Model::new(allocator(services, None))
    }

    #[test]
    fn ds_3_the_first_range_is_the_family_of_those_that_name_none() {
        for (cluster, said, is) in [
            (BOTH, "type: ClusterIP", "SingleStack IPv4 1"),
            (SIX_FIRST, "type: ClusterIP", "SingleStack IPv6 1"),
            (
                SIX_FIRST,
                "ipFamilyPolicy: PreferDualStack",
                "PreferDualStack IPv6,IPv4 2",
            ),
            (ONE, "ipFamilyPolicy: PreferDualStack", "PreferDualStack IPv4 1"),
            (BOTH, "ipFamilies: [IPv6]", "SingleStack IPv6 1"),
            (BOTH, "clusterIP: 'fd00:96::7'", "SingleStack IPv6 1"),
            (ONE, "clusterIP: None", "RequireDualStack IPv4,IPv6 0"),
        ] {
            assert_eq!(after(&mut model(cluster), &[said]), is, "{said}");
        }
    }

    #[test]
    fn mistakes_are_told_with_their_place_and_what_this_cluster_has() {
        for (cluster, said, wrong) in [
            (
                ONE,
                "ipFamilyPolicy: RequireDualStack",
                "f.yaml:4:24: Service default/a: spec.ipFamilyPolicy: Invalid value: RequireDualStack: needs a cluster with \
                 IPv4 and IPv6; this one has IPv4 only",
            ),
            (
                ONE,
                "ipFamilies: [IPv6]",
                "f.yaml:4:21: Service default/a: spec.ipFamilies[0]: Invalid value: IPv6: this cluster has IPv4 only",
            ),
            (
                ONE,
                "clusterIP: 'fd00:96::7'",
                "f.yaml:4:19: Service default/a: spec.clusterIPs[0]: Invalid value: fd00:96::7: this cluster has IPv4 only",
            ),
            (
                BOTH,
                "ipFamilies: [IPv4], clusterIP: 'fd00:96::7'",
                "f.yaml:4:39: Service default/a: spec.clusterIPs[0]: Invalid value: fd00:96::7: must be an IPv4 address, as \
                 spec.ipFamilies[0] says",
            ),
            (
                BOTH,
                "clusterIP: 'fd00:97::7'",
                "f.yaml:4:19: Service default/a: spec.clusterIPs: Invalid value: fd00:97::7: must be from fd00:96::1 to \
                 fd00:96::ffff, the service range",
            ),
        ] {
            assert_eq!(after(&mut model(cluster), &[said]), wrong);
        }
    }

    #[test]
    fn ds_4_the_second_family_comes_and_goes_and_the_first_address_stays() {
        let mut it = model(BOTH);
        after(&mut it, &["type: ClusterIP"]);
        let first = it.services().next().unwrap().cluster_ips[0];
        let steps = [
            ("ipFamilyPolicy: PreferDualStack", "PreferDualStack IPv4,IPv6 2"),
            ("type: NodePort", "PreferDualStack IPv4,IPv6 2"),
            ("ipFamilyPolicy: SingleStack", "SingleStack IPv4 1"),
            (
                "ipFamilies: [IPv4, IPv6], ipFamilyPolicy: RequireDualStack",
                "RequireDualStack IPv4,IPv6 2",
            ),
            ("ipFamilies: [IPv4]", "RequireDualStack IPv4,IPv6 2"),
        ];
        for (said, is) in steps {
            assert_eq!(after(&mut it, &[said]), is, "{said}");
            assert_eq!(it.services().next().unwrap().cluster_ips[0], first);
            // The same, as a restarted control reads it.
            let mut again = Model::new(allocator(BOTH, Some(&it)));
            assert_eq!(after(&mut again, &[said]), is, "{said}, restarted");
            let ips = |model: &Model| model.services().next().unwrap().cluster_ips.clone();
            assert_eq!(ips(&again), ips(&it));
        }
        let swapped = after(&mut it, &["ipFamilies: [IPv6, IPv4]"]);
        assert!(swapped.contains("must be an IPv6 address"), "{swapped}");
    }

    #[test]
    fn ds_5_who_prefers_two_families_gets_no_second_because_the_cluster_has_it_now() {
        let mut one = model(ONE);
        after(&mut one, &["ipFamilyPolicy: PreferDualStack"]);
        let grown = |specs: &[&str]| after(&mut Model::new(allocator(BOTH, Some(&one))), specs);
        assert_eq!(
            grown(&["ipFamilyPolicy: PreferDualStack"]),
            "PreferDualStack IPv4 1"
        );
        let asked = "ipFamilyPolicy: PreferDualStack, ipFamilies: [IPv4, IPv6]";
        assert_eq!(grown(&[asked]), "PreferDualStack IPv4,IPv6 2");
        assert_eq!(
            grown(&["ipFamilyPolicy: RequireDualStack"]),
            "RequireDualStack IPv4,IPv6 2"
        );
    }

    #[test]
    fn a_cluster_that_loses_a_family_keeps_the_addresses_of_the_other() {
        let mut both = model(BOTH);
        after(&mut both, &["ipFamilyPolicy: PreferDualStack"]);
        let kept = both.services().next().unwrap().cluster_ips[0];
        let mut shrunk = Model::new(allocator(ONE, Some(&both)));
        assert_eq!(
            after(&mut shrunk, &["ipFamilyPolicy: PreferDualStack"]),
            "PreferDualStack IPv4 1"
        );
        assert_eq!(shrunk.services().next().unwrap().cluster_ips, [kept]);
    }
}
