//! Services as environment variables, for programs that know no names (ENV-1 to ENV-8). Takes Services as they are when a
//! container starts, gives names and values in the order a kubelet has them. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Service};

/// The namespace and name of the Service that every pod is told of (ENV-6).
const API: (&str, &str) = ("default", "kubernetes");

/// The variables for a pod of `namespace`: of its own Services if it wants `links`, and of the API server's always.
pub fn variables<'s>(
    services: impl IntoIterator<Item = &'s Service>,
    namespace: &str,
    links: bool,
) -> Vec<(String, String)> {
    let mut told: BTreeMap<&str, &Service> = BTreeMap::new();
    for service in services {
        let of = service.metadata.namespace.as_deref().unwrap_or_default();
        let name = service.metadata.name.as_deref().unwrap_or_default();
        if of == namespace && links {
            told.insert(name, service);
        } else if (of, name) == API {
            told.entry(name).or_insert(service);
        }
    }
    told.into_iter()
        .flat_map(|(name, service)| of_service(name, service))
        .collect()
}

/// All variables of a container in a pod of `namespace`: of Services, and its own, which win and may name those before them
/// (ENV-7).
pub fn of_container<'s>(
    container: &Container,
    services: impl IntoIterator<Item = &'s Service>,
    namespace: &str,
    links: bool,
) -> BTreeMap<String, String> {
    let mut all: BTreeMap<_, _> = variables(services, namespace, links).into_iter().collect();
    for variable in container.env.iter().flatten() {
        let text = variable.value.as_deref().unwrap_or_default();
        let value = expand(text, |name| all.get(name).map(String::as_str));
        all.insert(variable.name.clone(), value);
    }
    all
}

/// ENV-2.
fn upper(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

/// ENV-3; nothing of one without a cluster IP (ENV-1). The first cluster IP alone counts (ENV-5).
fn of_service(name: &str, service: &Service) -> Vec<(String, String)> {
    let spec = service.spec.clone().unwrap_or_default();
    let ip = spec.cluster_ip.filter(|ip| !ip.is_empty() && ip != "None");
    let (Some(ip), Some(ports)) = (ip, spec.ports) else {
        return Vec::new();
    };
    let Some(first) = ports.first() else {
        return Vec::new();
    };
    let prefix = upper(name);
    let mut variables = vec![
        (format!("{prefix}_SERVICE_HOST"), ip.clone()),
        (format!("{prefix}_SERVICE_PORT"), first.port.to_string()),
    ];
    for port in &ports {
        if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            variables.push((
                format!("{prefix}_SERVICE_PORT_{}", upper(name)),
                port.port.to_string(),
            ));
        }
    }
    // ENV-4.
    let host = if ip.contains(':') {
        format!("[{ip}]")
    } else {
        ip.clone()
    };
    for (index, port) in ports.iter().enumerate() {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let (lower, number) = (protocol.to_lowercase(), port.port);
        let url = format!("{lower}://{host}:{number}");
        if index == 0 {
            variables.push((format!("{prefix}_PORT"), url.clone()));
        }
        let prefix = format!("{prefix}_PORT_{number}_{}", protocol.to_uppercase());
        variables.push((format!("{prefix}_PROTO"), lower));
        variables.push((format!("{prefix}_PORT"), number.to_string()));
        variables.push((format!("{prefix}_ADDR"), ip.clone()));
        variables.insert(variables.len() - 3, (prefix, url));
    }
    variables
}

/// `text` with every `$(NAME)` that `value` knows replaced; others stay, and `$$` is a dollar (ENV-7).
pub fn expand<'v>(text: &str, value: impl Fn(&str) -> Option<&'v str>) -> String {
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            (out, rest) = (out + "$", after);
            continue;
        }
        let name = rest.strip_prefix('(').and_then(|inner| inner.split_once(')'));
        match name {
            Some((name, after)) => {
                match value(name) {
                    Some(value) => out.push_str(value),
                    None => out.push_str(&format!("$({name})")),
                }
                rest = after;
            }
            None => out.push('$'),
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::EnvVar;

    use super::*;

    fn service(namespace: &str, name: &str, spec: &str) -> Service {
        let mut service = crate::model::tests::service(spec);
        service.metadata.namespace = Some(namespace.into());
        service.metadata.name = Some(name.into());
        service
    }

    fn lines(services: &[Service], namespace: &str, links: bool) -> Vec<String> {
        let variables = variables(services, namespace, links).into_iter();
        variables.map(|(name, value)| format!("{name}={value}")).collect()
    }

    #[test]
    fn m1_one_unnamed_port_is_seven_variables_in_this_order() {
        let service = service(
            "test",
            "foo-bar",
            "{clusterIP: 1.2.3.4, ports: [{port: 8080, protocol: TCP}]}",
        );
        assert_eq!(
            lines(&[service], "test", true),
            [
                "FOO_BAR_SERVICE_HOST=1.2.3.4",
                "FOO_BAR_SERVICE_PORT=8080",
                "FOO_BAR_PORT=tcp://1.2.3.4:8080",
                "FOO_BAR_PORT_8080_TCP=tcp://1.2.3.4:8080",
                "FOO_BAR_PORT_8080_TCP_PROTO=tcp",
                "FOO_BAR_PORT_8080_TCP_PORT=8080",
                "FOO_BAR_PORT_8080_TCP_ADDR=1.2.3.4",
            ]
        );
    }

    #[test]
    fn m3_named_ports_have_a_variable_more_and_the_first_port_is_the_services() {
        let spec = "{clusterIP: 9.8.7.6, ports: [{port: 8082}, {port: 8083, name: \"8083\", protocol: UDP}]}";
        assert_eq!(
            lines(&[service("test", "q-u-u-x", spec)], "test", true),
            [
                "Q_U_U_X_SERVICE_HOST=9.8.7.6",
                "Q_U_U_X_SERVICE_PORT=8082",
                "Q_U_U_X_SERVICE_PORT_8083=8083",
                "Q_U_U_X_PORT=tcp://9.8.7.6:8082",
                "Q_U_U_X_PORT_8082_TCP=tcp://9.8.7.6:8082",
                "Q_U_U_X_PORT_8082_TCP_PROTO=tcp",
                "Q_U_U_X_PORT_8082_TCP_PORT=8082",
                "Q_U_U_X_PORT_8082_TCP_ADDR=9.8.7.6",
                "Q_U_U_X_PORT_8083_UDP=udp://9.8.7.6:8083",
                "Q_U_U_X_PORT_8083_UDP_PROTO=udp",
                "Q_U_U_X_PORT_8083_UDP_PORT=8083",
                "Q_U_U_X_PORT_8083_UDP_ADDR=9.8.7.6",
            ]
        );
    }

    #[test]
    fn m4_services_without_a_cluster_ip_have_none() {
        let services = [
            service("test", "headless", "{clusterIP: None, ports: [{port: 80}]}"),
            service("test", "empty", "{clusterIP: \"\", ports: [{port: 80}]}"),
            service("test", "far", "{type: ExternalName, externalName: example.com}"),
        ];
        assert_eq!(lines(&services, "test", true), Vec::<String>::new());
    }

    #[test]
    fn m5_m6_ipv6_is_bracketed_in_urls_only_and_protocols_are_named() {
        let spec = "{clusterIP: \"2001:db8::\", clusterIPs: [\"2001:db8::\", 10.0.0.1], ports: [{port: 8084, protocol: SCTP}]}";
        assert_eq!(
            lines(&[service("test", "svrc", spec)], "test", true),
            [
                "SVRC_SERVICE_HOST=2001:db8::",
                "SVRC_SERVICE_PORT=8084",
                "SVRC_PORT=sctp://[2001:db8::]:8084",
                "SVRC_PORT_8084_SCTP=sctp://[2001:db8::]:8084",
                "SVRC_PORT_8084_SCTP_PROTO=sctp",
                "SVRC_PORT_8084_SCTP_PORT=8084",
                "SVRC_PORT_8084_SCTP_ADDR=2001:db8::",
            ]
        );
    }

    #[test]
    fn m7_a_pod_is_told_of_its_own_namespace_if_it_wants_and_of_the_api_server_always() {
        let of = |namespace: &str, name: &str, ip: &str| {
            service(
                namespace,
                name,
                &format!("{{clusterIP: {ip}, ports: [{{port: 80}}]}}"),
            )
        };
        let mut services = vec![
            of("default", "kubernetes", "10.0.0.1"),
            of("default", "other", "10.0.0.2"),
            of("shop", "web", "10.0.0.3"),
        ];
        let hosts = |services: &[Service], namespace: &str, links: bool| {
            let mut lines = lines(services, namespace, links);
            lines.retain(|line| line.contains("_HOST="));
            lines.join(" ")
        };
        let api = "KUBERNETES_SERVICE_HOST=10.0.0.1";
        assert_eq!(
            hosts(&services, "shop", true),
            format!("{api} WEB_SERVICE_HOST=10.0.0.3")
        );
        assert_eq!(hosts(&services, "shop", false), api);
        assert_eq!(
            hosts(&services, "default", true),
            format!("{api} OTHER_SERVICE_HOST=10.0.0.2")
        );
        assert_eq!(hosts(&services, "default", false), api);
        services.push(of("shop", "kubernetes", "10.0.0.4"));
        assert_eq!(
            hosts(&services, "shop", true),
            "KUBERNETES_SERVICE_HOST=10.0.0.4 WEB_SERVICE_HOST=10.0.0.3"
        );
        assert_eq!(hosts(&services, "shop", false), api);
    }

    #[test]
    fn m7_a_containers_own_variables_win_over_those_of_services() {
        let shop = service("test", "shop", "{clusterIP: 10.0.0.2, ports: [{port: 80}]}");
        let own = |name: &str, value: &str| EnvVar {
            name: name.into(),
            value: Some(value.into()),
            ..EnvVar::default()
        };
        let container = Container {
            env: Some(vec![
                own("AT", "$(SHOP_SERVICE_HOST):$(SHOP_SERVICE_PORT)"),
                own("SHOP_SERVICE_HOST", "shop.example"),
                own("THEN_AT", "$(SHOP_SERVICE_HOST)"),
                own("SHOP_SERVICE_PORT", ""),
            ]),
            ..Container::default()
        };
        for links in [true, false] {
            let all = of_container(&container, [&shop], "test", links);
            let of = |name: &str| all.get(name).map_or("none", String::as_str);
            // What is named is what there was before: the Service's until the container has its own.
            let (at, from_the_service) = if links {
                ("10.0.0.2:80", "tcp://10.0.0.2:80")
            } else {
                ("$(SHOP_SERVICE_HOST):$(SHOP_SERVICE_PORT)", "none")
            };
            assert_eq!((of("AT"), of("SHOP_PORT")), (at, from_the_service), "{links}");
            assert_eq!(of("SHOP_SERVICE_HOST"), "shop.example", "{links}");
            assert_eq!(
                (of("THEN_AT"), of("SHOP_SERVICE_PORT")),
                ("shop.example", ""),
                "{links}"
            );
        }
    }

    #[test]
    fn env_7_references_to_variables_are_replaced() {
        let known = |name: &str| (name == "WEB_PORT").then_some("tcp://1.2.3.4:80");
        for (text, expanded) in [
            ("url=$(WEB_PORT)/x", "url=tcp://1.2.3.4:80/x"),
            (
                "$(NONE) $(WEB_PORT)$(WEB_PORT)",
                "$(NONE) tcp://1.2.3.4:80tcp://1.2.3.4:80",
            ),
            ("$$(WEB_PORT) $$$(WEB_PORT)", "$(WEB_PORT) $tcp://1.2.3.4:80"),
            ("$WEB_PORT $( $(open", "$WEB_PORT $( $(open"),
            ("costs 5$", "costs 5$"),
            ("", ""),
        ] {
            assert_eq!(expand(text, known), expanded, "{text}");
        }
    }
}
