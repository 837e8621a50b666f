//! What the tests share: the sample applications, the lab, and a cluster.

pub mod apps;
pub mod bench;
pub mod demo;
pub mod interrupt;
pub mod kube;
pub mod lab;
pub mod load;
pub mod out;
pub mod peers;
