//! The few Istio messages the agent reads itself.

use std::collections::BTreeMap;

use prost::Message;

/// `istio.networking.nds.v1.NameTable`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct NameTable {
    /// Host name to addresses.
    #[prost(btree_map = "string, message", tag = "1")]
    pub table: BTreeMap<String, NameInfo>,
}

/// `NameTable.NameInfo`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct NameInfo {
    /// Addresses.
    #[prost(string, repeated, tag = "1")]
    pub ips: Vec<String>,
    /// `Kubernetes`, `External`, …
    #[prost(string, tag = "2")]
    pub registry: String,
    /// Name of the service without domain; Kubernetes services only.
    #[prost(string, tag = "3")]
    pub shortname: String,
    /// Namespace of the service; Kubernetes services only.
    #[prost(string, tag = "4")]
    pub namespace: String,
    /// Deprecated list of further names.
    #[prost(string, repeated, tag = "5")]
    pub alt_hosts: Vec<String>,
}

/// The field of `istio.mesh.v1alpha1.ProxyConfig` that PCDS is about.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct PcdsProxyConfig {
    /// Trust anchors.
    #[prost(string, repeated, tag = "34")]
    pub(super) ca_certificates_pem: Vec<String>,
}
