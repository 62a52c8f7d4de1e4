//! The demo's pods and what the control plane tells each of them.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{DemoError, Options, Report};
use crate::fixtures;
use crate::istiod::builder::replace_endpoints;
use crate::istiod::{Snapshot, strip};
use crate::pod::interception::{Interception, ipv6_of};
use crate::pod::{Lab, Pod, PodSpec, Sidecar};

/// The running mesh.
#[derive(Debug)]
pub(super) struct Mesh {
    /// Pods by start order: sleep, helloworld-v1, -v2, -v3, eastwest.
    pub(super) pods: Vec<Pod>,
    /// Whether the embedded control plane serves the recorded configuration.
    pub(super) recorded: bool,
    pub(super) lab: Arc<Lab>,
    pub(super) interception: Interception,
    stock: bool,
}

/// Name, kind, address, version.
const PODS: &[(&str, &str, &str, &str)] = &[
    ("sleep", "sleep", "10.244.1.10", "v1"),
    ("helloworld-v1", "helloworld", "10.244.1.11", "v1"),
    ("helloworld-v2", "helloworld", "10.244.2.11", "v2"),
    ("helloworld-v3", "helloworld", "10.245.1.11", "v3"),
    ("eastwest", "eastwest", "10.245.0.31", "latest"),
];

fn spec(pod: &(&str, &str, &str, &str), sidecar: &Sidecar, interception: Interception) -> PodSpec {
    let (name, kind, ip, version) = *pod;
    // The unspecified IPv6 address takes both families.
    let app: &[&str] = match kind {
        "helloworld" if interception.ipv6 => &["http:[::]:5000"],
        "helloworld" => &["http:5000"],
        "sleep" => &["http:8080"],
        _ => &[],
    };
    let mut command: Vec<String> = ["/usr/local/bin/outrigger-lab", "app", "--version", version]
        .map(Into::into)
        .to_vec();
    command.extend(app.iter().map(|a| (*a).to_owned()));
    let mut hosts = Vec::new();
    for (ip, n) in [("10.96.0.11", "helloworld"), ("10.96.0.12", "echo")] {
        let names = format!("{n}.sample {n}.sample.svc.cluster.local {n}");
        let ipv6 = ipv6_of(ip).filter(|_| interception.ipv6);
        hosts.extend(ipv6.map(|ip| (ip.to_string(), names.clone())));
        hosts.push((ip.to_owned(), names));
    }
    let canonical = "service.istio.io/canonical-revision".to_owned();
    PodSpec {
        name: name.to_owned(),
        kind: kind.to_owned(),
        ip: ip.to_owned(),
        labels: vec![
            ("version".to_owned(), version.to_owned()),
            (canonical, version.to_owned()),
        ],
        env: Vec::new(),
        hosts,
        app: if app.is_empty() { Vec::new() } else { command },
        // A gateway has no rules.
        interception: if kind == "eastwest" {
            Interception::default()
        } else {
            interception
        },
        sidecar: sidecar.clone(),
    }
}

impl Mesh {
    pub(super) async fn start(
        options: &Options,
        sidecar: Sidecar,
        stock: bool,
        report: &mut Report,
    ) -> Result<Self, DemoError> {
        report.title("Control plane and pods");
        let lab = match (options.discovery_address, &options.istiod_root) {
            (Some(istiod), Some(root)) => {
                let read = |path: &Path| {
                    std::fs::read_to_string(path).map_err(|source| DemoError::File {
                        path: path.to_owned(),
                        source,
                    })
                };
                println!("   control plane: istiod at {istiod}");
                Lab::relayed(istiod, read(root)?, options.tokens.clone())?
            }
            _ => {
                println!("   control plane: embedded, with its own CA");
                Lab::new()?
            }
        };
        let recorded = options.discovery_address.is_none();
        let interception = options.interception();
        let mut mesh = Self {
            pods: Vec::new(),
            recorded,
            lab,
            interception,
            stock,
        };
        if recorded {
            mesh.configure()?;
        }
        let begin = Instant::now();
        // A real istiod knows nothing of the second network's pods of the demo.
        let count = if recorded { PODS.len() } else { 3 };
        for pod in &PODS[..count] {
            mesh.pods
                .push(mesh.lab.start(spec(pod, &sidecar, interception))?);
        }
        println!(
            "   {count} pods started in {:.1} s",
            begin.elapsed().as_secs_f64()
        );
        for pod in &mut mesh.pods {
            let name = format!("{} ({}) is ready", pod.spec.name, pod.spec.ip);
            let ready = pod.ready(Duration::from_secs(60)).await;
            report.check(&name, ready.map_err(DemoError::from));
        }
        println!(
            "   all ready {:.1} s after the first start",
            begin.elapsed().as_secs_f64()
        );
        Ok(mesh)
    }

    fn load(&self, scenario: &str, node: &str) -> Result<Snapshot, DemoError> {
        let folder = fixtures::root()?.join("xds").join(scenario).join(node);
        let mut snapshot = Snapshot::load(&folder)?;
        if self.stock {
            strip::strip(&mut snapshot)?;
        }
        if node != "eastwest" {
            self.interception.configure(&mut snapshot)?;
        }
        Ok(snapshot)
    }

    fn configure(&self) -> Result<(), DemoError> {
        let ads = &self.lab.istiod.ads;
        let mut client = self.load("02-helloworld", "sleep")?;
        if self.interception.ipv6 {
            // The mesh's own connections go over IPv6.
            for (subset, ip) in [("v1", "10.244.1.11"), ("v2", "10.244.2.11")] {
                let hosts: Vec<_> = ipv6_of(ip)
                    .map(|ip| (ip, 5000).into())
                    .into_iter()
                    .collect();
                let name = format!("|{subset}|helloworld.sample");
                replace_endpoints(&mut client, &name, &hosts);
            }
        }
        ads.set_node("10.244.1.10", client);
        let server = self.load("02-helloworld", "helloworld")?;
        ads.set_node("10.244.1.11", server.clone());
        ads.set_node("10.244.2.11", server);
        ads.set_node("10.245.1.11", self.load("07-multinetwork", "helloworld")?);
        let mut gateway = self.load("07-multinetwork", "eastwest")?;
        // The recorded gateway is that of the first network; ours stands in the second.
        replace_endpoints(
            &mut gateway,
            "helloworld.sample",
            &[([10, 245, 1, 11], 5000).into()],
        );
        ads.set_node("10.245.0.31", gateway);
        Ok(())
    }

    /// Pushes the multi-network configuration to the client: with the endpoints of both networks,
    /// or, as istiod does when the local pods are gone, only the gateway of the second one.
    pub(super) fn push_second_network(&self, local_gone: bool) -> Result<(), DemoError> {
        let mut snapshot = self.load("07-multinetwork", "sleep")?;
        if local_gone {
            let gateway = [([10, 245, 0, 31], 15443).into()];
            replace_endpoints(&mut snapshot, "helloworld.sample", &gateway);
        }
        self.lab.istiod.ads.set_node("10.244.1.10", snapshot);
        Ok(())
    }

    pub(super) fn client(&self) -> Result<&Pod, DemoError> {
        self.pods
            .first()
            .ok_or_else(|| DemoError::Unexpected("no client pod".to_owned()))
    }
}
