//! A one-pod kubelet: runs an injected pod specification in its own namespaces, with the arguments,
//! environment, mounts, user and capabilities of the specification.
//!
//! Needs root, iproute2 and util-linux. It touches no network but its own.

pub mod fabric;
pub mod interception;
pub mod process;
pub mod rootfs;
pub mod spec;

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use crate::dns::Dns;
use crate::fixtures::{self, Product};
use crate::istiod::{Istiod, IstiodError};
use crate::{ca, netns, probe};
use fabric::Fabric;
use interception::{Interception, ipv6_of};
use process::Process;
use rootfs::Container;
use spec::{Deployment, Downward, expand};

/// Where the control plane is, inside the fabric.
pub const ISTIOD: &str = "10.244.0.1";

/// Why a pod did not come up.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// A file or process could not be handled.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The reason.
        source: io::Error,
    },
    /// A specification that cannot be read.
    #[error("{path}: {reason}")]
    Spec {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// The specification asks the downward API for something unknown here.
    #[error("downward API: nothing known as {0:?}")]
    Downward(String),
    /// A set-up command failed.
    #[error("{reason} (in: {line})")]
    Command {
        /// What was run.
        line: String,
        /// Its error output.
        reason: String,
    },
    /// A container ended with an error.
    #[error("container {container} ended with {status}; it said:\n{log}")]
    Failed {
        /// Its name.
        container: String,
        /// Its status.
        status: std::process::ExitStatus,
        /// Its output.
        log: String,
    },
    /// Something took too long.
    #[error("timed out waiting for {what}; log:\n{log}")]
    Timeout {
        /// What was awaited.
        what: String,
        /// Output of the container concerned.
        log: String,
    },
    /// Fixtures or binaries are missing.
    #[error(transparent)]
    Missing(#[from] fixtures::Missing),
    /// The control plane's sockets.
    #[error(transparent)]
    Istiod(#[from] IstiodError),
}

impl PodError {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// What stands beside the application.
#[derive(Debug, Clone)]
pub enum Sidecar {
    /// The injected containers: rules by `init`, then the agent, which starts the proxy.
    Injected {
        /// Binary `istio-iptables`; `None`: the agent's subcommand.
        init: Option<PathBuf>,
        /// Binary `pilot-agent`.
        agent: PathBuf,
        /// Binary that the agent starts as `/usr/local/bin/envoy`.
        proxy: PathBuf,
    },
    /// Only the proxy, with the bootstrap that the reference agent made for this kind of pod; the
    /// lab itself serves xDS and SDS on the sockets of the agent. For developing either half.
    Bare {
        /// The data plane.
        proxy: PathBuf,
    },
    /// No proxy, no rules.
    None,
}

/// What to run.
#[derive(Debug, Clone)]
pub struct PodSpec {
    /// Unique name; the Kubernetes pod is called `<name>-0`.
    pub name: String,
    /// File in `fixtures/injected` and folder in `fixtures/nodes`.
    pub kind: String,
    /// Address, `10.244.x.x` or `10.245.x.x`.
    pub ip: String,
    /// Labels that replace those of the specification.
    pub labels: Vec<(String, String)>,
    /// Environment that replaces that of the specification's init and proxy containers, as
    /// `proxyMetadata` of the mesh does.
    pub env: Vec<(String, String)>,
    /// Lines of `/etc/hosts`.
    pub hosts: Vec<(String, String)>,
    /// The application; empty: none.
    pub app: Vec<String>,
    /// What differs from the specification's interception. Only for injected pods with an init container.
    pub interception: Interception,
    /// The sidecar.
    pub sidecar: Sidecar,
}

/// Namespaces, folder and control plane that pods share.
#[derive(Debug)]
pub struct Lab {
    /// The control plane; it listens on 10.244.0.1:15012 inside the fabric.
    pub istiod: Istiod,
    fabric: Fabric,
    folder: tempfile::TempDir,
    root_pem: String,
    tokens: Option<PathBuf>,
    binary: Option<PathBuf>,
    /// The cluster's DNS server, on 10.244.0.1:53: how a pod's resolver finds something to ask.
    pub dns: Dns,
}

impl Lab {
    /// Makes the fabric and starts the control plane in it.
    pub fn new() -> Result<Arc<Self>, PodError> {
        let (lab, socket) = Self::empty(None, None)?;
        lab.istiod.serve_tls(socket)?;
        Ok(Arc::new(lab))
    }

    /// As [`Lab::new`], with the path of `outrigger-lab` that pods run as their application.
    pub fn with_binary(binary: PathBuf) -> Result<Arc<Self>, PodError> {
        let (mut lab, socket) = Self::empty(None, None)?;
        lab.istiod.serve_tls(socket)?;
        lab.binary = Some(binary);
        Ok(Arc::new(lab))
    }

    /// A lab whose pods reach a real istiod: connections to 10.244.0.1:15012 are passed on to
    /// `istiod`. `tokens`: folder with `<namespace>.<serviceaccount>.token` files it accepts.
    pub fn relayed(
        istiod: std::net::SocketAddr,
        root_pem: String,
        tokens: Option<PathBuf>,
    ) -> Result<Arc<Self>, PodError> {
        let (lab, socket) = Self::empty(Some(root_pem), tokens)?;
        lab.istiod.relay(socket, istiod)?;
        Ok(Arc::new(lab))
    }

    fn empty(
        root_pem: Option<String>,
        tokens: Option<PathBuf>,
    ) -> Result<(Self, std::net::TcpListener), PodError> {
        let fabric = Fabric::new()?;
        let folder = tempfile::Builder::new()
            .prefix(&format!("{}{}-", fabric::FOLDER, std::process::id()))
            .tempdir()
            .map_err(PodError::io("temporary folder"))?;
        let readable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(folder.path(), readable).map_err(PodError::io("permissions"))?;
        let istiod = Istiod::new()?;
        let address = ([10, 244, 0, 1], 15012).into();
        let socket = netns::listen(&fabric.name(), address).map_err(PodError::io("15012"))?;
        let root_pem = root_pem.unwrap_or_else(|| istiod.authority().root_pem());
        let names = ([10, 244, 0, 1], 53).into();
        let sockets = netns::udp(&fabric.name(), names)
            .and_then(|udp| Ok((udp, netns::listen(&fabric.name(), names)?)));
        let dns = sockets.and_then(|(udp, tcp)| Dns::serve(udp, tcp));
        let dns = dns.map_err(PodError::io("DNS"))?;
        Ok((
            Self {
                istiod,
                fabric,
                folder,
                root_pem,
                tokens,
                binary: None,
                dns,
            },
            socket,
        ))
    }

    fn token(&self, namespace: &str, account: &str) -> Result<String, PodError> {
        let Some(folder) = &self.tokens else {
            return Ok(ca::token(namespace, account));
        };
        let path = folder.join(format!("{namespace}.{account}.token"));
        std::fs::read_to_string(&path).map_err(PodError::io(path.display().to_string()))
    }

    /// The router's network namespace.
    pub fn fabric(&self) -> String {
        self.fabric.name()
    }

    /// Folder with a folder per pod.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts a pod and returns when its init containers have ended and the others are started.
    pub fn start(self: &Arc<Self>, spec: PodSpec) -> Result<Pod, PodError> {
        Pod::start(self.clone(), spec)
    }
}

/// A running pod. Dropping it kills its containers and deletes its namespace.
#[derive(Debug)]
pub struct Pod {
    /// What it runs.
    pub spec: PodSpec,
    /// Its network namespace.
    pub netns: String,
    /// Its folder: logs, volumes.
    pub folder: PathBuf,
    /// Agent and proxy (or the bare proxy).
    pub proxy: Option<Process>,
    /// The application.
    pub app: Option<Process>,
    lab: Arc<Lab>,
    /// The sidecar's container.
    container: Container,
}

/// The redirect rules of a default injection, for pods whose rules are not made by the product.
const REDIRECT: &str = "*nat
:OR_IN -
:OR_OUT -
-A PREROUTING -p tcp -j OR_IN
-A OUTPUT -p tcp -j OR_OUT
-A OR_IN -p tcp -m multiport --dports 15008,15020,15021,15090 -j RETURN
-A OR_IN -p tcp -j REDIRECT --to-ports 15006
-A OR_OUT -o lo -s 127.0.0.6/32 -j RETURN
-A OR_OUT -o lo ! -d 127.0.0.1/32 -p tcp ! --dport 15008 -m owner --uid-owner 1337 -j REDIRECT --to-ports 15006
-A OR_OUT -o lo -j RETURN
-A OR_OUT -m owner --uid-owner 1337 -j RETURN
-A OR_OUT -m owner --gid-owner 1337 -j RETURN
-A OR_OUT -d 127.0.0.1/32 -j RETURN
-A OR_OUT -p tcp -j REDIRECT --to-ports 15001
COMMIT
";

impl Pod {
    fn start(lab: Arc<Lab>, spec: PodSpec) -> Result<Self, PodError> {
        let folder = lab.folder().join(&spec.name);
        std::fs::create_dir(&folder).map_err(PodError::io("pod folder"))?;
        let path = fixtures::root()?
            .join("injected")
            .join(format!("{}.yaml", spec.kind));
        let deployment = Deployment::load(&path)?;
        let ipv6 = ipv6_of(&spec.ip).filter(|_| spec.interception.ipv6);
        let netns = lab.fabric.plug(&spec.name, &spec.ip, ipv6)?;
        let mut pod = Self {
            spec,
            netns,
            folder,
            proxy: None,
            app: None,
            lab,
            container: Container::default(),
        };
        pod.write_files(&deployment)?;
        match pod.spec.sidecar.clone() {
            Sidecar::Injected { init, agent, proxy } => {
                pod.injected(&deployment, init.as_deref(), &agent, &proxy)?;
            }
            Sidecar::Bare { proxy } => pod.bare(&deployment, &proxy)?,
            Sidecar::None => {}
        }
        if !pod.spec.app.is_empty() {
            pod.start_app()?;
        }
        Ok(pod)
    }

    fn volume(&self, name: &str) -> PathBuf {
        self.folder.join("vol").join(name)
    }

    fn write(&self, path: &Path, text: &str) -> Result<(), PodError> {
        std::fs::write(path, text).map_err(PodError::io(path.display().to_string()))
    }

    fn write_files(&self, deployment: &Deployment) -> Result<(), PodError> {
        let mut hosts = format!(
            "127.0.0.1 localhost\n{ISTIOD} istiod.istio-system.svc \
             istiod.istio-system.svc.cluster.local\n"
        );
        for (ip, names) in &self.spec.hosts {
            hosts.push_str(&format!("{ip} {names}\n"));
        }
        self.write(&self.folder.join("hosts"), &hosts)?;
        let ns = deployment.namespace();
        let resolv = format!(
            "nameserver {ISTIOD}\nsearch {ns}.svc.cluster.local svc.cluster.local cluster.local\n\
             options ndots:5 timeout:1\n"
        );
        self.write(&self.folder.join("resolv.conf"), &resolv)?;
        let Some(proxy) = deployment.container("istio-proxy") else {
            return Ok(());
        };
        for mount in &proxy.volume_mounts {
            let folder = self.volume(&mount.name);
            std::fs::create_dir_all(&folder).map_err(PodError::io("volume"))?;
            self.fill(&mount.name, &folder, deployment)?;
        }
        let user = match self.spec.interception.tproxy() {
            true => 0,
            false => proxy.security_context.run_as_user.unwrap_or(1337),
        };
        let group = proxy.security_context.run_as_group.unwrap_or(1337);
        let volumes = rootfs::quote(&self.folder.join("vol").display().to_string());
        fabric::sh(&format!(
            "chmod 755 {folder}; chown -R {user}:{group} {volumes}",
            folder = rootfs::quote(&self.folder.display().to_string())
        ))?;
        Ok(())
    }

    fn fill(&self, volume: &str, folder: &Path, spec: &Deployment) -> Result<(), PodError> {
        match volume {
            "istio-token" => {
                let token = self.lab.token(spec.namespace(), spec.service_account())?;
                self.write(&folder.join("istio-token"), &token)
            }
            "istiod-ca-cert" => self.write(&folder.join("root-cert.pem"), &self.lab.root_pem),
            "istio-podinfo" => {
                let mut labels = spec.labels().clone();
                labels.extend(self.spec.labels.iter().cloned());
                let mut annotations = spec.annotations().clone();
                annotations.extend(self.spec.interception.annotations());
                for (file, map) in [("labels", &labels), ("annotations", &annotations)] {
                    let line = |(k, v): (&String, &String)| {
                        format!("{k}={}\n", serde_json::Value::from(v.as_str()))
                    };
                    self.write(
                        &folder.join(file),
                        &map.iter().map(line).collect::<String>(),
                    )?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn mounts(&self, deployment: &Deployment) -> Vec<(PathBuf, String)> {
        let proxy = deployment.container("istio-proxy");
        let mounts = proxy
            .map(|p| p.volume_mounts.as_slice())
            .unwrap_or_default();
        let mut mounts: Vec<_> = mounts
            .iter()
            .map(|m| (self.volume(&m.name), m.mount_path.clone()))
            .collect();
        // A mount inside another one comes after it.
        mounts.sort_by_key(|(_, path)| path.len());
        mounts
    }

    fn injected(
        &mut self,
        deployment: &Deployment,
        init: Option<&Path>,
        agent: &Path,
        proxy: &Path,
    ) -> Result<(), PodError> {
        let downward = Downward {
            pod_name: format!("{}-0", self.spec.name),
            pod_ip: self.spec.ip.clone(),
            host_ip: ISTIOD.to_owned(),
        };
        let mut binaries = vec![
            (agent.to_owned(), "pilot-agent".to_owned()),
            (proxy.to_owned(), "envoy".to_owned()),
        ];
        binaries.extend(init.map(|i| (i.to_owned(), "istio-iptables".to_owned())));
        for name in ["istio-init", "istio-validation"] {
            let Some(spec) = deployment.container(name) else {
                continue;
            };
            let mut container = self.container(deployment, spec, &downward, &binaries)?;
            self.replace_env(&mut container);
            container.command = match init {
                Some(_) => vec!["/usr/local/bin/istio-iptables".to_owned()],
                None => vec![
                    "/usr/local/bin/pilot-agent".to_owned(),
                    "istio-iptables".to_owned(),
                ],
            };
            container.command.extend(spec.args.iter().skip(1).cloned());
            self.spec
                .interception
                .init_arguments(&mut container.command);
            let mut process = Process::start(&self.netns, &self.folder, name, &container)?;
            let status = process.wait(Duration::from_secs(60))?;
            if !status.success() {
                let (container, log) = (name.to_owned(), process.log());
                return Err(PodError::Failed {
                    container,
                    status,
                    log,
                });
            }
        }
        let Some(spec) = deployment.container("istio-proxy") else {
            return Ok(());
        };
        let mut container = self.container(deployment, spec, &downward, &binaries)?;
        self.spec.interception.privileges(&mut container);
        self.replace_env(&mut container);
        container.command = vec!["/usr/local/bin/pilot-agent".to_owned()];
        let env = container.env.clone();
        container
            .command
            .extend(spec.args.iter().map(|a| expand(a, &env)));
        container.mounts = self.mounts(deployment);
        let template = fixtures::repository().join("bootstrap-templates/envoy_bootstrap_tmpl.json");
        if template.is_file() {
            let to = "/var/lib/istio/envoy/envoy_bootstrap_tmpl.json".to_owned();
            container.mounts.push((template, to));
        }
        self.container = container;
        self.start_proxy()
    }

    /// Environment of the mesh's `proxyMetadata` and of the test, for both containers.
    fn replace_env(&self, container: &mut Container) {
        let metadata = self.spec.interception.environment();
        for (key, value) in metadata.iter().chain(&self.spec.env) {
            container.env.retain(|(k, _)| k != key);
            container.env.push((key.clone(), value.clone()));
        }
    }

    fn container(
        &self,
        deployment: &Deployment,
        spec: &spec::Container,
        downward: &Downward,
        binaries: &[(PathBuf, String)],
    ) -> Result<Container, PodError> {
        let security = &spec.security_context;
        let mut env = deployment.environment(spec, downward)?;
        env.push((
            "PATH".into(),
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into(),
        ));
        env.push(("HOME".into(), "/home/istio-proxy".into()));
        // A kubelet says in every container where the API server is.
        env.push(("KUBERNETES_SERVICE_HOST".into(), "10.96.0.1".into()));
        env.push(("KUBERNETES_SERVICE_PORT".into(), "443".into()));
        Ok(Container {
            command: Vec::new(),
            env,
            user: (
                security.run_as_user.unwrap_or(1337),
                security.run_as_group.unwrap_or(1337),
            ),
            capabilities: security
                .capabilities
                .add
                .iter()
                .map(|c| c.to_lowercase())
                .collect(),
            mounts: Vec::new(),
            binaries: binaries.to_vec(),
            read_only: security.read_only_root_filesystem,
        })
    }

    fn bare(&mut self, deployment: &Deployment, proxy: &Path) -> Result<(), PodError> {
        if deployment.container("istio-init").is_some() {
            let rules = self.folder.join("rules");
            self.write(&rules, REDIRECT)?;
            let rules = rootfs::quote(&rules.display().to_string());
            fabric::sh(&format!(
                "ip netns exec {} iptables-restore < {rules}",
                self.netns
            ))?;
        }
        let path = fixtures::root()?
            .join("nodes")
            .join(&self.spec.kind)
            .join("envoy-rev.json");
        let text = std::fs::read_to_string(&path).map_err(PodError::io("recorded bootstrap"))?;
        let recorded: serde_json::Value =
            serde_json::from_str(&text).map_err(|e| PodError::Spec {
                path,
                reason: e.to_string(),
            })?;
        let id = recorded
            .pointer("/node/id")
            .and_then(|v| v.as_str())
            .unwrap_or_default();
        let mut parts = id.split('~').skip(1);
        let (ip, name) = (
            parts.next().unwrap_or_default(),
            parts.next().unwrap_or_default(),
        );
        let name = name.split('.').next().unwrap_or_default();
        let text = text
            .replace(ip, &self.spec.ip)
            .replace(name, &format!("{}-0", self.spec.name));
        self.write(&self.volume("istio-envoy").join("envoy-rev.json"), &text)?;
        let spiffe = format!(
            "spiffe://cluster.local/ns/{}/sa/{}",
            deployment.namespace(),
            deployment.service_account()
        );
        let (xds, sds) = (
            self.volume("istio-envoy").join("XDS"),
            self.volume("workload-socket").join("socket"),
        );
        self.lab.istiod.serve_ads_unix(&xds)?;
        self.lab.istiod.serve_sds_unix(&sds, &spiffe)?;
        fabric::sh(&format!(
            "chmod 666 '{}' '{}'",
            xds.display(),
            sds.display()
        ))?;
        let mut command = vec![
            "/usr/local/bin/envoy",
            "-c",
            "/etc/istio/proxy/envoy-rev.json",
        ];
        command.extend(crate::oracle::FLAGS);
        command.extend(["--concurrency", "2"]);
        let container = Container {
            command: command.into_iter().map(ToOwned::to_owned).collect(),
            env: vec![("PATH".into(), "/usr/local/bin:/usr/bin:/bin".into())],
            user: (1337, 1337),
            mounts: self.mounts(deployment),
            binaries: vec![(proxy.to_owned(), "envoy".to_owned())],
            read_only: true,
            ..Container::default()
        };
        self.container = container;
        self.start_proxy()
    }

    /// Starts the sidecar's container (again), as a kubelet does when it has ended: same network,
    /// volumes and log, a new file system; what still runs of the old one is killed.
    pub fn start_proxy(&mut self) -> Result<(), PodError> {
        self.proxy = None;
        self.proxy = Some(Process::start(
            &self.netns,
            &self.folder,
            "istio-proxy",
            &self.container,
        )?);
        Ok(())
    }

    /// Starts the application (again).
    pub fn start_app(&mut self) -> Result<(), PodError> {
        let binary = match &self.lab.binary {
            Some(binary) => binary.clone(),
            None => Product::Lab.path()?,
        };
        let container = Container {
            command: self.spec.app.clone(),
            env: vec![("PATH".into(), "/usr/local/bin:/usr/bin:/bin".into())],
            user: (1000, 1000),
            binaries: vec![(binary, "outrigger-lab".to_owned())],
            read_only: true,
            ..Container::default()
        };
        self.app = Some(Process::start(
            &self.netns,
            &self.folder,
            "app",
            &container,
        )?);
        Ok(())
    }

    /// Connects from inside the pod's network as root.
    pub fn connect(&self, to: &str) -> io::Result<TcpStream> {
        let to = to.parse().map_err(io::Error::other)?;
        let stream = netns::connect(&self.netns, to, Duration::from_secs(5))?;
        stream.set_nonblocking(true)?;
        TcpStream::from_std(stream)
    }

    /// One HTTP request from inside the pod's network, e.g. to the admin page.
    pub async fn fetch(&self, to: &str, method: &str, path: &str) -> io::Result<probe::Reply> {
        probe::fetch_on(self.connect(to)?, method, path, "localhost").await
    }

    /// Waits until the pod is ready: port 15021 as a kubelet asks it, or the bare proxy's `/ready`.
    pub async fn ready(&mut self, deadline: Duration) -> Result<Duration, PodError> {
        let start = Instant::now();
        let Some(_) = &self.proxy else {
            return Ok(Duration::ZERO);
        };
        let (address, path) = match self.spec.sidecar {
            Sidecar::Injected { .. } => (format!("{}:15021", self.spec.ip), "/healthz/ready"),
            _ => ("127.0.0.1:15000".to_owned(), "/ready"),
        };
        loop {
            if let Ok(reply) = self.fetch(&address, "GET", path).await
                && reply.status == 200
            {
                return Ok(start.elapsed());
            }
            let Some(proxy) = &mut self.proxy else {
                return Ok(Duration::ZERO);
            };
            if let Some(status) = proxy.exited().map_err(PodError::io("istio-proxy"))? {
                let (container, log) = ("istio-proxy".to_owned(), proxy.log());
                return Err(PodError::Failed {
                    container,
                    status,
                    log,
                });
            }
            if start.elapsed() > deadline {
                let what = format!("pod {} to be ready", self.spec.name);
                return Err(PodError::Timeout {
                    what,
                    log: proxy.log(),
                });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Runs a command in the application's container as its user; returns its standard output.
    pub async fn exec(&self, words: &[&str]) -> Result<String, PodError> {
        Self::run(self.app.as_ref(), 1000, &[], words).await
    }

    /// Runs a command in the proxy's container as uid 1337, with the container's environment.
    pub async fn exec_proxy(&self, words: &[&str]) -> Result<String, PodError> {
        Self::run(self.proxy.as_ref(), 1337, &self.container.env, words).await
    }

    async fn run(
        process: Option<&Process>,
        user: u32,
        env: &[(String, String)],
        words: &[&str],
    ) -> Result<String, PodError> {
        let line = words.join(" ");
        let command = process.and_then(|p| p.command(user, words));
        let Some(command) = command else {
            return Err(PodError::Command {
                line,
                reason: "the container is not running".into(),
            });
        };
        let mut command = tokio::process::Command::from(command);
        command.envs(env.iter().map(|(k, v)| (k, v)));
        let run = command.kill_on_drop(true).output();
        let output = tokio::time::timeout(Duration::from_secs(60), run).await;
        let output = output
            .map_err(|_| PodError::Timeout {
                what: line.clone(),
                log: String::new(),
            })?
            .map_err(PodError::io(line.clone()))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let text = String::from_utf8_lossy(&output.stderr);
        Err(PodError::Command {
            line,
            reason: format!("{}: {}", output.status, text.trim()),
        })
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.app = None;
        self.proxy = None;
        self.lab.fabric.unplug(&self.netns);
    }
}
