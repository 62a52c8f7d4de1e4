//! The resources of one node: recorded responses or built ones, with their names.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use envoy_types::pb::envoy::service::discovery::v3::DiscoveryResponse;
use envoy_types::pb::google::protobuf::Any;
use prost::Message;

/// `type_url` of clusters.
pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
/// `type_url` of endpoints.
pub const ENDPOINT: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
/// `type_url` of listeners.
pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
/// `type_url` of routes.
pub const ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
/// `type_url` of secrets.
pub const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
/// `type_url` of extension configurations.
pub const EXTENSION: &str = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig";
/// `type_url` of the name table of the agent's DNS server.
pub const NAMES: &str = "type.googleapis.com/istio.networking.nds.v1.NameTable";

/// `type_url` of the mesh-wide proxy configuration, which an agent asks for with `PROXY_CONFIG_XDS_AGENT`.
pub const PROXY_CONFIG: &str = "type.googleapis.com/istio.mesh.v1alpha1.ProxyConfig";

/// The order in which istiod pushes the types.
pub const PUSH_ORDER: &[&str] = &[CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET, EXTENSION, NAMES];

/// Why recorded responses could not be used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A file could not be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// Bytes that are not what they should be.
    #[error("{path}: {source}")]
    Decode {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: prost::DecodeError,
    },
}

/// One named resource.
#[derive(Debug, Clone, PartialEq)]
pub struct Resource {
    /// Name by which a client subscribes.
    pub name: String,
    /// The resource as sent.
    pub any: Any,
}

/// Every resource type seen here has its name in field 1 (`cluster_name` for endpoints).
#[derive(Clone, PartialEq, Message)]
struct Named {
    #[prost(string, tag = "1")]
    name: String,
}

impl Resource {
    /// Names `any` by its own first field; the name table has no name of its own.
    pub fn from_any(any: Any) -> Result<Self, prost::DecodeError> {
        let name = match any.type_url.as_str() {
            NAMES => String::new(),
            _ => Named::decode(any.value.as_slice())?.name,
        };
        Ok(Self { name, any })
    }

    /// Wraps a message.
    pub fn new<M: Message>(name: impl Into<String>, type_url: &str, message: &M) -> Self {
        let any = Any {
            type_url: type_url.to_owned(),
            value: message.encode_to_vec(),
        };
        Self {
            name: name.into(),
            any,
        }
    }
}

/// Resources of one node by type, then name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    types: BTreeMap<String, BTreeMap<String, Resource>>,
}

impl Snapshot {
    /// Loads `<folder>/{cds,eds,lds,rds,sds,ecds,nds}.pb`, those that exist.
    pub fn load(folder: &Path) -> Result<Self, SnapshotError> {
        let mut snapshot = Self::default();
        for kind in ["cds", "eds", "lds", "rds", "sds", "ecds", "nds"] {
            let path = folder.join(format!("{kind}.pb"));
            let bytes = match std::fs::read(&path) {
                Ok(bytes) => bytes,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => return Err(SnapshotError::Io { path, source }),
            };
            let decode = |source| SnapshotError::Decode {
                path: path.clone(),
                source,
            };
            let response = DiscoveryResponse::decode(bytes.as_slice()).map_err(decode)?;
            for any in response.resources {
                snapshot.insert(Resource::from_any(any).map_err(decode)?);
            }
        }
        Ok(snapshot)
    }

    /// Adds or replaces one resource.
    pub fn insert(&mut self, resource: Resource) {
        let types = self.types.entry(resource.any.type_url.clone()).or_default();
        types.insert(resource.name.clone(), resource);
    }

    /// Removes one resource; `false` when it was not there.
    pub fn remove(&mut self, type_url: &str, name: &str) -> bool {
        self.types
            .get_mut(type_url)
            .is_some_and(|t| t.remove(name).is_some())
    }

    /// Removes all resources of a type.
    pub fn remove_type(&mut self, type_url: &str) {
        self.types.remove(type_url);
    }

    /// The resources of one type by name; empty when there are none.
    pub fn of(&self, type_url: &str) -> impl Iterator<Item = &Resource> {
        self.types
            .get(type_url)
            .into_iter()
            .flat_map(BTreeMap::values)
    }

    /// One resource.
    pub fn find(&self, type_url: &str, name: &str) -> Option<&Resource> {
        self.types.get(type_url)?.get(name)
    }

    /// Changes every resource of a type, decoded as `M`.
    pub fn edit<M: Message + Default>(
        &mut self,
        type_url: &str,
        mut change: impl FnMut(&mut M),
    ) -> Result<(), prost::DecodeError> {
        for resource in self
            .types
            .get_mut(type_url)
            .into_iter()
            .flat_map(BTreeMap::values_mut)
        {
            let mut message = M::decode(resource.any.value.as_slice())?;
            change(&mut message);
            resource.any.value = message.encode_to_vec();
        }
        Ok(())
    }
}
